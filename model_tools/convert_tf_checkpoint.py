"""A TensorFlow 1 checkpoint of BERT in; a model directory out."""
# ruff: noqa: E402

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse

from model_tools.output import check_output_dir
from runtime.errors import InputError
from runtime.flags import Parser

TENSORFLOW = "tensorflow-cpu==2.21.0"


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description=f"""Converts a TensorFlow 1 checkpoint of BERT: a ranker, such as dl4marco-bert's, or an encoder.

  pip install {TENSORFLOW}
  python model_tools/convert_tf_checkpoint.py --tf_checkpoint bert_base/bert_model.ckpt --output_dir teacher/

In:  CHECKPOINT.index and CHECKPOINT.data-..., bert_config.json, vocab.txt.
Out: a model directory. If the checkpoint has no output_weights and output_bias, the ranker's head, the model has no
     classifier. Such a model is a teacher for general distillation, or the start of fine-tuning.""",
    )
    parser.add_argument("--tf_checkpoint", required=True, help="TensorFlow's name of it, such as DIR/model.ckpt-100000")
    parser.add_argument("--bert_config", type=Path, help="its config (default: bert_config.json beside it)")
    parser.add_argument("--vocab_file", type=Path, help="its vocabulary (default: vocab.txt beside it)")
    parser.add_argument("--output_dir", type=Path, required=True, help="the model directory to write")
    parser.add_argument(
        "--do_lower_case", action=argparse.BooleanOptionalAction, default=True, help="for an uncased model; the default"
    )
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that cannot work, and fills in the files beside the checkpoint."""
    args.tf_checkpoint = Path(args.tf_checkpoint.removesuffix(".index"))
    if not Path(f"{args.tf_checkpoint}.index").is_file():
        raise InputError(
            f"--tf_checkpoint: there is no {args.tf_checkpoint}.index; name a checkpoint as TensorFlow does, such as "
            "bert_model.ckpt for bert_model.ckpt.index"
        )
    for flag, name in (("bert_config", "bert_config.json"), ("vocab_file", "vocab.txt")):
        path = getattr(args, flag) or args.tf_checkpoint.with_name(name)
        if not path.is_file():
            raise InputError(f"--{flag}: there is no file {path}; name the file of this model")
        setattr(args, flag, path)
    check_output_dir(args.output_dir)


if __name__ == "__main__":
    args = parse_args()  # before the imports below, which take seconds

import logging
import os
from collections.abc import Callable

import numpy as np

from formats.atomic import atomic_directory
from model_tools.tf_checkpoint import convert_variables
from modeling.model_files import save_ranker
from modeling.model_reader import read_config
from runtime.script import report, run_script
from tokenization.vocabulary import read_vocab_file

logger = logging.getLogger("convert_tf_checkpoint")


def open_checkpoint(prefix: Path) -> tuple[set[str], Callable[[str], np.ndarray]]:
    """Returns the names of a checkpoint's variables, and a function that reads the variable of a name.

    Raises InputError if TensorFlow is not installed, or if a file is damaged or missing.
    """
    for name, setting in (("TF_CPP_MIN_LOG_LEVEL", "3"), ("TF_ENABLE_ONEDNN_OPTS", "0")):
        os.environ.setdefault(name, setting)  # else it logs notes about the processor to stderr
    try:
        import tensorflow
    except ImportError as error:
        raise InputError(
            f"--tf_checkpoint: TensorFlow is needed and cannot be imported ({error}); pip install {TENSORFLOW}"
        ) from None

    def checked(read: Callable, *args: str) -> object:
        try:
            return read(*args)
        except Exception as error:  # TensorFlow has a class for every error
            raise InputError(f"--tf_checkpoint: {prefix} cannot be read ({error})") from None

    reader = checked(tensorflow.train.load_checkpoint, str(prefix))
    return set(reader.get_variable_to_shape_map()), lambda name: checked(reader.get_tensor, name)


def main(args: argparse.Namespace) -> None:
    tokens = read_vocab_file(args.vocab_file)
    config, _ = read_config(args.bert_config)
    if len(tokens) > config.vocab_size:
        raise InputError(
            f"--vocab_file: {args.vocab_file} has {len(tokens)} tokens, {args.bert_config} says {config.vocab_size}"
        )
    names, read = open_checkpoint(args.tf_checkpoint)
    model, has_classifier, unknown = convert_variables(names, read, config, args.tf_checkpoint)
    if unknown:
        logger.warning("%s: these variables are not used: %s", args.tf_checkpoint, ", ".join(unknown))
    with atomic_directory(args.output_dir, last="config.json") as partial:
        save_ranker(model, tokens, args.do_lower_case, partial, without_classifier=not has_classifier)
    report(
        f"wrote {args.output_dir}: {config.num_hidden_layers} layers of hidden size {config.hidden_size} "
        f"{'with a classifier' if has_classifier else 'without a classifier, since there are no output_weights'}, from "
        f"{args.tf_checkpoint} of {len(names)} variables",
        args.output_dir,
        log=False,
    )


if __name__ == "__main__":
    run_script(main, args)
