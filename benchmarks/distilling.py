"""Distilling: distill.py against the reference implementation, and against the teacher's forward pass."""
# ruff: noqa: E402

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse

from benchmarks.synthetic import Shape, shape
from runtime.errors import InputError
from runtime.flags import Parser

DROPOUT = 0.1
# Relative, of the loss of each step. bf16 and fp16 round the results of matmuls.
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}
# Goals on a GPU, in half precision: speed relative to the reference implementation in each precision of it, and the
# cost of a step relative to the teacher's forward pass, by the student.
SPEED_GOALS = {"fp32": 8, "fp16": 2}
COST_GOALS = {Shape(3, 384): 1.6, Shape(6, 768): 3.3}
WARM_UP = 3  # first steps that are not timed on a GPU, where libraries load their kernels


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Distills by the simplified method on synthetic features, with distill.py in each precision and
with the reference implementation. Prints examples/s, their ratio, and the peak memory of each process.

  python benchmarks/distilling.py

The first runs have no dropout, and the losses of all steps must agree; if they do not, the exit status is 1. The next
runs have a dropout of 0.1, as published: in both models of the reference implementation, in distill.py only in the
student. Each run is a separate process, one after the other. On a GPU all run in this process, the first steps are not
timed, and the memory is that of the GPU.""",
    )
    parser.add_argument("--teacher", type=shape, default=Shape(12, 768), help="LAYERS/HIDDEN (default 12/768)")
    parser.add_argument("--student", type=shape, default=Shape(3, 384), help="LAYERS/HIDDEN (default 3/384)")
    parser.add_argument("--batch_size", type=int, default=16, help="examples per step (default 16)")
    parser.add_argument("--max_seq_length", type=int, default=256, help="tokens (default 256)")
    parser.add_argument("--updates", type=int, default=5, help="optimization steps of each run (default 5)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each with dropout; 0: none (default 2)")
    runs = parser.add_argument_group("where and how it runs")
    runs.add_argument("--precisions", help="of distill.py (default fp32,bf16, on a GPU fp32,bf16,fp16)")
    runs.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    runs.add_argument("--one_process", action="store_true", help="run all in this process, as on a GPU")
    runs.add_argument("--results_file", type=Path, help="also write the results, as JSON")
    # reference or forward, directory, precision, dropout
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that cannot work, and splits --precisions."""
    for name, least in (("batch_size", 1), ("updates", 1), ("rounds", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name}: needs to be {least} or more")
    if args.max_seq_length < 50:
        raise InputError("--max_seq_length: needs to be 50 or more")
    args.precisions = args.precisions and args.precisions.split(",")
    if not set(args.precisions or ()) <= set(TOLERANCES):
        raise InputError(f"--precisions: takes {', '.join(TOLERANCES)}, separated by commas")


if __name__ == "__main__":
    args = parse_args()  # before the imports below, which take seconds

import json
import tempfile
import time

import numpy as np
import safetensors.torch
import torch

from benchmarks import reference
from benchmarks.child import Finished, last_json, run, run_in_process, training_losses_and_speed
from benchmarks.machine import Row, describe_torch_machine, write_results
from benchmarks.synthetic import HEADS, make_features, make_model
from formats.features import Features
from modeling.model_files import load_ranker
from runtime.device import choose_device, dtype_of
from runtime.script import run_script

SEED = 42


def child_batches(args: argparse.Namespace, directory: Path, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """The batches that distill.py trains with."""
    features = Features(directory / "features")
    order = np.random.default_rng([SEED, 0]).permutation(len(features))  # the first epoch of distill.py
    return [
        {
            name: torch.from_numpy(array).to(device)
            for name, array in features.batch(order[first : first + args.batch_size], args.max_seq_length).items()
        }
        for first in range(0, args.updates * args.batch_size, args.batch_size)
    ]


def now(device: torch.device) -> float:
    """The time in seconds when the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


class TimedBatches(list):
    """Batches that note the time when each of them is taken."""

    def __iter__(self):
        self.times = []
        for batch in super().__iter__():
            self.times.append(time.monotonic())
            yield batch


def warm_up(args: argparse.Namespace) -> int:
    """The number of first steps that are not timed."""
    return 0 if args.device == "cpu" else min(WARM_UP, args.updates - 1)


def distill_by_reference(args: argparse.Namespace, directory: Path, precision: str, dropout: float) -> None:
    """In a child: prints losses and examples/s of the reference implementation, under autocast if not in fp32."""
    device = torch.device(args.device)
    weights = {}
    for name in ("student", "teacher"):
        loaded = safetensors.torch.load_file(directory / name / "model.safetensors")
        weights[name] = {key: tensor.to(device) for key, tensor in loaded.items()}
    batches = TimedBatches(child_batches(args, directory, device))
    settings = {"dropout": dropout, "precision": dtype_of(precision)}
    history = reference.train("simplified", weights["student"], weights["teacher"], HEADS, batches, **settings)
    seconds = now(device) - batches.times[warm_up(args)]  # each step waits for the device, to read its losses
    speed = (args.updates - warm_up(args)) * args.batch_size / seconds
    print(json.dumps({"losses": [losses["loss"] for losses in history], "speed": speed}))


@torch.inference_mode()
def forward_teacher(args: argparse.Namespace, directory: Path, precision: str) -> None:
    """In a child: prints the examples/s of the teacher's forward pass alone, with fused attention."""
    device = torch.device(args.device)
    teacher = load_ranker(directory / "teacher")[0].to(device, dtype_of(precision)).eval()
    batches = [
        {name: tensor for name, tensor in batch.items() if name != "labels"}
        for batch in child_batches(args, directory, device)
    ]
    for batch in batches[: max(1, warm_up(args))]:
        teacher(**batch)
    start = now(device)
    for batch in batches:
        teacher(**batch)
    print(json.dumps({"speed": args.updates * args.batch_size / (now(device) - start)}))


def distill(args: argparse.Namespace, directory: Path, precision: str) -> tuple[list[float], float, int]:
    """Runs distill.py. Returns the losses of all steps, examples/s, and the peak memory in bytes."""
    output = directory / "output"
    flags = ["--features_file", directory / "features", "--teacher_model", directory / "teacher"]
    flags += ["--general_student_model", directory / "student", "--output_student_dir", output, "--overwrite"]
    flags += ["--train_batch_size", args.batch_size, "--train_loss_step", 1, "--num_train_epochs", 1, "--seed", SEED]
    flags += ["--no_teacher_check", "--precision", precision, "--device", args.device]
    peak = run_side(args, ["distill.py", *flags]).peak_bytes
    return *training_losses_and_speed(output, warm_up(args)), peak


def run_side(args: argparse.Namespace, command: list) -> Finished:
    """Runs one side in a process of its own; on a GPU, or with --one_process, in this one."""
    return run_in_process(command) if args.one_process or args.device != "cpu" else run(command)


def rows_of(
    args: argparse.Namespace,
    name: str,
    precision: str,
    references: tuple[str, ...],
    label: str,
    speeds: dict[str, float],
    peaks: dict[str, int],
) -> list[Row]:
    """The figures of distill.py in a precision, as ratios. `speeds` in examples/s and `peaks` in bytes by name."""
    what = f"{name}, {args.student}"
    has_goal = args.device != "cpu" and precision != "fp32"
    rows = []
    for other in references:
        unit = "x reference fp32" if other == "fp32" else "x reference under autocast"
        ratio = speeds[name] / speeds[f"reference {other}, {label}"]
        rows.append(Row(what, ratio, unit, SPEED_GOALS[other] if has_goal else None))
    cost = speeds[f"forward {precision}"] / speeds[name]
    goal = COST_GOALS.get(args.student) if has_goal else None
    rows.append(Row(what, cost, "x the teacher's forward pass in a step", goal, at_most=True))
    if peaks[name]:
        other = references[0] if precision == "fp32" else references[-1]
        rows.append(Row(what, peaks[name] / 1e9, "GB"))
        rows.append(Row(what, peaks[name] / peaks[f"reference {other}, {label}"], f"x the memory of reference {other}"))
    return rows


def main(args: argparse.Namespace) -> None:
    args.device = str(choose_device(args.device))
    on_gpu = args.device != "cpu"
    args.precisions = args.precisions or (["fp32", "bf16", "fp16"] if on_gpu else ["fp32", "bf16"])
    if args.child:
        side, directory, precision, dropout = args.child
        if side == "reference":
            distill_by_reference(args, Path(directory), precision, float(dropout))
        else:
            forward_teacher(args, Path(directory), precision)
        return
    if on_gpu:
        torch.cuda.set_device(torch.device(args.device).index or 0)  # whose memory is measured
    print(describe_torch_machine())
    print(
        f"teacher {args.teacher}, student {args.student}, {args.updates} steps of {args.batch_size} x "
        f"{args.max_seq_length} tokens"
    )
    references = ("fp32", "fp16") if on_gpu else ("fp32",)
    own = [__file__, *sys.argv[1:], "--child"]
    speeds: dict[str, float] = {}
    peaks: dict[str, int] = {}
    losses: dict[str, list[float]] = {}

    def note(name: str, speed: float, peak: int) -> None:
        speeds[name], peaks[name] = max(speed, speeds.get(name, 0)), max(peak, peaks.get(name, 0))
        print(f"    {name}: {speed:.2f} examples/s", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        for dropout, rounds in ((0.0, 1), (DROPOUT, args.rounds)):
            directory = Path(temporary) / str(dropout)
            directory.mkdir()
            make_features(directory / "features", "train", args.updates * args.batch_size, args.max_seq_length)
            make_model(directory / "teacher", args.teacher, 1, dropout)
            make_model(directory / "student", args.student, 2, dropout, fit_to=args.teacher.hidden)
            label = f"dropout {dropout}"
            for _ in range(rounds):
                for precision in references:
                    printed, peak = run_side(args, [*own, "reference", directory, precision, dropout])
                    said = last_json(printed)
                    losses.setdefault("reference", said["losses"])
                    note(f"reference {precision}, {label}", said["speed"], peak)
                for precision in args.precisions:
                    found, speed, peak = distill(args, directory, precision)
                    if not dropout:
                        losses[precision] = found
                    note(f"distill.py {precision}, {label}", speed, peak)
                    if not on_gpu or not dropout:  # it has no dropout; a CPU changes its speed between runs
                        said = last_json(run_side(args, [*own, "forward", directory, precision, dropout]).printed)
                        note(f"forward {precision}", said["speed"], 0)

    # numpy's max is NaN if one of them is
    differences = {
        precision: float(np.abs(np.divide(losses[precision], losses["reference"]) - 1).max())
        for precision in args.precisions
    }
    is_same = all(differences[precision] <= TOLERANCES[precision] for precision in args.precisions)
    rows: list[Row] = []
    for precision in args.precisions:
        print(f"{precision}: losses of {args.updates} steps differ by {differences[precision]:.1e} at most, relative")
        for label in (f"dropout {dropout}" for dropout in (0.0, DROPOUT)[: 2 if args.rounds else 1]):
            name = f"distill.py {precision}, {label}"
            own_rows = rows_of(args, name, precision, references, label, speeds, peaks)
            print(f"{name}: {', '.join(f'{row.value:.2f} {row.unit}' for row in own_rows)}")
            rows += own_rows
    if args.results_file is not None:
        figures = {"differences": differences, "examples_per_second": speeds, "peak_bytes": peaks, "losses": losses}
        write_results(args.results_file, args.device, is_same, rows, **figures)
    sys.exit(0 if is_same else 1)


if __name__ == "__main__":
    run_script(main, args)
