"""Distilling and re-ranking: one process with all threads against several processes that share the threads."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import os
import re
import tempfile

import numpy as np

from benchmarks.child import reranking_seconds, run, training_losses_and_speed
from benchmarks.machine import describe_torch_machine
from benchmarks.synthetic import HEADS, Shape, make_features, make_model
from formats.scores import read_scores
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import run_script

BATCH_SIZE = 8
MAX_SEQ_LENGTH = 128
LOSS_TOLERANCE = 1e-4  # relative: over all steps, sums come in another order
SCORE_TOLERANCE = 1e-5


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Runs distill.py (12 to 3 layers, simplified) and rerank.py on synthetic features: with one
process that has all threads, and with several processes that share them. Prints the speed of each and the ratio.

  python benchmarks/processes.py --threads 2

The exit status is 1 if losses or scores differ by more than rounding.""",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="in all (default: all)")
    parser.add_argument("--processes", type=int, default=2, help="to compare with one (default 2)")
    parser.add_argument("--hidden_size", type=int, default=192, help="of both models (default 192)")
    parser.add_argument("--updates", type=int, default=12, help="optimization steps of 8 examples (default 12)")
    parser.add_argument("--passages", type=int, default=400, help="to re-rank (default 400)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each (default 2)")
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that cannot work."""
    for name in ("updates", "passages", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}: needs to be 1 or more")
    if args.processes < 2 or args.threads % args.processes or BATCH_SIZE % args.processes:
        raise InputError("--processes: needs to be 2 or more, and to divide --threads and the 8 examples of a step")
    if args.hidden_size < HEADS or args.hidden_size % HEADS:
        raise InputError(f"--hidden_size: needs to be a multiple of the {HEADS} heads")


def launch(script: str, flags: list, processes: int, threads: int) -> None:
    """Runs a script, and prints what each of several processes did. Raises InputError if it fails."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    printed = run([*(torchrun if processes > 1 else []), script, *flags, "--device", "cpu"], threads).printed
    for line in re.findall(r"process \d+: .*", printed):
        print(f"    {line}")


def distill(directory: Path, name: str, processes: int, threads: int) -> tuple[np.ndarray, float]:
    """Runs distill.py. Returns its losses (steps,), and examples/s."""
    output = directory / name
    flags = ["--features_file", directory / "train", "--teacher_model", directory / "teacher"]
    flags += ["--general_student_model", directory / "student", "--output_student_dir", output, "--overwrite"]
    flags += ["--train_batch_size", BATCH_SIZE, "--train_loss_step", 1, "--num_train_epochs", 1, "--no_teacher_check"]
    launch("distill.py", flags, processes, threads)
    losses, speed = training_losses_and_speed(output)
    return np.array(losses), speed


def rerank(directory: Path, name: str, processes: int, threads: int) -> tuple[np.ndarray, float]:
    """Runs rerank.py. Returns its scores (passages,), and passages/s."""
    output = directory / f"{name}.scores"
    flags = ["--model_dir", directory / "teacher", "--features_file", directory / "test", "--eval_batch_size", 8]
    flags += ["--output_scores_file", output, "--overwrite"]
    launch("rerank.py", flags, processes, threads)
    scores = np.array([row.score for row in read_scores(output)])
    return scores, len(scores) / reranking_seconds(output)


def main() -> None:
    args = parse_args()
    print(describe_torch_machine())
    settings = {"one": (1, args.threads), "several": (args.processes, args.threads // args.processes)}
    is_same = True
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        make_model(directory / "teacher", Shape(12, args.hidden_size), 1)
        make_model(directory / "student", Shape(3, args.hidden_size), 2, fit_to=args.hidden_size)
        make_features(directory / "train", "train", BATCH_SIZE * args.updates, MAX_SEQ_LENGTH)
        make_features(directory / "test", "test", args.passages, MAX_SEQ_LENGTH)
        for work, unit, tolerance in ((distill, "examples", LOSS_TOLERANCE), (rerank, "passages", SCORE_TOLERANCE)):
            speeds: dict[str, float] = {}
            results: dict[str, np.ndarray] = {}
            for _ in range(args.rounds):
                for name, (processes, threads) in settings.items():
                    results[name], speed = work(directory, name, processes, threads)
                    speeds[name] = max(speed, speeds.get(name, 0.0))
                    print(f"{work.__name__} with {processes} x {threads} threads: {speed:.1f} {unit}/s", flush=True)
            difference = float(np.max(np.abs(results["several"] / results["one"] - 1)))
            is_same = is_same and difference <= tolerance
            print(
                f"{work.__name__}: {args.processes} processes have {speeds['several'] / speeds['one']:.2f} times the "
                f"speed of one, best of {args.rounds}; results differ by {difference:.1e} at most, relative"
            )
    sys.exit(0 if is_same else 1)


if __name__ == "__main__":
    run_script(main)
