"""Distilling: distill.py against the published algorithm written out plainly, and the teacher's forward pass."""

import argparse
import contextlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import plain
from benchmarks.made_up import HEADS, Shape, last_json, machine, make_features, make_model, run, shape
from distill import epoch_order
from formats.features import Features
from modeling.model_files import load_ranker
from runtime.device import choose_device, dtype_of
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import run_script

SEED = 42
DROPOUT = 0.1
# Of the loss of each update, relative. bf16 and fp16 round the products.
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Distils by the simplified method on made-up features, by distill.py in each precision and by the
plain version, and prints examples/s, their ratio, and the most memory that each process held.

  python benchmarks/distilling.py

First without dropout, where the losses of every update must agree (status 1 where they do not), then with a dropout
of 0.1, as published: in the plain version in both models, in distill.py in the student alone. Each runs in a process of
its own, in turn.""",
    )
    parser.add_argument("--teacher", type=shape, default=Shape(12, 768), help="LAYERS/HIDDEN (default 12/768)")
    parser.add_argument("--student", type=shape, default=Shape(3, 384), help="LAYERS/HIDDEN (default 3/384)")
    parser.add_argument("--batch_size", type=int, default=16, help="examples per update (default 16)")
    parser.add_argument("--max_seq_length", type=int, default=256, help="tokens (default 256)")
    parser.add_argument("--updates", type=int, default=5, help="of each run (default 5)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each with dropout (default 2)")
    parser.add_argument("--precisions", default="fp32,bf16", help="of distill.py (default fp32,bf16)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)  # plain or forward, directory, precision, dropout
    args = parser.parse_args()
    for name in ("batch_size", "updates", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}: needs to be 1 or more")
    if args.max_seq_length < 50:
        raise InputError("--max_seq_length: needs to be 50 or more")
    args.device = str(choose_device(args.device))
    args.precisions = args.precisions.split(",")
    if not set(args.precisions) <= set(TOLERANCES):
        raise InputError(f"--precisions: takes {', '.join(TOLERANCES)}, with commas")
    return args


def child_batches(args: argparse.Namespace, directory: Path, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """The batches that distill.py takes."""
    features = Features(directory / "features")
    order = epoch_order(SEED, 0, len(features))
    return [
        {
            name: torch.from_numpy(array).to(device)
            for name, array in features.batch(order[first : first + args.batch_size], args.max_seq_length).items()
        }
        for first in range(0, args.updates * args.batch_size, args.batch_size)
    ]


def finish(device: torch.device, start: float) -> float:
    """Seconds since the start, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - start


def distil_plainly(args: argparse.Namespace, directory: Path, precision: str, dropout: float) -> None:
    """In a child: prints losses and seconds of the plain version. With another precision than fp32, by autocast."""
    device = choose_device(args.device)
    weights = {}
    for name in ("student", "teacher"):
        loaded = safetensors.torch.load_file(directory / name / "model.safetensors")
        weights[name] = {key: tensor.to(device) for key, tensor in loaded.items()}
    half = contextlib.nullcontext()
    if precision != "fp32":
        half = torch.autocast(device.type, dtype_of(precision))
    batches = child_batches(args, directory, device)
    start = time.monotonic()
    with half:
        history = plain.train("simplified", weights["student"], weights["teacher"], HEADS, batches, dropout=dropout)
    seconds = finish(device, start)
    print(json.dumps({"losses": [losses["loss"] for losses in history], "seconds": seconds}))


@torch.inference_mode()
def forward_teacher(args: argparse.Namespace, directory: Path, precision: str) -> None:
    """In a child: prints the seconds of the teacher's bare forward pass, with fused attention, in that precision."""
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
    print(json.dumps({"seconds": finish(device, start)}))


def distil(args: argparse.Namespace, directory: Path, precision: str) -> tuple[list[float], float, int]:
    """Losses, examples/s and peak bytes of distill.py."""
    output = directory / "output"
    flags = ["--features_file", directory / "features", "--teacher_model", directory / "teacher"]
    flags += ["--general_student_model", directory / "student", "--output_student_dir", output, "--overwrite"]
    flags += ["--train_batch_size", args.batch_size, "--train_loss_step", 1, "--num_train_epochs", 1, "--seed", SEED]
    flags += ["--no_teacher_check", "--precision", precision, "--device", args.device]
    printed, peak = run(["distill.py", *flags])
    speed = float(re.findall(r"([\d.]+) examples/s", printed)[-1])
    lines = (output / "train_loss.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines], speed, peak


def main() -> None:
    args = parse_args()
    if args.child:
        what, directory, precision, dropout = args.child
        if what == "plain":
            distil_plainly(args, Path(directory), precision, float(dropout))
        else:
            forward_teacher(args, Path(directory), precision)
        return
    print(machine())
    print(
        f"teacher {args.teacher}, student {args.student}, {args.updates} updates of {args.batch_size} x "
        f"{args.max_seq_length} tokens"
    )
    count = args.updates * args.batch_size
    on_gpu = args.device != "cpu"
    own = [__file__, *sys.argv[1:], "--child"]
    speeds: dict[str, float] = {}
    peaks: dict[str, int] = {}
    losses: dict[str, list[float]] = {}

    def keep(name: str, speed: float, peak: int) -> None:
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
                for plain_precision in ("fp32", "fp16") if on_gpu else ("fp32",):
                    printed, peak = run([*own, "plain", directory, plain_precision, dropout])
                    said = last_json(printed)
                    losses.setdefault("plain", said["losses"])
                    keep(f"plain {plain_precision}, {label}", count / said["seconds"], peak)
                for precision in args.precisions:
                    found, speed, peak = distil(args, directory, precision)
                    if not dropout:
                        losses[precision] = found
                    keep(f"distill.py {precision}, {label}", speed, peak)
                    said = last_json(run([*own, "forward", directory, precision, dropout]).printed)
                    keep(f"forward {precision}", count / said["seconds"], 0)

    is_same = True
    for precision in args.precisions:
        pairs = zip(losses[precision], losses["plain"], strict=True)
        difference = max(abs(found / expected - 1) for found, expected in pairs)
        is_same = is_same and difference <= TOLERANCES[precision]
        print(f"{precision}: losses of {args.updates} updates differ by {difference:.1e} at most, relative")
        for label in ("dropout 0.0", f"dropout {DROPOUT}"):
            name = f"distill.py {precision}, {label}"
            against = [f"{speeds[name] / speeds[f'plain fp32, {label}']:.2f} x plain fp32"]
            if on_gpu:
                against.append(f"{speeds[name] / speeds[f'plain fp16, {label}']:.2f} x plain under autocast")
            cost = speeds[f"forward {precision}"] / speeds[name]
            against.append(f"an update costs {cost:.2f} x the teacher's forward pass")
            if not on_gpu:  # what is measured is the memory of the process
                memory = peaks[name] / peaks[f"plain fp32, {label}"]
                against.append(f"{peaks[name] / 1e9:.2f} GB, {memory:.2f} x plain's")
            print(f"{name}: {', '.join(against)}")
    sys.exit(0 if is_same else 1)


if __name__ == "__main__":
    run_script(main)
