#!/usr/bin/env bash
# The files that the paper's authors released, beside our own students:   bash experiments/released.sh
# It re-ranks TREC 2019 DL with the released teacher and students, distils students with the released training examples,
# re-ranks with them too, and measures all runs, also the released ones. It ends in a table. Existing outputs are not made
# again, so the same command resumes after a stop. Edit the variables below, or set them in the environment.
#
# It was tested on synthetic files only: the released files could not be downloaded where it was written.
#
# Put the downloads of https://github.com/cxa-unique/Simplified-TinyBERT ("Resources") into $downloads, under the names
# below. A zip or tar archive, a .gz file, or a folder keeps its suffix: teacher.zip. What a download holds can be in a
# folder of it. Pairs can be separated by tabs or commas, and can have a header line.
# Relevance judgments and candidates of TREC 2019 DL are those of https://microsoft.github.io/msmarco/Datasets.
set -euo pipefail
cd "$(dirname "$0")/.."
source ./common.sh
source experiments/recipes.sh
read_arguments experiments/released.sh "$@"

# --- files
downloads=${downloads:-released}
msmarco_downloads=${msmarco_downloads:-msmarco} # the downloads of experiments/msmarco_doc.sh
name=${name:-released}                      # the output is in data/NAME, models/NAME and runs/NAME
released_teacher=${released_teacher:-$downloads/teacher}          # BERT-Base, converted to PyTorch
released_6_768=${released_6_768:-$downloads/6_768}                # the distilled student of 6 layers / 768
released_3_384=${released_3_384:-$downloads/3_384}                # the distilled student of 3 layers / 384
released_examples=${released_examples:-$downloads/train_examples} # index, query_text, passage_text, label_id
released_pairs=${released_pairs:-$downloads/test_pairs}           # of TREC 2019: query_id#passage_id, query_text, passage_text
released_runs=${released_runs-$downloads/runs}                    # TREC runs; empty: leave them out
released_text=${released_text:-$downloads/wikipedia}              # plain text, for the general student of 3 layers / 384
skip_malformed=${skip_malformed:-no}        # yes: skip malformed lines of examples and pairs, and list them
trec_qrels=${trec_qrels:-$msmarco_downloads/2019qrels-docs.txt}
trec_candidates=${trec_candidates:-$msmarco_downloads/msmarco-doctest2019-top100.gz}
dev_qrels=${dev_qrels:-}                    # judgments of MS MARCO's dev queries: also measures released runs of these

# --- students to distil
students=${students-6_768 3_384}            # empty: only re-rank and measure what was released
methods=${methods:-simplified}              # any of simplified, standard, tinybert, hard
general_6_768=${general_6_768:-huawei-noah/TinyBERT_General_6L_768D} # published
general_3_384=${general_3_384:-}            # default: made from released_text, as experiments/msmarco_doc.sh makes it
pretrained=${pretrained:-google-bert/bert-base-uncased} # the teacher of general distillation; it is not fine-tuned

# --- training
max_seq_length=${max_seq_length:-256}       # tokens of query and passage
train_batch_size=${train_batch_size:-64}
learning_rate=${learning_rate:-5e-5}
num_train_epochs=${num_train_epochs:-2}
eval_batch_size=${eval_batch_size:-256}     # of re-ranking
precision=${precision:-auto}                # auto, fp32, bf16 or fp16, as in distill.sh
train_loss_step=${train_loss_step:-100}
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
python=${python:-$default_python}           # the Python interpreter. Default: .venv/bin/python if it exists, or python

check_yes_no skip_malformed
for student in $students; do
    [[ $student == 6_768 || $student == 3_384 ]] || fail "students=$students: $student is neither 6_768 nor 3_384"
done
check_exists "download it" trec_qrels trec_candidates dev_qrels
do_lower_case=yes # BERT's vocabulary is uncased
data=data/$name models=models/$name runs=runs/$name
export collection=$name max_seq_length do_lower_case train_batch_size learning_rate eval_batch_size precision
export train_loss_step device python
export -n dev_qrels                         # distill.sh has another variable of this name
mkdir -p "$data" "$models" "$runs/trec"

# Takes a download unless its output exists. Call: take KIND SOURCE OUTPUT FLAGS...
take() {
    prepare "$3" take_released --kind "$1" --source "$2" --output "$3" "${@:4}"
}

part "the released files"
take model "$released_teacher" "$models/teacher"
take model "$released_6_768" "$models/6_768_released"
take model "$released_3_384" "$models/3_384_released"
take test_pairs "$released_pairs" "$data/trec_pairs.tsv" --skip_malformed="$skip_malformed"
[[ -z $released_runs ]] || take runs "$released_runs" "$runs/released_trec" --qrels "$trec_qrels"
[[ -z $dev_qrels || -z $released_runs ]] || take runs "$released_runs" "$runs/released_dev" --qrels "$dev_qrels"

# Re-ranks TREC 2019 with the students in $models, and with the teacher if its run is missing. Call: rank NAME...
rank() {
    local student
    for student; do
        rerank "$runs/trec" "$models/$student" test_pairs="$data/trec_pairs.tsv" candidates_run="$trec_candidates" \
            qrels="$trec_qrels"
    done
}

part "the released models re-rank TREC 2019 DL"
rank 6_768_released 3_384_released
ranked='teacher 6_768_released 3_384_released'

for student in $students; do
    part "students of $student, distilled with the released examples"
    take train_pairs "$released_examples" "$data/train_pairs.tsv" --skip_malformed="$skip_malformed"
    if [[ $student == 3_384 && -z $general_3_384 ]]; then
        [[ -e $models/general_3_384/config.json ]] || take text "$released_text" "$data/text.txt"
        make_general_3_384 "$data/text.txt"
        general_3_384=$models/general_3_384
    fi
    general=general_$student
    for method in $methods; do
        distilled=${student}_$method
        make "$models/$distilled/config.json" env distill_model_type="$method" general_student_model="${!general}" \
            teacher_model="$models/teacher" output_student_dir="$models/$distilled" \
            num_train_epochs="$num_train_epochs" bash distill.sh
        rank "$distilled"
        ranked="$ranked $distilled"
    done
done

# Prints a table of runs. Call: print_table QRELS RUN...
print_table() {
    local measures='NDCG@10 MRR MAP'
    "$python" -c 'import pytrec_eval' 2>/dev/null || {
        echo "pytrec_eval is not installed, so only MRR is measured" >&2
        measures=MRR
    }
    "$python" msmarco_mrr_eval.py "$@" --measures $measures --format markdown
}

part "TREC 2019 DL documents: runs in $runs/trec are ours, those in $runs/released_trec were released"
set -- # the positional parameters become the runs
for run in $ranked; do set -- "$@" "$runs/trec/$run.run"; done
[[ -z $released_runs ]] || set -- "$@" "$runs"/released_trec/*.run
print_table "$trec_qrels" "$trec_candidates" "$@" | tee "$runs/table.md"
if [[ -n $dev_qrels && -n $released_runs ]]; then
    part "MS MARCO dev: released runs"
    print_table "$dev_qrels" "$runs"/released_dev/*.run | tee "$runs/table_dev.md"
fi
