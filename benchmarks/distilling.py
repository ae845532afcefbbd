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


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Distills by the simplified method on synthetic features, with distill.py in each precision and
with the reference implementation. Prints examples/s, their ratio, and the peak memory of each process.

  python benchmarks/distilling.py

The first runs have no dropout, and the losses of all steps must agree; if they do not, the exit status is 1. The next
runs have a dropout of 0.1, as published: in both models of the reference implementation, in distill.py only in the
student. Each run is a separate process, one after the other.""",
    )
    parser.add_argument("--teacher", type=shape, default=Shape(12, 768), help="LAYERS/HIDDEN (default 12/768)")
    parser.add_argument("--student", type=shape, default=Shape(3, 384), help="LAYERS/HIDDEN (default 3/384)")
    parser.add_argument("--batch_size", type=int, default=16, help="examples per step (default 16)")
    parser.add_argument("--max_seq_length", type=int, default=256, help="tokens (default 256)")
    parser.add_argument("--updates", type=int, default=5, help="optimization steps of each run (default 5)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each with dropout (default 2)")
    parser.add_argument("--precisions", default="fp32,bf16", help="of distill.py (default fp32,bf16)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    # reference or forward, directory, precision, dropout
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that cannot work, and splits --precisions."""
    for name in ("batch_size", "updates", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}: needs to be 1 or more")
    if args.max_seq_length < 50:
        raise InputError("--max_seq_length: needs to be 50 or more")
    args.precisions = args.precisions.split(",")
    if not set(args.precisions) <= set(TOLERANCES):
        raise InputError(f"--precisions: takes {', '.join(TOLERANCES)}, separated by commas")


if __name__ == "__main__":
    args = parse_args()  # before the imports below, which take seconds

import contextlib
import json
import tempfile
import time

import numpy as np
import safetensors.torch
import torch

from benchmarks import reference
from benchmarks.child import last_json, run, training_losses_and_speed
from benchmarks.machine import describe_torch_machine
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


def seconds_since(start: float, device: torch.device) -> float:
    """Seconds since `start`, until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - start


def distill_by_reference(args: argparse.Namespace, directory: Path, precision: str, dropout: float) -> None:
    """In a child: prints losses and seconds of the reference implementation, under autocast if not in fp32."""
    device = choose_device(args.device)
    weights = {}
    for name in ("student", "teacher"):
        loaded = safetensors.torch.load_file(directory / name / "model.safetensors")
        weights[name] = {key: tensor.to(device) for key, tensor in loaded.items()}
    autocast = contextlib.nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype_of(precision))
    batches = child_batches(args, directory, device)
    start = time.monotonic()
    with autocast:
        history = reference.train("simplified", weights["student"], weights["teacher"], HEADS, batches, dropout=dropout)
    seconds = seconds_since(start, device)
    print(json.dumps({"losses": [losses["loss"] for losses in history], "seconds": seconds}))


@torch.inference_mode()
def forward_teacher(args: argparse.Namespace, directory: Path, precision: str) -> None:
    """In a child: prints the seconds of the teacher's forward pass alone, with fused attention."""
    device = choose_device(args.device)
    teacher = load_ranker(directory / "teacher")[0].to(device, dtype_of(precision)).eval()
    batches = [
        {name: tensor for name, tensor in batch.items() if name != "labels"}
        for batch in child_batches(args, directory, device)
    ]
    teacher(**batches[0])
    start = time.monotonic()
    for batch in batches:
        teacher(**batch)
    print(json.dumps({"seconds": seconds_since(start, device)}))


def distill(args: argparse.Namespace, directory: Path, precision: str) -> tuple[list[float], float, int]:
    """Runs distill.py. Returns the losses of all steps, examples/s, and the peak memory in bytes."""
    output = directory / "output"
    flags = ["--features_file", directory / "features", "--teacher_model", directory / "teacher"]
    flags += ["--general_student_model", directory / "student", "--output_student_dir", output, "--overwrite"]
    flags += ["--train_batch_size", args.batch_size, "--train_loss_step", 1, "--num_train_epochs", 1, "--seed", SEED]
    flags += ["--no_teacher_check", "--precision", precision, "--device", args.device]
    peak = run(["distill.py", *flags]).peak_bytes
    return *training_losses_and_speed(output), peak


def main(args: argparse.Namespace) -> None:
    args.device = str(choose_device(args.device))
    if args.child:
        side, directory, precision, dropout = args.child
        if side == "reference":
            distill_by_reference(args, Path(directory), precision, float(dropout))
        else:
            forward_teacher(args, Path(directory), precision)
        return
    print(describe_torch_machine())
    print(
        f"teacher {args.teacher}, student {args.student}, {args.updates} steps of {args.batch_size} x "
        f"{args.max_seq_length} tokens"
    )
    count = args.updates * args.batch_size
    on_gpu = args.device != "cpu"
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
            make_features(directory / "features", "train", count, args.max_seq_length)
            make_model(directory / "teacher", args.teacher, 1, dropout)
            make_model(directory / "student", args.student, 2, dropout, fit_to=args.teacher.hidden)
            label = f"dropout {dropout}"
            for _ in range(rounds):
                for reference_precision in ("fp32", "fp16") if on_gpu else ("fp32",):
                    printed, peak = run([*own, "reference", directory, reference_precision, dropout])
                    said = last_json(printed)
                    losses.setdefault("reference", said["losses"])
                    note(f"reference {reference_precision}, {label}", count / said["seconds"], peak)
                for precision in args.precisions:
                    found, speed, peak = distill(args, directory, precision)
                    if not dropout:
                        losses[precision] = found
                    note(f"distill.py {precision}, {label}", speed, peak)
                    said = last_json(run([*own, "forward", directory, precision, dropout]).printed)
                    note(f"forward {precision}", count / said["seconds"], 0)

    is_same = True
    for precision in args.precisions:
        pairs = zip(losses[precision], losses["reference"], strict=True)
        difference = max(abs(found / expected - 1) for found, expected in pairs)
        is_same = is_same and difference <= TOLERANCES[precision]
        print(f"{precision}: losses of {args.updates} steps differ by {difference:.1e} at most, relative")
        for label in ("dropout 0.0", f"dropout {DROPOUT}"):
            name = f"distill.py {precision}, {label}"
            ratios = [f"{speeds[name] / speeds[f'reference fp32, {label}']:.2f} x reference fp32"]
            if on_gpu:
                ratios.append(f"{speeds[name] / speeds[f'reference fp16, {label}']:.2f} x reference under autocast")
            cost = speeds[f"forward {precision}"] / speeds[name]
            ratios.append(f"a step costs {cost:.2f} x the teacher's forward pass")
            if not on_gpu:  # the peak is that of the process, not of the GPU
                memory = peaks[name] / peaks[f"reference fp32, {label}"]
                ratios.append(f"{peaks[name] / 1e9:.2f} GB, {memory:.2f} x reference")
            print(f"{name}: {', '.join(ratios)}")
    sys.exit(0 if is_same else 1)


if __name__ == "__main__":
    run_script(main, args)
