"""Features, a teacher and a general student in; a distilled student out."""

import argparse
import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from formats.features import Features, FeaturesHeader
from formats.files import InputError, hold_log, run_script, write_whole_directory
from modeling.bert import POOLED_ACTIVATIONS, BertRanker
from modeling.checkpoint import CheckpointError, check_reads_features, load_ranker, make_fit_dense, save_ranker
from modeling.device import DeviceError, choose_device, device_name, half_precision, is_out_of_memory
from modeling.losses import attention_loss, hard_label_loss, hidden_states_loss, soft_label_loss, teacher_layers
from modeling.optimization import BertAdam, decay_groups
from modeling.vocabulary import VocabularyError

logger = logging.getLogger("distill")

LOSSES = ("loss", "cls_loss", "att_loss", "rep_loss", "soft_loss", "hard_loss")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""Distils a fine-tuned BERT ranker (the teacher) into a small one (the student).

  python distill.py --features_file train.features --teacher_model teacher/ \\
      --general_student_model general_student/ --output_student_dir student/

In:  features of labelled pairs (tokenize_to_features.py --set_name train) and two model directories.
Out: the student in --output_student_dir, a model directory that rerank.py and transformers load; intermediate ones in
     checkpoint-STEP/ there; the losses in train_loss.jsonl; the log in distill.log.""",
    )
    data = parser.add_argument_group("data and models")
    data.add_argument("--features_file", type=Path, required=True, help="tokenized training pairs")
    data.add_argument(
        "--teacher_model", type=Path, help="model directory of the teacher; none with --distill_model hard"
    )
    data.add_argument(
        "--general_student_model", type=Path, required=True, help="model directory the student starts from"
    )
    data.add_argument("--output_student_dir", type=Path, required=True, help="directory to write")
    data.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run that --output_student_dir holds: its checkpoints and losses when training starts, its "
        "model when the new one is finished",
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--distill_model",
        choices=("standard", "simplified", "hard"),
        default="simplified",
        help="standard: alpha * soft + (1 - alpha) * hard labels. simplified (default): attention + hidden states "
        "+ soft + hard labels in one step. hard: labels alone, which is also how a teacher is fine-tuned",
    )
    method.add_argument("--alpha", type=float, default=0.5, help="weight of soft labels, for standard (default 0.5)")
    method.add_argument("--temperature", type=float, default=1.0, help="of the soft labels (default 1)")
    method.add_argument(
        "--pooled_activation",
        choices=POOLED_ACTIVATIONS,
        help="before both classifiers; relu reproduces the published training (default: as the teacher says)",
    )
    method.add_argument("--teacher_dropout", action="store_true", help="leave the teacher's dropout on, as published")
    training = parser.add_argument_group("training")
    training.add_argument("--max_seq_length", type=int, help="must be that of the features, which is the default")
    training.add_argument(
        "--do_lower_case", action=argparse.BooleanOptionalAction, help="must be that of the features, the default"
    )
    training.add_argument("--train_batch_size", type=int, default=64, help="examples per update (default 64)")
    training.add_argument(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="split each batch into this many parts to save memory; the updates stay the same but for dropout's draws "
        "(default 1)",
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
        "--save_model_step", type=int, default=0, help="updates between checkpoints; 0, the default, for none"
    )
    hardware = parser.add_argument_group("hardware")
    hardware.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, or a GPU number")
    hardware.add_argument("--no_cuda", action="store_true", help="the same as --device cpu")
    hardware.add_argument("--fp16", action="store_true", help="mixed precision: float16 on CUDA, bfloat16 on a CPU")
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
    if (args.teacher_model is None) != (args.distill_model == "hard"):
        raise InputError(
            "--teacher_model: has no use with --distill_model hard, leave it out"
            if args.teacher_model
            else f"--teacher_model: needed for --distill_model {args.distill_model}"
        )
    if args.distill_model == "hard" and args.teacher_dropout:
        raise InputError("--teacher_dropout: has no use with --distill_model hard, leave it out")
    for name in ("train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "train_loss_step"):
        if not 1 <= getattr(args, name) < float("inf"):
            raise InputError(f"--{name}: needs to be 1 or more")
    if args.num_train_epochs != int(args.num_train_epochs):
        raise InputError("--num_train_epochs: needs to be a whole number")
    args.num_train_epochs = int(args.num_train_epochs)
    if args.train_batch_size % args.gradient_accumulation_steps:
        raise InputError("--train_batch_size: needs to be a multiple of --gradient_accumulation_steps")
    for name, least in (("learning_rate", 0.0), ("weight_decay", 0.0), ("save_model_step", 0), ("seed", 0)):
        if not least <= getattr(args, name) < float("inf"):
            raise InputError(f"--{name}: needs to be {least} or more")
    if args.seed >= 1 << 64:
        raise InputError("--seed: needs to be below 2^64")
    if not 0 < args.temperature < float("inf"):
        raise InputError("--temperature: needs to be above 0")
    if not 0 <= args.alpha <= 1:
        raise InputError("--alpha: needs to be from 0 to 1")
    if not 0 <= args.warmup_proportion < 1:
        raise InputError("--warmup_proportion: needs to be from 0 to below 1")
    if args.fp16_opt_level not in ("O0", "O1", "O2", "O3"):
        raise InputError("--fp16_opt_level: needs to be O0, O1, O2 or O3")
    if args.fp16_opt_level != "O1" and not (args.fp16 and args.fp16_backend == "apex"):
        raise InputError("--fp16_opt_level: other levels than O1 need --fp16 --fp16_backend apex")
    if args.fp16_backend == "apex":
        if not args.fp16:
            raise InputError("--fp16_backend: apex needs --fp16")
        import_apex_amp()
    if args.no_cuda and args.device not in ("auto", "cpu"):
        raise InputError(f"--no_cuda: contradicts --device {args.device}; give one of them")
    if args.no_cuda:
        args.device = "cpu"


def earlier_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints that a run left in its output directory."""
    return [path for path in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def check_output_dir(args: argparse.Namespace) -> None:
    """Raises InputError where the directory holds an input, or, without `--overwrite`, a student or checkpoints."""
    directory = args.output_student_dir
    if directory.exists() and not directory.is_dir():
        raise InputError(f"--output_student_dir: {directory} is a file")
    checkpoints = earlier_checkpoints(directory)
    for source in filter(None, (args.teacher_model, args.general_student_model, args.features_file)):
        is_lost = source.resolve() == directory.resolve() or any(
            source.resolve().is_relative_to(checkpoint.resolve()) for checkpoint in checkpoints
        )
        if is_lost and args.overwrite:
            raise InputError(f"--output_student_dir: {source} is an input and would be lost; name another directory")
    models = ("config.json", "model.safetensors", "pytorch_model.bin", "bert_config.json")
    found = [directory / name for name in models if (directory / name).exists()] + checkpoints
    if found and not args.overwrite:
        raise InputError(
            f"--output_student_dir: {directory} holds {found[0].name} of an earlier run; pass --overwrite to replace "
            "it, or name another directory"
        )


def prepare_output_dir(directory: Path) -> None:
    """Makes the directory. The model of an earlier run stays until the new one replaces it; its checkpoints go."""
    for checkpoint in earlier_checkpoints(directory):
        shutil.rmtree(checkpoint)
    directory.mkdir(parents=True, exist_ok=True)


def check_teacher_fits(distill_model: str, teacher: BertRanker, student: BertRanker) -> None:
    """Raises InputError where the layers cannot be compared. Logits alone can always be."""
    if distill_model != "simplified":
        return
    layers = (student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    try:
        teacher_layers(*layers)
    except ValueError as error:
        raise InputError(f"--general_student_model: {error}; take a student whose depth divides it") from None
    heads = (student.config.num_attention_heads, teacher.config.num_attention_heads)
    if heads[0] != heads[1]:
        raise InputError(
            f"--general_student_model: {heads[0]} attention heads cannot learn from {heads[1]}; take a student with "
            f"{heads[1]} heads, or --distill_model standard"
        )


def distillation_losses(
    args: argparse.Namespace,
    student: BertRanker,
    teacher: BertRanker | None,
    fit_dense: torch.nn.Linear | None,
    batch: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The losses named in `LOSSES` of one batch, as published. `batch`: as from `Features.batch`, on the device."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    zero = torch.zeros((), device=batch["labels"].device)
    att = rep = soft = zero
    if args.distill_model == "simplified":
        layer_map = teacher_layers(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
        layers = list(range(1, len(layer_map)))
        with torch.no_grad():
            target = teacher(**inputs, hidden_states=True, queries_keys_of=layer_map[1:])
        output = student(**inputs, hidden_states=True, queries_keys_of=layers)
        # apex patches torch itself, so that the loss cannot keep it from float16
        with import_apex_amp().disable_casts() if args.fp16_backend == "apex" else contextlib.nullcontext():
            att = attention_loss(
                [output.queries_keys[m] for m in layers],
                [target.queries_keys[n] for n in layer_map[1:]],
                batch["attention_mask"],
            )
        rep = hidden_states_loss(output.hidden_states, [target.hidden_states[n] for n in layer_map], fit_dense)
    else:
        output = student(**inputs)
        if teacher is not None:
            with torch.no_grad():
                target = teacher(**inputs)
    hard = hard_label_loss(output.logits, batch["labels"])
    if teacher is not None:
        soft = soft_label_loss(output.logits, target.logits, args.temperature)
    cls = args.alpha * soft + (1 - args.alpha) * hard if args.distill_model == "standard" else soft + hard
    return dict(zip(LOSSES, (att + rep + cls, cls, att, rep, soft, hard), strict=True))


def make_backward(args: argparse.Namespace, scaler: torch.amp.GradScaler, optimizer: BertAdam) -> Callable:
    """How a loss becomes gradients: `backward(loss, last)`, `last` on the last part of an accumulated batch."""
    if args.fp16 and args.fp16_backend == "apex":
        amp = import_apex_amp()

        def backward(loss: torch.Tensor, last: bool) -> None:
            with amp.scale_loss(loss, optimizer, delay_unscale=not last) as scaled_loss:
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


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the examples in an epoch: a permutation keyed by seed and epoch, (count,) int64."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def train(
    args: argparse.Namespace,
    device: torch.device,
    features: Features,
    student: BertRanker,
    teacher: BertRanker | None,
    fit_dense: torch.nn.Linear | None,
    save_student: Callable[[Path], None],
) -> None:
    """The training loop: updates the student in place, writes losses and checkpoints."""
    trained = torch.nn.ModuleDict({"student": student} | ({"fit_dense": fit_dense} if fit_dense is not None else {}))
    updates_per_epoch = len(features) // args.train_batch_size
    total_updates = updates_per_epoch * args.num_train_epochs
    optimizer = BertAdam(
        decay_groups(trained.named_parameters(), args.weight_decay),
        lr=args.learning_rate,
        total_steps=total_updates,
        warmup=args.warmup_proportion,
    )
    use_torch_amp = args.fp16 and args.fp16_backend == "torch"
    scaler = torch.amp.GradScaler(device.type, enabled=use_torch_amp and device.type == "cuda")
    if args.fp16 and args.fp16_backend == "apex":
        import_apex_amp().initialize(list(trained.values()), optimizer, opt_level=args.fp16_opt_level)
    backward = make_backward(args, scaler, optimizer)
    autocast = torch.autocast(device.type, half_precision(device), enabled=use_torch_amp)
    # The attention and hidden-state losses count padding, so the padded length is part of the published method.
    pad_to = features.header.max_seq_length if args.distill_model == "simplified" else None
    trained.train()
    if teacher is not None:
        teacher.train(args.teacher_dropout)

    global_step, steps_since_line = 0, 0
    sums = torch.zeros(len(LOSSES), device=device)  # on the device: reading a loss every step would stall it
    start = time.monotonic()
    with (
        logging_redirect_tqdm(),
        open(args.output_student_dir / "train_loss.jsonl", "w", encoding="utf-8") as loss_file,
        tqdm(total=total_updates, desc="distilling", unit=" updates", disable=None) as progress,
    ):
        for epoch in range(args.num_train_epochs):
            order = epoch_order(args.seed, epoch, len(features))
            for first in range(0, updates_per_epoch * args.train_batch_size, args.train_batch_size):
                learning_rate = optimizer.learning_rate()
                parts = np.split(order[first : first + args.train_batch_size], args.gradient_accumulation_steps)
                for part in parts:
                    batch = {
                        name: torch.from_numpy(array).to(device, non_blocking=True)
                        for name, array in features.batch(part, pad_to).items()
                    }
                    with autocast:
                        losses = distillation_losses(args, student, teacher, fit_dense, batch)
                    backward(losses["loss"] / len(parts), last=part is parts[-1])
                    sums += torch.stack([losses[name].detach() for name in LOSSES]) / len(parts)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                global_step += 1
                steps_since_line += 1
                progress.update()

                if global_step % args.train_loss_step == 0 or global_step == total_updates:
                    means = dict(zip(LOSSES, (sums / steps_since_line).tolist(), strict=True))
                    if not np.isfinite(means["loss"]):
                        raise InputError(
                            f"the loss is not finite at update {global_step}, nothing is saved; lower --learning_rate"
                        )
                    line = {"global_step": global_step, **means, "learning_rate": learning_rate}
                    loss_file.write(json.dumps(line) + "\n")
                    loss_file.flush()
                    sums.zero_()
                    steps_since_line = 0
                    rate = global_step * args.train_batch_size / (time.monotonic() - start)
                    progress.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
                    logger.info(
                        "update %d of %d: loss %.4f, %.1f examples/s", global_step, total_updates, means["loss"], rate
                    )
                if args.save_model_step and global_step % args.save_model_step == 0 and global_step < total_updates:
                    save_student(args.output_student_dir / f"checkpoint-{global_step}")
    skipped = global_step - optimizer.param_groups[0]["step"]
    if skipped:
        logger.warning("%d of %d updates skipped, since their float16 gradients overflowed", skipped, global_step)


def log_to(path: Path) -> None:
    """Sends what is logged to stderr and appends it to a file."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(path, encoding="utf-8")],
        force=True,
    )
    logging.getLogger("transformers").setLevel(logging.ERROR)


def load_features(args: argparse.Namespace) -> Features:
    """The training examples. Raises InputError where they are not what the flags say."""
    features = Features(args.features_file)
    for name in ("max_seq_length", "do_lower_case"):
        given, made = getattr(args, name), getattr(features.header, name)
        if given not in (None, made):
            raise InputError(f"--{name}: {args.features_file} was made with {made}; tokenize again")
    if (features.labels < 0).any():
        raise InputError(f"--features_file: {args.features_file} has no labels; tokenize with --set_name train")
    if len(features) < args.train_batch_size:
        raise InputError(
            f"--train_batch_size: {args.train_batch_size} is more than the {len(features)} examples of "
            f"{args.features_file}"
        )
    return features


def load_models(
    args: argparse.Namespace, header: FeaturesHeader
) -> tuple[BertRanker, BertRanker | None, torch.nn.Linear | None, list[str]]:
    """Student, teacher, fit_dense (the last two where the method has them), and the student's vocabulary.

    Raises InputError or CheckpointError where they do not fit the features or each other.
    """
    teacher = fit_dense = teacher_vocabulary = None
    pooled_activation = args.pooled_activation
    if args.teacher_model is not None:
        teacher, _ = load_ranker(args.teacher_model, pooled_activation)
        teacher_vocabulary = check_reads_features(args.teacher_model, teacher, args.features_file, header)
        teacher.requires_grad_(False)
        pooled_activation = teacher.pooled_activation  # one head for both
    student, saved_fit_dense = load_ranker(args.general_student_model, pooled_activation, args.seed)
    vocabulary = check_reads_features(args.general_student_model, student, args.features_file, header)
    vocabulary = vocabulary or teacher_vocabulary
    if teacher is not None:
        check_teacher_fits(args.distill_model, teacher, student)
    if args.distill_model == "simplified":
        sizes = student.config.hidden_size, teacher.config.hidden_size
        fit_dense = make_fit_dense(*sizes, saved_fit_dense, args.seed, student.config.initializer_range)
    if vocabulary is None:
        raise InputError(f"--general_student_model: {args.general_student_model} needs a vocab.txt for its student")
    return student, teacher, fit_dense, vocabulary


def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    check_output_dir(args)
    torch.manual_seed(args.seed)
    with hold_log() as held:  # until everything is checked, nothing is written
        features = load_features(args)
        student, teacher, fit_dense, vocabulary = load_models(args, features.header)
        for model in (student, teacher, fit_dense):
            if model is not None:
                model.to(device)

    prepare_output_dir(args.output_student_dir)
    log_to(args.output_student_dir / "distill.log")
    logger.info("settings: %s", ", ".join(f"{name}={value}" for name, value in vars(args).items()))
    logger.info("device: %s", device_name(device))
    for record in held:
        logger.handle(record)

    def save_student(directory: Path) -> None:
        with write_whole_directory(directory, last="config.json") as partial:
            save_ranker(student, vocabulary, features.header.do_lower_case, partial)
        logger.info("wrote %s", directory)

    start = time.monotonic()
    try:
        train(args, device, features, student, teacher, fit_dense, save_student)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError("out of memory; raise --gradient_accumulation_steps, or lower --train_batch_size") from None
    save_student(args.output_student_dir)
    seconds = time.monotonic() - start
    examples = len(features) // args.train_batch_size * args.train_batch_size * args.num_train_epochs
    logger.info("%d examples in %.1f s, %.1f examples/s", examples, seconds, examples / seconds)


if __name__ == "__main__":
    run_script(main, CheckpointError, VocabularyError, DeviceError)
