"""A TensorFlow 1 checkpoint of BERT in; a model directory out."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from formats.atomic import atomic_directory
from model_tools.tf_checkpoint import convert_variables
from modeling.model_files import save_ranker
from modeling.model_reader import read_config
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import run_script
from tokenization.vocabulary import read_vocab_file

logger = logging.getLogger("convert_tf_checkpoint")

TENSORFLOW = "tensorflow-cpu==2.21.0"


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description=f"""Converts a TensorFlow 1 checkpoint of BERT: a ranker, as of dl4marco-bert, or a bare encoder.

  pip install {TENSORFLOW}
  python model_tools/convert_tf_checkpoint.py --tf_checkpoint bert_base/bert_model.ckpt --output_dir teacher/

In:  CHECKPOINT.index and CHECKPOINT.data-..., bert_config.json, vocab.txt.
Out: a model directory. Without output_weights and output_bias, the ranker's head, it has no classifier: a teacher of
     general distillation, or what a ranker is fine-tuned from.""",
    )
    parser.add_argument("--tf_checkpoint", required=True, help="as TensorFlow names it, such as DIR/model.ckpt-100000")
    parser.add_argument("--bert_config", type=Path, help="its config (default: bert_config.json beside it)")
    parser.add_argument("--vocab_file", type=Path, help="its vocabulary (default: vocab.txt beside it)")
    parser.add_argument("--output_dir", type=Path, required=True, help="the model directory to write")
    parser.add_argument(
        "--do_lower_case", action=argparse.BooleanOptionalAction, default=True, help="for an uncased model; the default"
    )
    args = parser.parse_args()
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuses what cannot work before anything is loaded, and fills in the files beside the checkpoint."""
    args.tf_checkpoint = Path(args.tf_checkpoint.removesuffix(".index"))
    if not Path(f"{args.tf_checkpoint}.index").is_file():
        raise InputError(
            f"--tf_checkpoint: there is no {args.tf_checkpoint}.index; name a checkpoint as TensorFlow does, such as "
            "bert_model.ckpt for bert_model.ckpt.index"
        )
    for flag, name in (("bert_config", "bert_config.json"), ("vocab_file", "vocab.txt")):
        path = getattr(args, flag) or args.tf_checkpoint.with_name(name)
        if not path.is_file():
            raise InputError(f"--{flag}: there is no file {path}; name the one of this model")
        setattr(args, flag, path)
    if args.output_dir.exists():
        raise InputError(f"--output_dir: {args.output_dir} exists already; remove it, or name another directory")
    if not args.output_dir.absolute().parent.is_dir():
        raise InputError(f"--output_dir: the directory {args.output_dir.parent} does not exist; make it first")


def open_checkpoint(prefix: Path) -> tuple[set[str], Callable[[str], np.ndarray]]:
    """The names of a checkpoint's variables, and what reads one of them.

    Raises InputError without TensorFlow, or where a file is damaged or missing.
    """
    for name, setting in (("TF_CPP_MIN_LOG_LEVEL", "3"), ("TF_ENABLE_ONEDNN_OPTS", "0")):
        os.environ.setdefault(name, setting)  # else it talks of this machine's processor on stderr
    try:
        import tensorflow
    except ImportError as error:
        raise InputError(
            f"--tf_checkpoint: TensorFlow, which reads it, cannot be imported ({error}); pip install {TENSORFLOW}"
        ) from None

    def readable(step: Callable, *args: str) -> object:
        try:
            return step(*args)
        except Exception as error:  # TensorFlow has a class for every way to fail
            raise InputError(f"--tf_checkpoint: {prefix} cannot be read ({error})") from None

    reader = readable(tensorflow.train.load_checkpoint, str(prefix))
    return set(reader.get_variable_to_shape_map()), lambda name: readable(reader.get_tensor, name)


def main() -> None:
    args = parse_args()
    tokens = read_vocab_file(args.vocab_file)
    config, _ = read_config(args.bert_config)
    if len(tokens) > config.vocab_size:
        raise InputError(
            f"--vocab_file: {args.vocab_file} has {len(tokens)} tokens, {args.bert_config} says {config.vocab_size}"
        )
    names, read = open_checkpoint(args.tf_checkpoint)
    model, has_classifier, unknown = convert_variables(names, read, config, args.tf_checkpoint)
    if unknown:
        logger.warning("%s: not used are %s", args.tf_checkpoint, ", ".join(unknown))
    with atomic_directory(args.output_dir, last="config.json") as partial:
        save_ranker(model, tokens, args.do_lower_case, partial, without_classifier=not has_classifier)
    print(
        f"wrote {args.output_dir}: {config.num_hidden_layers} layers of hidden size {config.hidden_size} "
        f"{'with a classifier' if has_classifier else 'without a classifier, since there are no output_weights'}, from "
        f"{args.tf_checkpoint} of {len(names)} variables"
    )


if __name__ == "__main__":
    run_script(main)
