"""A general student: some layers of a model, or a new model of another shape with initial values."""
# ruff: noqa: E402

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse

from model_tools.output import add_lower_case_flag, check_output_dir
from runtime.errors import InputError
from runtime.flags import Parser

SHAPE = ("num_layers", "hidden_size", "num_heads", "intermediate_size")


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Makes a general student from some layers of a BERT model, or from scratch with its vocabulary.

  python model_tools/make_general_student.py --model_dir encoder/ --layers 2,4,6 --output_dir student/
  python model_tools/make_general_student.py --model_dir teacher/ --num_layers 3 --hidden_size 384 \\
      --num_heads 12 --output_dir student/

In:  a model directory, fine-tuned or not.
Out: a model directory. With --layers it has the embeddings, these layers and the head of the model. From scratch it has
     the vocabulary, positions, activation and dropout of the model, BERT's initial values, and a zero embedding of
     padding, as in transformers. It has a classifier only with --layers, and if the model has one; otherwise
     distill.py starts the classifier from initial values.""",
    )
    parser.add_argument(
        "--model_dir", required=True, help="the model to start from: a directory, or an id of the Hugging Face Hub"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="the model directory to write")
    parser.add_argument("--layers", help="the layers to take, counted from 1, such as 2,4,6")
    parser.add_argument("--num_layers", type=int, help="from scratch: number of layers")
    parser.add_argument("--hidden_size", type=int, help="from scratch: size of the hidden states")
    parser.add_argument(
        "--num_heads",
        type=int,
        help="from scratch: number of attention heads; the attention loss needs as many as the teacher has",
    )
    parser.add_argument("--intermediate_size", type=int, help="from scratch: inner size (default 4 * hidden size)")
    parser.add_argument("--seed", type=int, default=42, help="of the initial values (default 42)")
    add_lower_case_flag(parser)
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that cannot work. Splits --layers, and fills in --intermediate_size."""
    shape = {name: getattr(args, name) for name in SHAPE}
    given = [name for name, number in shape.items() if number is not None]
    if args.layers is not None and given:
        raise InputError(f"--layers: takes the shape of the model, so --{given[0]} has no effect; give one of them")
    if args.layers is not None:
        try:
            args.layers = [int(number) for number in args.layers.split(",")]
        except ValueError:
            raise InputError(f"--layers: '{args.layers}' is not a list of layers such as 2,4,6") from None
    else:
        for name in SHAPE[:3]:
            if shape[name] is None:
                raise InputError(f"--{name}: needed to make a student from scratch; or pass --layers")
        if args.intermediate_size is None:
            args.intermediate_size = 4 * args.hidden_size
        for name in SHAPE:
            if getattr(args, name) < 1:
                raise InputError(f"--{name}: needs to be 1 or more")
        if args.hidden_size % args.num_heads:
            raise InputError(
                f"--hidden_size: {args.hidden_size} needs to be a multiple of --num_heads {args.num_heads}"
            )
    if not 0 <= args.seed < 1 << 64:
        raise InputError("--seed: needs to be from 0 to below 2^64")
    check_output_dir(args.output_dir)


if __name__ == "__main__":
    args = parse_args()  # before the imports below, which take seconds

from formats.atomic import atomic_directory
from modeling.general_student import initial_ranker, take_layers
from modeling.model_files import load_ranker, missing_heads, save_ranker
from runtime.hub import model_directory
from runtime.script import buffered_log, report, run_script
from tokenization.vocabulary import load_vocabulary, saved_lower_case


def main(args: argparse.Namespace) -> None:
    args.model_dir = model_directory(args.model_dir)
    tokens = load_vocabulary(args.model_dir)
    if args.layers is None:
        student = initial_ranker(args.model_dir, *(getattr(args, name) for name in SHAPE), seed=args.seed)
        without_classifier = True
        origin = f"from scratch with seed {args.seed} and the vocabulary of {args.model_dir}"
    else:
        with buffered_log():  # the line below names missing parts
            model, _ = load_ranker(args.model_dir, initialise_missing_with_seed=args.seed)
        missing = missing_heads(args.model_dir)
        depth = model.config.num_hidden_layers
        if not all(1 <= layer <= depth for layer in args.layers):
            raise InputError(f"--layers: {args.model_dir} has layers 1 to {depth}")
        student = take_layers(model, args.layers)
        without_classifier = any(name.startswith("classifier.") for name in missing)
        origin = f"layers {', '.join(map(str, args.layers))} of the {depth} of {args.model_dir}"
        if any(name.startswith("bert.pooler.") for name in missing):
            origin += f", whose pooler is missing and starts from seed {args.seed}"
    if len(tokens) > student.config.vocab_size:
        raise InputError(
            f"--model_dir: {args.model_dir} has {len(tokens)} tokens and a config for {student.config.vocab_size}"
        )
    do_lower_case = args.do_lower_case
    if do_lower_case is None:
        do_lower_case = saved_lower_case(args.model_dir) is not False
    with atomic_directory(args.output_dir, last="config.json") as partial:
        save_ranker(student, tokens, do_lower_case, partial, without_classifier)
    config = student.config
    parameters = sum(parameter.numel() for parameter in student.bert.parameters())
    report(
        f"wrote {args.output_dir}: {config.num_hidden_layers} layers of hidden size {config.hidden_size} with "
        f"{config.num_attention_heads} heads, {parameters / 1e6:.1f} million parameters, "
        f"{'without' if without_classifier else 'with'} a classifier; {origin}",
        args.output_dir,
        log=False,
    )


if __name__ == "__main__":
    run_script(main, args)
