"""Rates of the scripts that prepare data, measured on synthetic data in under a minute. For msmarco_cost.py."""

import datetime
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.big_collection import DEPTH, make_collection
from benchmarks.machine import describe_machine
from benchmarks.tokenization import make_pairs, make_vocabulary
from formats.pairs import write_pairs
from runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "data_preparation"


def seconds_of(script: Path, **flags: object) -> float:
    """Runs a script, and returns the seconds that it took, with its start. Raises InputError if it fails."""
    command = [sys.executable, script, *(f"--{name}={value}" for name, value in flags.items())]
    start = time.perf_counter()
    done = subprocess.run(list(map(str, command)), cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise InputError(f"--measure: {script.name} ended with exit status {done.returncode}")
    return time.perf_counter() - start


def measure_rates(
    documents: int = 16_000, words: int = 1_131, queries: int = 100, pairs: int = 40_000
) -> dict[str, Any]:
    """Returns `{rate: {"per_second", "where"}}` of reading documents, writing, tokenizing and filtering pairs."""
    where = f"{describe_machine()}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, preparation_rates.py: "
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        make_collection(directory, documents, words, queries)
        of_one = directory / "one"
        of_one.write_text("".join((directory / "top100").read_text().splitlines(keepends=True)[:DEPTH]))
        flags = {"collection": directory / "docs.tsv.gz", "queries": directory / "queries.tsv", "overwrite": "yes"}
        outputs = {"candidates": of_one, "output_pairs_file": directory / "pairs.tsv"}
        reading = seconds_of(SCRIPTS / "make_rerank_pairs.py", **flags, **outputs)
        few = _count(directory / "pairs.tsv")
        outputs["candidates"] = directory / "top100"
        writing = seconds_of(SCRIPTS / "make_rerank_pairs.py", **flags, **outputs)
        passages = _count(directory / "pairs.tsv")

        labelled, scores = directory / "labelled.tsv", directory / "scores.tsv"
        rng = random.Random(1)
        with open(directory / "pairs.tsv", encoding="utf-8") as source, open(labelled, "w", encoding="utf-8") as target:
            target.writelines(f"{line.rstrip()}\t1\n" for line in source)
        with open(directory / "pairs.tsv", encoding="utf-8") as source, open(scores, "w", encoding="utf-8") as target:
            ids = (line.partition("\t")[0].partition("#") for line in source)
            target.writelines(f"{query_id}\t{passage_id}\t{rng.random()}\n" for query_id, _, passage_id in ids)
        filtered = directory / "filtered.tsv"
        filtering = seconds_of(
            SCRIPTS / "filter_positives.py", pairs_file=labelled, scores_file=scores, output_pairs_file=filtered
        )

        tokens = make_vocabulary(rng)
        directory.joinpath("vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
        write_pairs(directory / "different.tsv", make_pairs(rng, tokens, pairs))
        tokenizing = seconds_of(
            ROOT / "tokenize_to_features.py", set_name="test", raw_data_file=directory / "different.tsv",
            output_features_file=directory / "features", bert_model_dir=directory, max_seq_length=256,
        )  # fmt: skip
    return {
        "read": _rate(documents / reading, f"{where}{documents:,} documents of {words:,} words on average, gzip"),
        "write": _rate(
            (passages - few) / max(writing - reading, 0.01),
            f"{where}{passages:,} passages of the same, without reading",
        ),
        "tokenize": _rate(pairs / tokenizing, f"{where}{pairs:,} pairs of 150 words, every passage different"),
        "filter": _rate(passages / filtering, f"{where}{passages:,} positives"),
    }


def _count(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def _rate(per_second: float, where: str) -> dict[str, Any]:
    """A rate with two digits, because a machine's speed changes from run to run."""
    return {"per_second": int(float(f"{per_second:.2g}")), "where": where}
