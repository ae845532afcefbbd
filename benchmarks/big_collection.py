"""Speed and memory of the data scripts on a synthetic collection with the layout and size of MS MARCO."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import gzip
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tqdm import tqdm

from benchmarks.child import run
from formats.pairs import read_pairs, split_example_id
from formats.scores import split_passage_id
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import run_script

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1e9  # bytes, without the text of the documents that a script needs
DEPTH = 100  # candidates per query
CHUNK_WORDS = 43
BYTES_PER_WORD = 7.5
PACKED_SHARE = 0.6  # an upper bound for gzip at its fastest on random words

# What the scripts do before they make passages.
READING_ALONE = """
from data_preparation.sources import add_collection_arguments, needed_documents, open_collection
from runtime.flags import Parser
parser = Parser("")
add_collection_arguments(parser, candidates=True)
collection = open_collection(parser.parse_args())
needed_documents(collection, {doc_id for scores in collection.candidates.values() for doc_id in scores})
"""


class Measured(NamedTuple):
    """One run of a script."""

    seconds: float
    peak_bytes: int


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Writes a collection, with and without gzip, and runs the scripts that make pairs from it. Prints
their speed, their peak memory, and the speed of a program that only reads (and unpacks) the same bytes.

  python benchmarks/big_collection.py                      2,000,000 documents, 6 GB and 4 GB packed
  python benchmarks/big_collection.py --documents 20000    a short test

Before each run the system drops the file from its cache, so that every program reads from the disk. The exit status is
1 if a script needs 1 GB or more beside the text of the documents that it needs.""",
    )
    parser.add_argument("--documents", type=int, default=2_000_000, help="(default 2000000)")
    parser.add_argument("--words", type=int, default=430, help="of a body, on average (default 430)")
    parser.add_argument("--queries", type=int, default=1000, help="with 100 candidates each (default 1000)")
    parser.add_argument("--work_dir", type=Path, help="where to write and keep files (default: a temporary directory)")
    args = parser.parse_args()
    if args.documents < 2 * DEPTH or args.words < CHUNK_WORDS or args.queries < 1:
        raise InputError(f"--documents, --words, --queries: need at least {2 * DEPTH}, {CHUNK_WORDS} and 1")
    if args.work_dir is not None and not args.work_dir.is_dir():
        raise InputError(f"--work_dir: there is no directory {args.work_dir}; make it first")
    return args


def make_chunks(seed: int) -> list[str]:
    """Sequences of words for the bodies: together longer than the window of gzip. Some are not ASCII, as on the web."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(2, 11))) for _ in range(30_000)]
    chunks = [" ".join(rng.choices(words, k=CHUNK_WORDS)) for _ in range(4096)]
    return [f"\u201c{chunk}\u201d caf\u00e9." if i % 32 == 0 else f"{chunk}." for i, chunk in enumerate(chunks)]


def document(number: int, chunks: list[str], words: int) -> tuple[str, str]:
    """The title and body of a document. They depend on its number alone. One body in 1,000 is empty."""
    rng = random.Random(number)
    title = f"Title of document {number}"
    if number % 1000 == 999:
        return title, ""
    return title, " ".join(rng.choices(chunks, k=rng.randint(1, 2 * words // CHUNK_WORDS - 1)))


def make_collection(directory: Path, num_documents: int, words: int, num_queries: int) -> None:
    """Writes docs.tsv, docs.tsv.gz, queries.tsv, qrels.tsv and the run top100."""
    chunks = make_chunks(seed=1)
    with (
        open(directory / "docs.tsv", "w", encoding="utf-8", newline="\n") as unpacked,
        gzip.open(directory / "docs.tsv.gz", "wt", compresslevel=1, encoding="utf-8", newline="\n") as packed,
    ):
        for number in tqdm(range(num_documents), desc="making documents", unit=" documents", disable=None):
            title, body = document(number, chunks, words)
            line = f"D{number}\thttps://example.org/{number}\t{title}\t{body}\n"
            unpacked.write(line)
            packed.write(line)
    rng = random.Random(2)
    with (
        open(directory / "queries.tsv", "w", encoding="utf-8") as queries,
        open(directory / "qrels.tsv", "w", encoding="utf-8") as qrels,
        open(directory / "top100", "w", encoding="utf-8") as run,
    ):
        for query in range(num_queries):
            ranked = rng.sample(range(num_documents), DEPTH)
            queries.write(f"{query}\twhat is number {query}\n")
            qrels.write(f"{query} 0 D{ranked[rng.randrange(DEPTH)]} 1\n")
            run.writelines(f"{query} Q0 D{number} {i} {DEPTH - i} synthetic\n" for i, number in enumerate(ranked, 1))


def drop_from_cache(path: Path) -> None:
    """Asks the system to drop a file from its cache, if it has such a call."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_of(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare_read(path: Path) -> None:
    """Reads (and unpacks) all bytes of a file, and does nothing else."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def run_measured(command: list[str]) -> Measured:
    """Runs a script to its end. Raises InputError if it fails."""
    start = time.perf_counter()
    peak_bytes = run(command).peak_bytes
    return Measured(time.perf_counter() - start, peak_bytes)


def documents_in(pairs_file: Path, labelled: bool) -> set[int]:
    """The numbers of the documents of a file of pairs."""
    doc_ids = set()
    for pair in read_pairs(pairs_file, labelled):
        _, passage_id = split_example_id(pair.example_id)
        doc_ids.add(split_passage_id(passage_id)[0])
    return {int(doc_id.removeprefix("D")) for doc_id in doc_ids}


def text_bytes(numbers: set[int], words: int) -> int:
    """The size of the titles and bodies of some documents in UTF-8."""
    chunks = make_chunks(seed=1)
    return sum(len(text.encode()) for number in numbers for text in document(number, chunks, words))


class Row(NamedTuple):
    """One line of the output: a script on one file."""

    script: str
    file: str
    bare_seconds: float
    measured: Measured
    needed_bytes: int


def measurements(directory: Path, words: int) -> Iterator[Row]:
    """Runs each script on the documents, without gzip and with."""
    files = {name: str(directory / name) for name in ("queries.tsv", "qrels.tsv", "top100")}
    common = ["--queries", files["queries.tsv"], "--candidates", files["top100"]]
    for name in ("docs.tsv", "docs.tsv.gz"):
        path, pairs_file = directory / name, directory / "pairs.tsv"
        drop_from_cache(path)
        bare = seconds_of(lambda path=path: bare_read(path))
        flags = [*common, "--collection", str(path)]
        output = ["--output_pairs_file", str(pairs_file), "--overwrite"]
        for script, own in (
            ("make_train_pairs.py", ["--qrels", files["qrels.tsv"], *output]),
            ("make_rerank_pairs.py", output),
            ("reading alone", []),
        ):
            command = ["-c", READING_ALONE] if not own else [str(ROOT / "data_preparation" / script)]
            drop_from_cache(path)
            measured = run_measured([*command, *flags, *own])
            # "reading alone" needs the documents of the same candidates as the script before it
            needed = documents_in(pairs_file, labelled="--qrels" in own)
            yield Row(script, name, bare, measured, text_bytes(needed, words))


def main() -> None:
    args = parse_args()
    expected = args.documents * args.words * BYTES_PER_WORD * (1 + PACKED_SHARE)
    with tempfile.TemporaryDirectory(dir=args.work_dir) as temporary:
        directory = args.work_dir or Path(temporary)
        if shutil.disk_usage(directory).free < expected:
            raise InputError(f"--work_dir: {directory} has no room for {expected / 1e9:.0f} GB; name another directory")
        make_collection(directory, args.documents, args.words, args.queries)
        size = (directory / "docs.tsv").stat().st_size
        packed = (directory / "docs.tsv.gz").stat().st_size
        print(f"{args.documents:,} documents: {size / 1e9:.2f} GB, packed {packed / 1e9:.2f} GB")
        print(f"{'':40} seconds    MB/s  x bare read   peak MB   text MB beside MB")
        fits = True
        for row in measurements(directory, args.words):
            seconds, peak, needed = row.measured.seconds, row.measured.peak_bytes, row.needed_bytes
            beside = peak - needed
            fits = fits and beside < LIMIT
            print(
                f"{row.script + ' ' + row.file:40} {seconds:7.1f} {size / seconds / 1e6:7.0f}  "
                f"{seconds / row.bare_seconds:11.2f} {peak / 1e6:9.0f} {needed / 1e6:9.0f} {beside / 1e6:9.0f}",
                flush=True,
            )
    print(f"memory beside the text needed: {'under' if fits else 'NOT under'} {LIMIT / 1e9:.0f} GB")
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    run_script(main)
