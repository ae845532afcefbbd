"""Features, a teacher and a general student in; a distilled student out."""

import argparse
import contextlib
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from formats.atomic import atomic_directory, atomic_write, remove_partial_files
from formats.checksums import FILE_NAME as CHECKSUMS
from formats.checksums import check_checksums, file_sha256, write_checksums
from formats.features import Features, FeaturesHeader, read_blocks
from formats.pairs import split_example_id
from formats.scores import PassageScore
from modeling.bert import POOLED_ACTIVATIONS, BertRanker
from modeling.frozen import FrozenRanker
from modeling.general_student import make_fit_dense
from modeling.losses import attention_loss, hard_label_loss, hidden_states_loss, soft_label_loss, teacher_layers
from modeling.model_files import check_reads_features, fingerprint, load_ranker, save_ranker
from modeling.scoring import pairs_at_a_time, relevance_scores
from runtime.device import (
    be_deterministic,
    choose_device,
    choose_precision,
    dtype_of,
    is_out_of_memory,
    keep_freed_memory,
)
from runtime.distributed import (
    all_gather,
    all_reduce,
    all_reduce_gradients,
    costs,
    devices_name,
    join,
    local_device,
    rank,
    rank_zero_only,
    world_size,
)
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.hub import model_directory
from runtime.script import append_line, buffered_log, lock_directory, run_script
from training.curves import (
    DEV_FILE,
    LOSS_FILE,
    PICTURE,
    SPEED_FILE,
    read_lines_until,
    used_losses,
    write_training_curves,
)
from training.dev import DevPairs, check_measure, measure_of, read_dev_pairs
from training.optimizer import BertAdam, GradientError, decay_groups
from training.state import FILE_NAME as TRAINING_STATE
from training.state import (
    Training,
    load_training_state,
    read_progress,
    rng_states,
    save_training_state,
)

logger = logging.getLogger("distill")

LOSSES = ("loss", "cls_loss", "att_loss", "rep_loss", "soft_loss", "hard_loss")
METHODS = ("standard", "simplified", "intermediate", "prediction", "hard")

DEV_PAIRS_AT_A_TIME = 128  # at most: what training needs stays in a GPU's memory
STOPPED = 75  # exit status: stopped by a signal and saved, to be gone on with (EX_TEMPFAIL of sysexits.h)
MOST_SKIPPED = 100  # updates in a row: a scaler needs some 20 to find its scale, so more have another reason
RUN_FILE = "training.json"
CHECKPOINT_FILES = {"config.json", "model.safetensors", "vocab.txt", LOSS_FILE, TRAINING_STATE}
BEST_WEIGHTS = "best_model.safetensors"  # in a checkpoint: of the best student until then
# Flags whose files are compared by content.
CONTENTS = ("features_file", "teacher_model", "general_student_model", "dev_features_file", "dev_qrels")
# Those, and flags that change no figure.
NOT_SETTINGS = {
    *CONTENTS,
    *("max_seq_length", "do_lower_case", "no_teacher_check", "tensorboard_dir"),
    *("output_student_dir", "overwrite", "resume", "save_model_step", "keep_checkpoints"),
    *("device", "no_cuda", "fp16", "deterministic"),
}

# A random head's AUC lies within 0.5 +- 0.1 in 99 of 100 draws of so many examples of each label.
CHECKED_EXAMPLES = 128
LEAST_CHECKED_EXAMPLES = 16
LEAST_AUC = 0.6


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Distils a fine-tuned BERT ranker (the teacher) into a small one (the student).

  python distill.py --features_file train.features --teacher_model teacher/ \\
      --general_student_model general_student/ --output_student_dir student/

In:  features (tokenize_to_features.py) of labelled pairs, or, where no hard labels are used, of any text; and two
     model directories.
Out: the student in --output_student_dir, a model directory that rerank.py and transformers load; earlier states in
     checkpoint-STEP/ there; the losses in train_loss.jsonl and their curves in training_curves.png; the log in
     distill.log. A student that learned neither soft nor hard labels (intermediate) has no classifier yet: the next
     step gives it one. With --dev_features_file the student is the best one that was found, as dev_eval.jsonl says.

A run that was stopped goes on with --resume and the same flags, to the same student. SIGINT (Ctrl-C) and SIGTERM finish
the update, save a checkpoint and end with exit status 75.

torchrun --nproc_per_node N distill.py ... shares each batch among N processes, on GPUs one each.""",
    )
    data = parser.add_argument_group("data and models")
    data.add_argument("--features_file", type=Path, required=True, help="tokenized training pairs")
    data.add_argument(
        "--teacher_model",
        help="model directory of the teacher, or its id on the Hugging Face Hub; none with --distill_model hard",
    )
    data.add_argument("--general_student_model", required=True, help="model directory, or id, the student starts from")
    data.add_argument("--output_student_dir", type=Path, required=True, help="directory to write")
    data.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run that --output_student_dir holds: its checkpoints and losses when training starts, its "
        "model when the new one is finished",
    )
    data.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run that --output_student_dir holds, from its newest complete checkpoint, or from the "
        "beginning where there is none; the other flags need to be those of that run",
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--distill_model",
        choices=METHODS,
        default="simplified",
        help="standard: alpha * soft + (1 - alpha) * hard labels. simplified (default): attention + hidden states "
        "+ soft + hard labels in one step. intermediate, prediction: TinyBERT's two steps, attention + hidden states, "
        "then soft labels. hard: labels alone, which is also how a teacher is fine-tuned",
    )
    method.add_argument("--alpha", type=float, help="weight of soft labels, for standard alone (default 0.5)")
    for name, meaning in (
        ("att", "attention scores"),
        ("rep", "hidden states"),
        ("soft", "soft labels"),
        ("hard", "hard labels"),
    ):
        method.add_argument(
            f"--{name}_weight", type=float, help=f"weight of the {meaning} in the loss (default: by --distill_model)"
        )
    method.add_argument(
        "--layer_map",
        help="teacher layers, from 1, that the student's layers 1, 2... learn from, such as 4,8,12 (default: evenly)",
    )
    method.add_argument(
        "--ignore_padding",
        action="store_true",
        help="attention and hidden states of real tokens only: another objective than the published one, and faster",
    )
    method.add_argument("--temperature", type=float, help="of the soft labels (default 1)")
    method.add_argument(
        "--pooled_activation",
        choices=POOLED_ACTIVATIONS,
        help="before both classifiers; relu reproduces the published training (default: as the teacher says)",
    )
    method.add_argument("--teacher_dropout", action="store_true", help="leave the teacher's dropout on, as published")
    method.add_argument(
        "--no_teacher_check",
        action="store_true",
        help="do not ask that the teacher ranks relevant examples above others before it teaches soft labels",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--max_seq_length", type=int, help="must be that of the features, which is the default")
    training.add_argument(
        "--do_lower_case", action=argparse.BooleanOptionalAction, help="must be that of the features, the default"
    )
    training.add_argument(
        "--train_batch_size", type=int, default=64, help="examples per update, over all processes (default 64)"
    )
    training.add_argument(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="split each batch, or each process's share, into this many parts to save memory; the updates stay the "
        "same but for dropout's draws (default 1)",
    )
    training.add_argument("--learning_rate", type=float, default=5e-5, help="its highest value (default 5e-5)")
    training.add_argument(
        "--weight_decay", type=float, default=0.01, help="none on biases and LayerNorm (default 0.01)"
    )
    training.add_argument("--num_train_epochs", type=float, default=2, help="passes over the features (default 2)")
    training.add_argument(
        "--warmup_proportion", type=float, default=0.1, help="share of the updates with a rising rate (default 0.1)"
    )
    training.add_argument("--seed", type=int, default=42, help="of shuffling, dropout, initial values (default 42)")
    training.add_argument("--train_loss_step", type=int, default=50, help="updates between loss lines (default 50)")
    training.add_argument(
        "--save_model_step",
        type=int,
        default=0,
        help="updates between checkpoints; 0, the default, for none but that of a run that is stopped",
    )
    training.add_argument(
        "--keep_checkpoints", type=int, default=0, help="of so many, the newest; 0, the default, for all"
    )
    training.add_argument(
        "--tensorboard_dir", type=Path, help="where TensorBoard finds the curves; its package is needed"
    )
    dev = parser.add_argument_group("the best student", "The student that re-ranks pairs of its own best is kept.")
    dev.add_argument("--dev_features_file", type=Path, help="tokenized pairs to re-rank, ids query_id#passage_id")
    dev.add_argument("--dev_qrels", type=Path, help="judgements of their queries")
    dev.add_argument(
        "--dev_measure", help="of the documents, ranked by MaxP: MRR@10 (the default), NDCG@10, or another of trec_eval"
    )
    dev.add_argument("--eval_model_step", type=int, help="updates between evaluations (default: one an epoch)")
    dev.add_argument(
        "--early_stopping_patience",
        type=int,
        help="stop after so many evaluations in a row without a better value (default: never)",
    )
    hardware = parser.add_argument_group("hardware")
    hardware.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, or a GPU number")
    hardware.add_argument("--no_cuda", action="store_true", help="the same as --device cpu")
    hardware.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU only algorithms that give the same bytes each time, at some cost; a CPU's always do",
    )
    precision = hardware.add_mutually_exclusive_group()
    precision.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="fp32",
        help="of the products (default fp32); weights, losses and updates stay in fp32. fp16 needs a GPU, and scales "
        "the loss; auto: fp16 on a GPU, bf16 on a CPU that multiplies it, else fp32",
    )
    precision.add_argument("--fp16", action="store_true", help="old name of --precision: fp16 on a GPU, bf16 on a CPU")
    hardware.add_argument(
        "--fp16_backend",
        choices=("torch", "apex"),
        default="torch",
        help="torch.amp (default), or apex.amp of an NVIDIA apex that still has it",
    )
    hardware.add_argument("--fp16_opt_level", default="O1", help="for apex; torch.amp is like O1 (default O1)")
    args = parser.parse_args()
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuses what cannot work before anything is loaded."""
    if args.alpha is None:
        args.alpha = 0.5
    elif args.distill_model != "standard":
        raise InputError(f"--alpha: has no use with --distill_model {args.distill_model}, leave it out")
    if not 0 <= args.alpha <= 1:
        raise InputError("--alpha: needs to be from 0 to 1")
    set_weights(args)
    needs_teacher = args.att_weight + args.rep_weight + args.soft_weight > 0
    if (args.teacher_model is not None) != needs_teacher:
        raise InputError(
            f"--teacher_model: needed for --distill_model {args.distill_model}"
            if needs_teacher
            else "--teacher_model: has no use with hard labels alone, leave it out"
        )
    if not needs_teacher and args.teacher_dropout:
        raise InputError("--teacher_dropout: has no use with hard labels alone, leave it out")
    for name in ("temperature", "no_teacher_check"):
        if getattr(args, name) and not args.soft_weight:
            raise InputError(f"--{name}: has no use without soft labels, leave it out")
    compares_layers = args.att_weight + args.rep_weight > 0
    if args.ignore_padding and not compares_layers:
        raise InputError("--ignore_padding: has no use without attention and hidden states, leave it out")
    if args.layer_map is not None:
        if not compares_layers:
            raise InputError("--layer_map: has no use without attention and hidden states, leave it out")
        if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", args.layer_map):
            raise InputError(f"--layer_map: '{args.layer_map}' is no list of layers such as 4,8,12")
    for name in ("train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "train_loss_step"):
        if not 1 <= getattr(args, name) < float("inf"):
            raise InputError(f"--{name}: needs to be 1 or more")
    if args.num_train_epochs != int(args.num_train_epochs):
        raise InputError("--num_train_epochs: needs to be a whole number")
    args.num_train_epochs = int(args.num_train_epochs)
    if args.train_batch_size % (args.gradient_accumulation_steps * world_size()):
        times = f" times the {world_size()} processes" if world_size() > 1 else ""
        raise InputError(f"--train_batch_size: needs to be a multiple of --gradient_accumulation_steps{times}")
    for name in ("learning_rate", "weight_decay", "save_model_step", "keep_checkpoints", "seed"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise InputError(f"--{name}: needs to be 0 or more")
    if args.seed >= 1 << 64:
        raise InputError("--seed: needs to be below 2^64")
    if args.temperature is None:
        args.temperature = 1.0
    if not 0 < args.temperature < float("inf"):
        raise InputError("--temperature: needs to be above 0")
    if not 0 <= args.warmup_proportion < 1:
        raise InputError("--warmup_proportion: needs to be from 0 to below 1")
    if args.fp16_opt_level not in ("O0", "O1", "O2", "O3"):
        raise InputError("--fp16_opt_level: needs to be O0, O1, O2 or O3")
    if args.fp16_opt_level != "O1" and args.fp16_backend != "apex":
        raise InputError("--fp16_opt_level: other levels than O1 need --fp16_backend apex")
    if args.fp16_backend == "apex":
        if not args.fp16 and args.precision not in ("auto", "fp16"):
            raise InputError("--fp16_backend: apex needs --precision fp16")
        if world_size() > 1:
            raise InputError("--fp16_backend: apex works in one process alone; use torch")
        if args.resume:
            raise InputError("--fp16_backend: apex keeps a state of its own, so it cannot go on with a run; use torch")
        import_apex_amp()
    check_dev_args(args)
    if args.tensorboard_dir is not None:
        import_tensorboard()
    if args.resume and args.overwrite:
        raise InputError("--resume: goes on with a run, and --overwrite replaces it; give one of them")
    if args.no_cuda and args.device not in ("auto", "cpu"):
        raise InputError(f"--no_cuda: contradicts --device {args.device}; give one of them")
    if args.no_cuda:
        args.device = "cpu"


def check_dev_args(args: argparse.Namespace) -> None:
    """Refuses what does not fit among the flags that choose the best student."""
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
            "--dev_features_file: has no use without soft and hard labels, since such a student is no ranker yet; "
            "leave it out"
        )
    for name in ("eval_model_step", "early_stopping_patience"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name}: needs to be 1 or more")
    args.dev_measure = args.dev_measure or "MRR@10"
    check_measure(args.dev_measure)


def set_weights(args: argparse.Namespace) -> None:
    """Gives the four terms of the loss the weights that `--distill_model` stands for, where no flag gives another."""
    preset = {  # of att, rep, soft, hard
        "standard": (0.0, 0.0, args.alpha, 1.0 - args.alpha),
        "simplified": (1.0, 1.0, 1.0, 1.0),
        "intermediate": (1.0, 1.0, 0.0, 0.0),
        "prediction": (0.0, 0.0, 1.0, 0.0),
        "hard": (0.0, 0.0, 0.0, 1.0),
    }[args.distill_model]
    names = ("att_weight", "rep_weight", "soft_weight", "hard_weight")
    for name, weight in zip(names, preset, strict=True):
        given = getattr(args, name)
        if given is not None and not 0 <= given < float("inf"):
            raise InputError(f"--{name}: needs to be 0 or more")
        setattr(args, name, weight if given is None else given)
    if not any(getattr(args, name) for name in names):
        raise InputError(f"--{names[0]}: at least one weight needs to be above 0")


def learns_labels(args: argparse.Namespace) -> bool:
    """Whether the student becomes a ranker: without soft or hard labels its classifier learns nothing."""
    return args.soft_weight + args.hard_weight > 0


def earlier_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in an output directory, oldest first."""
    paths = [path for path in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name)]
    return sorted(paths, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """The number of updates after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def kept_students(directory: Path) -> list[Path]:
    """The best student of an unfinished run, best-STEP/; a run that was killed may leave the one before as well."""
    return [path for path in directory.glob("best-*") if re.fullmatch(r"best-[0-9]{1,18}", path.name)]


def remove_checkpoint(checkpoint: Path) -> None:
    """Removes it in such an order that a part of it never counts as complete; of a link, the link alone."""
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        checkpoint.unlink()
        return
    checkpoint.joinpath(CHECKSUMS).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def newest_complete_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that holds, byte for byte, what was saved; a warning names each newer one that does not."""
    for checkpoint in reversed(earlier_checkpoints(directory)):
        try:
            check_checksums(checkpoint, CHECKPOINT_FILES)
            return checkpoint
        except InputError as error:
            logger.warning("%s; going on from an earlier checkpoint", error)
    return None


def check_output_dir(args: argparse.Namespace) -> None:
    """Raises InputError where the directory holds an input, or a student or checkpoints that nobody asked to replace.

    With `--resume` it may hold an earlier part of the run.
    """
    directory = args.output_student_dir
    checkpoints = earlier_checkpoints(directory) + kept_students(directory)
    for source in filter(None, (args.teacher_model, args.general_student_model, args.features_file)):
        path = Path(source).resolve()
        is_lost = path == directory.resolve() or any(
            path.is_relative_to(checkpoint.resolve()) for checkpoint in checkpoints
        )
        if is_lost and (args.overwrite or args.resume):
            raise InputError(f"--output_student_dir: {source} is an input and would be lost; name another directory")
    models = ("config.json", "model.safetensors", "pytorch_model.bin", "bert_config.json")
    found = [directory / name for name in models if (directory / name).exists()] + checkpoints
    is_run = (directory / RUN_FILE).exists()
    if found and not args.overwrite and not (args.resume and is_run):
        may_go_on = is_run and not read_run_file(directory)["finished"]
        raise InputError(
            f"--output_student_dir: {directory} holds {found[0].name} of an earlier run; "
            + ("pass --resume to go on with it, " if may_go_on else "pass ")
            + "--overwrite to replace it, or name another directory"
        )


def read_run_file(directory: Path) -> dict:
    """Whether the run of an output directory is `finished`, and with which `settings`; if damaged, it is not."""
    try:
        run = json.loads((directory / RUN_FILE).read_bytes())
        return {"finished": run["finished"] is True, "settings": dict(run["settings"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {"finished": False, "settings": {}}


def write_run_file(directory: Path, finished: bool, settings: dict, outcome: dict | None = None) -> None:
    """Says what `read_run_file` reads, and what came out."""
    with atomic_write(directory / RUN_FILE) as file:
        json.dump({"finished": finished, **(outcome or {}), "settings": settings}, file, indent=2)
        file.write("\n")


def prepare_output_dir(directory: Path, settings: dict, start: Path | None) -> None:
    """Leaves the directory as it was after the checkpoint `start`, or, where None, as before the first update.

    The model of an earlier run stays until the new one replaces it; its checkpoints go.
    """
    remove_partial_files(directory)
    if start is None:
        directory.joinpath(RUN_FILE).unlink(missing_ok=True)
    for checkpoint in earlier_checkpoints(directory):
        if start is None or checkpoint_step(checkpoint) > checkpoint_step(start):  # of another run, or damaged
            remove_checkpoint(checkpoint)
    for student in kept_students(directory):  # the one of `start` is in there
        shutil.rmtree(student)
    write_run_file(directory, False, settings)
    for name in (LOSS_FILE, DEV_FILE):
        if name == DEV_FILE and settings["dev_qrels"] is None:
            directory.joinpath(name).unlink(missing_ok=True)
            continue
        with atomic_write(directory / name, binary=True) as file:
            file.write(b"" if start is None else start.joinpath(name).read_bytes())
    speeds = read_lines_until(directory / SPEED_FILE, checkpoint_step(start) if start else 0)
    directory.joinpath(SPEED_FILE).unlink(missing_ok=True)
    for line in speeds:
        append_line(directory / SPEED_FILE, json.dumps(line))


def check_settings(args: argparse.Namespace, earlier: dict, settings: dict) -> None:
    """Raises InputError, naming what differs, where a run cannot go on with these settings."""
    differences = []
    for name in settings:
        if earlier.get(name) != settings[name]:
            values = "other content" if name in CONTENTS else f"{earlier.get(name)} there, {settings[name]} here"
            differences.append(f"{'' if name == 'num_processes' else '--'}{name} ({values})")
    if differences:
        raise InputError(
            f"--resume: the run in {args.output_student_dir} differs in {', '.join(differences)}; give what it had, "
            "pass --overwrite instead to start anew, or name another --output_student_dir"
        )


def choose_layers(args: argparse.Namespace, teacher: BertRanker, student: BertRanker) -> list[int]:
    """The teacher layer that each student layer m = 0 (embeddings) to M learns from.

    Raises InputError where layers cannot be compared.
    """
    depth, teacher_depth = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    if args.layer_map is None:
        try:
            layer_map = teacher_layers(depth, teacher_depth)
        except ValueError as error:
            raise InputError(
                f"--general_student_model: {error}; take a student whose depth divides it, or give --layer_map"
            ) from None
    else:
        layer_map = [0, *map(int, args.layer_map.split(","))]
        if len(layer_map) != depth + 1:
            raise InputError(f"--layer_map: names {len(layer_map) - 1} layers for the {depth} of the student")
        if not all(1 <= layer <= teacher_depth for layer in layer_map[1:]):
            raise InputError(f"--layer_map: the teacher has layers 1 to {teacher_depth}")
    heads = (student.config.num_attention_heads, teacher.config.num_attention_heads)
    if args.att_weight and heads[0] != heads[1]:
        raise InputError(
            f"--general_student_model: {heads[0]} attention heads cannot learn from {heads[1]}; take a student with "
            f"{heads[1]} heads, --att_weight 0, or --distill_model standard"
        )
    return layer_map


def distillation_losses(
    args: argparse.Namespace,
    student: BertRanker,
    teacher: FrozenRanker | BertRanker | None,
    fit_dense: torch.nn.Linear | None,
    layer_map: list[int],
    batch: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The losses named in `LOSSES` of one batch; a term of weight 0 is not computed and counts 0.

    `batch`: as from `Features.batch`, on the device. `layer_map`: as from `choose_layers`, empty without att and rep.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    layers = list(range(1, len(layer_map)))
    teacher_of = layer_map[1:]
    compares_states, compares_scores = args.rep_weight > 0, args.att_weight > 0
    if teacher is not None:
        with torch.no_grad():
            target = teacher(
                **inputs,
                hidden_states_of=set(layer_map) if compares_states else (),
                queries_keys_of=set(teacher_of) if compares_scores else (),
            )
    output = student(
        **inputs,
        hidden_states_of=range(len(layer_map)) if compares_states else (),
        queries_keys_of=layers if compares_scores else (),
    )

    att = rep = soft = hard = torch.zeros((), device=batch["labels"].device)
    if compares_scores:
        with without_apex_casts(args):
            att = attention_loss(
                [output.queries_keys[m] for m in layers],
                [target.queries_keys[n] for n in teacher_of],
                batch["attention_mask"],
                args.ignore_padding,
            )
    if compares_states:
        real = batch["attention_mask"] if args.ignore_padding else None
        rep = hidden_states_loss(
            [output.hidden_states[m] for m in range(len(layer_map))],
            [target.hidden_states[n] for n in layer_map],
            fit_dense,
            real,
        )
    if args.soft_weight:
        soft = soft_label_loss(output.logits, target.logits, args.temperature)
    if args.hard_weight:
        hard = hard_label_loss(output.logits, batch["labels"])
    cls = args.soft_weight * soft + args.hard_weight * hard
    loss = args.att_weight * att + args.rep_weight * rep + cls
    return dict(zip(LOSSES, (loss, cls, att, rep, soft, hard), strict=True))


@torch.inference_mode()
def check_teacher(
    args: argparse.Namespace, device: torch.device, features: Features, teacher: FrozenRanker | BertRanker
) -> str:
    """Asks that the teacher ranks relevant examples above others, among the first of each label in training order.

    Its measure is AUC: how often a relevant example has the higher score, half for equal ones. Returns what it found.
    Raises InputError for a lower one than `LEAST_AUC`, as that of a random head or of labels turned round.
    """
    order = epoch_order(args.seed, 0, len(features))
    scores = {}
    for label in (0, 1):
        chosen = order[features.labels[order] == label][:CHECKED_EXAMPLES]
        if len(chosen) < LEAST_CHECKED_EXAMPLES:
            return f"teacher not checked: {len(chosen)} examples with label {label} are too few"
        scores[label] = np.concatenate(
            [
                score_examples(args, device, features, teacher, part)
                for part in np.array_split(chosen, len(chosen) // LEAST_CHECKED_EXAMPLES)
            ]
        )
    wins = scores[1][:, None] - scores[0][None, :]  # (relevant, others)
    auc = np.mean((wins > 0) + 0.5 * (wins == 0))
    figure = f"AUC {auc:.3f} over {len(scores[1])} relevant and {len(scores[0])} other examples"
    if auc < LEAST_AUC:
        reason = (
            "its labels are turned round" if auc < 1 - LEAST_AUC else "it tells them apart hardly better than chance"
        )
        raise InputError(
            f"--teacher_model: {args.teacher_model} has {figure}: {reason}; take another teacher, or pass "
            "--no_teacher_check"
        )
    return f"teacher checked: {figure}"


def score_examples(
    args: argparse.Namespace,
    device: torch.device,
    features: Features,
    teacher: FrozenRanker | BertRanker,
    indices: np.ndarray,
) -> np.ndarray:
    """The teacher's logit gap, class 1 above class 0, of examples, (n,) float64."""
    batch = {name: torch.from_numpy(array).to(device) for name, array in features.batch(indices).items()}
    del batch["labels"]
    with torch.autocast(device.type, dtype_of(args.precision), enabled=args.precision != "fp32"):
        logits = teacher(**batch).logits
    return logits.double().diff(dim=-1)[:, 0].cpu().numpy()


def make_backward(args: argparse.Namespace, scaler: torch.amp.GradScaler, optimizer: BertAdam) -> Callable:
    """How a loss becomes gradients: `backward(loss, last)`, `last` on the last part of an accumulated batch."""
    if args.fp16_backend == "apex":
        amp = import_apex_amp()

        def backward(loss: torch.Tensor, last: bool) -> None:
            with amp.scale_loss(loss, optimizer, delay_unscale=not last) as scaled_loss, without_apex_casts(args):
                scaled_loss.backward()

        return backward
    return lambda loss, last: scaler.scale(loss).backward()


def import_apex_amp() -> ModuleType:
    """The module apex.amp. Raises InputError where there is no apex with amp."""
    try:
        from apex import amp
    except ImportError:
        raise InputError(
            "--fp16_backend apex: no NVIDIA apex with amp is installed (the PyPI package of that name is another "
            "project); use --fp16_backend torch"
        ) from None
    return amp


def import_tensorboard() -> ModuleType:
    """The module torch.utils.tensorboard. Raises InputError where TensorBoard, which it needs, is not installed."""
    try:
        from torch.utils import tensorboard
    except ImportError:
        raise InputError(
            "--tensorboard_dir: TensorBoard is not installed; pip install tensorboard, or leave it out"
        ) from None
    return tensorboard


def without_apex_casts(args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Apex at O1 patches torch itself; a loss in Python, and its backward pass, could not keep it from float16."""
    patches_torch = args.fp16_backend == "apex" and args.fp16_opt_level == "O1"
    return import_apex_amp().disable_casts() if patches_torch else contextlib.nullcontext()


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the examples in an epoch: a permutation keyed by seed and epoch, (count,) int64."""
    return np.random.default_rng([seed, epoch]).permutation(count)


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM end nothing; they are added to the list that is handed out."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        if not noted and rank() == 0:
            name = signal.Signals(number).name
            with contextlib.suppress(OSError, AttributeError):  # Ctrl-C may have ended the `tee` that stderr goes to
                os.write(sys.__stderr__.fileno(), f"\n{name}: finishing the update and saving\n".encode())
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    args: argparse.Namespace,
    device: torch.device,
    features: Features,
    student: BertRanker,
    teacher: FrozenRanker | BertRanker | None,
    fit_dense: torch.nn.Linear | None,
    layer_map: list[int],
    start: Path | None,
    record: Callable[[dict, float], None],
    evaluate: Callable[[dict], None] | None,
    save_checkpoint: Callable[[Training, dict], None],
) -> dict:
    """The training loop: updates the student in place, and calls the three functions when it is time.

    `record` gets a line of losses and the examples a second, `evaluate` and `save_checkpoint` the progress, which the
    loop returns at its end. Begins after the checkpoint `start`, where there is one.

    Raises InputError, before the weights change, where a loss or a gradient is not finite, unless float16 is to blame;
    SystemExit with `STOPPED`, after saving, where a signal asks for it.
    """
    trained = torch.nn.ModuleDict({"student": student} | ({"fit_dense": fit_dense} if fit_dense is not None else {}))
    num_parts = args.gradient_accumulation_steps * world_size()  # of a batch; their mean losses count the same
    updates_per_epoch = len(features) // args.train_batch_size
    total_updates = updates_per_epoch * args.num_train_epochs
    optimizer = BertAdam(
        decay_groups(trained.named_parameters(), args.weight_decay),
        lr=args.learning_rate,
        total_steps=total_updates,
        warmup=args.warmup_proportion,
    )
    use_torch_amp = args.precision != "fp32" and args.fp16_backend == "torch"
    scaler = torch.amp.GradScaler(device.type, enabled=use_torch_amp and args.precision == "fp16")
    if args.fp16_backend == "apex":
        import_apex_amp().initialize(list(trained.values()), optimizer, opt_level=args.fp16_opt_level)
    backward = make_backward(args, scaler, optimizer)
    autocast = torch.autocast(device.type, dtype_of(args.precision), enabled=use_torch_amp)
    # The attention and hidden-state losses count padding, so the padded length is part of the published method.
    counts_padding = bool(layer_map) and not args.ignore_padding
    pad_to = features.header.max_seq_length if counts_padding else None
    trained.train()
    if isinstance(teacher, BertRanker):
        teacher.train(args.teacher_dropout)

    training = Training(trained, optimizer, scaler)
    # sums: of the losses since the last line, over num_summed updates
    progress = {"global_step": 0, "sums": [0.0] * len(LOSSES), "num_summed": 0, "skipped_in_a_row": 0}
    progress |= {"best_step": None, "best_value": None, "evaluations_since_best": 0}
    if start is not None:
        progress |= load_training_state(start, training, device)
    first_step = progress["global_step"]
    order_of = None, None  # the last epoch, and its order
    begin = time.monotonic()
    num_timed, timed_seconds = 0, 0.0  # updates since the last line, without evaluations and checkpoints
    with (
        logging_redirect_tqdm(),
        tqdm(total=total_updates, initial=first_step, desc="distilling", unit=" updates", disable=None) as bar,
        signals_noted() as signals,
    ):
        for global_step in range(first_step + 1, total_updates + 1):
            update_begin = time.monotonic()
            epoch, place = divmod(global_step - 1, updates_per_epoch)
            if order_of[0] != epoch:
                order_of = epoch, epoch_order(args.seed, epoch, len(features))
            examples = order_of[1][place * args.train_batch_size :][: args.train_batch_size]
            learning_rate, updates_made = optimizer.learning_rate(), optimizer.param_groups[0]["step"]
            own_parts = np.split(examples, num_parts)[rank() :: world_size()]
            mean_losses = torch.zeros(len(LOSSES) + 1, device=device)  # and whether a process was asked to stop
            for part in own_parts:
                batch = {
                    name: torch.from_numpy(array).to(device, non_blocking=True)
                    for name, array in features.batch(part, pad_to).items()
                }
                with autocast:
                    losses = distillation_losses(args, student, teacher, fit_dense, layer_map, batch)
                backward(losses["loss"] / num_parts, last=part is own_parts[-1])
                mean_losses[:-1] += torch.stack([losses[name].detach() for name in LOSSES]) / num_parts
            all_reduce_gradients(trained.parameters())  # scaled as they are, so that an overflow is one everywhere
            mean_losses[-1] = len(signals)
            *means, must_stop = all_reduce(mean_losses).tolist()
            faults = [name for name, mean in zip(LOSSES, means, strict=True) if not math.isfinite(mean)]
            try:
                if faults and args.precision != "fp16":
                    raise GradientError(f"{', '.join(faults)} not finite")
                if not faults or args.fp16_backend == "apex":  # apex looks at the gradients itself, and has to
                    scaler.step(optimizer)
            except GradientError as error:
                if args.precision != "fp16":
                    message = (
                        f"update {global_step}: {error}, so the run stops before it; lower --learning_rate, or look at "
                        f"the teacher and the examples {', '.join(features.example_ids(examples))}"
                    )
                    logger.error("%s", message)  # in full, however many examples there are
                    raise InputError(message) from None
            if not faults:
                scaler.update()
            optimizer.zero_grad()
            if not faults:
                progress["sums"] = [total + mean for total, mean in zip(progress["sums"], means, strict=True)]
                progress["num_summed"] += 1
            is_skipped = optimizer.param_groups[0]["step"] == updates_made
            progress["skipped_in_a_row"] = progress["skipped_in_a_row"] + 1 if is_skipped else 0
            if progress["skipped_in_a_row"] == MOST_SKIPPED:
                raise InputError(
                    f"update {global_step}: a loss or a gradient was not finite in float16, {MOST_SKIPPED} times in a "
                    "row; take --precision bf16 or fp32, or look at the teacher"
                )
            progress["global_step"] = global_step
            bar.update()
            num_timed, timed_seconds = num_timed + 1, timed_seconds + time.monotonic() - update_begin

            is_last = global_step == total_updates
            if evaluate is not None and (is_last or global_step % args.eval_model_step == 0):
                evaluate(progress)
                if progress["evaluations_since_best"] == args.early_stopping_patience:
                    logger.info("stopping early: %d evaluations without a better one", args.early_stopping_patience)
                    is_last = True
            must_stop = must_stop if world_size() > 1 else len(signals)  # alone, it need not wait for the next update
            if global_step % args.train_loss_step == 0 or is_last:
                line = loss_line(progress, learning_rate)
                record(line, num_timed * args.train_batch_size / timed_seconds)
                num_timed, timed_seconds = 0, 0.0
                progress |= {"sums": [0.0] * len(LOSSES), "num_summed": 0}
                rate = (global_step - first_step) * args.train_batch_size / (time.monotonic() - begin)
                loss = "none finite" if line["loss"] is None else f"{line['loss']:.4f}"
                bar.set_postfix(loss=loss, refresh=False)
                logger.info("update %d of %d: loss %s, %.1f examples/s", global_step, total_updates, loss, rate)
            if is_last:
                break
            if must_stop or (args.save_model_step and global_step % args.save_model_step == 0):
                save_checkpoint(training, progress)
            if must_stop:
                all_reduce(torch.zeros(1, device=device))  # no process ends before the first has saved
                logger.warning("stopped by a signal after update %d; --resume goes on with it", global_step)
                sys.exit(STOPPED)
    made = progress["global_step"]
    skipped = made - optimizer.param_groups[0]["step"]
    if skipped:
        logger.warning("%d of %d updates skipped, since float16 overflowed in them", skipped, made)
    return progress


def loss_line(progress: dict, learning_rate: float) -> dict:
    """A line of `train_loss.jsonl`: means over the updates since the last one, None where all of them were skipped."""
    count = progress["num_summed"]
    means = [total / count if count else None for total in progress["sums"]]
    losses = dict(zip(LOSSES, means, strict=True))
    return {"global_step": progress["global_step"], **losses, "learning_rate": learning_rate}


def dev_value(args: argparse.Namespace, student: BertRanker, dev: DevPairs, max_seq_length: int) -> float:
    """The measure of a student that is still learning, scored as rerank.py scores it in the precision of training.

    Leaves the student and the generators of its dropout as they are. Raises InputError for a score that is not finite.
    """
    with without_apex_casts(args):
        model = FrozenRanker(student, args.precision)
        batch_tokens = min(pairs_at_a_time(model.device), DEV_PAIRS_AT_A_TIME) * max_seq_length

        def passages() -> Iterator[PassageScore]:
            with tqdm(total=dev.count, desc="dev pairs", unit=" passages", disable=None, leave=False) as bar:
                for block in read_blocks(dev.features_file):
                    scores, _ = relevance_scores(model, block.lengths(), block.batch, batch_tokens, bar)
                    if not np.isfinite(scores).all():
                        raise InputError(
                            f"the student gives a dev pair a score that is not finite in {args.precision}; take "
                            "--precision fp32, or lower --learning_rate"
                        )
                    for example_id, score in zip(block.example_ids, scores.tolist(), strict=True):
                        yield PassageScore(*split_example_id(example_id), score)

        return measure_of(dev, passages())


def log_to(path: str | Path) -> None:
    """Sends what is logged to stderr and appends it to a file."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(path, encoding="utf-8")],
        force=True,
    )
    logging.raiseExceptions = False  # a full disk is no reason for a traceback a line; saving will name it
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)


def load_features(args: argparse.Namespace) -> Features:
    """The training examples. Raises InputError where they are not what the flags say."""
    features = Features(args.features_file)
    for name in ("max_seq_length", "do_lower_case"):
        given, made = getattr(args, name), getattr(features.header, name)
        if given not in (None, made):
            raise InputError(f"--{name}: {args.features_file} was made with {made}; tokenize again")
    if args.hard_weight and (features.labels < 0).any():
        raise InputError(f"--features_file: {args.features_file} has no labels; tokenize with --set_name train")
    if len(features) < args.train_batch_size:
        raise InputError(
            f"--train_batch_size: {args.train_batch_size} is more than the {len(features)} examples of "
            f"{args.features_file}"
        )
    return features


def load_models(
    args: argparse.Namespace, header: FeaturesHeader
) -> tuple[BertRanker, BertRanker | None, torch.nn.Linear | None, list[int], list[str]]:
    """Student, teacher, fit_dense, layer map (these three where the method has them), and the student's vocabulary.

    Raises InputError or ModelFileError where they do not fit the features or each other.
    """
    teacher = fit_dense = teacher_vocabulary = None
    layer_map: list[int] = []
    pooled_activation = args.pooled_activation
    if args.teacher_model is not None:
        # A pre-trained teacher has no classifier; it is not asked for where no soft labels are learned.
        teacher, _ = load_ranker(args.teacher_model, pooled_activation, None if args.soft_weight else args.seed)
        teacher_vocabulary = check_reads_features(args.teacher_model, teacher, args.features_file, header)
        teacher.requires_grad_(False)
        pooled_activation = teacher.pooled_activation  # one head for both
    student, saved_fit_dense = load_ranker(args.general_student_model, pooled_activation, args.seed)
    vocabulary = check_reads_features(args.general_student_model, student, args.features_file, header)
    vocabulary = vocabulary or teacher_vocabulary
    if args.att_weight or args.rep_weight:
        layer_map = choose_layers(args, teacher, student)
    if args.rep_weight:
        sizes = student.config.hidden_size, teacher.config.hidden_size
        fit_dense = make_fit_dense(*sizes, saved_fit_dense, args.seed, student.config.initializer_range)
    if vocabulary is None:
        raise InputError(f"--general_student_model: {args.general_student_model} needs a vocab.txt for its student")
    return student, teacher, fit_dense, layer_map, vocabulary


@contextlib.contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Inside, want of memory is a user's mistake."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError("out of memory; raise --gradient_accumulation_steps, or lower --train_batch_size") from None


def distil(args: argparse.Namespace, device: torch.device) -> None:
    """The whole run, in an output directory that no other process writes into."""
    directory = args.output_student_dir
    check_output_dir(args)
    if args.teacher_model is not None:
        args.teacher_model = model_directory(args.teacher_model)
    args.general_student_model = model_directory(args.general_student_model)
    start = None
    with buffered_log() as held:  # until everything is checked, nothing is written
        features = load_features(args)
        student, teacher, fit_dense, layer_map, vocabulary = load_models(args, features.header)
        dev = None
        if args.dev_features_file is not None:
            dev = read_dev_pairs(args.dev_features_file, args.dev_qrels, args.dev_measure, features.header)
            args.eval_model_step = args.eval_model_step or len(features) // args.train_batch_size
            for note in dev.notes:
                logger.warning("%s", note)
        settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS} | {
            "pooled_activation": student.pooled_activation,
            "layer_map": layer_map,
            "num_processes": world_size(),
            "features_file": features.sha256(),
            "teacher_model": None if teacher is None else fingerprint(teacher),
            "general_student_model": fingerprint(student, fit_dense),
            "dev_features_file": None if dev is None else file_sha256(args.dev_features_file),
            "dev_qrels": None if dev is None else file_sha256(args.dev_qrels),
        }
        machine = {"torch": torch.__version__, "deterministic": args.deterministic, "device": devices_name(device)}
        if args.resume and (run := read_run_file(directory))["finished"]:
            check_settings(args, run["settings"], settings)
            print(f"{directory}: the run is finished, there is nothing to resume")
            return
        if args.resume and (start := newest_complete_checkpoint(directory)):
            earlier = read_progress(start)
            check_settings(args, earlier["settings"], settings)
            if earlier["machine"] != machine:
                logger.warning("so far the run was on %s, now on %s: rounding may differ", earlier["machine"], machine)
        for model in (student, teacher, fit_dense):
            if model is not None:
                model.to(device)
        # apex reaches into modules that it knows, and has its own precisions
        if teacher is not None and not args.teacher_dropout and args.fp16_backend == "torch":
            teacher = FrozenRanker(teacher, args.precision)
        keep_freed_memory()
        checked = ""
        if args.soft_weight and not args.no_teacher_check and start is None:
            with out_of_memory_explained():
                checked = check_teacher(args, device, features, teacher)

    join(device)  # no process looks for an earlier run any more
    if rank() == 0:
        prepare_output_dir(directory, settings, start)
    log_to(directory / "distill.log" if rank() == 0 else os.devnull)
    logger.info("settings: %s", ", ".join(f"{name}={value}" for name, value in vars(args).items()))
    logger.info("device: %s", devices_name(device))
    for record in held:
        logger.handle(record)
    if checked:
        logger.info("%s", checked)
    if args.resume:
        logger.info("resuming from %s", "the beginning" if start is None else start)

    is_ranker = learns_labels(args)

    def write_student(into: Path) -> None:
        save_ranker(
            student,
            vocabulary,
            features.header.do_lower_case,
            into,
            without_classifier=not is_ranker,
            fit_dense=None if is_ranker else fit_dense,
        )

    def keep_best(step: int, weights: Path | None = None) -> None:
        """Keeps the student, or one whose weights a checkpoint holds, in a directory of its own, and no earlier one."""
        best = directory / f"best-{step}"
        with atomic_directory(best, last="config.json") as partial:
            write_student(partial)
            if weights is not None:
                shutil.copyfile(weights, partial / "model.safetensors")
        for earlier_best in kept_students(directory):
            if earlier_best != best:
                earlier_best.joinpath("config.json").unlink(missing_ok=True)  # a part of it is no model
                shutil.rmtree(earlier_best)

    def record(line: dict, examples_per_second: float) -> None:
        if rank() > 0:
            return
        append_line(directory / LOSS_FILE, json.dumps(line))
        speed = {"global_step": line["global_step"], "examples_per_second": round(examples_per_second, 2)}
        append_line(directory / SPEED_FILE, json.dumps(speed))
        names = ("learning_rate", *(name for name in used_losses([line]) if line[name] is not None))
        show({name: line[name] for name in names} | {"examples_per_second": examples_per_second}, line["global_step"])

    def show(values: dict[str, float], step: int) -> None:
        """For TensorBoard."""
        if board is not None:
            for name, value in values.items():
                board.add_scalar(name, value, step)
            board.flush()

    def evaluate(progress: dict) -> None:
        step = progress["global_step"]
        # GPUs may differ in the last digit, and all processes need to stop after the same evaluation
        value = all_gather(dev_value(args, student, dev, features.header.max_seq_length))[0]
        if progress["best_value"] is None or value > progress["best_value"]:
            progress |= {"best_step": step, "best_value": value, "evaluations_since_best": 0}
            if rank() == 0:
                keep_best(step)
        else:
            progress["evaluations_since_best"] += 1
        best = progress["best_step"]
        logger.info(
            "update %d: dev %s %.4f, %s", step, dev.measure, value, "the best" if best == step else f"best after {best}"
        )
        if rank() == 0:
            line = {"global_step": step, "measure": dev.measure, "value": value, "best_step": best}
            append_line(directory / DEV_FILE, json.dumps(line))
            show({f"dev {dev.measure}": value}, step)

    def save_checkpoint(training: Training, progress: dict) -> None:
        generators = all_gather(rng_states(device))
        if rank() > 0:
            return
        checkpoint = directory / f"checkpoint-{progress['global_step']}"
        with atomic_directory(checkpoint, last=CHECKSUMS) as partial:
            write_student(partial)
            state = progress | {"settings": settings, "machine": machine}
            save_training_state(partial, training, generators, state)
            shutil.copyfile(directory / LOSS_FILE, partial / LOSS_FILE)
            if dev is not None:
                shutil.copyfile(directory / DEV_FILE, partial / DEV_FILE)
            if progress["best_step"] is not None:
                best = directory / f"best-{progress['best_step']}"
                shutil.copyfile(best / "model.safetensors", partial / BEST_WEIGHTS)
            write_checksums(partial)
        logger.info("wrote %s", checkpoint)
        if args.keep_checkpoints:
            for older in earlier_checkpoints(directory)[: -args.keep_checkpoints]:
                remove_checkpoint(older)

    first_step, board = 0, None
    if start is not None:
        first_step = checkpoint_step(start)
        if rank() == 0 and earlier.get("best_step") is not None:
            keep_best(earlier["best_step"], start / BEST_WEIGHTS)
    if args.tensorboard_dir is not None and rank() == 0:
        # what a run that was killed wrote after `start` does not count
        board = import_tensorboard().SummaryWriter(str(args.tensorboard_dir), purge_step=first_step + 1)
    begin = time.monotonic()
    with out_of_memory_explained():
        progress = train(
            args,
            device,
            features,
            student,
            teacher,
            fit_dense,
            layer_map,
            start,
            record,
            None if dev is None else evaluate,
            save_checkpoint,
        )
    seconds = time.monotonic() - begin
    if board is not None:
        board.close()
    outcome = {} if dev is None else {"last_step": progress["global_step"]}
    outcome |= {name: progress[name] for name in ("best_step", "best_value") if dev is not None}
    if rank() == 0:
        with signals_noted():  # too late to stop: without checkpoints, all would be lost
            with atomic_directory(directory, last="config.json") as partial:
                if dev is None:
                    write_student(partial)
                else:
                    shutil.copytree(directory / f"best-{outcome['best_step']}", partial, dirs_exist_ok=True)
            draw_curves(directory)
            for best in kept_students(directory):
                shutil.rmtree(best)
            write_run_file(directory, True, settings, outcome)
        logger.info("wrote %s", directory)
    if dev is not None:
        logger.info(
            "the student is that of update %d, dev %s %.4f, the best of %d updates",
            *(outcome["best_step"], dev.measure, outcome["best_value"], outcome["last_step"]),
        )
    examples = (progress["global_step"] - first_step) * args.train_batch_size
    for line in costs(examples // world_size(), "examples", seconds, device):
        logger.info("%s", line)
    logger.info("%d examples in %.1f s, %.1f examples/s", examples, seconds, examples / seconds)


def draw_curves(directory: Path) -> None:
    """A picture is no reason to lose a student."""
    try:
        if write_training_curves(directory):
            logger.info("drew %s", directory / PICTURE)
    except Exception as error:
        logger.warning("no curves are drawn: %r", error)


def main() -> None:
    args = parse_args()
    device = local_device(choose_device(args.device))
    args.precision = choose_precision(args.precision, args.fp16, device)
    if args.deterministic and device.type == "cuda":
        be_deterministic()
    torch.manual_seed((args.seed + rank()) % (1 << 64))  # of dropout, which each process draws for itself
    with lock_directory(args.output_student_dir, "--output_student_dir") if rank() == 0 else contextlib.nullcontext():
        distil(args, device)


if __name__ == "__main__":
    run_script(rank_zero_only(main))
