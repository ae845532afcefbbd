"""A child process: its output, its peak memory, and the speed that a script wrote."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


class Finished(NamedTuple):
    """The output of a child process, and its largest resident set in bytes."""

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


def last_json(printed: str) -> dict:
    """The JSON object in the last line of a child's output."""
    return json.loads(printed.strip().splitlines()[-1])


def training_losses_and_speed(output_dir: Path) -> tuple[list[float], float]:
    """The losses of all steps of distill.py, and its examples/s. It ran with `--train_loss_step 1`."""
    losses, speeds = (
        [json.loads(line)[key] for line in (output_dir / name).read_text("utf-8").splitlines()]
        for name, key in (("train_loss.jsonl", "loss"), ("speed.jsonl", "examples_per_second"))
    )
    return losses, len(speeds) / sum(1 / speed for speed in speeds)


def tokenizing_seconds(printed: str) -> float:
    """The seconds that tokenize_to_features.py took, from its output."""
    count, rate = re.findall(r"(\d+) test examples.* ([\d.]+) pairs/s", printed)[-1]
    return int(count) / float(rate)


def reranking_seconds(scores_file: Path) -> float:
    """The seconds that rerank.py took, without loading the model."""
    return json.loads(scores_file.with_name(f"{scores_file.name}.speed.json").read_text("utf-8"))["seconds"]
