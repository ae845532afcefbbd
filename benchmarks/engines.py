"""Re-ranking on the CPU: this project's engine beside those that a user would pick instead."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import importlib.util
import itertools
import json
import os
import tempfile

from benchmarks.engine_children import measure_crossencoder, measure_engine, rerank_by_crossencoder
from benchmarks.engine_models import PREPARE, prepare_model
from benchmarks.engine_runs import EngineRuns, Key, Run
from benchmarks.machine import describe_machine
from benchmarks.synthetic import Shape, make_pairs, shape
from formats.atomic import atomic_write
from formats.pairs import Pair, read_pairs, write_pairs
from formats.run_file import trained_length
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.hub import model_directory
from runtime.script import refuse_existing, run_script

_EXPORT = ("onnx", "onnxscript", "onnxruntime")
# The precisions of each engine, and the modules that it needs beside those of this project.
ENGINES = {
    "ours": (("fp32", "bf16", "int8"), ()),
    "crossencoder": (("fp32", "bf16"), ("sentence_transformers",)),
    "transformers": (("fp32", "bf16"), ()),
    "onnxruntime": (("fp32", "int8"), _EXPORT),
    "openvino": (("fp32", "bf16", "int8"), (*_EXPORT, "openvino", "nncf")),
    "ctranslate2": (("fp32", "int8"), ("ctranslate2",)),
}
PACKAGES = {  # whose versions are reported
    "crossencoder": "sentence-transformers",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ctranslate2": "ctranslate2",
}
WHOLE_PROCESS = ("ours", "crossencoder")
SIZES = (1_000, 10_000, 100_000)  # columns of the table of whole processes
REPEATED_SIZE = 1_000  # larger whole processes run once
WORDS = (15, 150)  # of a synthetic passage
TOLERANCE = 1e-5  # of a score of this project in fp32
INTRODUCTION = """Written by `benchmarks/engines.py`; `--help` says how each figure is measured. Each engine scores the
same pairs with the same model. The difference of a score, from 0 to 1, is that from transformers in fp32.
"""


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Scores the same pairs with the same model by each engine that is installed, on the CPU: this
project, CrossEncoder of sentence-transformers, plain transformers, ONNX Runtime, OpenVINO, CTranslate2.
requirements-benchmarks.txt names them. An engine that is not installed is skipped, and the output says so. Prints two
tables.

  pip install -r requirements-benchmarks.txt
  python benchmarks/engines.py                                                 synthetic model and pairs
  python benchmarks/engines.py --model_dir student/ --pairs pairs.tsv --output_dir benchmarks --overwrite

Each run is a process of its own, and the engines run in turn. The table has the medians of: pairs/s without and with
tokenization; seconds from the start of the process to the first score; peak memory. It also has the agreement with
transformers in fp32: the largest difference of a score from 0 to 1, and the least Spearman correlation. This project
and CrossEncoder are also measured as whole processes, from pairs to a file of scores.

This project is tokenize_to_features.py and rerank.py. Its times include features and files of scores, and it has no
warm-up. Its start-up is both whole processes for one pair; its memory is that of the larger process. CrossEncoder has
its default batches of 32 pairs. The other engines get batches of similar length. All engines but this project score one
batch in eight before they are measured. ONNX Runtime has an optimized graph, and its int8 quantizes inputs at each
matmul. OpenVINO's int8 is quantized by NNCF and calibrated on pairs of the measurement. The exit status is 1 if scores
of this project in fp32 differ from the reference by more than rounding.""",
    )
    inputs = parser.add_argument_group("model and pairs")
    inputs.add_argument("--model_dir", help="a ranker, or its id on the Hugging Face Hub (default: random weights)")
    inputs.add_argument("--student", type=shape, default=Shape(3, 384), help="LAYERS/HIDDEN of random weights "
                        "(default 3/384)")  # fmt: skip
    inputs.add_argument("--pairs", type=Path, help="pairs without labels (default: synthetic passages of 15 to 150 "
                        "words)")  # fmt: skip
    inputs.add_argument("--num_pairs", type=int, default=1200, help="the first pairs are scored (default 1200)")
    inputs.add_argument("--max_seq_length", type=int, help="tokens (default: that of the training, or 256)")
    runs = parser.add_argument_group("runs")
    runs.add_argument("--batch_size", type=int, default=8, help="pairs, of the other engines (default 8)")
    runs.add_argument("--threads", type=int, default=default_threads(), help="of each engine (default: all cores)")
    runs.add_argument("--engines", default=",".join(ENGINES), help="separated by commas (default: all)")
    runs.add_argument("--rounds", type=int, default=3, help="runs of each engine (default 3)")
    runs.add_argument("--whole_process", default="1000", help="numbers of pairs, separated by commas; 0: none "
                        "(default 1000). Those above 1000 run once")  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, help="where to write engines.md and engines.png (default: nowhere)")
    output.add_argument("--overwrite", action="store_true", help="replace the two files if they exist")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)  # see `run_child`
    return parser.parse(check_args)


def default_threads() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that cannot work, and splits --engines and --whole_process."""
    for name, least in (("num_pairs", 2), ("batch_size", 1), ("threads", 1), ("rounds", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name}: needs to be {least} or more")
    if args.max_seq_length is not None and args.max_seq_length < 5:
        raise InputError("--max_seq_length: needs to be 5 or more")
    args.engines = args.engines.split(",")
    if not {"ours", "transformers"} <= set(args.engines) <= set(ENGINES):
        raise InputError(f"--engines: takes ours, transformers and any of {', '.join(ENGINES)}, separated by commas")
    try:
        args.whole_process = sorted({int(size) for size in args.whole_process.split(",")} - {0})
        if min(args.whole_process, default=1) < 1:
            raise ValueError
    except ValueError:
        raise InputError("--whole_process: takes numbers of pairs, separated by commas, or 0") from None
    if args.pairs is not None and args.model_dir is None:
        raise InputError("--pairs: needs --model_dir, because the synthetic model has a synthetic vocabulary")
    if args.output_dir is not None:
        for name in ("engines.md", "engines.png"):
            refuse_existing(args.output_dir / name, "--output_dir", args.overwrite)


def run_child(args: argparse.Namespace) -> None:
    """In a child: makes model files, measures an engine, or scores a file of pairs."""
    action, directory, *rest = args.child
    directory = Path(directory)
    if action == "model":
        prepare_model(directory, args.student)
    elif action == "prepare":
        PREPARE[rest[0]](directory, args.max_seq_length)
    elif action == "whole":
        rerank_by_crossencoder(rest[0], directory, args.max_seq_length, rest[1])
    elif rest[0] == "crossencoder":
        measure_crossencoder(rest[1], directory, args.max_seq_length)
    else:
        measure_engine(*rest, directory, args.max_seq_length, args.batch_size, args.threads)


def missing_modules(engine: str) -> list[str]:
    """The modules that an engine needs and that are not installed."""
    return [name for name in ENGINES[engine][1] if importlib.util.find_spec(name) is None]


def write_pair_files(args: argparse.Namespace, directory: Path) -> None:
    """Writes pairs.tsv, one.tsv with its first pair, and SIZE.tsv for each whole process."""
    counts = {"one": 1, "pairs": args.num_pairs} | {str(size): size for size in args.whole_process}
    most = max(counts.values())
    if args.pairs is None:
        pairs = [Pair(f"q{i}#D{i}_0", *texts) for i, texts in enumerate(make_pairs(most, WORDS))]
    else:
        pairs = list(itertools.islice(read_pairs(args.pairs, labelled=False), most))
    if len(pairs) < most:
        raise InputError(
            f"--pairs: {args.pairs} has {len(pairs)} pairs, and --num_pairs or --whole_process needs {most}"
        )
    for name, count in counts.items():
        write_pairs(directory / f"{name}.tsv", pairs[:count])


def measure(
    args: argparse.Namespace, runs: EngineRuns, keys: list[Key]
) -> tuple[dict[Key, list[Run]], dict[tuple[Key, int], list[float]]]:
    """Runs all engines in turn, round by round. Returns their runs, and the seconds of whole processes by size."""
    measured: dict[Key, list[Run]] = {key: [] for key in keys}
    seconds: dict[tuple[Key, int], list[float]] = {}
    for number in range(1, args.rounds + 1):
        for key in keys:
            found = runs.measure(*key)
            measured[key].append(found)
            print(f"    round {number}: {' '.join(key)}: {len(found.scores) / found.scoring:.1f} pairs/s", flush=True)
    for size in args.whole_process:
        for _ in range(args.rounds if size <= REPEATED_SIZE else 1):
            for key in (key for key in keys if key[0] in WHOLE_PROCESS):
                took = runs.whole_process(*key, size)
                seconds.setdefault((key, size), []).append(took)
                print(f"    {size} pairs, whole process: {' '.join(key)}: {took:.1f} s", flush=True)
    return measured, seconds


def describe_work(args: argparse.Namespace, directory: Path) -> str:
    """A sentence on the model and the pairs, with the names of files but no directories."""
    config = json.loads((directory / "export" / "config.json").read_text("utf-8"))
    model = "random weights" if args.model_dir is None else Path(args.model_dir).name
    pairs = "synthetic pairs" if args.pairs is None else f"the first pairs of {args.pairs.name}"
    return (
        f"Model: {config['num_hidden_layers']} layers, hidden size {config['hidden_size']}, {model}. Pairs: "
        f"{args.num_pairs:,}, {pairs}, at most {args.max_seq_length} tokens. {args.threads} threads. "
        f"Runs of each engine, of which the medians count: {args.rounds}."
    )


def main(args: argparse.Namespace) -> None:
    if args.child:
        run_child(args)
        return
    engines = [engine for engine in ENGINES if engine in args.engines and not missing_modules(engine)]
    skipped = [
        f"{engine} is skipped. Not installed: {', '.join(missing_modules(engine))}.\n"
        for engine in args.engines
        if engine not in engines
    ]
    packages = ["torch", "transformers"]
    packages += [PACKAGES[engine] for engine in engines if engine in PACKAGES]
    machine = describe_machine(*packages)
    print("".join([f"{machine}\n", *skipped]), end="", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_pair_files(args, directory)
        model_dir = None if args.model_dir is None else model_directory(args.model_dir).resolve()
        args.max_seq_length = args.max_seq_length or (model_dir and trained_length(model_dir)) or 256
        settings = ["--max_seq_length", args.max_seq_length, "--batch_size", args.batch_size, "--student", args.student]
        runs = EngineRuns([__file__, *settings], directory, model_dir, args.max_seq_length, args.threads)
        runs.prepare(engines)
        work = describe_work(args, directory)
        keys = [(engine, precision) for engine in engines for precision in ENGINES[engine][0]]
        measured, seconds = measure(args, runs, keys)

    # late: the peak memory of a child process counts from that of this process
    from benchmarks import engine_report

    lines = [f"{machine}.\n", f"{work}\n", *skipped, engine_report.engines_table(measured)]
    lines.append(f"{engine_report.spread_line(measured)}\n")
    if seconds:
        sizes = sorted({*SIZES, *args.whole_process})
        lines.append("Seconds of whole processes, from a file of pairs to a file of scores:\n")
        lines.append(engine_report.whole_process_table(seconds, sizes))
    text = "\n".join(lines)
    print(text, end="")
    if args.output_dir is not None:
        engine_report.write_picture(args.output_dir / "engines.png", measured)
        with atomic_write(args.output_dir / "engines.md") as file:
            file.write(f"# Engines side by side\n\n{INTRODUCTION}\n{text}\n![pairs/s of each engine](engines.png)\n")
    difference = engine_report.largest_difference(measured, ("ours", "fp32"))
    if difference > TOLERANCE:
        print(f"the scores of this project in fp32 differ from the reference by {difference:.1e}")
        sys.exit(1)


if __name__ == "__main__":
    run_script(main, parse_args())
