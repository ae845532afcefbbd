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
teacher_model=${teacher_model:-models/$collection/teacher}
student_model=${student_model:-models/$collection/student_simplified}
runs_dir=${runs_dir:-runs/$collection}      # scores and runs are written here

# --- re-ranking
max_seq_length=${max_seq_length:-128}       # tokens of query and passage, as the student was trained
aggregation=${aggregation:-MaxP}            # document score: MaxP, FirstP, SumP, AvgP, or '3-Max&AvgP' for the 3 best
eval_batch_size=${eval_batch_size:-8}       # passages at a time; small is fast on a CPU, take 256 or more on a GPU
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
fp16=${fp16:-no}                            # yes: mixed precision, float16 on a GPU, bfloat16 on a CPU that has it
python=${python:-python}

# Freed memory is kept and huge pages are asked for: page faults cost a CPU a third of its speed. Linux's C library only.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

if [[ ! -e $student_model/config.json ]]; then
    echo "reranker.sh: $student_model holds no student; run 'bash distill.sh' first, or set student_model" >&2
    exit 2
fi
mkdir -p "$runs_dir"
features_file=${features_file:-data/$collection/test.$max_seq_length.features}
if [[ ! -e $features_file ]]; then
    "$python" tokenize_to_features.py --set_name test --raw_data_file "$test_pairs" \
        --output_features_file "$features_file" --bert_model_dir "$student_model" --max_seq_length "$max_seq_length"
fi

fp16_flag=()
[[ $fp16 != yes ]] || fp16_flag=(--fp16)
for model in "$teacher_model" "$student_model"; do
    name=$(basename "$model")
    scores=$runs_dir/$name.scores.tsv
    # What is newer than its model and its features stands.
    if [[ ! $scores -nt $model/config.json || ! $scores -nt $features_file ]]; then
        "$python" rerank.py --model_dir "$model" --features_file "$features_file" --output_scores_file "$scores" \
            --eval_batch_size "$eval_batch_size" --device "$device" --overwrite ${fp16_flag[@]+"${fp16_flag[@]}"}
    fi
    "$python" convert_to_trec_results.py --scores_file "$scores" --output_results_file "$runs_dir/$name.run" \
        --aggregation "$aggregation" --run_name "$name" --overwrite
done

# The measures of one run, and the speed that its log remembers, as a row of the table.
row() {
    local measures speed=""
    measures=$("$python" msmarco_mrr_eval.py "$qrels" "$2" | awk '/^MRR/ {printf "  %8.4f", $2}')
    [[ -z ${3:-} ]] || speed=$(tail -n 1 "$3.log" | sed -E 's/.* ([0-9.]+) passages\/s.*/\1/')
    printf '%-24s%s  %12s\n' "$1" "$measures" "$speed"
}
echo
printf '%-24s  %8s  %8s  %12s\n' run MRR MRR@10 passages/s
row "candidates" "$candidates_run"
for model in "$teacher_model" "$student_model"; do
    name=$(basename "$model")
    row "$name" "$runs_dir/$name.run" "$runs_dir/$name.scores.tsv"
done
