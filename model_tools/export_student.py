"""A student in; a cross-encoder of one output out, as sentence-transformers and servers of rerankers load it."""
# ruff: noqa: E402

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import importlib.util

from model_tools.output import add_lower_case_flag, check_output_dir
from runtime.errors import InputError
from runtime.flags import Parser

ONNX_PACKAGES = {"onnx": "onnx==1.23.2", "onnxscript": "onnxscript==0.7.2", "onnxruntime": "onnxruntime==1.32.0"}


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description=f"""Exports a student, or another BERT ranker, as a cross-encoder of one output.

  python model_tools/export_student.py --model_dir student/ --output_dir export/

In:  a model directory with a classifier.
Out: a model directory whose sigmoid is the score of rerank.py. Tokenizers truncate at the length of training. README.md
     is its model card. With --onnx also model.onnx, which is compared with torch on a few inputs.

transformers, and CrossEncoder of sentence-transformers, load it. --onnx needs
pip install {" ".join(ONNX_PACKAGES.values())}""",
    )
    parser.add_argument("--model_dir", required=True, help="the ranker: a directory, or an id of the Hugging Face Hub")
    parser.add_argument("--output_dir", type=Path, required=True, help="the model directory to write")
    parser.add_argument(
        "--max_seq_length",
        type=int,
        help="most tokens of a pair, for a model whose training.json does not tell the length of training",
    )
    parser.add_argument("--measures_file", type=Path, help="Markdown, such as a table of measures, for the model card")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx")
    add_lower_case_flag(parser)
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that cannot work. Reads --measures_file into `args.measures`."""
    if args.max_seq_length is not None and args.max_seq_length < 5:
        raise InputError("--max_seq_length: needs to be 5 or more (3 control tokens, 2 words)")
    missing = [pin for name, pin in ONNX_PACKAGES.items() if args.onnx and importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--onnx: a package is not installed; pip install {' '.join(missing)}")
    try:
        args.measures = "" if args.measures_file is None else args.measures_file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"--measures_file: {args.measures_file} is not UTF-8 text ({error.reason})") from None
    check_output_dir(args.output_dir)


if __name__ == "__main__":
    args = parse_args()  # before the imports below, which take seconds

from formats.atomic import atomic_directory
from formats.run_file import RUN_FILE, read_run_file, trained_length
from modeling.model_files import load_ranker, save_cross_encoder
from runtime.hub import model_directory
from runtime.script import run_script
from tokenization.vocabulary import load_vocabulary, saved_lower_case
from training.model_card import write_model_card


def training_length(trained: object, given: int | None, model_dir: Path) -> int:
    """Returns the length of training: `trained`, as training.json tells it, or else `given`, the flag.

    Raises InputError if both are None, or if they differ.
    """
    if trained is None and given is None:
        raise InputError(
            f"--max_seq_length: needed, because {model_dir} does not tell the length of training; name the "
            "--max_seq_length of its features"
        )
    if None not in (trained, given) and trained != given:
        raise InputError(f"--max_seq_length: {model_dir} was trained with {trained}; leave it out")
    return given if trained is None else trained


def main(args: argparse.Namespace) -> None:
    model_dir = model_directory(args.model_dir)
    run = read_run_file(model_dir)
    if (model_dir / RUN_FILE).exists() and not run["finished"]:
        raise InputError(f"--model_dir: the training in {model_dir} is not finished; resume it first")
    max_seq_length = training_length(trained_length(model_dir), args.max_seq_length, model_dir)
    model, _ = load_ranker(model_dir)
    tokens = load_vocabulary(model_dir)
    config = model.config
    if len(tokens) > config.vocab_size:
        raise InputError(f"--model_dir: {model_dir} has {len(tokens)} tokens and a config for {config.vocab_size}")
    if max_seq_length > config.max_position_embeddings:
        raise InputError(f"--max_seq_length: {model_dir} has {config.max_position_embeddings} positions; give less")
    do_lower_case = args.do_lower_case
    if do_lower_case is None:
        do_lower_case = saved_lower_case(model_dir) is not False
    checked = ""
    with atomic_directory(args.output_dir, last="config.json") as partial:
        save_cross_encoder(model, tokens, do_lower_case, max_seq_length, partial)
        try:
            write_model_card(partial, run | {"max_seq_length": max_seq_length}, args.measures)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise InputError(f"--model_dir: {model_dir / RUN_FILE} is not as distill.py writes it; remove it") from None
        if args.onnx:
            from model_tools.onnx_export import write_onnx  # late: the import takes seconds

            checked = f"; model.onnx differs from torch by at most {write_onnx(partial, max_seq_length):.1g}"
    print(
        f"wrote {args.output_dir}: a cross-encoder of one output, {config.num_hidden_layers} layers of hidden size "
        f"{config.hidden_size}, at most {max_seq_length} tokens, from {model_dir}{checked}"
    )


if __name__ == "__main__":
    run_script(main, args)
