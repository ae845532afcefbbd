#!/usr/bin/env bash
# Re-ranks the candidates of the test queries with the teacher and the student; prints measures:   bash reranker.sh
# Edit the variables below, or set them for one command:   bash reranker.sh aggregation=FirstP
set -euo pipefail
cd "$(dirname "$0")"
source ./common.sh
read_arguments reranker.sh "$@"

# --- files. For your own collection, set its name and the paths of its files and models.
collection=${collection:-python_docs}       # python_docs is the bundled example, which distill.sh builds
test_pairs=${test_pairs:-data/$collection/test_pairs.tsv}         # the passages of the candidates
candidates_run=${candidates_run:-data/$collection/top100.test}    # the run to compare with
qrels=${qrels:-data/$collection/qrels.test.tsv}
teacher_model=${teacher_model-models/$collection/teacher}         # empty: leave out the teacher, which is slow
student_model=${student_model-models/$collection/student_simplified} # empty: the teacher only
features_file=${features_file:-}            # default: beside the pairs, made again if the pairs or settings
                                            # changed. A file named here is made only if it is missing
runs_dir=${runs_dir:-runs/$collection}      # directory of scores and runs; those of the last time are replaced

# --- re-ranking
max_seq_length=${max_seq_length:-128}       # tokens of query and passage, as in the student's training
aggregation=${aggregation:-MaxP}            # document score: MaxP, FirstP, SumP, AvgP, or '3-Max&AvgP' for the 3 best
interpolation_weight=${interpolation_weight:-} # 0 to 1: also makes NAME.interpolated.run, where a document has this
                                            # part of the model's score, and the rest of the candidates'
                                            # (docs/evaluation.md)
do_lower_case=${do_lower_case:-yes}         # no: for a cased vocabulary
eval_batch_size=${eval_batch_size:-}        # passages of full length at a time. Default: 16 on a CPU, 512 on a GPU
pooled_activation=${pooled_activation:-}    # before the classifier. Default: as in each model
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
num_processes=${num_processes:-1}           # processes that share the passages, with the same scores: one for each GPU.
                                            # On a CPU, 2 can be faster for a small model
precision=${precision:-auto}                # of the models: fp32, bf16, fp16 (GPU only), int8 (8-bit weights, a CPU),
                                            # or auto: fp16 on a GPU, bf16 on a CPU with bfloat16, else fp32
python=${python:-$default_python}           # the Python interpreter. Default: .venv/bin/python if it exists, or python

compare_with_defaults
check_hardware
check_yes_no do_lower_case
[[ -z $interpolation_weight || $interpolation_weight =~ ^(0|1|0?\.[0-9]+|1\.0+)$ ]] ||
    fail "interpolation_weight=$interpolation_weight is not a number from 0 to 1, such as 0.5"
student=$(basename -- "$student_model")
[[ -n $student_model$teacher_model ]] || fail "teacher_model and student_model are both empty; set one of them"
[[ $student != teacher && $student != teacher.interpolated ]] ||
    fail "student_model=$student_model has the name of the teacher's run; rename it"
check_exists "run 'bash distill.sh' first" student_model teacher_model candidates_run qrels
suffixes='.run .run.rejected.tsv .scores.tsv .scores.tsv.log .scores.tsv.speed.json'
[[ -z $interpolation_weight ]] || suffixes="$suffixes .interpolated.run .interpolated.run.rejected.tsv"
for run in ${teacher_model:+teacher} ${student_model:+"$student"}; do
    for suffix in $suffixes; do
        for input in candidates_run qrels test_pairs features_file; do
            [[ ! $runs_dir/$run$suffix -ef ${!input} ]] ||
                fail "$input=${!input} is $run$suffix in runs_dir, which is replaced; set another runs_dir"
        done
    done
done
mkdir -p -- "$runs_dir"

# Makes NAME.scores.tsv and NAME.run in runs_dir, and NAME.interpolated.run if wanted. Call: rank NAME MODEL [FLAG]
rank() {
    run "${launch[@]}" rerank.py --model_dir="$2" --features_file="$features" --max_seq_length="$max_seq_length" \
        --output_scores_file="$runs_dir/$1.scores.tsv" --eval_batch_size="$eval_batch_size" \
        --pooled_activation="$pooled_activation" --device="$device" --precision="$precision" --overwrite "${@:3}"
    run "$python" convert_to_trec_results.py --scores_file="$runs_dir/$1.scores.tsv" \
        --output_results_file="$runs_dir/$1.run" --aggregation="$aggregation" --run_name="$1" --overwrite "${@:3}"
    [[ -z $interpolation_weight ]] || run "$python" convert_to_trec_results.py --scores_file="$runs_dir/$1.scores.tsv" \
        --output_results_file="$runs_dir/$1.interpolated.run" --aggregation="$aggregation" \
        --run_name="$1.interpolated" --interpolate_with="$candidates_run" \
        --interpolation_weight="$interpolation_weight" --overwrite "${@:3}"
}
launch=("$python") features=$test_pairs
rank "${student:-teacher}" "${student_model:-$teacher_model}" --check_flags
print_settings
tokenize test "$test_pairs" "${student_model:-$teacher_model}" "$features_file"
set_launch
[[ -z $teacher_model ]] || rank teacher "$teacher_model"
[[ -z $student_model ]] || rank "$student" "$student_model"

# Prints a row of the table. Call: row NAME RUN [SPEED]
row() {
    local values
    values=$(measures "$qrels" "$2" "$candidates_run")
    printf '%-*s%s' "$width" "$1" "$values"
    [[ -z ${3:-} ]] || printf '  %12s' "$3"
    printf '\n'
}

# Prints the rows of a model, with the speed that rerank.py measured. Call: rows NAME
rows() {
    local speed
    speed=$("$python" -c 'import json, sys; print("%.1f" % json.load(open(sys.argv[1]))["passages_per_second"])' \
        "$runs_dir/$1.scores.tsv.speed.json")
    row "$1" "$runs_dir/$1.run" "$speed"
    [[ -z $interpolation_weight ]] || row "$1 + first stage" "$runs_dir/$1.interpolated.run" "$speed"
}
width=$((${#student} > 24 ? ${#student} : 24))
[[ -z $interpolation_weight ]] || width=$((width + 14))
printf '\n%-*s  %7s  %8s  %8s  %12s\n' "$width" run queries MRR MRR@10 passages/s
row candidates "$candidates_run"
[[ -z $teacher_model ]] || rows teacher
[[ -z $student_model ]] || rows "$student"
