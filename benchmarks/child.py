"""A side of a measurement, in a child process or in this one: its output, its peak memory, the speed it wrote."""

import contextlib
import gc
import io
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


class Finished(NamedTuple):
    """The output of a side, and its peak memory in bytes: of the child process, or of the GPU."""

    printed: str
    peak_bytes: int


def run(command: list, threads: int | None = None) -> Finished:
    """Runs Python with the arguments `command` in the project's directory. Raises InputError if it fails."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, command)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise InputError(f"{' '.join(map(str, command[:2]))} ended with status {process.returncode}: {printed}")
    return Finished(printed, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def run_in_process(command: list) -> Finished:
    """Does the same as `run` in this process, without the seconds of another start. For scripts on a GPU.

    The peak memory is that of the GPU, as torch counts it; 0 without a GPU.
    """
    import torch  # late: it takes seconds

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    interrupt = signal.getsignal(signal.SIGINT)  # a script changes it at its first line
    has_cudnn = torch.backends.cuda.cudnn_sdp_enabled()  # rerank.py turns it off
    printed, status = io.StringIO(), 0
    redirected = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)
    try:
        with mock.patch.object(sys, "argv", [str(part) for part in command]), redirected[0], redirected[1]:
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    except SystemExit as ended:
        status = ended.code or 0
    finally:
        signal.signal(signal.SIGINT, interrupt)
        torch.backends.cuda.enable_cudnn_sdp(has_cudnn)
    if status != 0:
        raise InputError(f"{' '.join(map(str, command[:2]))} ended with status {status}: {printed.getvalue()}")
    return Finished(printed.getvalue(), torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def last_json(printed: str) -> dict:
    """The JSON object in the last line of a child's output."""
    return json.loads(printed.strip().splitlines()[-1])


def training_losses_and_speed(output_dir: Path, warm_up: int = 0) -> tuple[list[float], float]:
    """The losses of all steps of distill.py, and its examples/s after the first `warm_up` steps.

    It ran with `--train_loss_step 1`.
    """
    losses, speeds = (
        [json.loads(line)[key] for line in (output_dir / name).read_text("utf-8").splitlines()]
        for name, key in (("train_loss.jsonl", "loss"), ("speed.jsonl", "examples_per_second"))
    )
    counted = speeds[warm_up:]
    losses = [math.nan if loss is None else loss for loss in losses]  # none of a skipped step
    return losses, len(counted) / sum(1 / speed for speed in counted)


def tokenizing_seconds(printed: str) -> float:
    """The seconds that tokenize_to_features.py took, from its output."""
    count, rate = re.findall(r"(\d+) test examples.* ([\d.]+) pairs/s", printed)[-1]
    return int(count) / float(rate)


def reranking_seconds(scores_file: Path) -> float:
    """The seconds that rerank.py took, without loading the model."""
    return json.loads(scores_file.with_name(f"{scores_file.name}.speed.json").read_text("utf-8"))["seconds"]
