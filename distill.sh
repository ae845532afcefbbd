#!/usr/bin/env bash
# Distils a student:   bash distill.sh
# Whatever of the bundled example is missing (collection, encoder, teacher, general student) is built first.
# Every variable below can be edited here or set from the environment:   distill_model_type=standard bash distill.sh
set -euo pipefail
cd "$(dirname "$0")"

# --- method
# simplified: attention + hidden states + soft + hard labels, the paper's; standard: soft and hard labels; tinybert: two
# steps, intermediate (attention + hidden states), then prediction (soft labels); hard: hard labels alone, no teacher.
# intermediate and prediction alone as well
distill_model_type=${distill_model_type:-simplified}
att_weight=${att_weight:-}                  # weights of the terms: attention scores, hidden states, soft labels, hard
rep_weight=${rep_weight:-}                  # labels. empty: as the method has them. An ablation is a method with one of
soft_weight=${soft_weight:-}                # them at 0: hard_weight=0
hard_weight=${hard_weight:-}
layer_map=${layer_map:-}                    # teacher layers that the student's learn from: 4,8,12. empty: evenly
ignore_padding=${ignore_padding:-no}        # yes: attention and hidden states of real tokens alone, not as published
teacher_check=${teacher_check:-yes}         # no: also a teacher that cannot rank the pairs may teach
teacher_dropout=${teacher_dropout:-no}      # yes: the teacher's dropout stays on, as in the published training
alpha=${alpha:-}                            # standard only: weight of the soft labels, the rest is for the hard ones.
                                            # empty: 0.5
temperature=${temperature:-}                # of soft labels; above 1 softens the teacher's probabilities. empty: 1
pooled_activation=${pooled_activation:-}    # before the classifier. empty: as the teacher has it; relu: as published

# --- files. Give a collection of your own a name, and say where its pairs and models are.
collection=${collection:-python_docs}       # python_docs is the bundled example, which builds itself
set_name=${set_name:-train}                 # general: train_pairs is plain text, for intermediate: general distillation
train_pairs=${train_pairs:-}                # empty: data/COLLECTION/train_pairs.tsv, or text.txt there for general
teacher_model=${teacher_model:-models/$collection/teacher}
general_student_model=${general_student_model:-models/$collection/general_student}
output_student_dir=${output_student_dir:-models/$collection/student_$distill_model_type}
features_file=${features_file:-}            # empty: beside the pairs, made again when those are newer. One that is
                                            # named here is made where it is missing, else taken as it is
overwrite=${overwrite:-no}                  # yes: replace the student that output_student_dir holds, or start its
                                            # training anew. no: a training that was stopped goes on
do_lower_case=${do_lower_case:-yes}         # no: for a cased vocabulary

# --- the best student
dev_pairs=${dev_pairs:-}                    # pairs to re-rank, of queries that are not trained on: the student that
                                            # ranks them best is kept. Some 100 queries tell students apart.
                                            # empty: the student after the last update
dev_qrels=${dev_qrels:-}                    # their judgements
dev_measure=${dev_measure:-}                # of the documents ranked by MaxP: NDCG@10, MAP... empty: MRR@10
eval_model_step=${eval_model_step:-}        # updates between evaluations. empty: one an epoch
early_stopping_patience=${early_stopping_patience:-}  # evaluations without a better one, and then stop. empty: never

# --- training
max_seq_length=${max_seq_length:-128}       # tokens of query and passage; the paper has 256. 128 is for a CPU: half the
                                            # work, and as passages start every 75 words most text is still seen
train_batch_size=${train_batch_size:-8}     # examples per update; the paper has 64. 8 is for the example's 1,900 pairs
learning_rate=${learning_rate:-1e-4}        # the highest; the paper has 5e-5, for far more updates
num_train_epochs=${num_train_epochs:-1}     # passes over the pairs; the paper has 2
intermediate_learning_rate=${intermediate_learning_rate:-$learning_rate}       # of tinybert's first step
intermediate_num_train_epochs=${intermediate_num_train_epochs:-$num_train_epochs}
warmup_proportion=${warmup_proportion:-0.1} # share of the updates in which the learning rate rises
weight_decay=${weight_decay:-0.01}          # none on biases and LayerNorm
gradient_accumulation_steps=${gradient_accumulation_steps:-1}  # parts of a batch, to save memory
seed=${seed:-42}                            # of shuffling, dropout and initial values

# --- running
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
num_processes=${num_processes:-1}           # that share each batch, with the same losses: one for each GPU. On a CPU 1:
                                            # threads share the work better. Must divide train_batch_size /
                                            # gradient_accumulation_steps
precision=${precision:-auto}                # of the products: fp32, bf16, fp16 (a GPU), or auto: fp16 on a GPU, bf16 on a CPU
                                            # that multiplies it, else fp32
fp16_backend=${fp16_backend:-torch}         # apex: NVIDIA apex that still has amp, on a GPU
fp16_opt_level=${fp16_opt_level:-O1}        # of apex
train_loss_step=${train_loss_step:-20}      # updates between lines of train_loss.jsonl
save_model_step=${save_model_step:-500}     # updates between checkpoints, from which a stopped run goes on; 0: none
keep_checkpoints=${keep_checkpoints:-2}     # so many, the newest; each has five times the size of the student. 0: all
tensorboard_dir=${tensorboard_dir:-}        # curves for TensorBoard, if it is installed. empty: training_curves.png alone
deterministic=${deterministic:-no}          # yes: a GPU gives the same bytes each time, more slowly; a CPU always does
python=${python:-python}                    # the interpreter

fail() {
    echo "distill.sh: $*" >&2
    exit 2
}
case $distill_model_type in
    simplified | standard | tinybert | intermediate | prediction | hard) ;;
    *) fail "distill_model_type=$distill_model_type is none of simplified, standard, tinybert, intermediate," \
        "prediction, hard" ;;
esac
if [[ $distill_model_type == tinybert && $soft_weight =~ ^0+\.?0*$ ]]; then
    fail "soft_weight=$soft_weight leaves tinybert's second step nothing to learn from its teacher"
fi
case $set_name:$distill_model_type in
    train:*) train_pairs=${train_pairs:-data/$collection/train_pairs.tsv} ;;
    general:intermediate) train_pairs=${train_pairs:-data/$collection/text.txt} ;;
    general:*) fail "set_name=general has no labels and no queries; it goes with distill_model_type=intermediate" ;;
    *) fail "set_name=$set_name is neither train nor general" ;;
esac
for name in overwrite do_lower_case teacher_dropout teacher_check ignore_padding deterministic; do
    case $name:${!name} in *:yes | *:no) ;; *) fail "$name=${!name} is neither yes nor no" ;; esac
done
[[ -z ${fp16:-} ]] || fail "fp16=$fp16 is an old name; set precision=auto, fp32, bf16 or fp16"
case $precision in auto | fp32 | bf16 | fp16) ;; *) fail "precision=$precision is none of auto, fp32, bf16, fp16" ;; esac
[[ $num_processes =~ ^[1-9][0-9]{0,3}$ ]] || fail "num_processes=$num_processes is no number from 1 to 9999"
# A run that was stopped: distill.py says so in the file that it leaves.
is_unfinished() { grep -qs '"finished": false' "$1/training.json"; }
earlier=$(compgen -G "$output_student_dir/config.json" || compgen -G "$output_student_dir/checkpoint-*" || true)
if [[ $overwrite == no && -n $earlier ]] && ! is_unfinished "$output_student_dir"; then
    fail "$output_student_dir holds a run already; set overwrite=yes to replace it, or another output_student_dir"
fi
if [[ -n $dev_pairs ]]; then
    [[ -r $dev_pairs ]] || fail "dev_pairs=$dev_pairs is not there"
    [[ -r $dev_qrels ]] || fail "dev_qrels=$dev_qrels is not there, and dev_pairs needs it"
else
    for name in dev_qrels dev_measure eval_model_step early_stopping_patience; do
        [[ -z ${!name} ]] || fail "$name=${!name} has no use without dev_pairs"
    done
fi
model_id='^[A-Za-z0-9][^/]*(/[^/]+)?$'      # of a model to download, unless there is such a directory
if [[ $collection != python_docs || $set_name == general ]]; then
    [[ -r $train_pairs || -r $features_file ]] || fail "train_pairs=$train_pairs is not there"
fi
if [[ $collection != python_docs ]]; then
    for name in general_student_model teacher_model; do
        [[ -d ${!name} || ${!name} =~ $model_id || $name:$distill_model_type == teacher_model:hard ]] ||
            fail "$name=${!name} is not there"
    done
fi

if [[ $collection == python_docs ]]; then
    max_seq_length=$max_seq_length device=$device precision=$precision python=$python bash experiments/python_docs/prepare.sh
fi

# Several processes are started by torchrun, and share the processor's cores.
launch=("$python")
if ((num_processes > 1)); then
    launch+=(-m torch.distributed.run --standalone --nproc_per_node "$num_processes")
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > num_processes ? cores / num_processes : 1))}
fi

case_flag=--do_lower_case case_name=
[[ $do_lower_case == yes ]] || case_flag=--no-do_lower_case case_name=.cased
# Makes features of a set (train, dev, general) out of its pairs; more flags may follow.
tokenize() {
    "$python" tokenize_to_features.py --set_name "$1" --raw_data_file "$2" --output_features_file "$3" \
        --bert_model_dir "$general_student_model" --max_seq_length "$max_seq_length" "$case_flag" "${@:4}"
}
# Where the features of pairs are, beside them: of their length, and of what else tells them apart.
beside() {
    local stem=${1%.gz}
    echo "${stem%.t[sx][vt]}.$max_seq_length$case_name$2.features"
}
if [[ -z $features_file ]]; then
    kind=
    [[ $set_name == train ]] || kind=.general
    features_file=$(beside "$train_pairs" "$kind")
    [[ $features_file -nt $train_pairs ]] || tokenize "$set_name" "$train_pairs" "$features_file" --overwrite
elif [[ ! -e $features_file ]]; then
    tokenize "$set_name" "$train_pairs" "$features_file"
fi
if [[ -n $dev_pairs ]]; then
    dev_features_file=$(beside "$dev_pairs" "")
    [[ $dev_features_file -nt $dev_pairs ]] || tokenize dev "$dev_pairs" "$dev_features_file" --overwrite
fi

# Distils by a method from a student into an output directory; more flags may follow.
distil() {
    local flags=()
    if [[ $1 != hard || -n $att_weight$rep_weight$soft_weight ]]; then
        flags+=(--teacher_model "$teacher_model")
    fi
    [[ $teacher_dropout == no ]] || flags+=(--teacher_dropout)
    [[ -z $alpha ]] || flags+=(--alpha "$alpha")
    [[ -z $pooled_activation ]] || flags+=(--pooled_activation "$pooled_activation")
    [[ $fp16_backend == torch ]] || flags+=(--fp16_backend "$fp16_backend")
    [[ $fp16_opt_level == O1 ]] || flags+=(--fp16_opt_level "$fp16_opt_level")
    [[ $deterministic == no ]] || flags+=(--deterministic)
    if [[ $overwrite == yes ]]; then
        flags+=(--overwrite)
    elif is_unfinished "$3"; then
        flags+=(--resume)
    fi
    "${launch[@]}" distill.py --distill_model "$1" --features_file "$features_file" \
        --general_student_model "$2" --output_student_dir "$3" --max_seq_length "$max_seq_length" "$case_flag" \
        --train_batch_size "$train_batch_size" --learning_rate "$learning_rate" \
        --num_train_epochs "$num_train_epochs" --warmup_proportion "$warmup_proportion" \
        --weight_decay "$weight_decay" --gradient_accumulation_steps "$gradient_accumulation_steps" --seed "$seed" \
        --device "$device" --precision "$precision" --train_loss_step "$train_loss_step" \
        --save_model_step "$save_model_step" --keep_checkpoints "$keep_checkpoints" \
        ${flags[@]+"${flags[@]}"} "${@:4}"
}

# The flags of attention and hidden states, and those of labels, as far as their variables are set.
layer_terms=() label_terms=()
[[ -z $att_weight ]] || layer_terms+=(--att_weight "$att_weight")
[[ -z $rep_weight ]] || layer_terms+=(--rep_weight "$rep_weight")
[[ -z $layer_map ]] || layer_terms+=(--layer_map "$layer_map")
[[ $ignore_padding == no ]] || layer_terms+=(--ignore_padding)
[[ -z $soft_weight ]] || label_terms+=(--soft_weight "$soft_weight")
[[ -z $hard_weight ]] || label_terms+=(--hard_weight "$hard_weight")
[[ -z $temperature ]] || label_terms+=(--temperature "$temperature")
[[ $teacher_check == yes ]] || label_terms+=(--no_teacher_check)
# And those that only a student which learns labels can have.
if [[ -n $dev_pairs ]]; then
    label_terms+=(--dev_features_file "$dev_features_file" --dev_qrels "$dev_qrels")
    [[ -z $dev_measure ]] || label_terms+=(--dev_measure "$dev_measure")
    [[ -z $eval_model_step ]] || label_terms+=(--eval_model_step "$eval_model_step")
    [[ -z $early_stopping_patience ]] || label_terms+=(--early_stopping_patience "$early_stopping_patience")
fi
if [[ -n $tensorboard_dir ]]; then
    label_terms+=(--tensorboard_dir "$tensorboard_dir")
    [[ $distill_model_type != tinybert ]] || layer_terms+=(--tensorboard_dir "${tensorboard_dir}_intermediate")
fi
if [[ $distill_model_type == tinybert ]]; then
    intermediate_dir=${output_student_dir}_intermediate
    is_new=no   # the second step's student is yet to come
    if [[ ! -e $output_student_dir/config.json ]] || is_unfinished "$output_student_dir"; then is_new=yes; fi
    if [[ $overwrite == no && $is_new == yes && -e $intermediate_dir/config.json ]] &&
        ! is_unfinished "$intermediate_dir"; then
        echo "The first step is done: $intermediate_dir"
    else
        distil intermediate "$general_student_model" "$intermediate_dir" ${layer_terms[@]+"${layer_terms[@]}"} \
            --learning_rate "$intermediate_learning_rate" --num_train_epochs "$intermediate_num_train_epochs"
    fi
    distil prediction "$intermediate_dir" "$output_student_dir" ${label_terms[@]+"${label_terms[@]}"}
else
    distil "$distill_model_type" "$general_student_model" "$output_student_dir" \
        ${layer_terms[@]+"${layer_terms[@]}"} ${label_terms[@]+"${label_terms[@]}"}
fi

# What the next script cannot know by itself.
settings=() next=reranker.sh
[[ $collection == python_docs ]] || settings+=("collection=${collection@Q}")
if [[ $distill_model_type == intermediate && -z $soft_weight$hard_weight ]]; then
    next=distill.sh
    settings+=("general_student_model=${output_student_dir@Q}")
else
    if [[ $distill_model_type == hard ]]; then
        settings+=("teacher_model=")
    elif [[ $teacher_model != "models/$collection/teacher" ]]; then
        settings+=("teacher_model=${teacher_model@Q}")
    fi
    if [[ $output_student_dir != "models/$collection/student_simplified" ]]; then
        settings+=("student_model=${output_student_dir@Q}")
    fi
fi
[[ $max_seq_length == 128 ]] || settings+=("max_seq_length=$max_seq_length")
[[ $do_lower_case == yes ]] || settings+=("do_lower_case=no")
if [[ $next == distill.sh ]]; then
    echo "The student is in $output_student_dir. It is no ranker yet; distil it further:"
else
    echo "The student is in $output_student_dir. Next, re-rank with it:"
fi
echo "   " ${settings[@]+"${settings[@]}"} "bash $next"
