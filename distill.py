# ruff: noqa: E402
"""Features, a teacher and a general student in; a distilled student out (Chen et al., ECIR 2021, arXiv 2009.07531)."""

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

from training.flags import compared, compares_layers, learns_labels, parse_args, trainings

# The weights of the loss terms of each method; a term not listed has weight 0. `--alpha` sets those of standard.
METHODS = {
    "standard": {"soft": 0.5, "hard": 0.5},
    "simplified": {"att": 1, "rep": 1, "soft": 1, "hard": 1},
    "intermediate": {"att": 1, "rep": 1},  # TinyBERT's first step
    "prediction": {"soft": 1},  # TinyBERT's second step
    "hard": {"hard": 1},
    "margin_mse": {"margin": 1},  # Hofstaetter et al. 2020
}

if __name__ == "__main__":
    ARGS = parse_args(METHODS)  # before the imports below, which take seconds

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from formats.checksums import file_sha256
from formats.features import Features, features_sha256, read_header
from modeling.frozen import FrozenRanker
from modeling.losses import (
    attention_bound,
    attention_loss,
    hard_label_loss,
    hidden_states_loss,
    margin_loss,
    soft_label_loss,
)
from modeling.model_files import fingerprint
from modeling.padding import to_device
from runtime.device import be_deterministic, choose_device, choose_precision, keep_freed_memory, out_of_memory_explained
from runtime.distributed import (
    all_gather,
    all_reduce,
    all_reduce_gradients,
    barrier,
    check_same,
    devices_name,
    files_from_rank_zero,
    local_device,
    process_reports,
    rank,
    rank_zero_only,
    world_size,
)
from runtime.hub import model_directory
from runtime.progress import ProgressBar
from runtime.script import buffered_log, lock_directory, log_to, run_script
from training.clock import Clock
from training.dev import DevPairs, dev_measure, read_dev_pairs
from training.inputs import Models, check_teacher, load_batch, load_features, load_models, steps_from
from training.model_card import training_facts
from training.optimizer import BertAdam, decay_groups
from training.output_dir import LOG_FILE, check_earlier_run, check_inputs_stay, discard_run
from training.precision import Precision
from training.queries import Queries, read_queries
from training.run_directory import RunDirectory, import_tensorboard
from training.signals import defer_signals
from training.state import Progress, Training
from training.terms import LOSSES, TERMS
from training.unread_steps import UnreadSteps

logger = logging.getLogger("distill")

STOPPED = 75  # exit status: stopped by a signal after saving, can be resumed (EX_TEMPFAIL of sysexits.h)
# Flags whose files are compared by content when a run resumes.
CONTENTS = ("features_file", "teacher_model", "general_student_model", "dev_features_file", "dev_qrels")
# Flags that may differ between processes: those of rank 0 alone, old names of --device and --precision, and paths.
OF_A_PROCESS = {"output_student_dir", "overwrite", "resume", "keep_checkpoints", "tensorboard_dir", "no_cuda", "fp16"}
OF_A_PROCESS |= {*CONTENTS}
# Flags that may differ when a run resumes: these, and those that do not change the student.
NOT_SETTINGS = {
    *OF_A_PROCESS,
    *("max_seq_length", "do_lower_case", "no_teacher_check", "save_model_step", "device", "deterministic"),
    *("intermediate_learning_rate", "intermediate_num_train_epochs"),
}


def distillation_losses(
    args: argparse.Namespace, models: Models, batch: dict[str, torch.Tensor], precision: Precision
) -> dict[str, torch.Tensor]:
    """Returns the losses of one batch, by their names in `LOSSES`: float32 scalars.

    A term of weight 0 is not computed; its loss is 0. `batch`: the arrays of `Features.batch`, and for margins those of
    `Queries.of_part`, as tensors on the device.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    mask = batch["attention_mask"]
    layers = range(len(models.layer_map))  # of the student; 0 is the embeddings
    teacher_of = models.layer_map
    hidden_states = "hidden_states" in compared(args)
    queries_keys = "queries_keys" in compared(args)
    if models.teacher is not None:
        with torch.no_grad():
            teacher = models.teacher(
                **inputs,
                hidden_states_of=set(teacher_of) if hidden_states else (),
                queries_keys_of=set(teacher_of[1:]) if queries_keys else (),
            )
    student = models.student(
        **inputs,
        hidden_states_of=layers if hidden_states else (),
        queries_keys_of=layers[1:] if queries_keys else (),
    )

    if args.att_weight:
        attentions = [student.queries_keys[m] for m in layers[1:]], [teacher.queries_keys[n] for n in teacher_of[1:]]
        with precision.without_casts():
            bound = attention_bound(*attentions, mask)  # read when the GPU has the other losses to compute
    terms = {}
    if args.rep_weight:
        terms["rep"] = hidden_states_loss(
            [student.hidden_states[m] for m in layers],
            [teacher.hidden_states[n] for n in teacher_of],
            models.fit_dense,
            mask if args.ignore_padding else None,
        )
    if args.soft_weight:
        terms["soft"] = soft_label_loss(student.logits, teacher.logits, args.temperature)
    if args.hard_weight:
        terms["hard"] = hard_label_loss(student.logits, batch["labels"])
    if args.margin_weight:
        terms["margin"] = margin_loss(
            student.logits, teacher.logits, batch["labels"], batch["queries"], batch["num_margins"]
        )
    if args.att_weight:
        with precision.without_casts():
            terms["att"] = attention_loss(*attentions, mask, args.ignore_padding, bound)

    zero = torch.zeros((), device=mask.device)
    weighted = {name: getattr(args, f"{name}_weight") * loss for name, loss in terms.items()}
    of_labels = sum((weighted[term.name] for term in TERMS if term.learns_labels and term.name in terms), zero)
    of_layers = sum((weighted[term.name] for term in TERMS if not term.learns_labels and term.name in terms), zero)
    return {"loss": of_layers + of_labels, "cls_loss": of_labels} | {
        f"{term.name}_loss": terms.get(term.name, zero) for term in TERMS
    }


def train(
    args: argparse.Namespace,
    features: Features,
    queries: Queries | None,
    models: Models,
    dev: DevPairs | None,
    precision: Precision,
    device: torch.device,
    run: RunDirectory,
) -> Progress:
    """The training loop. Trains the student in place; returns the progress after the last step.

    It starts from the checkpoint that `run` resumes, or from the beginning. Raises InputError, before the weights
    change, if a loss or a gradient is not finite, except in float16. After a signal it saves a checkpoint and raises
    SystemExit with `STOPPED`.
    """
    trained = models.trained()
    num_steps = len(features) // args.train_batch_size * args.num_train_epochs
    num_parts = args.gradient_accumulation_steps * world_size()  # of a batch; all have the same weight
    optimizer = BertAdam(
        decay_groups(trained.named_parameters(), args.weight_decay),
        lr=args.learning_rate,
        total_steps=num_steps,
        warmup=args.warmup_proportion,
    )
    precision.initialize(trained, optimizer)
    trained.train()
    if args.teacher_dropout:
        models.teacher.train()
    # The attention and hidden-state losses count padding, so the padded length is part of the published method.
    pad_to = features.header.max_seq_length if compares_layers(args) and not args.ignore_padding else None

    training = Training(trained, optimizer, precision.scaler)
    progress = run.restore(training, device)
    unread = UnreadSteps(features, device, skips=precision.name == "fp16")
    read_after = args.train_loss_step, args.save_model_step, args.eval_model_step
    clock = Clock(progress.global_step)
    steps = steps_from(
        progress.global_step + 1, num_steps, args.seed, len(features), args.train_batch_size, num_parts, queries
    )
    bar = ProgressBar(total=num_steps, initial=progress.global_step, desc="distilling", unit=" steps")
    with logging_redirect_tqdm(), bar, defer_signals("finishing the step and saving") as signals:
        for step, examples, own_parts in steps:
            clock.start_step()
            learning_rate = optimizer.learning_rate()
            totals = torch.zeros(len(LOSSES) + 1, device=device)  # the losses, and the number of signals
            for part in own_parts:
                batch = load_batch(features, part, pad_to, device)
                if queries is not None:
                    of_part = queries.of_part(part, examples, num_parts)
                    batch |= {name: to_device(array, device) for name, array in of_part.items()}
                with precision.autocast():
                    losses = distillation_losses(args, models, batch, precision)
                precision.backward(losses["loss"] / num_parts, is_last=part is own_parts[-1])
                totals[:-1] += torch.stack([losses[name].detach() for name in LOSSES]) / num_parts
            all_reduce_gradients(trained.parameters())  # still scaled, so that all processes see the same overflow
            totals[-1] = len(signals)
            all_reduce(totals)
            is_last = step == num_steps
            must_read = unread.add(step, examples, totals, precision.step(optimizer, totals[:-1]))
            must_read |= is_last or any(n and step % n == 0 for n in read_after)
            must_stop = must_read and unread.read(progress)
            bar.update()
            clock.end_step()

            if dev is not None and (is_last or step % args.eval_model_step == 0):
                with precision.without_casts():
                    value = dev_measure(dev, models.student, precision.name, features.header.max_seq_length)
                # All processes use the value of rank 0: GPUs can differ in the last digit, and all must stop together.
                run.record_dev(dev.measure, all_gather(value)[0], progress)
                if progress.evaluations_since_best == args.early_stopping_patience:
                    logger.info("stopping early: %d evaluations without a better one", args.early_stopping_patience)
                    is_last = True
            must_stop = must_stop if world_size() > 1 else len(signals)  # one process alone can stop after this step
            if is_last or step % args.train_loss_step == 0:
                line = {"global_step": step, **progress.take_mean_losses(), "learning_rate": learning_rate}
                run.record_losses(line, clock.take_steps_per_second() * args.train_batch_size)
                loss = "none finite" if line["loss"] is None else f"{line['loss']:.4f}"
                bar.set_postfix(loss=loss, refresh=False)
                rate = clock.mean_steps_per_second(step) * args.train_batch_size
                logger.info("step %d of %d: loss %s, %.1f examples/s", step, num_steps, loss, rate)
            if is_last:
                break
            if must_stop or (args.save_model_step and step % args.save_model_step == 0):
                unread.read(progress)
                run.save(training, progress, device)
            if must_stop:
                all_reduce(torch.zeros(1, device=device))  # no process ends before rank 0 has saved
                logger.warning("stopped by a signal after step %d; --resume resumes it", step)
                sys.exit(STOPPED)
    if skipped := progress.global_step - optimizer.param_groups[0]["step"]:
        logger.warning("%d of %d steps skipped, because float16 overflowed in them", skipped, progress.global_step)
    return progress


def distil(args: argparse.Namespace, device: torch.device, precision: Precision, later: Iterable[Path]) -> None:
    """Runs one training in a locked and checked directory. If it starts anew, the runs in `later` are discarded."""
    torch.manual_seed((args.seed + rank()) % (1 << 64))  # for dropout, which differs between processes
    output = args.output_student_dir
    compares = compared(args)
    needs_labels = "labels" in compares or args.margin_weight > 0
    dev, checked = None, ""
    with buffered_log() as records:  # nothing is written before all checks have passed
        teacher_dir = args.teacher_model and model_directory(args.teacher_model)
        features = load_features(
            args.features_file, args.max_seq_length, args.do_lower_case, needs_labels, args.train_batch_size
        )
        queries = read_queries(features) if args.margin_weight else None
        models = load_models(
            model_directory(args.general_student_model),
            teacher_dir,
            args.features_file,
            features.header,
            compares,
            args.layer_map,
            args.pooled_activation,
            args.seed,
        )
        if args.dev_features_file is not None:
            dev = read_dev_pairs(args.dev_features_file, args.dev_qrels, args.dev_measure, features.header)
            args.eval_model_step = args.eval_model_step or len(features) // args.train_batch_size
            for note in dev.notes:
                logger.warning("%s", note)
        machine = {"torch": torch.__version__, "deterministic": args.deterministic, "device": devices_name(device)}
        run = RunDirectory(output, settings_of(args, features, models), CONTENTS, machine)
        if not run.find_start(args.resume):
            return
        models.to(device)
        # FrozenRanker has no dropout. apex needs the module itself, because it sets the precision of its matmuls.
        if models.teacher is not None and not args.teacher_dropout and args.fp16_backend == "torch":
            models = models._replace(teacher=FrozenRanker(models.teacher, precision.name))
        keep_freed_memory()
        if "logits" in compares and not args.no_teacher_check and run.first_step() == 0:
            with out_of_memory_explained():
                autocast = precision.autocast()
                checked = check_teacher(args.teacher_model, models.teacher, features, args.seed, device, autocast)

    barrier(device)  # rank 0 changes the directory after all processes have passed their checks
    run.open(models, features.header, learns_labels(args), args.keep_checkpoints, args.tensorboard_dir)
    if rank() == 0:
        run.check_writing()
        run.prepare()
        for directory in later if args.overwrite else ():
            discard_run(directory)
    with log_to(output / LOG_FILE if rank() == 0 else Path("/dev/null"), output):
        logger.info("settings: %s", ", ".join(f"{name}={value}" for name, value in vars(args).items()))
        logger.info("device: %s", devices_name(device))
        logger.info("features: %s, %s", args.features_file, features.header.origin())
        for record in records:
            logger.handle(record)
        if queries is not None:
            logger.log(logging.WARNING if queries.few_margins() else logging.INFO, "%s", queries.summary())
        if checked:
            logger.info("%s", checked)
        if args.resume:
            logger.info("resuming from %s", run.start or "the beginning")
        begin = time.monotonic()
        with out_of_memory_explained():
            progress = train(args, features, queries, models, dev, precision, device, run)
        seconds = time.monotonic() - begin
        with defer_signals() if rank() == 0 else contextlib.nullcontext():  # a signal no longer stops the run
            run.finish(progress, training_facts(features, args.general_student_model))
        if dev is not None:
            logger.info(
                "the student is that of step %d, dev %s %.4f, the best of %d steps",
                *(progress.best_step, dev.measure, progress.best_value, progress.global_step),
            )
        examples = (progress.global_step - run.first_step()) * args.train_batch_size
        for line in process_reports(examples // world_size(), "examples", seconds, device):
            logger.info("%s", line)
        logger.info("%d examples in %.1f s, %.1f examples/s", examples, seconds, examples / seconds)


def settings_of(args: argparse.Namespace, features: Features, models: Models) -> dict[str, object]:
    """Returns the settings that must be the same when the run resumes."""
    return {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS} | {
        "pooled_activation": models.student.pooled_activation,
        "layer_map": models.layer_map,
        "num_processes": world_size(),
        "features_file": features.sha256(),
        "teacher_model": models.teacher and fingerprint(models.teacher),
        "general_student_model": fingerprint(models.student, models.fit_dense),
        "dev_features_file": args.dev_features_file and features_sha256(args.dev_features_file),
        "dev_qrels": args.dev_qrels and file_sha256(args.dev_qrels),
    }


def main(args: argparse.Namespace) -> None:
    device = local_device(choose_device(args.device))
    args.precision = choose_precision(args.precision, args.fp16, device)
    if args.deterministic and device.type == "cuda":
        be_deterministic()
    if args.tensorboard_dir is not None and rank() == 0:
        import_tensorboard()  # before an earlier run is replaced
    files = args.features_file, args.dev_features_file, args.dev_qrels
    for training in trainings(args) if rank() == 0 else ():
        check_inputs_stay(training.output_student_dir, files, [args.teacher_model, args.general_student_model])
    flags = {name: value for name, value in vars(args).items() if name not in OF_A_PROCESS}
    check_same(flags | {"device": device.type})
    with contextlib.ExitStack() as stack:
        runs = []
        for training in trainings(args):
            precision = Precision(args.precision, device, args.fp16_backend, args.fp16_opt_level)
            if rank() == 0:
                stack.enter_context(lock_directory(training.output_student_dir, "--output_student_dir"))
                check_earlier_run(training.output_student_dir, training.overwrite, training.resume)
            runs.append((training, precision))
        if len(runs) > 1 and args.dev_features_file is not None:  # only the last training uses them; check them now
            read_dev_pairs(args.dev_features_file, args.dev_qrels, args.dev_measure, read_header(args.features_file))
        if len(runs) > 1 and args.margin_weight:
            read_queries(Features(args.features_file))
        outputs = [training.output_student_dir for training, _ in runs]
        for number, (training, precision) in enumerate(runs, start=1):
            if number > 1:  # it starts from the student of the training before it, which rank 0 has
                student = stack.enter_context(files_from_rank_zero(outputs[number - 2]))
                training.general_student_model = str(student)
            distil(training, device, precision, outputs[number:])


if __name__ == "__main__":
    run_script(rank_zero_only(main), ARGS)
