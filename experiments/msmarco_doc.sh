#!/usr/bin/env bash
# The paper's setting on MS MARCO documents, from the downloaded files to the runs:   bash experiments/msmarco_doc.sh
# Teacher: BERT-Base. Students: 6 layers / 768 and 3 layers / 384. Methods: Standard KD, TinyBERT, Simplified TinyBERT.
# Runs: the dev queries, TREC 2019 DL, and TREC 2020 DL if its files are there. Existing outputs are not made again, so the same command resumes after a stop.
# To make a part again, remove it and everything that was made from it. Edit the variables below, or set them in the
# environment.
#
# Put these files into $downloads; https://microsoft.github.io/msmarco/Datasets has them under these names:
#     msmarco-docs.tsv.gz  msmarco-doctrain-queries.tsv.gz  msmarco-doctrain-qrels.tsv.gz  msmarco-doctrain-top100.gz
#     msmarco-docdev-queries.tsv.gz  msmarco-docdev-qrels.tsv.gz  msmarco-docdev-top100.gz
#     msmarco-test2019-queries.tsv.gz  msmarco-doctest2019-top100.gz  2019qrels-docs.txt
#     optional: msmarco-test2020-queries.tsv.gz  msmarco-doctest2020-top100.gz  2020qrels-docs.txt
# Put the teacher there too: BERT-Base of https://github.com/nyu-dl/dl4marco-bert, with bert_config.json and vocab.txt.
# Its conversion needs TensorFlow: pip install tensorflow-cpu==2.21.0
#
# It was not run on all of MS MARCO. docs/msmarco_cost.md has the time of each part, computed from measured rates, and the
# space on disk. Memory: 15 GB, estimated, for the documents and the training candidates. A CPU is too slow.
set -euo pipefail
cd "$(dirname "$0")/.."
source ./common.sh
source experiments/recipes.sh
read_arguments experiments/msmarco_doc.sh "$@"

# --- files
downloads=${downloads:-msmarco}
name=${name:-msmarco}                       # the output is in data/NAME, models/NAME and runs/NAME
documents=${documents:-$downloads/msmarco-docs.tsv.gz}
train_queries=${train_queries:-$downloads/msmarco-doctrain-queries.tsv.gz}
train_qrels=${train_qrels:-$downloads/msmarco-doctrain-qrels.tsv.gz}
train_candidates=${train_candidates:-$downloads/msmarco-doctrain-top100.gz}
dev_queries=${dev_queries:-$downloads/msmarco-docdev-queries.tsv.gz}
dev_qrels=${dev_qrels:-$downloads/msmarco-docdev-qrels.tsv.gz}
dev_candidates=${dev_candidates:-$downloads/msmarco-docdev-top100.gz}
trec_queries=${trec_queries:-$downloads/msmarco-test2019-queries.tsv.gz}
trec_qrels=${trec_qrels:-$downloads/2019qrels-docs.txt}
trec_candidates=${trec_candidates:-$downloads/msmarco-doctest2019-top100.gz}
trec2020_queries=${trec2020_queries:-$downloads/msmarco-test2020-queries.tsv.gz} # left out if one of the three is missing
trec2020_qrels=${trec2020_qrels:-$downloads/2020qrels-docs.txt}
trec2020_candidates=${trec2020_candidates:-$downloads/msmarco-doctest2020-top100.gz}
dev_query_ids=${dev_query_ids:-}            # a file of ids of dev queries, as the authors released: re-rank only these
num_dev_queries=${num_dev_queries:-}        # re-rank a sample of so many dev queries. Default: all 5,193
teacher_checkpoint=${teacher_checkpoint:-$downloads/BERT_Base_trained_on_MSMARCO/model.ckpt-100000} # of TensorFlow

# --- pairs
window=${window:-150}                       # words in a passage
stride=${stride:-75}                        # words from the start of a passage to the next start
max_seq_length=${max_seq_length:-256}       # tokens of query and passage
rerank_depth=${rerank_depth:-100}           # candidates that are re-ranked; the files have 100 per query
num_negatives=${num_negatives:-4}           # negatives per training query, sampled from its candidates
threshold=${threshold:-0.5}                 # positives with a lower score from the teacher are removed
best_positives=${best_positives:-1}         # number of positives to keep per document, at most

# --- general students
pretrained=${pretrained:-google-bert/bert-base-uncased} # the teacher of general distillation; it is not fine-tuned
general_6_768=${general_6_768:-huawei-noah/TinyBERT_General_6L_768D} # published
general_text=${general_text:-}              # plain text for 3/384, which is not published; a Wikipedia, for example.
                                            # empty: the text of the collection
general_documents=${general_documents:-200000} # number of its documents, if general_text is empty

# --- training
students=${students:-6_768 3_384}
methods=${methods-standard tinybert simplified} # empty: stop before the students
train_batch_size=${train_batch_size:-64}
learning_rate=${learning_rate:-5e-5}
num_train_epochs=${num_train_epochs:-2}
eval_batch_size=${eval_batch_size:-256}     # of re-ranking
precision=${precision:-auto}                # auto, fp32, bf16 or fp16, as in distill.sh
train_loss_step=${train_loss_step:-100}
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
python=${python:-$default_python}           # the Python interpreter. Default: .venv/bin/python if it exists, or python

do_lower_case=yes # BERT's vocabulary is uncased
data=data/$name models=models/$name runs=runs/$name
export collection=$name max_seq_length do_lower_case train_batch_size learning_rate eval_batch_size precision
export train_loss_step device python
export -n dev_qrels                         # distill.sh has another variable of this name
test_sets='dev trec trec2020'
for file in "$trec2020_queries" "$trec2020_qrels" "$trec2020_candidates"; do
    [[ $test_sets != *trec2020 || -r $file ]] || {
        test_sets='dev trec'
        echo "TREC 2020 DL is left out, because there is no $file"
    }
done
dev_sample=${dev_query_ids:+the queries of $dev_query_ids}${num_dev_queries:+, $num_dev_queries queries}
dev_sample_before=
[[ ! -e $data/dev_sample.txt ]] || dev_sample_before=$(<"$data/dev_sample.txt")
[[ ! -e $data/dev_top100 || $dev_sample_before == "$dev_sample" ]] ||
    fail "$data/dev_top100 has another sample of the dev queries ('$dev_sample_before'; if empty, all); set another" \
        "name, set dev_query_ids and num_dev_queries as before, or remove $data/dev_* and $runs/dev"
for queries in $test_sets; do mkdir -p "$runs/$queries"; done
mkdir -p "$data" "$models"
printf '%s\n' "$dev_sample" >"$data/dev_sample.txt"

# --- teacher
make "$models/teacher/config.json" "$python" model_tools/convert_tf_checkpoint.py \
    --tf_checkpoint "$teacher_checkpoint" --output_dir "$models/teacher"

# --- training pairs: positives that the teacher finds relevant, and negatives. The reports are written last.
prepare "$data/all_pairs.tsv.gz.report.json" make_train_pairs --collection "$documents" \
    --queries "$train_queries" --qrels "$train_qrels" --candidates "$train_candidates" --window "$window" \
    --stride "$stride" --num_negatives "$num_negatives" --output_pairs_file "$data/all_pairs.tsv.gz" \
    --output_positives_file "$data/positives.tsv.gz" --overwrite
filter_pairs "$data/all_pairs.tsv.gz" "$data/positives.tsv.gz" --eval_batch_size="$eval_batch_size" \
    --precision="$precision"

# --- pairs to re-rank
prepare "$data/dev_top100" sample_run --run "$dev_candidates" --query_ids="$dev_query_ids" \
    --num_queries="$num_dev_queries" --output_run_file "$data/dev_top100"
dev_candidates=$data/dev_top100
for queries in $test_sets; do
    texts=${queries}_queries candidates=${queries}_candidates
    prepare "$data/${queries}_pairs.tsv.report.json" make_rerank_pairs --collection "$documents" \
        --queries "${!texts}" --candidates "${!candidates}" --depth "$rerank_depth" --window "$window" \
        --stride "$stride" --output_pairs_file "$data/${queries}_pairs.tsv" --overwrite
done

# --- general student 3/384: random initial values, distilled on plain text
if [[ -z $general_text ]]; then
    general_text=$data/text.txt
    prepare "$general_text" make_text --collection "$documents" --max_documents "$general_documents" \
        --output_text_file "$general_text"
fi
make_general_3_384 "$general_text"
general_3_384=$models/general_3_384

[[ -n $methods ]] || exit 0

# --- a student of each shape and method, and the runs
for student in $students; do
    case $student in
        6_768) general=$general_6_768 ;;
        3_384) general=$general_3_384 ;;
        *) fail "students=$students: $student is neither 6_768 nor 3_384" ;;
    esac
    for method in $methods; do
        student_dir=$models/${student}_$method
        make "$student_dir/config.json" env distill_model_type="$method" general_student_model="$general" \
            output_student_dir="$student_dir" num_train_epochs="$num_train_epochs" bash distill.sh
        for queries in $test_sets; do
            candidates=${queries}_candidates qrels=${queries}_qrels
            rerank "$runs/$queries" "$student_dir" test_pairs="$data/${queries}_pairs.tsv" \
                candidates_run="${!candidates}" qrels="${!qrels}"
        done
    done
done

echo "The runs of each test set ($test_sets) are in a directory of $runs. To measure a run of TREC 2019 DL:"
echo "    trec_eval -m ndcg_cut.10 -m map $trec_qrels $runs/trec/3_384_simplified.run"
