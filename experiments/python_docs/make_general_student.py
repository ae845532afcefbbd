"""A shallower model out of some layers of a deeper one: the student before it is distilled."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from formats.files import InputError, hold_log, run_script, write_whole_directory
from modeling.checkpoint import CheckpointError, load_ranker, save_ranker, take_layers
from modeling.vocabulary import VocabularyError, load_vocabulary

SEED = 42  # of the classifier, where the model has none


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""Takes the embeddings, the head and some layers of a BERT model.

  python experiments/python_docs/make_general_student.py --model_dir encoder/ --layers 2,4,6 --output_dir student/

In:  a model directory, fine-tuned or not. Out: a model directory with as many layers as were named.""",
    )
    parser.add_argument("--model_dir", type=Path, required=True, help="the deeper model")
    parser.add_argument("--layers", required=True, help="numbers of the layers to take, from 1, such as 2,4,6")
    parser.add_argument("--output_dir", type=Path, required=True, help="the model directory to write")
    parser.add_argument(
        "--do_lower_case", action=argparse.BooleanOptionalAction, default=True, help="for an uncased model; the default"
    )
    args = parser.parse_args()
    try:
        args.layers = [int(number) for number in args.layers.split(",")]
    except ValueError:
        raise InputError(f"--layers: '{args.layers}' is no list of layers such as 2,4,6") from None
    if args.output_dir.exists():
        raise InputError(f"--output_dir: {args.output_dir} exists already; remove it, or name another directory")
    if not args.output_dir.absolute().parent.is_dir():
        raise InputError(f"--output_dir: the directory {args.output_dir.parent} does not exist; make it first")
    return args


def main() -> None:
    args = parse_args()
    with hold_log():  # that an encoder has no classifier is what we expect
        model, _ = load_ranker(args.model_dir, initialise_missing_with_seed=SEED)
    depth = model.config.num_hidden_layers
    if not all(1 <= layer <= depth for layer in args.layers):
        raise InputError(f"--layers: {args.model_dir} has layers 1 to {depth}")
    student = take_layers(model, args.layers)
    with write_whole_directory(args.output_dir, last="config.json") as partial:
        save_ranker(student, load_vocabulary(args.model_dir), args.do_lower_case, partial)
    print(f"wrote {args.output_dir}: layers {', '.join(map(str, args.layers))} of the {depth} of {args.model_dir}")


if __name__ == "__main__":
    run_script(main, CheckpointError, VocabularyError)
