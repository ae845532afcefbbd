"""Opening and shuffling a million features: seconds and memory, and those of the published CSV layout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.machine import describe_machine
from formats.features import Example, Features, FeaturesHeader, write_features
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import run_script

ROOT = Path(__file__).resolve().parents[1]
BATCH = 64
MAX_SEQ_LENGTH = 256
VOCABULARY = 30_522

# What each new process runs. Its peak memory includes the pages of the file.
SIDES = {
    "here": """
from formats.features import Features
features = Features(path)
opened = time.perf_counter()
order = np.random.default_rng(1).permutation(len(features))
for first in range(0, len(order), batch):
    total += int(features.batch(order[first : first + batch], length)["input_ids"].sum())
""",
    # as in the published code: one CSV row per example, three arrays of int64
    "reference": """
rows = [line.split(",") for line in open(path, encoding="utf-8")]
columns = [np.array([row[i].split() for row in rows], dtype=np.int64) for i in (1, 2, 3)]
del rows
opened = time.perf_counter()
order = np.random.default_rng(1).permutation(len(columns[0]))
for first in range(0, len(order), batch):
    ids, mask, segments = (column[order[first : first + batch]] for column in columns)
    total += int(ids.sum())
""",
}
MEASURED = """
import resource, sys, time
import numpy as np
path, batch, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
start, total = time.perf_counter(), 0
{side}
end = time.perf_counter()
try:  # the peak of this process alone; ru_maxrss may be that of its parent
    peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(opened - start, end - opened, peak, total)
"""


class Measured(NamedTuple):
    """Time and memory of a process that opens a file and reads all its examples once, in random order."""

    opening_seconds: float
    epoch_seconds: float
    peak_bytes: int
    sum_of_ids: int


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Writes synthetic features, and CSV in the published layout. Prints how long a new process takes
to open them, how many examples/s it reads in random order, in batches of 64 padded to 256, and its peak memory.
Measures the features also with two processes at the same time.

  python benchmarks/features.py                       1,000,000 examples, 430 MB, a minute
  python benchmarks/features.py --examples 50000      a short test

The reference reads only --plain_examples of them, because its memory grows with their number. On these the token ids of
both are compared. The exit status is 1 if they differ.""",
    )
    parser.add_argument("--examples", type=int, default=1_000_000, help="(default 1000000)")
    parser.add_argument("--plain_examples", type=int, default=10_000, help="of the reference (default 10000)")
    parser.add_argument("--work_dir", type=Path, help="where to write and keep files (default: a temporary directory)")
    args = parser.parse_args()
    if not 1 <= args.plain_examples <= args.examples:
        raise InputError("--plain_examples: needs to be from 1 to --examples")
    if args.work_dir is not None and not args.work_dir.is_dir():
        raise InputError(f"--work_dir: there is no directory {args.work_dir}; make it first")
    return args


def make_examples(count: int) -> Iterator[Example]:
    """Yields examples of 150 to 256 random tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, 1 << 20).astype(np.uint16)
    lengths = rng.integers(150, MAX_SEQ_LENGTH + 1, count)
    starts = rng.integers(0, len(tokens) - MAX_SEQ_LENGTH, count)
    for i, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        yield Example(f"{i // 900}#D{i % 99_991}_passage-{i % 7}", tokens[start : start + length], 9, i % 2)


def write_csv(path: Path, features: Features, count: int) -> None:
    """Writes the first `count` examples in the layout of the published tokenizer."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            batch = features.batch([i], MAX_SEQ_LENGTH)
            columns = (batch[name][0] for name in ("input_ids", "attention_mask", "token_type_ids"))
            columns = (" ".join(map(str, column.tolist())) for column in columns)
            file.write(",".join([f"e{i}", *columns, str(batch["labels"][0])]) + "\n")


def measure(side: str, path: Path, processes: int = 1) -> list[Measured]:
    """Runs new processes at the same time, and returns what each measured. Raises InputError if one fails."""
    code = MEASURED.format(side=SIDES[side])
    command = [sys.executable, "-c", code, str(path), str(BATCH), str(MAX_SEQ_LENGTH)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    outputs = [process.communicate()[0].split() for process in running]
    if any(process.returncode for process in running):
        raise InputError(f"the process that reads {path} ended with an error")
    return [Measured(float(a), float(b), int(c), int(d)) for a, b, c, d in outputs]


def main() -> None:
    args = parse_args()
    header = FeaturesHeader(MAX_SEQ_LENGTH, VOCABULARY, True, "train", "synthetic")
    print(describe_machine("numpy"))
    with tempfile.TemporaryDirectory(dir=args.work_dir) as temporary:
        directory = args.work_dir or Path(temporary)
        large, small, csv = (directory / name for name in ("features", "first.features", "first.csv"))
        start = time.perf_counter()
        write_features(large, header, make_examples(args.examples))
        print(f"wrote {args.examples:,} examples, {os.path.getsize(large) / 1e6:,.0f} MB, "
              f"in {time.perf_counter() - start:.1f} s")  # fmt: skip
        write_features(small, header, (example for example, _ in zip(make_examples(args.examples),
                       range(args.plain_examples), strict=False)))  # fmt: skip
        write_csv(csv, Features(small), args.plain_examples)
        rows = [("here", args.examples, measured) for measured in measure("here", large)]
        rows += [("here, two at once", args.examples, measured) for measured in measure("here", large, processes=2)]
        rows += [("here, few", args.plain_examples, measured) for measured in measure("here", small)]
        rows += [("reference, few", args.plain_examples, measured) for measured in measure("reference", csv)]
        sizes = os.path.getsize(small), os.path.getsize(csv)
    print(f"{'':20} examples  opened in s  examples/s  peak MB")
    for name, count, measured in rows:
        print(
            f"{name:20} {count:8,} {measured.opening_seconds:12.2f} {count / measured.epoch_seconds:11,.0f} "
            f"{measured.peak_bytes / 1e6:8,.0f}"
        )
    here, reference = rows[-2][2], rows[-1][2]
    opening = reference.opening_seconds / here.opening_seconds
    print(f"reference / here: bytes {sizes[1] / sizes[0]:.1f}, opening {opening:.0f}")
    same = here.sum_of_ids == reference.sum_of_ids
    print(f"sums of all token ids: {'the same' if same else 'NOT the same'}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    run_script(main)
