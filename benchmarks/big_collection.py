"""Speed and memory of the data scripts over a made-up collection of MS MARCO's layout and size."""

import argparse
import gzip
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from formats.pairs import read_pairs, split_example_id
from formats.scores import split_passage_id
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import run_script

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1e9  # bytes above the text of the documents that a script needs
DEPTH = 100  # candidates of a query
CHUNK_WORDS = 43
BYTES_PER_WORD = 7.5
PACKED_SHARE = 0.6  # of gzip at its fastest on random words, with room to spare

# What the scripts do before they make passages.
READING_ALONE = """
import argparse
from data_preparation.sources import add_collection_arguments, needed_documents, open_collection
parser = argparse.ArgumentParser()
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
        description="""Makes a collection, packed and not, runs the scripts that make pairs of it, and prints how fast
they were next to a bare read of the same bytes (or a bare unpacking), and how much memory they took at most.

  python benchmarks/big_collection.py                      2,000,000 documents, 6 GB and 4 GB packed
  python benchmarks/big_collection.py --documents 20000    a try

Before each reading the file's pages are dropped from the system's cache, so that all read from the disk. Ends with
status 1 where a script needs 1 GB or more above the text of the documents that it needs.""",
    )
    parser.add_argument("--documents", type=int, default=2_000_000, help="(default 2000000)")
    parser.add_argument("--words", type=int, default=430, help="of a body, on average (default 430)")
    parser.add_argument("--queries", type=int, default=1000, help="with 100 candidates each (default 1000)")
    parser.add_argument("--work_dir", type=Path, help="where the files go, and stay (default: a temporary directory)")
    args = parser.parse_args()
    if args.documents < 2 * DEPTH or args.words < CHUNK_WORDS or args.queries < 1:
        raise InputError(f"--documents, --words, --queries: at least {2 * DEPTH}, {CHUNK_WORDS} and 1 are needed")
    if args.work_dir is not None and not args.work_dir.is_dir():
        raise InputError(f"--work_dir: there is no directory {args.work_dir}; make it first")
    return args


def make_chunks(seed: int) -> list[str]:
    """Runs of words that bodies are made of: more text than gzip looks back on. Some are not ASCII, as on the web."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("etaoinshrdlucmfw", k=draw.randint(2, 11))) for _ in range(30_000)]
    chunks = [" ".join(draw.choices(words, k=CHUNK_WORDS)) for _ in range(4096)]
    return [f"\u201c{chunk}\u201d caf\u00e9." if i % 32 == 0 else f"{chunk}." for i, chunk in enumerate(chunks)]


def document(number: int, chunks: list[str], words: int) -> tuple[str, str]:
    """The title and body of a document, which depend on its number alone. Of 1,000 bodies one is empty."""
    draw = random.Random(number)
    title = f"Title of document {number}"
    if number % 1000 == 999:
        return title, ""
    return title, " ".join(draw.choices(chunks, k=draw.randint(1, 2 * words // CHUNK_WORDS - 1)))


def make_collection(directory: Path, num_documents: int, words: int, num_queries: int) -> None:
    """Writes docs.tsv, docs.tsv.gz, queries.tsv, qrels.tsv and top100, the run."""
    chunks = make_chunks(seed=1)
    with (
        open(directory / "docs.tsv", "w", encoding="utf-8", newline="\n") as plain,
        gzip.open(directory / "docs.tsv.gz", "wt", compresslevel=1, encoding="utf-8", newline="\n") as packed,
    ):
        for number in tqdm(range(num_documents), desc="making documents", unit=" documents", disable=None):
            title, body = document(number, chunks, words)
            line = f"D{number}\thttps://example.org/{number}\t{title}\t{body}\n"
            plain.write(line)
            packed.write(line)
    draw = random.Random(2)
    with (
        open(directory / "queries.tsv", "w", encoding="utf-8") as queries,
        open(directory / "qrels.tsv", "w", encoding="utf-8") as qrels,
        open(directory / "top100", "w", encoding="utf-8") as run,
    ):
        for query in range(num_queries):
            ranked = draw.sample(range(num_documents), DEPTH)
            queries.write(f"{query}\twhat is number {query}\n")
            qrels.write(f"{query} 0 D{ranked[draw.randrange(DEPTH)]} 1\n")
            run.writelines(f"{query} Q0 D{number} {i} {DEPTH - i} made_up\n" for i, number in enumerate(ranked, 1))


def forget(path: Path) -> None:
    """Has the system drop what it holds of a file, where it can be asked to."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_of(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare_read(path: Path) -> None:
    """Reads, and unpacks, all bytes of a file and looks at none."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def run_measured(command: list[str]) -> Measured:
    """Runs a script and waits; its peak is the largest resident set that the system saw.

    Raises InputError where it fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise InputError(f"{command[0]} ended with status {process.returncode}")
    kilobytes = usage.ru_maxrss / 1024 if sys.platform == "darwin" else usage.ru_maxrss
    return Measured(time.perf_counter() - start, int(kilobytes * 1024))


def documents_in(pairs_file: Path, labelled: bool) -> set[int]:
    """The numbers of the documents that pairs were made of."""
    doc_ids = set()
    for pair in read_pairs(pairs_file, labelled):
        _, passage_id = split_example_id(pair.example_id)
        doc_ids.add(split_passage_id(passage_id)[0])
    return {int(doc_id.removeprefix("D")) for doc_id in doc_ids}


def text_bytes(numbers: set[int], words: int) -> int:
    """How long the titles and bodies of some documents are, as UTF-8."""
    chunks = make_chunks(seed=1)
    return sum(len(text.encode()) for number in numbers for text in document(number, chunks, words))


class Row(NamedTuple):
    """What is printed of one run of a script over one file."""

    script: str
    file: str
    bare_seconds: float
    run: Measured
    needed_bytes: int


def measurements(directory: Path, words: int) -> Iterator[Row]:
    """Runs each script on the plain and on the packed documents."""
    files = {name: str(directory / name) for name in ("queries.tsv", "qrels.tsv", "top100")}
    common = ["--queries", files["queries.tsv"], "--candidates", files["top100"]]
    for name in ("docs.tsv", "docs.tsv.gz"):
        path, pairs_file = directory / name, directory / "pairs.tsv"
        forget(path)
        bare = seconds_of(lambda path=path: bare_read(path))
        flags = [*common, "--collection", str(path)]
        output = ["--output_pairs_file", str(pairs_file), "--overwrite"]
        for script, own in (
            ("make_train_pairs.py", ["--qrels", files["qrels.tsv"], *output]),
            ("make_rerank_pairs.py", output),
            ("reading alone", []),
        ):
            command = ["-c", READING_ALONE] if not own else [str(ROOT / "data_preparation" / script)]
            forget(path)
            measured = run_measured([*command, *flags, *own])
            # Reading alone reads for the same candidates as the script before it.
            needed = documents_in(pairs_file, labelled="--qrels" in own)
            yield Row(script, name, bare, measured, text_bytes(needed, words))


def main() -> None:
    args = parse_args()
    expected = args.documents * args.words * BYTES_PER_WORD * (1 + PACKED_SHARE)
    with tempfile.TemporaryDirectory(dir=args.work_dir) as temporary:
        directory = args.work_dir or Path(temporary)
        if shutil.disk_usage(directory).free < expected:
            raise InputError(f"--work_dir: {directory} has no room for {expected / 1e9:.0f} GB; name another place")
        make_collection(directory, args.documents, args.words, args.queries)
        size = (directory / "docs.tsv").stat().st_size
        packed = (directory / "docs.tsv.gz").stat().st_size
        print(f"{args.documents:,} documents: {size / 1e9:.2f} GB, packed {packed / 1e9:.2f} GB")
        print(f"{'':40} seconds    MB/s  x bare read   peak MB   text MB  above MB")
        fits = True
        for row in measurements(directory, args.words):
            seconds, peak, needed = row.run.seconds, row.run.peak_bytes, row.needed_bytes
            above = peak - needed
            fits = fits and above < LIMIT
            print(
                f"{row.script + ' ' + row.file:40} {seconds:7.1f} {size / seconds / 1e6:7.0f}  "
                f"{seconds / row.bare_seconds:11.2f} {peak / 1e6:9.0f} {needed / 1e6:9.0f} {above / 1e6:9.0f}",
                flush=True,
            )
    print(f"memory above the text needed: {'under' if fits else 'NOT under'} {LIMIT / 1e9:.0f} GB")
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    run_script(main)
