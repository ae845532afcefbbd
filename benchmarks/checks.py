"""Checks of a GPU: the tests marked gpu, resuming to the same bytes, and a process group of one process."""
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

STOPPED = 75  # exit status of distill.py after a signal


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Checks one of these. Prints what differs, or the output of pytest. The exit status is 1 if the
check fails. Without pytest the tests are not run, and it is 0.

  tests   the tests marked gpu pass
  resume  a training with --deterministic that SIGTERM stops and --resume resumes gives the same bytes as another one
          without a stop
  nccl    distill.py with the collective operations of several processes, in a process group of one process that
          torchrun starts, gives the same losses as distill.py alone. They are NCCL's on a GPU and gloo's on a CPU

  python benchmarks/checks.py resume""",
    )
    parser.add_argument("check", choices=("tests", "resume", "nccl"), help="what to check, as above")
    parser.add_argument("--teacher", type=shape, default=Shape(6, 192), help="LAYERS/HIDDEN (default 6/192)")
    parser.add_argument("--student", type=shape, default=Shape(3, 96), help="LAYERS/HIDDEN (default 3/96)")
    parser.add_argument("--updates", type=int, default=100, help="optimization steps of each run (default 100)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--results_file", type=Path, help="also write the results, as JSON")
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that cannot work."""
    if args.updates < 10:
        raise InputError("--updates: needs to be 10 or more")


if __name__ == "__main__":
    args = parse_args()  # before the imports below, which take seconds

import importlib.util
import json
import re
import shlex
import signal
import subprocess
import tempfile
import time

from benchmarks.child import ROOT, run, training_losses_and_speed
from benchmarks.machine import Row, write_results
from benchmarks.synthetic import make_features, make_model
from runtime.device import choose_device
from runtime.script import run_script

BATCH, TOKENS = 8, 64
MOST_SECONDS = 120  # until a training has made its first steps


def training_flags(args: argparse.Namespace, directory: Path, name: str) -> list:
    """The flags of distill.py for a short training with dropout, which writes into `directory`/`name`."""
    flags = ["--features_file", directory / "features", "--teacher_model", directory / "teacher"]
    flags += ["--general_student_model", directory / "student", "--output_student_dir", directory / name]
    flags += ["--train_batch_size", BATCH, "--train_loss_step", 1, "--num_train_epochs", 1, "--no_teacher_check"]
    return [*flags, "--device", args.device, "--precision", "auto", "--deterministic"]


def make_inputs(args: argparse.Namespace, directory: Path) -> None:
    make_features(directory / "features", "train", args.updates * BATCH, TOKENS)
    make_model(directory / "teacher", args.teacher, 1, 0.1)
    make_model(directory / "student", args.student, 2, 0.1, fit_to=args.teacher.hidden)


def stop_after_some_steps(args: argparse.Namespace, directory: Path, name: str) -> int:
    """Stops a training by SIGTERM after a third of its steps. Returns the number of steps that it has made.

    Raises InputError if it ends with another status than that of a stopped run.
    """
    command = [sys.executable, "-W", "ignore", "distill.py", *map(str, training_flags(args, directory, name))]
    losses, begin = directory / name / "train_loss.jsonl", time.monotonic()
    with (
        open(directory / "printed", "w+", encoding="utf-8") as printed,
        subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=printed) as process,
    ):
        while process.poll() is None and time.monotonic() < begin + MOST_SECONDS:
            if losses.exists() and losses.read_bytes().count(b"\n") > args.updates // 3:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        status = process.wait()
        printed.seek(0)
        if status != STOPPED:
            raise InputError(f"distill.py ended with status {status}, not with {STOPPED}: {printed.read()}")
    return losses.read_bytes().count(b"\n")


def check_resume(args: argparse.Namespace, directory: Path) -> tuple[bool, list[Row]]:
    """Whether a training that was stopped and resumed gives the bytes of one that was not."""
    make_inputs(args, directory)
    run(["distill.py", *training_flags(args, directory, "whole")])
    steps = stop_after_some_steps(args, directory, "stopped")
    run(["distill.py", *training_flags(args, directory, "stopped"), "--resume"])
    different = [
        name
        for name in ("model.safetensors", "train_loss.jsonl")
        if (directory / "whole" / name).read_bytes() != (directory / "stopped" / name).read_bytes()
    ]
    print(f"stopped after step {steps} of {args.updates} and resumed: files with other bytes: {different or 'none'}")
    return not different, [Row(f"resumed after step {steps}", len(different), "files with other bytes", 0, True)]


def check_nccl(args: argparse.Namespace, directory: Path) -> tuple[bool, list[Row]]:
    """Whether distill.py in a process group of one process has the losses of distill.py alone."""
    make_inputs(args, directory)
    run(["distill.py", *training_flags(args, directory, "alone")])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1]
    flags = shlex.join(map(str, training_flags(args, directory, "group")))
    run([*torchrun, "benchmarks/one_process_group.py", f"--distill_flags={flags}"])
    alone, group = (training_losses_and_speed(directory / name)[0] for name in ("alone", "group"))
    difference = max(abs(one / other - 1) for one, other in zip(alone, group, strict=True))
    backend = "gloo" if args.device == "cpu" else "NCCL"
    print(f"{backend}, one process: losses of {args.updates} steps differ by {difference:.1e} at most, relative")
    return difference == 0, [Row(f"{backend}, one process", difference, "relative difference of losses", 0, True)]


def check_tests() -> tuple[bool | None, list[Row]]:
    """Whether the tests marked gpu pass; None without pytest."""
    if importlib.util.find_spec("pytest") is None:
        print("pytest is not installed, so the tests are not run")
        return None, []
    # Other files import packages that only tests of a CPU need.
    files = [path for path in sorted(ROOT.glob("tests/test_*.py")) if "@pytest.mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    counts = re.findall(r"(\d+) (passed|failed|error|skipped)", lines[-1] if lines else "")
    return process.returncode == 0, [Row("tests marked gpu", int(count), outcome) for count, outcome in counts]


def main(args: argparse.Namespace) -> None:
    args.device = str(choose_device(args.device))
    with tempfile.TemporaryDirectory() as temporary:
        if args.check == "tests":
            passed, rows = check_tests()
        elif args.check == "resume":
            passed, rows = check_resume(args, Path(temporary))
        else:
            passed, rows = check_nccl(args, Path(temporary))
    print(json.dumps([row._asdict() for row in rows]))
    if args.results_file is not None:
        write_results(args.results_file, args.device, passed, rows)
    sys.exit(1 if passed is False else 0)


if __name__ == "__main__":
    run_script(main, args)
