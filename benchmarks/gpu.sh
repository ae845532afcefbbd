#!/usr/bin/env bash
# Checks and measures the project on a GPU:   bash benchmarks/gpu.sh
# It needs no file, no network and no evaluation package: the models have random weights, the data are synthetic.
# Each part writes PART.log and PART.json into the directory out. A part that has passed is not run again, so the same
# command resumes after a stop. If a part fails, the others still run, and the exit status is 1. With the values below
# the parts take about 150 to 180 seconds in all on an H100. More steps, rounds, pairs and scored take longer.
# To rehearse everything on a CPU:   bash benchmarks/gpu.sh quick=yes device=cpu out=/tmp/gpu
set -euo pipefail
cd "$(dirname "$0")/.."
source ./common.sh
read_arguments benchmarks/gpu.sh "$@"

# --- parts
# tests: those marked gpu. resume: a stopped and resumed training gives the same bytes. nccl: a process group of one
# process gives the same losses. distilling and reranking: benchmarks/distilling.py and benchmarks/reranking.py. recipe:
# students of prepared data; only with data_dir. tests, resume and nccl run at once, the others one after the other.
parts=${parts:-tests resume nccl distilling reranking recipe}
out=${out:-benchmarks/gpu}                  # directory of the logs and results
overwrite=${overwrite:-no}                  # yes: run parts again that have passed
quick=${quick:-no}                          # yes: tiny sizes instead of those below
limit=${limit:-300}                         # seconds that a part may take
device=${device:-auto}                      # auto, cpu, cuda or cuda:1. auto needs a GPU, except with quick=yes
python=${python:-$default_python}           # the Python interpreter. Default: .venv/bin/python if it exists, or python

# --- sizes
teacher=${teacher:-12/768}                  # LAYERS/HIDDEN
students=${students:-3/384 6/768}           # the first one re-ranks
batch_size=${batch_size:-64}                # examples of a step, as in the paper
max_seq_length=${max_seq_length:-256}       # tokens of a pair, as in the paper
steps=${steps:-12}                          # optimization steps of each run; the first 3 are not timed on a GPU
rounds=${rounds:-1}                         # runs of each training with dropout, and of each re-ranking; the fastest
                                            # counts
pairs=${pairs:-3000}                        # pairs of text to re-rank, also by CrossEncoder
scored=${scored:-40000}                     # tokenized pairs to re-rank; a tenth for the teacher

# --- recipe. Evaluate its scores elsewhere, with convert_to_trec_results.py and msmarco_mrr_eval.py.
data_dir=${data_dir:-}                      # has train.features and test.features, or train_pairs.tsv and
                                            # test_pairs.tsv
models_dir=${models_dir:-}                  # has teacher and general_student
students_dir=${students_dir:-$out/students} # directory of the students; their scores and logs are in out/recipe
methods=${methods:-hard standard tinybert simplified}
seeds=${seeds:-42 43 44}
jobs=${jobs:-1}                             # trainings at once, on the same GPU
recipe_limit=${recipe_limit:-1500}          # seconds that a student may take
recipe_length=${recipe_length:-160}         # tokens of a pair. This and the next three are those of SciFact's recipe
train_batch_size=${train_batch_size:-8}     # examples per step
learning_rate=${learning_rate:-1e-4}        # the highest value
num_train_epochs=${num_train_epochs:-2}     # passes over the pairs
precision=${precision:-auto}                # of the recipe: fp32, bf16, fp16, or auto: fp16 on a GPU

check_yes_no overwrite quick
for name in limit recipe_limit steps rounds pairs scored jobs; do
    [[ ${!name} =~ ^[1-9][0-9]{0,8}$ ]] || fail "$name=${!name} is not a number from 1"
done
for name in $parts; do
    [[ " tests resume nccl distilling reranking recipe " == *" $name "* ]] || fail "parts: $name is not a part"
done
[[ -z $data_dir$models_dir || -n $data_dir && -n $models_dir ]] || fail "set both of data_dir and models_dir, or none"
command -v timeout >/dev/null || fail "the command timeout is missing; install coreutils"
checks=()
if [[ $quick == yes ]]; then
    teacher=4/24 students='2/12 4/24' batch_size=3 max_seq_length=50 steps=4 pairs=20 scored=100
    checks=(--teacher=4/24 --student=2/12 --updates=30)
elif [[ $device == auto ]]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        fail "torch finds no GPU; set quick=yes to rehearse on a CPU"
fi
mkdir -p -- "$out"
failed=()

# Runs a part in at most `seconds` seconds, unless it has passed. Call: part NAME SECONDS COMMAND...
part() {
    local name=$1 seconds=$2 status=0 begin=$SECONDS
    shift 2
    if [[ $overwrite == no ]] && grep -qs '"passed": true' "$out/$name.json"; then
        echo "$name: has passed before"
        return
    fi
    rm -f -- "$out/$name.json"
    run timeout -k 10 "$seconds" "$@" --device="$device" --results_file="$out/$name.json" >"$out/$name.log" 2>&1 ||
        status=$?
    report "$name" "$status" $((SECONDS - begin)) "$seconds"
}

# Prints how a part ended. Returns 1 if it failed; ends the script if a signal stopped it.
# Call: report NAME STATUS SECONDS LIMIT
report() {
    case $2 in
        0) echo "$1: ended after $3 s" ;;
        129 | 130 | 131 | 143) exit "$2" ;;
        124 | 137) echo "$1: FAILED, it took more than $4 s" && return 1 ;;
        *)
            echo "$1: FAILED with status $2 after $3 s; the end of $out/$1.log:"
            tail -n 5 -- "$out/$1.log" | cut -c 1-1000
            return 1
            ;;
    esac
}

is_wanted() {
    [[ " $parts " == *" $1 "* ]]
}

# Waits for the oldest of the commands in `pids`; `names` are their parts.
wait_for_one() {
    local status=0
    wait "${pids[0]}" || status=$?
    [[ $status -le 1 ]] || stop_background "$status"
    [[ $status == 0 ]] || failed+=("${names[0]}")
    pids=("${pids[@]:1}") names=("${names[@]:1}")
}

# These trap signals for the commands in the background: SIGTERM lets distill.py save a checkpoint.
stop_background() {
    kill $(jobs -p) 2>/dev/null || :
    wait
    exit "$1"
}
pass_on_signals() {
    local name
    for name in HUP:1 INT:2 TERM:15; do trap "stop_background $((128 + ${name#*:}))" "${name%:*}"; done
}

# --- checks, at once: they share the cores
pids=() names=()
cores=$(nproc)
threads=${OMP_NUM_THREADS:-$((cores > 3 ? cores / 3 : 1))}
pass_on_signals
for name in tests resume nccl; do
    is_wanted "$name" || continue
    part "$name" "$limit" env OMP_NUM_THREADS="$threads" \
        "$python" benchmarks/checks.py "$name" ${checks[@]+"${checks[@]}"} &
    pids+=($!) names+=("$name")
done
while [[ ${#pids[@]} -gt 0 ]]; do wait_for_one; done
trap - HUP INT TERM

# --- measurements, one after the other
sizes=(--teacher="$teacher" --max_seq_length="$max_seq_length" --rounds="$rounds" --one_process)
for student in $(is_wanted distilling && echo "$students"); do
    name=distilling_${student/\//_}
    part "$name" "$limit" "$python" benchmarks/distilling.py "${sizes[@]}" --student="$student" \
        --batch_size="$batch_size" --updates="$steps" || failed+=("$name")
done
if is_wanted reranking; then
    part reranking "$limit" "$python" benchmarks/reranking.py "${sizes[@]}" --student="${students%% *}" \
        --pairs="$pairs" --scored="$scored" || failed+=(reranking)
fi

# --- recipe
# Trains a student and scores the test pairs with it, unless the scores exist. Call: train_and_score METHOD SEED
train_and_score() {
    local method=$1 name=$1_seed$2 teacher=$models_dir/teacher begin=$SECONDS status=0 resume=yes suffix
    [[ $overwrite == yes || ! -e $out/recipe/$name.scores.tsv ]] || return 0
    [[ $method != hard ]] || teacher=
    [[ $overwrite == no ]] || resume=no
    {
        run timeout -k 60 "$recipe_limit" "$python" distill.py --distill_model="$method" --seed="$2" \
            --resume="$resume" --overwrite="$overwrite" --train_loss_step=20 --save_model_step=500 \
            --features_file="$data_dir/train.features" --teacher_model="$teacher" \
            --general_student_model="$models_dir/general_student" --output_student_dir="$students_dir/$name" \
            --train_batch_size="$train_batch_size" --learning_rate="$learning_rate" \
            --num_train_epochs="$num_train_epochs" --precision="$precision" --device="$device" &&
            run timeout -k 10 "$recipe_limit" "$python" rerank.py --model_dir="$students_dir/$name" \
                --features_file="$data_dir/test.features" --output_scores_file="$out/recipe/$name.scores.tsv" \
                --precision="$precision" --device="$device" --overwrite
    } >"$out/recipe/$name.log" 2>&1 || status=$?
    for suffix in '' _intermediate; do # the second is tinybert's first training
        [[ -e $students_dir/$name$suffix ]] || continue
        mkdir -p -- "$out/recipe/$name$suffix"
        cp -- "$students_dir/$name$suffix"/{distill.log,training.json,*.jsonl} "$out/recipe/$name$suffix" || :
    done
    report "recipe/$name" "$status" $((SECONDS - begin)) "$recipe_limit"
}

if [[ -n $data_dir ]] && is_wanted recipe; then
    mkdir -p -- "$out/recipe" "$students_dir"
    do_lower_case=yes max_seq_length=$recipe_length
    for set_name in train test; do
        tokenize "$set_name" "$data_dir/${set_name}_pairs.tsv" "$models_dir/general_student" \
            "$data_dir/$set_name.features"
    done
    pass_on_signals
    for seed in $seeds; do
        for method in $methods; do
            [[ ${#pids[@]} -lt $jobs ]] || wait_for_one
            train_and_score "$method" "$seed" &
            pids+=($!) names+=("recipe/${method}_seed$seed")
        done
    done
    while [[ ${#pids[@]} -gt 0 ]]; do wait_for_one; done
    trap - HUP INT TERM
fi

"$python" benchmarks/gpu_summary.py "$out"
[[ ${#failed[@]} == 0 ]] || { echo "FAILED: ${failed[*]}" && exit 1; }
