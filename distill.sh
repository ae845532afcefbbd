#!/usr/bin/env bash
# Distils a student:   bash distill.sh
# First it builds the missing parts of the bundled example: collection, encoder, teacher, general student.
# Edit the variables below, or set them for one command:   bash distill.sh distill_model_type=standard seed=43
set -euo pipefail
cd "$(dirname "$0")"
source ./common.sh
read_arguments distill.sh "$@"

# --- method
# simplified: attention + hidden states + soft + hard labels, the paper's method. standard: soft + hard labels.
# tinybert: two steps, intermediate (attention + hidden states), then prediction (soft labels). hard: hard labels only,
# without a teacher. intermediate, prediction: one of the two steps. margin_mse: margins between passages of a query.
distill_model_type=${distill_model_type:-simplified}
att_weight=${att_weight:-}                  # weight of attention scores in the loss. Default of all: the method's.
rep_weight=${rep_weight:-}                  # of hidden states. An ablation sets one of the weights to 0: rep_weight=0
soft_weight=${soft_weight:-}                # of soft labels
hard_weight=${hard_weight:-}                # of hard labels
margin_weight=${margin_weight:-}            # of margins: relevant minus not relevant passage of the same query
layer_map=${layer_map:-}                    # teacher layer for each student layer: 4,8,12. Default: evenly spaced
ignore_padding=${ignore_padding:-no}        # yes: attention and hidden states of real tokens only; not as published
teacher_dropout=${teacher_dropout:-no}      # yes: keep the teacher's dropout on, as in the published training
alpha=${alpha:-}                            # standard only: weight of soft labels; hard: 1 - alpha. Default: 0.5
temperature=${temperature:-}                # of the soft labels; above 1 it softens the probabilities. Default: 1
pooled_activation=${pooled_activation:-}    # before the classifier. Default: as in the teacher. relu: as published

# --- files. For your own collection, set its name and the paths of its pairs and models.
collection=${collection:-python_docs}       # python_docs is the bundled example; this script builds it
set_name=${set_name:-train}                 # general: train_pairs is plain text, for intermediate
train_pairs=${train_pairs:-}                # default: data/COLLECTION/train_pairs.tsv; with general text.txt there
teacher_model=${teacher_model:-models/$collection/teacher}
general_student_model=${general_student_model:-models/$collection/general_student}
output_student_dir=${output_student_dir:-}  # default: models/COLLECTION/student_METHOD, with the variables of the
                                            # sections method, best checkpoint and training that are not the default:
                                            # student_simplified_seed43. Other variables and paths do not count
features_file=${features_file:-}            # default: beside the pairs, made again if the pairs or settings
                                            # changed. A file named here is made only if it is missing
overwrite=${overwrite:-no}                  # yes: replace the run in output_student_dir; no: resume it if unfinished
dev_pairs=${dev_pairs:-}                    # pairs of queries that are not used for training. The checkpoint that
                                            # ranks them best is the student. Some 100 queries are enough.
                                            # Default: the student after the last step
dev_qrels=${dev_qrels:-}                    # relevance judgments of the dev queries

# --- best checkpoint, with dev_pairs
dev_measure=${dev_measure:-}                # of documents ranked by MaxP: NDCG@10, MAP, ... Default: MRR@10
eval_model_step=${eval_model_step:-}        # steps between evaluations. Default: one epoch
early_stopping_patience=${early_stopping_patience:-}  # evaluations without a better one before the stop. Default: never

# --- training
do_lower_case=${do_lower_case:-yes}         # no: for a cased vocabulary
max_seq_length=${max_seq_length:-128}       # tokens of query and passage; the paper has 256. 128 is half the work, for
                                            # a CPU. Most pairs of the example's test set fit
train_batch_size=${train_batch_size:-16}     # examples per step; the paper has 64. The example has only 9,000 pairs
learning_rate=${learning_rate:-2e-4}        # the highest value; the paper has 5e-5, for many more steps
num_train_epochs=${num_train_epochs:-1}     # passes over the pairs; the paper has 2
intermediate_learning_rate=${intermediate_learning_rate:-}        # tinybert, first step. Default: learning_rate
intermediate_num_train_epochs=${intermediate_num_train_epochs:-}  # tinybert, first step. Default: num_train_epochs
warmup_proportion=${warmup_proportion:-0.1} # share of the steps in which the learning rate rises
weight_decay=${weight_decay:-0.01}          # none on biases and LayerNorm
gradient_accumulation_steps=${gradient_accumulation_steps:-1}  # parts of a batch, to save memory
seed=${seed:-42}                            # of shuffling, dropout and initial values

# --- running
teacher_check=${teacher_check:-yes}         # no: accept a teacher that does not rank the training pairs well
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
num_processes=${num_processes:-1}           # processes that share each batch, with the same losses: one for each GPU.
                                            # 1 on a CPU, because threads share the work better. It must divide
                                            # train_batch_size / gradient_accumulation_steps
precision=${precision:-auto}                # of matmuls: fp32, bf16, fp16 (GPU only), or auto: fp16 on a GPU, bf16 on a
                                            # CPU with bfloat16, else fp32
fp16_backend=${fp16_backend:-torch}         # apex: an NVIDIA apex that still has amp, on a GPU
fp16_opt_level=${fp16_opt_level:-O1}        # of apex
train_loss_step=${train_loss_step:-20}      # steps between lines of train_loss.jsonl
save_model_step=${save_model_step:-500}     # steps between checkpoints, from which a stopped run resumes; 0: none
keep_checkpoints=${keep_checkpoints:-2}     # newest checkpoints to keep, each 5 times the student's size; 0: all
tensorboard_dir=${tensorboard_dir:-}        # TensorBoard's curves, if it is installed. Default: none
deterministic=${deterministic:-no}          # yes: a GPU gives the same bytes each time, but slower; a CPU always does
python=${python:-$default_python}           # the Python interpreter. Default: .venv/bin/python if it exists, or python

compare_with_defaults
check_hardware
check_yes_no overwrite do_lower_case teacher_dropout teacher_check ignore_padding deterministic
case $set_name:$distill_model_type in
    train:simplified | train:standard | train:tinybert | train:intermediate | train:prediction | train:hard | \
        train:margin_mse) ;;
    general:intermediate) train_pairs=${train_pairs:-data/$collection/text.txt} ;;
    *) fail "distill_model_type=$distill_model_type with set_name=$set_name: train has simplified, standard," \
        "tinybert, intermediate, prediction, hard, margin_mse; general has intermediate" ;;
esac
train_pairs=${train_pairs:-data/$collection/train_pairs.tsv}
[[ -n $output_student_dir || ${#student_suffix} -le 120 ]] ||
    fail "so many variables differ from their defaults that the student's name is too long; set output_student_dir"
output_student_dir=${output_student_dir:-models/$collection/student_$distill_model_type$student_suffix}
[[ $overwrite == yes || ! -e $output_student_dir/config.json && ! -e $output_student_dir/training.json ]] ||
    grep -qs -e '"finished": false' -- "$output_student_dir/training.json" ||
    fail "$output_student_dir holds a run already; set overwrite=yes to replace it, or another output_student_dir"
# hard labels alone need no teacher
[[ $distill_model_type != hard || -n $att_weight$rep_weight$soft_weight$margin_weight ]] || teacher_model=
if [[ $overwrite == no && $fp16_backend == torch ]]; then resume=yes; else resume=no; fi # apex cannot resume
if [[ $teacher_check == yes ]]; then no_teacher_check=no; else no_teacher_check=yes; fi

for name in teacher_model dev_pairs dev_qrels; do # the example's files may not exist yet
    [[ $collection == python_docs && ${!name} == */python_docs/* ]] || check_exists "make it first" "$name"
done
flags=(--distill_model="$distill_model_type" --att_weight="$att_weight" --rep_weight="$rep_weight"
    --soft_weight="$soft_weight" --hard_weight="$hard_weight" --margin_weight="$margin_weight" --layer_map="$layer_map"
    --ignore_padding="$ignore_padding" --no_teacher_check="$no_teacher_check" --teacher_dropout="$teacher_dropout"
    --alpha="$alpha" --temperature="$temperature" --pooled_activation="$pooled_activation"
    --teacher_model="$teacher_model" --general_student_model="$general_student_model"
    --output_student_dir="$output_student_dir" --overwrite="$overwrite" --resume="$resume"
    --do_lower_case="$do_lower_case" --dev_qrels="$dev_qrels" --dev_measure="$dev_measure"
    --eval_model_step="$eval_model_step" --early_stopping_patience="$early_stopping_patience"
    --max_seq_length="$max_seq_length" --train_batch_size="$train_batch_size" --learning_rate="$learning_rate"
    --num_train_epochs="$num_train_epochs" --intermediate_learning_rate="$intermediate_learning_rate"
    --intermediate_num_train_epochs="$intermediate_num_train_epochs" --warmup_proportion="$warmup_proportion"
    --weight_decay="$weight_decay" --gradient_accumulation_steps="$gradient_accumulation_steps" --seed="$seed"
    --device="$device" --precision="$precision" --fp16_backend="$fp16_backend" --fp16_opt_level="$fp16_opt_level"
    --train_loss_step="$train_loss_step" --save_model_step="$save_model_step" --keep_checkpoints="$keep_checkpoints"
    --tensorboard_dir="$tensorboard_dir" --deterministic="$deterministic")
"$python" distill.py "${flags[@]}" --features_file="$train_pairs" --dev_features_file="$dev_pairs" --check_flags ||
    end_after_check $?
print_settings

[[ $collection != python_docs ]] || run env max_seq_length="$max_seq_length" device="$device" precision="$precision" \
    python="$python" bash experiments/python_docs/prepare.sh
check_exists "make it first" teacher_model dev_pairs dev_qrels
features=
[[ -z $dev_pairs ]] || tokenize dev "$dev_pairs" "$general_student_model"
dev_features_file=$features
tokenize "$set_name" "$train_pairs" "$general_student_model" "$features_file"

set_launch
run "${launch[@]}" distill.py "${flags[@]}" --features_file="$features" --dev_features_file="$dev_features_file"

if [[ $distill_model_type == intermediate && -z $soft_weight$hard_weight$margin_weight ]]; then # no ranker yet
    printf 'Next: collection=%q general_student_model=%q max_seq_length=%q do_lower_case=%q %s\n' \
        "$collection" "$output_student_dir" "$max_seq_length" "$do_lower_case" "bash distill.sh"
else
    printf 'Next: collection=%q teacher_model=%q student_model=%q max_seq_length=%q do_lower_case=%q %s\n' \
        "$collection" "$teacher_model" "$output_student_dir" "$max_seq_length" "$do_lower_case" "bash reranker.sh"
fi
