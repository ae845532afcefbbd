"""The flags of distill.py and their checks. Loads no torch, so that a wrong flag is reported within a second."""

import argparse
import copy
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from evaluation.measures import canonical_name
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.ranks import rank, world_size
from training.terms import TERMS

# TinyBERT (Jiao et al. 2020): these methods, one after the other.
TINYBERT_STEPS = ("intermediate", "prediction")

DESCRIPTION = """Distils a fine-tuned BERT ranker (the teacher) into a small one (the student).

  python distill.py --features_file train.features --teacher_model teacher/ \\
      --general_student_model general_student/ --output_student_dir student/

In:  features (tokenize_to_features.py) of labelled pairs, or of any text if no hard labels are used; and two model
     directories.
Out: the student in --output_student_dir, a model directory that rerank.py and transformers load; checkpoints in
     checkpoint-STEP/ there; the losses in train_loss.jsonl and their curves in training_curves.png; the log in
     distill.log. A student that learned neither soft nor hard labels (intermediate) has no classifier; the next
     training adds one. With --dev_features_file the student is the best checkpoint, see dev_eval.jsonl.

--resume continues a run that was stopped; give it the same flags. The student is the same. SIGINT (Ctrl-C), SIGTERM and
SIGHUP finish the step, save a checkpoint and end with exit status 75.

torchrun --nproc_per_node N distill.py ... splits each batch over N processes; each process uses one GPU, if there are
GPUs.

A flag without value also takes =yes and =no. `--flag=` with no value is the default."""


def parse_args(methods: Mapping[str, Mapping[str, float]]) -> argparse.Namespace:
    """Parses and checks the command line. `methods`: the weights of the terms, for each `--distill_model`."""
    parser = Parser(DESCRIPTION, is_distributed=True)
    add_data_flags(parser)
    add_method_flags(parser, list(methods))
    add_training_flags(parser)
    add_dev_flags(parser)
    add_hardware_flags(parser)
    return parser.parse(lambda args: check_args(args, methods))


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data and models")
    data.add_argument("--features_file", type=Path, required=True, help="tokenized training pairs")
    data.add_argument(
        "--teacher_model",
        help="model directory of the teacher, or its id on the Hugging Face Hub; not used by --distill_model hard",
    )
    data.add_argument("--general_student_model", required=True, help="model directory, or id, of the untrained student")
    data.add_argument("--output_student_dir", type=Path, required=True, help="directory to write")
    data.add_argument(
        "--overwrite", action="store_true", help="replace the run in --output_student_dir; its model last"
    )
    data.add_argument(
        "--resume",
        action="store_true",
        help="resume the run in --output_student_dir from its newest complete checkpoint, else from the beginning",
    )


def add_method_flags(parser: argparse.ArgumentParser, methods: list[str]) -> None:
    method = parser.add_argument_group("method")
    method.add_argument(
        "--distill_model",
        choices=[*methods, "tinybert"],
        default="simplified",
        help="standard: alpha * soft + (1 - alpha) * hard labels. simplified (default): attention + hidden states "
        "+ soft + hard labels in one step. tinybert: two trainings, intermediate (attention + hidden states, in "
        "OUTPUT_STUDENT_DIR_intermediate), then prediction (soft labels). intermediate, prediction: one of the two. "
        "hard: hard labels only, which is also how a teacher is fine-tuned. margin_mse: margins only, the differences "
        "between the scores of relevant and not relevant passages of a query; ids of pairs are query_id#passage_id",
    )
    method.add_argument("--alpha", type=float, help="weight of soft labels, for standard only (default 0.5)")
    for term in TERMS:
        method.add_argument(
            f"--{term.name}_weight",
            type=float,
            help=f"weight of the {term.meaning} in the loss (default: by --distill_model)",
        )
    method.add_argument(
        "--layer_map",
        help="teacher layers, from 1, that the student's layers 1, 2... learn from, such as 4,8,12 (default: evenly)",
    )
    method.add_argument(
        "--ignore_padding",
        action="store_true",
        help="attention and hidden states of real tokens only: faster, but not the published objective",
    )
    method.add_argument("--temperature", type=float, help="of the soft labels (default 1)")
    method.add_argument(
        "--pooled_activation",
        choices=("none", "relu"),
        help="before both classifiers; relu reproduces the published training (default: as in the teacher)",
    )
    method.add_argument("--teacher_dropout", action="store_true", help="keep the teacher's dropout on, as published")
    method.add_argument(
        "--no_teacher_check",
        action="store_true",
        help="do not check that the teacher ranks relevant examples above not relevant ones before it teaches",
    )


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    training = parser.add_argument_group("training")
    training.add_argument("--max_seq_length", type=int, help="must be that of the features, which is the default")
    training.add_argument(
        "--do_lower_case", action=argparse.BooleanOptionalAction, help="must be that of the features, the default"
    )
    for flag, default, meaning in (
        ("train_batch_size", 64, "examples per step, over all processes"),
        ("gradient_accumulation_steps", 1, "parts of each batch, or of each process's share, to save memory"),
        ("learning_rate", 5e-5, "highest learning rate"),
        ("weight_decay", 0.01, "weight decay; biases and LayerNorm have none"),
        ("num_train_epochs", 2.0, "passes over the features"),
        ("warmup_proportion", 0.1, "share of the steps with a rising learning rate"),
        ("seed", 42, "seed of shuffling, dropout and initial values"),
        ("train_loss_step", 50, "steps between lines of losses"),
        ("save_model_step", 0, "steps between checkpoints; 0: only when the run is stopped"),
        ("keep_checkpoints", 0, "number of newest checkpoints to keep; 0: all"),
    ):
        help_text = f"{meaning} (default {default:g})"
        training.add_argument(f"--{flag}", type=type(default), default=default, help=help_text)
    for name in ("learning_rate", "num_train_epochs"):
        help_text = f"for tinybert's first training (default: --{name})"
        training.add_argument(f"--intermediate_{name}", type=float, help=help_text)
    training.add_argument("--tensorboard_dir", type=Path, help="write curves for TensorBoard, if it is installed")


def add_dev_flags(parser: argparse.ArgumentParser) -> None:
    dev = parser.add_argument_group("best checkpoint", "The student is the checkpoint that re-ranks dev pairs best.")
    dev.add_argument("--dev_features_file", type=Path, help="tokenized pairs to re-rank, ids query_id#passage_id")
    dev.add_argument("--dev_qrels", type=Path, help="relevance judgments of their queries")
    dev.add_argument(
        "--dev_measure", help="of documents ranked by MaxP: MRR@10 (the default), NDCG@10, or another of trec_eval"
    )
    dev.add_argument("--eval_model_step", type=int, help="steps between evaluations (default: one epoch)")
    dev.add_argument(
        "--early_stopping_patience",
        type=int,
        help="stop after this many evaluations in a row without a better value (default: never)",
    )


def add_hardware_flags(parser: argparse.ArgumentParser) -> None:
    hardware = parser.add_argument_group("hardware")
    hardware.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, or a GPU number")
    hardware.add_argument("--no_cuda", action="store_true", help="the same as --device cpu")
    hardware.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU use only algorithms that give the same bytes each time, which is slower; a CPU always does",
    )
    precision = hardware.add_mutually_exclusive_group()
    precision.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="fp32",
        help="of matmuls (default fp32); weights, losses and the optimizer stay in fp32. fp16 needs a GPU, and scales "
        "the loss; auto: fp16 on a GPU, bf16 on a CPU with bfloat16 matmuls, else fp32",
    )
    precision.add_argument("--fp16", action="store_true", help="old name of --precision: fp16 on a GPU, bf16 on a CPU")
    hardware.add_argument(
        "--fp16_backend",
        choices=("torch", "apex"),
        default="torch",
        help="torch.amp (default), or apex.amp of an NVIDIA apex that still has it",
    )
    hardware.add_argument("--fp16_opt_level", default="O1", help="for apex; torch.amp is like O1 (default O1)")


def check_args(args: argparse.Namespace, methods: Mapping[str, Mapping[str, float]]) -> None:
    """Completes the flags, and raises InputError for values that cannot work, before anything is loaded."""
    if args.alpha is not None and args.distill_model != "standard":
        raise InputError(f"--alpha: has no use with --distill_model {args.distill_model}, leave it out")
    args.alpha = 0.5 if args.alpha is None else args.alpha
    if not 0 <= args.alpha <= 1:
        raise InputError("--alpha: needs to be from 0 to 1")
    set_weights(args, methods)
    check_tinybert_args(args)
    check_unused_args(args)
    if args.layer_map is not None and not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", args.layer_map):
        raise InputError(f"--layer_map: '{args.layer_map}' is not a list of layers such as 4,8,12")
    check_dev_args(args)
    check_numbers(args)
    check_fp16_args(args)
    if args.tensorboard_dir is not None and rank() == 0 and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard_dir: TensorBoard is not installed; pip install tensorboard, or leave it out")
    if args.resume and args.overwrite:
        raise InputError("--resume: resumes a run, and --overwrite replaces it; give one of them")
    if args.no_cuda and args.device not in ("auto", "cpu"):
        raise InputError(f"--no_cuda: contradicts --device {args.device}; give one of them")
    args.device = "cpu" if args.no_cuda else args.device


def check_tinybert_args(args: argparse.Namespace) -> None:
    is_tinybert = args.distill_model == "tinybert"
    for name in ("learning_rate", "num_train_epochs"):
        given = getattr(args, f"intermediate_{name}")
        if given is None:
            setattr(args, f"intermediate_{name}", getattr(args, name))
        elif not is_tinybert and given != getattr(args, name):
            raise InputError(f"--intermediate_{name}: has no use without --distill_model tinybert, leave it out")
    if is_tinybert and "logits" not in compared(args):
        raise InputError("--soft_weight: 0 leaves tinybert's second training nothing to learn from the teacher")
    if is_tinybert and not compares_layers(args):
        raise InputError(
            "--att_weight: tinybert's first training needs a weight above 0, of attention or hidden states"
        )
    for name in ("output_student_dir", "tensorboard_dir") if is_tinybert else ():
        path = getattr(args, name)
        if path is not None and path.name in ("", ".."):
            raise InputError(f"--{name}: tinybert needs a second directory beside it; give {path} by its name")
    if is_tinybert and args.fp16_backend == "apex":
        raise InputError("--fp16_backend: apex can start only once; use --distill_model intermediate, then prediction")


def set_weights(args: argparse.Namespace, methods: Mapping[str, Mapping[str, float]]) -> None:
    """Sets the weight of each term: that of its flag, or else that of `--distill_model`."""
    if args.distill_model == "tinybert":
        weights = {name: weight for step in TINYBERT_STEPS for name, weight in methods[step].items()}
    elif args.distill_model == "standard":
        weights = {"soft": args.alpha, "hard": 1.0 - args.alpha}
    else:
        weights = methods[args.distill_model]
    for term in TERMS:
        given = getattr(args, f"{term.name}_weight")
        if given is not None and not 0 <= given < float("inf"):
            raise InputError(f"--{term.name}_weight: needs to be 0 or more")
        setattr(args, f"{term.name}_weight", float(weights.get(term.name, 0)) if given is None else given)
    if not compared(args):
        raise InputError("--att_weight: at least one weight needs to be above 0")


def compared(args: argparse.Namespace) -> set[str]:
    """Returns what the terms compare whose weight is not 0."""
    return {term.compares for term in TERMS if getattr(args, f"{term.name}_weight")}


def learns_labels(args: argparse.Namespace) -> bool:
    """Whether the student learns soft or hard labels. Without them its classifier is not trained: it is no ranker."""
    return not compared(args).isdisjoint({"logits", "labels"})


def compares_layers(args: argparse.Namespace) -> bool:
    """Whether layers of the student learn from layers of the teacher."""
    return not compared(args).isdisjoint({"queries_keys", "hidden_states"})


def check_unused_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that no term of the loss uses."""
    needs_teacher = compared(args) != {"labels"}
    if (args.teacher_model is not None) != needs_teacher:
        needed, unused = (
            f"needed for --distill_model {args.distill_model}",
            "has no use with hard labels alone, leave it out",
        )
        raise InputError(f"--teacher_model: {needed if needs_teacher else unused}")
    unused = {
        "with hard labels alone": ("teacher_dropout",) if not needs_teacher else (),
        "without soft labels": ("temperature",) if not args.soft_weight else (),
        "without soft labels or margins": ("no_teacher_check",) if "logits" not in compared(args) else (),
        "without attention and hidden states": ("ignore_padding", "layer_map") if not compares_layers(args) else (),
    }
    for terms, names in unused.items():
        for name in names:
            if getattr(args, name):
                raise InputError(f"--{name}: has no use {terms}, leave it out")


def check_numbers(args: argparse.Namespace) -> None:
    for name in (
        *("train_batch_size", "gradient_accumulation_steps", "train_loss_step"),
        *("num_train_epochs", "intermediate_num_train_epochs", "eval_model_step", "early_stopping_patience"),
    ):
        if getattr(args, name) is not None and not 1 <= getattr(args, name) < float("inf"):
            raise InputError(f"--{name}: needs to be 1 or more")
    for name in ("num_train_epochs", "intermediate_num_train_epochs"):
        if getattr(args, name) != int(getattr(args, name)):
            raise InputError(f"--{name}: needs to be a whole number")
        setattr(args, name, int(getattr(args, name)))
    if args.train_batch_size % (args.gradient_accumulation_steps * world_size()):
        times = f" times the {world_size()} processes" if world_size() > 1 else ""
        raise InputError(f"--train_batch_size: needs to be a multiple of --gradient_accumulation_steps{times}")
    if args.margin_weight and args.train_batch_size < 2 * args.gradient_accumulation_steps * world_size():
        raise InputError(
            "--train_batch_size: margins need at least 2 pairs in each part of a batch, and in each process"
        )
    rates = "learning_rate", "intermediate_learning_rate", "weight_decay"
    for name in (*rates, "save_model_step", "keep_checkpoints", "seed"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise InputError(f"--{name}: needs to be 0 or more")
    if args.seed >= 1 << 64:
        raise InputError("--seed: needs to be below 2^64")
    args.temperature = 1.0 if args.temperature is None else args.temperature
    if not 0 < args.temperature < float("inf"):
        raise InputError("--temperature: needs to be above 0")
    if not 0 <= args.warmup_proportion < 1:
        raise InputError("--warmup_proportion: needs to be from 0 to below 1")


def check_fp16_args(args: argparse.Namespace) -> None:
    if args.fp16_opt_level not in ("O0", "O1", "O2", "O3"):
        raise InputError("--fp16_opt_level: needs to be O0, O1, O2 or O3")
    if args.fp16_backend != "apex":
        if args.fp16_opt_level != "O1":
            raise InputError("--fp16_opt_level: other levels than O1 need --fp16_backend apex")
        return
    if not args.fp16 and args.precision not in ("auto", "fp16"):
        raise InputError("--fp16_backend: apex needs --precision fp16")
    if world_size() > 1:
        raise InputError("--fp16_backend: apex works in one process only; use torch")
    if args.resume:
        raise InputError("--fp16_backend: apex has a state of its own, so it cannot resume a run; use torch")


def check_dev_args(args: argparse.Namespace) -> None:
    if (args.dev_features_file is None) != (args.dev_qrels is None):
        given, missing = ("qrels", "features_file") if args.dev_features_file is None else ("features_file", "qrels")
        raise InputError(f"--dev_{given}: needs --dev_{missing}")
    if args.dev_features_file is None:
        for name in ("dev_measure", "eval_model_step", "early_stopping_patience"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name}: has no use without --dev_features_file and --dev_qrels, leave it out")
        return
    if not learns_labels(args):
        raise InputError(
            "--dev_features_file: has no use without soft and hard labels, because such a student is not a ranker; "
            "leave it out"
        )
    args.dev_measure = args.dev_measure or "MRR@10"
    try:
        canonical_name(args.dev_measure)
    except ValueError as error:
        raise InputError(f"--dev_measure: {error}") from None


def trainings(args: argparse.Namespace) -> list[argparse.Namespace]:
    """Returns the trainings of a command. TinyBERT has two: the second starts from the student of the first."""
    if args.distill_model != "tinybert":
        return [args]
    first, second = copy.copy(args), copy.copy(args)
    first.distill_model, second.distill_model = TINYBERT_STEPS
    first.output_student_dir = args.output_student_dir.with_name(f"{args.output_student_dir.name}_intermediate")
    first.learning_rate, first.num_train_epochs = args.intermediate_learning_rate, args.intermediate_num_train_epochs
    for term in TERMS:
        setattr(first if term.learns_labels else second, f"{term.name}_weight", 0.0)
    first.temperature, first.no_teacher_check = 1.0, False
    first.dev_features_file = first.dev_qrels = first.dev_measure = None
    first.eval_model_step = first.early_stopping_patience = None
    if args.tensorboard_dir is not None:
        first.tensorboard_dir = args.tensorboard_dir.with_name(f"{args.tensorboard_dir.name}_intermediate")
    second.general_student_model = str(first.output_student_dir)
    second.layer_map, second.ignore_padding = None, False
    return [first, second]
