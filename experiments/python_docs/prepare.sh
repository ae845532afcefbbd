#!/usr/bin/env bash
# Builds the bundled example, whatever of it is missing: collection, encoder, teacher, general student.
# distill.sh calls it, with its own max_seq_length, device, precision and python. The other numbers are set here or from the
# environment; to build a part again with other ones, remove its directory first.
set -euo pipefail
cd "$(dirname "$0")/../.."

data_dir=data/python_docs
models_dir=models/python_docs
encoder=$models_dir/encoder                 # all-MiniLM-L6-v2: 6 layers, hidden size 384
teacher=$models_dir/teacher                 # the encoder, fine-tuned on the pairs' labels
general_student=$models_dir/general_student # 3 of the encoder's layers

max_seq_length=${max_seq_length:-128}       # tokens of query and passage
student_layers=${student_layers:-2,4,6}     # of the encoder, that the general student takes
teacher_batch_size=${teacher_batch_size:-8} # examples per update
teacher_learning_rate=${teacher_learning_rate:-2e-5} # the highest; at 5e-5 it learned hardly anything in so few updates
teacher_epochs=${teacher_epochs:-2}         # passes over the pairs
device=${device:-auto}                      # auto, cpu, cuda, cuda:1 or a GPU number
precision=${precision:-auto}                # as in distill.sh
python=${python:-python}                    # the interpreter

mkdir -p "$data_dir" "$models_dir"
if [[ ! -e $data_dir/report.json ]]; then
    "$python" experiments/python_docs/build_collection.py --output_dir "$data_dir" --overwrite
fi
if [[ ! -e $encoder/config.json ]]; then
    "$python" experiments/python_docs/fetch_encoder.py --output_dir "$encoder"
fi
if [[ ! -e $general_student/config.json ]]; then
    "$python" model_tools/make_general_student.py --model_dir "$encoder" --layers "$student_layers" \
        --output_dir "$general_student"
fi
if [[ ! -e $teacher/config.json ]]; then
    features_file=$data_dir/train_pairs.$max_seq_length.features
    if [[ ! $features_file -nt $data_dir/train_pairs.tsv ]]; then
        "$python" tokenize_to_features.py --set_name train --raw_data_file "$data_dir/train_pairs.tsv" \
            --output_features_file "$features_file" --bert_model_dir "$encoder" --max_seq_length "$max_seq_length" \
            --overwrite
    fi
    echo "Fine-tuning the example's teacher, which takes a few minutes without a GPU"
    "$python" distill.py --distill_model hard --features_file "$features_file" --general_student_model "$encoder" \
        --output_student_dir "$teacher" --train_batch_size "$teacher_batch_size" \
        --learning_rate "$teacher_learning_rate" --num_train_epochs "$teacher_epochs" --train_loss_step 20 \
        --device "$device" --precision "$precision" --resume
fi
