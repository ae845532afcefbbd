"""Distilling and re-ranking by one process with all threads against several that share them."""

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.made_up import HEADS, Shape, machine, make_features, make_model, run
from formats.scores import read_scores
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import run_script

MAX_SEQ_LENGTH = 128
LOSS_TOLERANCE = 1e-4  # relative: sums in another order, over all updates
SCORE_TOLERANCE = 1e-5


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Runs distill.py (12 to 3 layers, simplified) and rerank.py on made-up features, by one process
with all threads and by several with a share of them each, in turn, and prints the speed of each and their ratio.

  python benchmarks/processes.py --threads 2

Ends with status 1 where losses or scores differ by more than rounding.""",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="in all (default: all)")
    parser.add_argument("--processes", type=int, default=2, help="to compare with one (default 2)")
    parser.add_argument("--hidden_size", type=int, default=192, help="of both models (default 192)")
    parser.add_argument("--updates", type=int, default=12, help="of 8 examples (default 12)")
    parser.add_argument("--passages", type=int, default=400, help="to re-rank (default 400)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each (default 2)")
    args = parser.parse_args()
    for name in ("updates", "passages", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}: needs to be 1 or more")
    if args.processes < 2 or args.threads % args.processes or 8 % args.processes:
        raise InputError("--processes: needs to be 2 or more, and to divide --threads and the 8 examples of an update")
    if args.hidden_size < HEADS or args.hidden_size % HEADS:
        raise InputError("--hidden_size: needs to be a multiple of the 12 heads")
    return args


def launch(script: str, flags: list, processes: int, threads: int) -> str:
    """What a script printed. Raises InputError where it fails."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    return run([*(torchrun if processes > 1 else []), script, *flags, "--device", "cpu"], threads).printed


def distil(directory: Path, name: str, processes: int, threads: int) -> tuple[str, np.ndarray]:
    """What it printed, and the losses (updates,)."""
    output = directory / name
    flags = ["--features_file", directory / "train", "--teacher_model", directory / "teacher"]
    flags += ["--general_student_model", directory / "student", "--output_student_dir", output, "--overwrite"]
    flags += ["--train_batch_size", 8, "--train_loss_step", 1, "--num_train_epochs", 1, "--no_teacher_check"]
    printed = launch("distill.py", flags, processes, threads)
    lines = (output / "train_loss.jsonl").read_text("utf-8").splitlines()
    return printed, np.array([json.loads(line)["loss"] for line in lines])


def rerank(directory: Path, name: str, processes: int, threads: int) -> tuple[str, np.ndarray]:
    """What it printed, and the scores (passages,)."""
    output = directory / f"{name}.scores"
    flags = ["--model_dir", directory / "teacher", "--features_file", directory / "test", "--eval_batch_size", 8]
    flags += ["--output_scores_file", output, "--overwrite"]
    printed = launch("rerank.py", flags, processes, threads)
    return printed, np.array([row.score for row in read_scores(output)])


def main() -> None:
    args = parse_args()
    print(machine())
    settings = {"one": (1, args.threads), "several": (args.processes, args.threads // args.processes)}
    is_same = True
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        make_model(directory / "teacher", Shape(12, args.hidden_size), 1)
        make_model(directory / "student", Shape(3, args.hidden_size), 2, fit_to=args.hidden_size)
        make_features(directory / "train", "train", 8 * args.updates, MAX_SEQ_LENGTH)
        make_features(directory / "test", "test", args.passages, MAX_SEQ_LENGTH)
        for work, unit, tolerance in ((distil, "examples", LOSS_TOLERANCE), (rerank, "passages", SCORE_TOLERANCE)):
            speeds: dict[str, float] = {}
            results: dict[str, np.ndarray] = {}
            for _ in range(args.rounds):
                for name, (processes, threads) in settings.items():
                    printed, results[name] = work(directory, name, processes, threads)
                    # the last line of all, since each process has one too
                    speed = float(re.findall(rf"([\d.]+) {unit}/s", printed)[-1])
                    speeds[name] = max(speed, speeds.get(name, 0.0))
                    for line in re.findall(r"process \d+: .*", printed):
                        print(f"    {line}")
                    print(f"{work.__name__} by {processes} x {threads} threads: {speed:.1f} {unit}/s", flush=True)
            difference = float(np.max(np.abs(results["several"] / results["one"] - 1)))
            is_same = is_same and difference <= tolerance
            print(
                f"{work.__name__}: {args.processes} processes have {speeds['several'] / speeds['one']:.2f} times the "
                f"speed of one, best of {args.rounds}; results differ by {difference:.1e} at most, relative"
            )
    sys.exit(0 if is_same else 1)


if __name__ == "__main__":
    run_script(main)
