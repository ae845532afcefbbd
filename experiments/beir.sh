#!/usr/bin/env bash
# Makes a table of every method for a BEIR collection: candidates, pairs, a teacher, filtered positives, a general
# student, and a student of each method.   name=scifact source=path/to/scifact bash experiments/beir.sh
# Existing outputs are not made again, so the same command resumes after a stop. To make a part again, remove it and
# everything that was made from it. Edit the variables below, or set them for one command. results/scifact/ has figures.
# Other variables of distill.sh, such as precision, are set before the command:  precision=fp32 bash experiments/beir.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source ./common.sh
source experiments/recipes.sh
read_arguments experiments/beir.sh "$@"

# --- collection
name=${name:-scifact}                       # the output is in data/NAME, models/NAME and runs/NAME
source=${source:-}                          # a BEIR folder (absolute, or relative to the project's folder), or
                                            # ir_datasets:beir/NAME
train_split=${train_split-train}            # split of the folder, or last part of the dataset's name, if any
test_split=${test_split-test}               # the same for the test queries, if num_held_out is 0
num_held_out=${num_held_out:-0}             # number of training queries to test with, if there is no test split
not_held_out=${not_held_out:-0}             # number of queries of an earlier test (its num_held_out). The models learn
                                            # from them; they are not in the test

# --- pairs
window=${window:-75}                        # words in a passage; the paper has 150, for 256 tokens
stride=${stride:-50}                        # words from the start of a passage to the next start; the paper has 75
max_seq_length=${max_seq_length:-160}       # tokens of query and passage: 20 + 25 of a title + 1.5 per word + 3
rerank_depth=${rerank_depth:-20}            # candidates that are re-ranked
num_negatives=${num_negatives:-8}           # negatives per query, sampled from its 100 candidates
num_random_negatives=${num_random_negatives:-1} # negatives per query, from other queries; an untrained model needs them
threshold=${threshold:-0.5}                 # positives with a lower score from the teacher are removed
best_positives=${best_positives:-2}         # number of positives to keep per document, at most

# --- models
encoder=${encoder:-}                        # model directory or id to make the teacher from. Default: all-MiniLM-L6-v2
do_lower_case=${do_lower_case:-yes}         # no: for a cased vocabulary
student_layers=${student_layers:-2,4,6}     # layers of the encoder that the general student starts from
general_documents=${general_documents:-2500} # documents that the general student learns from, if pseudo_queries=0
methods=${methods-hard standard tinybert simplified} # empty: stop before the students

# --- training
train_batch_size=${train_batch_size:-8}     # examples per step; the paper has 64, for a hundred times as many pairs
teacher_batch_size=${teacher_batch_size:-16} # examples per step of the teachers and of the general student with
                                            # pseudo-queries
teacher_learning_rate=${teacher_learning_rate:-3e-5} # the highest value
teacher_epochs=${teacher_epochs:-2}         # passes over the pairs
learning_rate=${learning_rate:-1e-4}        # of the students; the paper has 5e-5, for many more steps
num_train_epochs=${num_train_epochs:-2}     # of the students
pseudo_queries=${pseudo_queries:-5200}      # number of pseudo-queries that teacher and general student learn from first
                                            # (docs/data.md), at most; 0: none
pseudo_kind=${pseudo_kind:-title}           # what they are: title, or sentence (docs/data.md)
pseudo_negatives=${pseudo_negatives:-2}     # negatives of each, sampled from its 100 candidates
pseudo_examples=${pseudo_examples:-30000}   # fewest examples to learn from: the pairs of the pseudo-queries, in as many
                                            # epochs as it takes. 4,000 were far too few (results/scifact/README.md)
pseudo_learning_rate=${pseudo_learning_rate:-5e-5} # of the teacher on them
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
python=${python:-$default_python}           # the Python interpreter. Default: .venv/bin/python if it exists, or python

[[ -n $source ]] || fail "set source to a BEIR folder or to ir_datasets:beir/NAME"
[[ $pseudo_examples =~ ^[1-9][0-9]{0,8}$ ]] || fail "pseudo_examples=$pseudo_examples is not a number from 1"
data=data/$name models=models/$name runs=runs/$name
check_exists "make it first" encoder
[[ $num_held_out != 0 || $train_split != "$test_split" ]] ||
    fail "train_split and test_split are the same, so the models would be tested on queries that they learned from;" \
        "set num_held_out"
[[ ! -e $data/source.txt || $(<"$data/source.txt") == "$source" || $(<"$data/source.txt") -ef $source ]] ||
    fail "$data was made from $(<"$data/source.txt"), not from source=$source; set another name, or remove $data and" \
        "$models"
export collection=$name max_seq_length do_lower_case train_batch_size device python
mkdir -p "$data" "$models" "$runs"
printf '%s\n' "$source" >"$data/source.txt"
keep_settings "$data/settings.txt" train_split test_split num_held_out not_held_out window stride max_seq_length \
    rerank_depth num_negatives num_random_negatives threshold best_positives

# Sets split_flags for a split of the collection.
of_split() {
    case $source in
        ir_datasets:*) split_flags=(--collection "$source${1:+/$1}") ;;
        *) split_flags=(--collection "$source" ${1:+--split "$1"}) ;;
    esac
}

# --- candidates
part "candidates: BM25 of $source"
of_split "$train_split"
prepare "$data/top100.train" make_candidates "${split_flags[@]}" --output_run_file "$data/top100.train" \
    --output_qrels_file "$data/qrels.all.tsv" --overwrite
train_qrels=$data/qrels.all.tsv
if [[ $num_held_out != 0 ]]; then
    train_qrels=$data/qrels.train.tsv rest=$data/qrels.all.tsv
    if [[ $not_held_out != 0 ]]; then
        rest=$data/qrels.rest.tsv
        prepare "$data/qrels.before.tsv" split_queries --qrels "$data/qrels.all.tsv" --num_dev "$not_held_out" \
            --output_train_qrels "$rest" --output_dev_qrels "$data/qrels.before.tsv" --overwrite
    fi
    if [[ ! -e $data/qrels.test.tsv ]]; then
        run "$python" data_preparation/split_queries.py --qrels "$rest" --num_dev "$num_held_out" \
            --output_train_qrels "$train_qrels" --output_dev_qrels "$data/qrels.test.new" --overwrite
        [[ $not_held_out == 0 ]] || cat "$data/qrels.before.tsv" >>"$train_qrels"
        mv "$data/qrels.test.new" "$data/qrels.test.tsv"
    fi
    prepare "$data/top100.test" make_candidates "${split_flags[@]}" --qrels "$data/qrels.test.tsv" \
        --output_run_file "$data/top100.test"
else
    of_split "$test_split"
    prepare "$data/top100.test" make_candidates "${split_flags[@]}" --output_run_file "$data/top100.test" \
        --output_qrels_file "$data/qrels.test.tsv" --overwrite
fi

# --- pairs. Their reports are written last.
part "pairs to train on and to re-rank"
prepare "$data/test_pairs.tsv.report.json" make_rerank_pairs "${split_flags[@]}" --candidates "$data/top100.test" \
    --depth "$rerank_depth" --window "$window" --stride "$stride" --output_pairs_file "$data/test_pairs.tsv" --overwrite
of_split "$train_split"
prepare "$data/all_pairs.tsv.report.json" make_train_pairs "${split_flags[@]}" --qrels "$train_qrels" \
    --candidates "$data/top100.train" --window "$window" --stride "$stride" --num_negatives "$num_negatives" \
    --num_random_negatives "$num_random_negatives" --output_pairs_file "$data/all_pairs.tsv" \
    --output_positives_file "$data/positives.tsv" --overwrite

# --- teacher: the encoder, fine-tuned on the labels of all pairs; with pseudo_queries, on pseudo-queries before that
if [[ -z $encoder ]]; then
    encoder=models/encoder
    make "$encoder/config.json" "$python" experiments/python_docs/fetch_encoder.py --output_dir "$encoder"
fi
pretrained=$encoder
[[ $pseudo_queries == 0 ]] || pretrained=$models/pseudo_teacher
if [[ $pseudo_queries != 0 && ! (-e $models/teacher/config.json && -e $models/general_student/config.json) ]]; then
    part "pseudo-queries: ${pseudo_kind}s of the documents; a teacher for them"
    LC_ALL=C awk -F '\t' '{sub(/#.*/, "", $1)} !seen[$1]++ {print $1 "\t" $2}' "$data/test_pairs.tsv" \
        >"$data/queries.test.tsv"
    make_pseudo_pairs "$source" "$data/queries.test.tsv"
    keep_settings "$data/pseudo_settings.txt" pseudo_queries pseudo_kind pseudo_negatives pseudo_examples
    pseudo_pairs=$(wc -l <"$data/pseudo_pairs.tsv")
    pseudo_epochs=$(((pseudo_examples + pseudo_pairs - 1) / pseudo_pairs))
    make "$pretrained/config.json" env distill_model_type=hard train_pairs="$data/pseudo_pairs.tsv" \
        general_student_model="$encoder" output_student_dir="$pretrained" learning_rate="$pseudo_learning_rate" \
        num_train_epochs="$pseudo_epochs" train_batch_size="$teacher_batch_size" bash distill.sh
fi
part "teacher: $pretrained, fine-tuned"
make "$models/teacher/config.json" env distill_model_type=hard train_pairs="$data/all_pairs.tsv" \
    general_student_model="$pretrained" output_student_dir="$models/teacher" learning_rate="$teacher_learning_rate" \
    num_train_epochs="$teacher_epochs" train_batch_size="$teacher_batch_size" bash distill.sh

part "positives that the teacher finds relevant"
filter_pairs "$data/all_pairs.tsv" "$data/positives.tsv"

# --- general student: layers of the encoder. It learns to imitate the layers of the pseudo-queries' teacher on their
# pairs; without pseudo-queries, those of the encoder on plain text.
part "general student: layers $student_layers of $encoder"
make "$models/layers/config.json" "$python" model_tools/make_general_student.py --model_dir "$encoder" \
    --layers "$student_layers" --output_dir "$models/layers"
general=(env distill_model_type=intermediate teacher_model="$pretrained" general_student_model="$models/layers"
    output_student_dir="$models/general_student" learning_rate="$learning_rate")
if [[ $pseudo_queries != 0 ]]; then
    general+=(train_pairs="$data/pseudo_pairs.tsv" train_batch_size="$teacher_batch_size"
        num_train_epochs="${pseudo_epochs:-}")
else
    prepare "$data/text.txt" make_text --collection "$source" --max_documents "$general_documents" \
        --output_text_file "$data/text.txt"
    general+=(set_name=general train_pairs="$data/text.txt" num_train_epochs=1)
fi
make "$models/general_student/config.json" "${general[@]}" bash distill.sh

[[ -n $methods ]] || exit 0

# --- a student of each method, and the runs
for method in $methods; do
    part "student: $method"
    make "$models/student_$method/config.json" env distill_model_type="$method" learning_rate="$learning_rate" \
        num_train_epochs="$num_train_epochs" output_student_dir="$models/student_$method" bash distill.sh
    rerank "$runs" "$models/student_$method"
done

printf '\n%-24s  %7s  %8s  %8s\n' run queries MRR MRR@10
for run in "$data/top100.test" "$runs/teacher.run" "$runs"/student_*.run; do
    values=$(measures "$data/qrels.test.tsv" "$run" "$data/top100.test")
    printf '%-24s%s\n' "$(basename "$run" .run)" "$values"
done
