#!/usr/bin/env bash
# Builds the missing parts of the bundled example: collection, encoder, general student, teacher.
# distill.sh calls it with its own max_seq_length, device, precision and python. Set the other numbers here or in the
# environment. To build a part again, remove its directory first.
set -euo pipefail
cd "$(dirname "$0")/../.."
source ./common.sh
source experiments/recipes.sh

data=data/python_docs
models=models/python_docs
encoder=$models/encoder                     # all-MiniLM-L6-v2: 6 layers, hidden size 384
do_lower_case=yes                           # its vocabulary is uncased

max_seq_length=${max_seq_length:-128}       # tokens of query and passage
student_layers=${student_layers:-2,4,6}     # layers of the encoder that the general student takes
teacher_batch_size=${teacher_batch_size:-16} # examples per step
teacher_learning_rate=${teacher_learning_rate:-3e-5} # the highest value; with 1e-4 it learned nothing (README.md here)
teacher_epochs=${teacher_epochs:-1}         # passes over the pairs
pseudo_queries=${pseudo_queries:-0}         # number of pseudo-queries that the teacher is trained on first; 0: none
pseudo_kind=${pseudo_kind:-sentence}        # what they are. Titles are only names here, such as argparse.Action
pseudo_negatives=${pseudo_negatives:-1}     # negatives of each, sampled from its 100 candidates
pseudo_learning_rate=${pseudo_learning_rate:-3e-5} # of the one epoch over them
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
precision=${precision:-auto}                # as in distill.sh
python=${python:-$default_python}           # the Python interpreter. Default: .venv/bin/python if it exists, or python

mkdir -p "$data" "$models"
make "$data/report.json" "$python" experiments/python_docs/build_collection.py --output_dir="$data" --overwrite
make "$encoder/config.json" "$python" experiments/python_docs/fetch_encoder.py --output_dir="$encoder"
make "$models/general_student/config.json" "$python" model_tools/make_general_student.py --model_dir="$encoder" \
    --layers="$student_layers" --output_dir="$models/general_student"

# Fine-tunes a model on the labels of pairs. Call: fine_tune PAIRS MODEL OUTPUT_DIR LEARNING_RATE PASSES
fine_tune() {
    tokenize train "$1" "$encoder"
    run "$python" distill.py --distill_model=hard --features_file="$features" --general_student_model="$2" \
        --output_student_dir="$3" --train_batch_size="$teacher_batch_size" --learning_rate="$4" \
        --num_train_epochs="$5" --train_loss_step=20 --device="$device" --precision="$precision" --resume
}

if [[ ! -e $models/teacher/config.json ]]; then
    echo "Fine-tuning the teacher of the example; this takes a few minutes without a GPU"
    start=$encoder
    if [[ $pseudo_queries != 0 ]]; then
        start=$models/pseudo_teacher
        make_pseudo_pairs "$data/docs.tsv" "$data"/queries.{dev,test}.tsv
        [[ -e $start/config.json ]] || fine_tune "$data/pseudo_pairs.tsv" "$encoder" "$start" "$pseudo_learning_rate" 1
    fi
    fine_tune "$data/train_pairs.tsv" "$start" "$models/teacher" "$teacher_learning_rate" "$teacher_epochs"
fi
