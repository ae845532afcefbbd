#!/usr/bin/env bash
# Re-ranks the candidates of the test queries with the teacher and the student; prints the measures:  bash reranker.sh
# Edit the variables below, or set them in the environment:   aggregation=FirstP bash reranker.sh
set -euo pipefail
cd "$(dirname "$0")"

# --- files. For your own collection, set its name and the paths of its files and models.
collection=${collection:-python_docs}       # python_docs is the bundled example, which distill.sh builds
test_pairs=${test_pairs:-data/$collection/test_pairs.tsv}         # the passages of the candidates
candidates_run=${candidates_run:-data/$collection/top100.test}    # the run to compare with
qrels=${qrels:-data/$collection/qrels.test.tsv}
teacher_model=${teacher_model-models/$collection/teacher}         # empty: leave out the teacher, which is slow
student_model=${student_model-models/$collection/student_simplified} # empty: the teacher only
features_file=${features_file:-}            # default: beside the pairs, made again if the pairs are newer. A file
                                            # named here is made only if it is missing
runs_dir=${runs_dir:-runs/$collection}      # directory of scores and runs; those of the last time are replaced

# --- re-ranking
max_seq_length=${max_seq_length:-128}       # tokens of query and passage, as in the student's training
aggregation=${aggregation:-MaxP}            # document score: MaxP, FirstP, SumP, AvgP, or '3-Max&AvgP' for the 3 best
do_lower_case=${do_lower_case:-yes}         # no: for a cased vocabulary
eval_batch_size=${eval_batch_size:-}        # passages of full length at a time. Default: 16 on a CPU, 512 on a GPU
pooled_activation=${pooled_activation:-}    # before the classifier. Default: as in each model
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
num_processes=${num_processes:-1}           # processes that share the passages, with the same scores: one for each GPU.
                                            # On a CPU, 2 can be faster for a small model
precision=${precision:-auto}                # of the models: fp32, bf16, fp16 (GPU only), int8 (8-bit weights, a CPU),
                                            # or auto: fp16 on a GPU, bf16 on a CPU with bfloat16, else fp32
python=${python:-python}                    # the Python interpreter

source ./common.sh
check_yes_no do_lower_case
student=$(basename -- "$student_model")
[[ -n $student_model$teacher_model ]] || fail "teacher_model and student_model are both empty; set one of them"
[[ $student != teacher ]] || fail "student_model=$student_model has the name of the teacher's run; rename it"
check_exists "run 'bash distill.sh' first" student_model teacher_model candidates_run qrels
mkdir -p -- "$runs_dir"
tokenize test "$test_pairs" "${student_model:-$teacher_model}" "$features_file"

# Makes NAME.scores.tsv and NAME.run in runs_dir. Call: rank NAME MODEL
rank() {
    run "${launch[@]}" rerank.py --model_dir="$2" --features_file="$features" --max_seq_length="$max_seq_length" \
        --output_scores_file="$runs_dir/$1.scores.tsv" --eval_batch_size="$eval_batch_size" \
        --pooled_activation="$pooled_activation" --device="$device" --precision="$precision" --overwrite
    run "$python" convert_to_trec_results.py --scores_file="$runs_dir/$1.scores.tsv" \
        --output_results_file="$runs_dir/$1.run" --aggregation="$aggregation" --run_name="$1" --overwrite
}
[[ -z $teacher_model ]] || rank teacher "$teacher_model"
[[ -z $student_model ]] || rank "$student" "$student_model"

# Prints the table's row of a run in runs_dir, with the speed that rerank.py measured. Call: row NAME
row() {
    local values speed
    values=$(measures "$qrels" "$runs_dir/$1.run")
    speed=$("$python" -c 'import json, sys; print("%.1f" % json.load(open(sys.argv[1]))["passages_per_second"])' \
        "$runs_dir/$1.scores.tsv.speed.json")
    printf '%-24s%s  %12s\n' "$1" "$values" "$speed"
}
printf '\n%-24s  %8s  %8s  %12s\n' run MRR MRR@10 passages/s
values=$(measures "$qrels" "$candidates_run")
printf '%-24s%s\n' candidates "$values"
[[ -z $teacher_model ]] || row teacher
[[ -z $student_model ]] || row "$student"
