#!/usr/bin/env bash
# The paper's setting on MS MARCO documents, from the downloaded files to its runs:   bash experiments/msmarco_doc.sh
# Teacher BERT-Base, students of 6 layers / 768 and 3 layers / 384, Standard KD, TinyBERT and Simplified TinyBERT, runs
# over the dev queries and over TREC 2019 DL. What is there already is not made again: after a stop, the same command
# goes on. To make a part again, remove it and all that was made of it. Every variable can be edited here or set from
# the environment.
#
# Put into $downloads, as https://microsoft.github.io/msmarco/Datasets names them:
#     msmarco-docs.tsv.gz  msmarco-doctrain-queries.tsv.gz  msmarco-doctrain-qrels.tsv.gz  msmarco-doctrain-top100.gz
#     msmarco-docdev-queries.tsv.gz  msmarco-docdev-qrels.tsv.gz  msmarco-docdev-top100.gz
#     msmarco-test2019-queries.tsv.gz  msmarco-doctest2019-top100.gz  2019qrels-docs.txt
# and the teacher, BERT-Base of https://github.com/nyu-dl/dl4marco-bert, with its bert_config.json and vocab.txt, which
# needs TensorFlow to be converted: pip install tensorflow-cpu==2.21.0
#
# To expect, by arithmetic from the sizes of the published files; it has not been run over all of MS MARCO here. Disk:
# 60 GB with the downloads. Memory: 15 GB, for the documents and candidates to train with. Time on one GPU: that of
# scoring 5 million positives with the teacher, of re-ranking 7.5 million passages with each of 7 models, and of 8
# trainings of 2 epochs over the pairs, besides general distillation. Fewer students or methods make it less. Not for a
# CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

# --- files
downloads=${downloads:-msmarco}
name=${name:-msmarco}                       # data/NAME, models/NAME and runs/NAME are written
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
teacher_checkpoint=${teacher_checkpoint:-$downloads/BERT_Base_trained_on_MSMARCO/model.ckpt-100000} # TensorFlow's

# --- pairs
window=${window:-150}                       # words in a passage
stride=${stride:-75}                        # words from one passage's beginning to the next
max_seq_length=${max_seq_length:-256}       # tokens of query and passage
rerank_depth=${rerank_depth:-100}           # candidates that are re-ranked: all that are given
num_negatives=${num_negatives:-4}           # for each training query, out of its candidates
threshold=${threshold:-0.5}                 # positives that the teacher scores lower are dropped
best_positives=${best_positives:-1}         # positives of a document that may stay

# --- general students
pretrained=${pretrained:-google-bert/bert-base-uncased} # teacher of general distillation: pre-trained, not fine-tuned
general_6_768=${general_6_768:-huawei-noah/TinyBERT_General_6L_768D} # published, taken as it is
general_text=${general_text:-}              # plain text for 3/384, which no one has published, such as a Wikipedia's;
general_documents=${general_documents:-200000} # empty: that of so many documents of the collection

# --- training
students=${students:-6_768 3_384}
methods=${methods-standard tinybert simplified} # empty: only what comes before the students
train_batch_size=${train_batch_size:-64}
learning_rate=${learning_rate:-5e-5}
num_train_epochs=${num_train_epochs:-2}
eval_batch_size=${eval_batch_size:-256}     # of re-ranking
precision=${precision:-auto}                # fp32: everything in full precision
train_loss_step=${train_loss_step:-100}
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
python=${python:-python}                    # the interpreter

data=data/$name models=models/$name runs=runs/$name
export collection=$name max_seq_length train_batch_size learning_rate eval_batch_size precision train_loss_step device python
mkdir -p "$data" "$models" "$runs/dev" "$runs/trec"

# Runs a command unless what it makes is there.
make() {
    [[ -e $1 ]] || "${@:2}"
}
prepare() {
    "$python" "data_preparation/$1.py" "${@:2}"
}

# --- teacher
make "$models/teacher/config.json" "$python" model_tools/convert_tf_checkpoint.py --tf_checkpoint "$teacher_checkpoint" \
    --output_dir "$models/teacher"

# --- pairs to train with: positives that the teacher finds relevant, and negatives. The reports are written last.
make "$data/all_pairs.tsv.gz.report.json" prepare make_train_pairs --collection "$documents" \
    --queries "$train_queries" --qrels "$train_qrels" --candidates "$train_candidates" --window "$window" \
    --stride "$stride" --num_negatives "$num_negatives" --output_pairs_file "$data/all_pairs.tsv.gz" \
    --output_positives_file "$data/positives.tsv.gz" --overwrite
positives=$data/positives.$max_seq_length.features
make "$positives" "$python" tokenize_to_features.py --set_name test --raw_data_file "$data/positives.tsv.gz" \
    --output_features_file "$positives" --bert_model_dir "$models/teacher" --max_seq_length "$max_seq_length"
make "$data/positives.scores.tsv" "$python" rerank.py --model_dir "$models/teacher" --features_file "$positives" \
    --output_scores_file "$data/positives.scores.tsv" --eval_batch_size "$eval_batch_size" \
    --device "$device" --precision "$precision"
make "$data/train_pairs.tsv.report.json" prepare filter_positives --pairs_file "$data/all_pairs.tsv.gz" \
    --scores_file "$data/positives.scores.tsv" --threshold "$threshold" --best "$best_positives" \
    --output_pairs_file "$data/train_pairs.tsv" --overwrite

# --- pairs to re-rank
make "$data/dev_pairs.tsv.report.json" prepare make_rerank_pairs --collection "$documents" --queries "$dev_queries" \
    --candidates "$dev_candidates" --depth "$rerank_depth" --window "$window" --stride "$stride" \
    --output_pairs_file "$data/dev_pairs.tsv" --overwrite
make "$data/trec_pairs.tsv.report.json" prepare make_rerank_pairs --collection "$documents" --queries "$trec_queries" \
    --candidates "$trec_candidates" --depth "$rerank_depth" --window "$window" --stride "$stride" \
    --output_pairs_file "$data/trec_pairs.tsv" --overwrite

# --- general student 3/384: from scratch, distilled on plain text
if [[ -z $general_text ]]; then
    general_text=$data/text.txt
    make "$general_text" prepare make_text --collection "$documents" --max_documents "$general_documents" \
        --output_text_file "$general_text"
fi
make "$models/scratch_3_384/config.json" "$python" model_tools/make_general_student.py --model_dir "$pretrained" --num_layers 3 \
    --hidden_size 384 --num_heads 12 --output_dir "$models/scratch_3_384"
general_3_384=$models/general_3_384
make "$general_3_384/config.json" env distill_model_type=intermediate set_name=general train_pairs="$general_text" \
    teacher_model="$pretrained" general_student_model="$models/scratch_3_384" output_student_dir="$general_3_384" \
    num_train_epochs=1 bash distill.sh

[[ -n $methods ]] || exit 0

# --- a student of each shape by each method, and its runs; the teacher's with the first
for student in $students; do
    general=general_$student
    for method in $methods; do
        student_dir=$models/${student}_$method
        make "$student_dir/config.json" env distill_model_type="$method" general_student_model="${!general}" \
            output_student_dir="$student_dir" num_train_epochs="$num_train_epochs" bash distill.sh
        for queries in dev trec; do
            pairs=$data/${queries}_pairs.tsv candidates=${queries}_candidates qrels=${queries}_qrels
            teacher=$models/teacher
            [[ ! -e $runs/$queries/teacher.run ]] || teacher=
            make "$runs/$queries/${student}_$method.run" env teacher_model="$teacher" student_model="$student_dir" \
                test_pairs="$pairs" candidates_run="${!candidates}" qrels="${!qrels}" runs_dir="$runs/$queries" \
                bash reranker.sh
        done
    done
done

echo "The runs are in $runs/dev and $runs/trec. For the measures of TREC 2019 DL:"
echo "    trec_eval -m ndcg_cut.10 -m map $trec_qrels $runs/trec/3_384_simplified.run"
