#!/usr/bin/env bash
# Re-ranks the candidates of the test queries with the teacher and the student, and scores both:   bash reranker.sh
# Every variable below can be edited here or set from the environment:   aggregation=FirstP bash reranker.sh
set -euo pipefail
cd "$(dirname "$0")"

# --- files. Give a collection of your own a name, and say where its files and models are.
collection=${collection:-python_docs}       # python_docs is the bundled example, which distill.sh builds
test_pairs=${test_pairs:-data/$collection/test_pairs.tsv}         # the candidates' passages
candidates_run=${candidates_run:-data/$collection/top100.test}    # the run to compare with
qrels=${qrels:-data/$collection/qrels.test.tsv}
teacher_model=${teacher_model-models/$collection/teacher}         # empty: without the teacher, which is slow
student_model=${student_model-models/$collection/student_simplified} # empty: the teacher alone
features_file=${features_file:-}            # empty: beside the pairs, made again when those are newer. One that is
                                            # named here is made where it is missing, else taken as it is
runs_dir=${runs_dir:-runs/$collection}      # scores and runs are written here, over those of the last time

# --- re-ranking
max_seq_length=${max_seq_length:-128}       # tokens of query and passage, as the student was trained
aggregation=${aggregation:-MaxP}            # document score: MaxP, FirstP, SumP, AvgP, or '3-Max&AvgP' for the 3 best
do_lower_case=${do_lower_case:-yes}         # no: for a cased vocabulary
eval_batch_size=${eval_batch_size:-}        # passages of full length at a time. empty: 16 on a CPU, 512 on a GPU
pooled_activation=${pooled_activation:-}    # before the classifier. empty: as each model says
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
num_processes=${num_processes:-1}           # that share the passages, with the same scores: one for each GPU. On a CPU
                                            # 2 may be faster for a small model, whose work threads share badly
precision=${precision:-auto}                # of the models: fp32, bf16, fp16 (a GPU), int8 (8-bit weights, a CPU), auto:
                                            # fp16 on a GPU, bf16 on a CPU that multiplies it, else fp32
python=${python:-python}                    # the interpreter

fail() {
    echo "reranker.sh: $*" >&2
    exit 2
}
case $do_lower_case in yes | no) ;; *) fail "do_lower_case=$do_lower_case is neither yes nor no" ;; esac
[[ -z ${fp16:-} ]] || fail "fp16=$fp16 is an old name; set precision=auto, fp32, bf16 or fp16"
case $precision in
    auto | fp32 | bf16 | fp16 | int8) ;;
    *) fail "precision=$precision is none of auto, fp32, bf16, fp16, int8" ;;
esac
[[ $num_processes =~ ^[1-9][0-9]{0,3}$ ]] || fail "num_processes=$num_processes is no number from 1 to 9999"
model_id='^[A-Za-z0-9][^/]*(/[^/]+)?$'      # of a model to download, unless there is such a directory
[[ -n $student_model$teacher_model ]] || fail "teacher_model and student_model are both empty; set one of them"
[[ -z $student_model || -e $student_model/config.json || -e $student_model/bert_config.json ||
    $student_model =~ $model_id ]] ||
    fail "$student_model holds no student; run 'bash distill.sh' first, or set student_model"
for name in test_pairs candidates_run qrels; do
    [[ -r ${!name} || ($name == test_pairs && -r $features_file) ]] || fail "$name=${!name} is not there"
done
[[ $(basename "$student_model") != teacher ]] || fail "student_model=$student_model has the teacher's name; rename it"

# Several processes are started by torchrun, and share the processor's cores.
launch=("$python")
if ((num_processes > 1)); then
    launch+=(-m torch.distributed.run --standalone --nproc_per_node "$num_processes")
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > num_processes ? cores / num_processes : 1))}
fi

mkdir -p "$runs_dir"
case_flag=--do_lower_case case_name=
[[ $do_lower_case == yes ]] || case_flag=--no-do_lower_case case_name=.cased
tokenize() {
    "$python" tokenize_to_features.py --set_name test --raw_data_file "$test_pairs" \
        --output_features_file "$features_file" --bert_model_dir "${student_model:-$teacher_model}" \
        --max_seq_length "$max_seq_length" "$case_flag" "$@"
}
if [[ -z $features_file ]]; then
    features_file=${test_pairs%.gz}
    features_file=${features_file%.tsv}.$max_seq_length$case_name.features
    [[ $features_file -nt $test_pairs ]] || tokenize --overwrite
elif [[ ! -e $features_file ]]; then
    tokenize
fi

flags=()
[[ -z $pooled_activation ]] || flags+=(--pooled_activation "$pooled_activation")
[[ -z $eval_batch_size ]] || flags+=(--eval_batch_size "$eval_batch_size")
# Ranks with a model under a name: NAME.scores.tsv, its log, and NAME.run in runs_dir.
rank() {
    "${launch[@]}" rerank.py --model_dir "$2" --features_file "$features_file" \
        --output_scores_file "$runs_dir/$1.scores.tsv" --precision "$precision" \
        --max_seq_length "$max_seq_length" --device "$device" --overwrite ${flags[@]+"${flags[@]}"}
    "$python" convert_to_trec_results.py --scores_file "$runs_dir/$1.scores.tsv" \
        --output_results_file "$runs_dir/$1.run" --aggregation "$aggregation" --run_name "$1" --overwrite
}
# The measures of a run, and the speed that its log remembers, as a row of the table.
row() {
    local measures speed=""
    measures=$("$python" msmarco_mrr_eval.py "$qrels" "$2" | awk '/^MRR/ {printf "  %8.4f", $2}')
    [[ -z ${3:-} ]] || speed=$(tail -n 1 "$3" | sed -E 's/.* ([0-9.]+) passages\/s.*/\1/')
    printf '%-24s%s  %12s\n' "$1" "$measures" "$speed"
}

student=$(basename "$student_model")
[[ -z $teacher_model ]] || rank teacher "$teacher_model"
[[ -z $student_model ]] || rank "$student" "$student_model"
echo
printf '%-24s  %8s  %8s  %12s\n' run MRR MRR@10 passages/s
row candidates "$candidates_run"
[[ -z $teacher_model ]] || row teacher "$runs_dir/teacher.run" "$runs_dir/teacher.scores.tsv.log"
[[ -z $student_model ]] || row "$student" "$runs_dir/$student.run" "$runs_dir/$student.scores.tsv.log"
