#!/usr/bin/env bash
# Distils a student:   bash distill.sh
# Whatever of the bundled example is missing (collection, encoder, teacher, general student) is built first.
# Every variable below can be edited here or set from the environment:   distill_model_type=standard bash distill.sh
set -euo pipefail
cd "$(dirname "$0")"

# --- method
# simplified: attention + hidden states + soft + hard labels; standard: soft and hard labels; hard: hard labels alone
distill_model_type=${distill_model_type:-simplified}
alpha=${alpha:-0.5}                         # standard only: weight of the soft labels, the rest is for the hard ones
temperature=${temperature:-1}               # above 1 softens the teacher's probabilities
pooled_activation=${pooled_activation:-}    # empty: as the teacher was made; relu: the published training

# --- files. Give a collection of your own a name, and say where its pairs and models are.
collection=${collection:-python_docs}       # python_docs is the bundled example, which builds itself
train_pairs=${train_pairs:-data/$collection/train_pairs.tsv}
teacher_model=${teacher_model:-models/$collection/teacher}
general_student_model=${general_student_model:-models/$collection/general_student}
output_student_dir=${output_student_dir:-models/$collection/student_$distill_model_type}
overwrite=${overwrite:-no}                  # yes: replace the student that output_student_dir holds

# --- training
max_seq_length=${max_seq_length:-128}       # tokens of query and passage; the paper has 256. 128 is for a CPU: a third of
                                            # the work, and passages start every 75 words, so little is never seen
train_batch_size=${train_batch_size:-16}    # examples per update; the paper has 64, for a million examples
learning_rate=${learning_rate:-2e-4}        # the highest; the paper has 5e-5, for 100 times the updates
num_train_epochs=${num_train_epochs:-2}     # passes over the pairs
warmup_proportion=${warmup_proportion:-0.1} # share of the updates in which the learning rate rises
weight_decay=${weight_decay:-0.01}          # none on biases and LayerNorm
gradient_accumulation_steps=${gradient_accumulation_steps:-1}  # parts of a batch, to save memory; results stay the same
seed=${seed:-42}                            # of shuffling, dropout and initial values

# --- running
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
fp16=${fp16:-no}                            # yes: mixed precision, float16 on a GPU, bfloat16 on a CPU that has it
train_loss_step=${train_loss_step:-20}      # updates between lines of train_loss.jsonl
save_model_step=${save_model_step:-0}       # updates between checkpoints; 0: none but the finished student
python=${python:-python}

# Freed memory is kept and huge pages are asked for: page faults cost a CPU a third of its speed. Linux's C library only.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

if [[ $collection == python_docs ]]; then
    max_seq_length=$max_seq_length device=$device fp16=$fp16 python=$python bash experiments/python_docs/prepare.sh
fi

features_file=${features_file:-data/$collection/train.$max_seq_length.features}
if [[ ! -e $features_file ]]; then
    "$python" tokenize_to_features.py --set_name train --raw_data_file "$train_pairs" \
        --output_features_file "$features_file" --bert_model_dir "$general_student_model" \
        --max_seq_length "$max_seq_length"
fi

flags=()
[[ $distill_model_type == hard ]] || flags+=(--teacher_model "$teacher_model")
[[ -z $pooled_activation ]] || flags+=(--pooled_activation "$pooled_activation")
[[ $fp16 != yes ]] || flags+=(--fp16)
[[ $overwrite != yes ]] || flags+=(--overwrite)
"$python" distill.py --distill_model "$distill_model_type" --features_file "$features_file" \
    --general_student_model "$general_student_model" --output_student_dir "$output_student_dir" \
    --alpha "$alpha" --temperature "$temperature" --max_seq_length "$max_seq_length" \
    --train_batch_size "$train_batch_size" --learning_rate "$learning_rate" --num_train_epochs "$num_train_epochs" \
    --warmup_proportion "$warmup_proportion" --weight_decay "$weight_decay" \
    --gradient_accumulation_steps "$gradient_accumulation_steps" --seed "$seed" --device "$device" \
    --train_loss_step "$train_loss_step" --save_model_step "$save_model_step" ${flags[@]+"${flags[@]}"}

echo "The student is in $output_student_dir. Next, re-rank with it and with its teacher:"
if [[ $distill_model_type == simplified && $collection == python_docs ]]; then
    echo "    bash reranker.sh"
else
    echo "    collection=$collection student_model=$output_student_dir bash reranker.sh"
fi
