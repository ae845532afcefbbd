"""Builds the bundled example: a small collection to rank, from the documentation in Python's standard library."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import contextlib
import json
import platform
import random
import sysconfig
import time
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder

from data_preparation.candidates import bm25_candidates
from data_preparation.passages import passage_spans, split_into_passages
from data_preparation.pseudo_queries import normalize
from experiments.python_docs.collection import (
    RANKED,
    Document,
    Query,
    make_collection,
    sample,
    split_queries,
)
from experiments.python_docs.docstrings import find_modules, read_module
from formats.atomic import atomic_write
from formats.pairs import Pair, write_pairs
from formats.trec import write_run
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.progress import ProgressBar
from runtime.script import refuse_existing, report, run_script, same_files

DESCRIPTION = """Makes a collection from the docstrings in the standard library's sources. The sources are parsed, not
imported. A document is a class or a module: its docstring, and the signatures and docstrings of its functions. A query
is the summary line of a public function. It is removed from its document, which is the relevant one.

  python experiments/python_docs/build_collection.py --output_dir data

The library's queries are for the test, for dev, and for training. Most training queries are made in the same way from
the installed packages of --packages, each of which is a collection of its own: only train_pairs.tsv has them.

In:  Python sources: those of the standard library, and of packages.
Out: the files of MS MARCO's document task (docs.tsv; for dev and test queries, qrels, and the BM25 candidates top100),
     the pairs to train on, and those to re-rank."""

# Packages that are installed with the project, and have many documented functions.
PACKAGES = (
    *("numpy", "scipy", "matplotlib", "torch", "sympy", "networkx", "transformers", "huggingface_hub", "fontTools"),
    *("fsspec", "jinja2"),
)
OUTPUTS = [
    "docs.tsv",
    *(f"{name}.{split}{suffix}" for split in RANKED for name, suffix in (("queries", ".tsv"), ("qrels", ".tsv"))),
    *(f"top100.{split}" for split in RANKED),
    *(f"{split}_pairs.tsv" for split in ("train", *RANKED)),
    "report.json",
]


class Passages:
    """A collection with its passages: `passages[doc_id]`, their `spans` of words, and `texts` to retrieve."""

    def __init__(self, documents: list[Document], window: int, stride: int):
        self.texts = {document.doc_id: f"{document.title} {document.body}" for document in documents}
        self.spans = {d.doc_id: passage_spans(len(d.body.split()), window, stride) for d in documents}
        self.passages = {d.doc_id: split_into_passages(d.title, d.body, window, stride) for d in documents}

    def candidates(self, queries: list[Query], depth: int) -> dict[str, dict[str, float]]:
        """Returns the BM25 scores of the best documents of each query."""
        return bm25_candidates(self.texts.items(), {query.query_id: query.text for query in queries}, depth)


def passage_at(signature: range, spans: list[tuple[int, int]]) -> int:
    """Returns the last passage that starts at or before a signature: it has most of the text after the signature."""
    return max(number for number, (start, _) in enumerate(spans) if start <= signature.start)


def training_pairs(
    queries: list[Query], collection: Passages, num_negatives: int, negative_depth: int, seed: int
) -> Iterator[Pair]:
    """Yields the relevant passage of each query, and negatives, sampled with `seed`.

    The negatives come in turn from the query's best candidates and from the whole collection. A ranker has to tell the
    candidates apart. But with them alone, an untrained ranker learns far more slowly.
    """
    run, passages = collection.candidates(queries, negative_depth), collection.passages
    for place, query in enumerate(queries):
        # Only one passage of the document is relevant: the others are about other functions.
        chosen = [(query.doc_id, passage_at(query.signature, collection.spans[query.doc_id]), 1)]
        generator = random.Random(f"{seed} {query.query_id}")
        candidates = list(run[query.query_id])
        for turn in range(place, place + num_negatives):
            used = {doc_id for doc_id, _, _ in chosen}
            negatives = [doc_id for doc_id in (candidates if turn % 2 else passages) if doc_id not in used]
            if negatives:
                doc_id = generator.choice(negatives)
                chosen.append((doc_id, generator.randrange(len(passages[doc_id])), 0))
        for doc_id, number, label in chosen:
            yield Pair(f"{query.query_id}#{doc_id}_passage-{number}", query.text, passages[doc_id][number], label)


def pairs_to_rerank(
    queries: list[Query], run: dict[str, dict[str, float]], passages: dict[str, list[str]], depth: int
) -> Iterator[Pair]:
    """Yields every passage of the best `depth` candidates of each query."""
    for query in queries:
        for doc_id in list(run[query.query_id])[:depth]:
            for number, passage in enumerate(passages[doc_id]):
                yield Pair(f"{query.query_id}#{doc_id}_passage-{number}", query.text, passage)


def write_rows(path: Path, rows: Iterable[Iterable[str]], separator: str = "\t") -> None:
    """Writes rows of columns."""
    with atomic_write(path) as file:
        file.writelines(separator.join(row) + "\n" for row in rows)


def package_collection(
    name: str, held_out: set[str], min_words: int, max_words: int
) -> tuple[list[Document], list[Query]]:
    """Returns an installed package's documents and queries; their ids begin with `name`. It is not imported.

    Queries whose normalized text is in `held_out` are left out. So are files that are not Python. A package that is not
    installed has no documents.
    """
    spec = PathFinder.find_spec(name)
    sources = []
    for root in (spec and spec.submodule_search_locations) or ():
        for path in find_modules(Path(root)):
            with contextlib.suppress(InputError, RecursionError):  # templates, code of Python 2
                sources += read_module(path, Path(root).parent)
    documents, queries = make_collection(sources, min_words, max_words)
    return [document._replace(doc_id=f"{name}-{document.doc_id}") for document in documents], [
        query._replace(query_id=f"{name}-{query.query_id}", doc_id=f"{name}-{query.doc_id}")
        for query in queries
        if normalize(query.text) not in held_out
    ]


def parse_args() -> argparse.Namespace:
    parser = Parser(DESCRIPTION)

    def add_number(flag: str, default: int, meaning: str) -> None:
        group.add_argument(flag, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")

    parser.add_argument("--output_dir", type=Path, required=True, help="the directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing collection")
    group = parser.add_argument_group("documents")
    group.add_argument(
        "--source_dir",
        type=Path,
        default=sysconfig.get_path("stdlib"),
        help="the Python sources to read (default: this Python's standard library)",
    )
    group.add_argument(
        "--packages",
        nargs="*",
        default=PACKAGES,
        metavar="PACKAGE",
        help="installed packages to make training queries from; those that are not installed are left out "
        f"(default: {' '.join(PACKAGES)})",
    )
    add_number("--min_words", 50, "fewest words of a document; shorter documents are left out, they say too little")
    add_number("--max_words", 450, "most words of a document; longer documents take too long to re-rank on a CPU")
    add_number("--package_max_words", 1000, "the same for the packages, which nobody re-ranks")
    add_number("--window", 50, "words in a passage. Most passages of the library then have at most 128 tokens")
    add_number("--stride", 30, "words from the start of a passage to the start of the next one")
    group = parser.add_argument_group("queries and pairs")
    add_number("--num_train_queries", 4500, "most queries for training, of the library and the packages")
    add_number("--num_dev_queries", 300, "queries of the library to choose settings on")
    add_number("--num_test_queries", 300, "queries of the library for the test")
    add_number("--num_negatives", 1, "passages that are not relevant, for each training query")
    add_number("--negative_depth", 20, "half of the negatives are from this many of the best BM25 documents")
    add_number("--candidate_depth", 100, "documents of each query in the files top100")
    add_number("--rerank_depth", 10, "the best of these documents, whose passages are in the pairs to re-rank")
    add_number("--seed", 42, "seed that samples queries and negatives")
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for a wrong value, or an output that exists."""
    for name, value in numbers(args).items():
        if name != "seed" and value < 1:
            raise InputError(f"--{name}: {value} is below 1")
    if args.stride > args.window:
        raise InputError(
            f"--stride: {args.stride} is above --window, {args.window}: words between passages would be lost"
        )
    for name in ("max_words", "package_max_words"):
        if getattr(args, name) < args.min_words:
            raise InputError(f"--{name}: {getattr(args, name)} is below --min_words, {args.min_words}")
    for name in ("negative_depth", "rerank_depth"):
        if getattr(args, name) > args.candidate_depth:
            raise InputError(f"--{name}: {getattr(args, name)} is above --candidate_depth, {args.candidate_depth}")
    for name in args.packages:
        if not name.isidentifier():
            raise InputError(f"--packages: {name!r} is not the name of a package")
        if args.packages.count(name) > 1:
            raise InputError(f"--packages: {name} is named twice")
    if not args.source_dir.is_dir():
        raise InputError(f"--source_dir: there is no directory {args.source_dir}")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise InputError(f"--output_dir: {args.output_dir} is a file, a directory is needed")
    if args.output_dir.exists():
        outputs = [args.output_dir / name for name in OUTPUTS]
        for output in outputs:
            refuse_existing(output, "--output_dir", args.overwrite)
        if lost := same_files(outputs, find_modules(args.source_dir)):
            raise InputError(f"--output_dir: {lost[0]} is also a source, name another directory")


def numbers(args: argparse.Namespace) -> dict[str, int]:
    """Returns the settings that are numbers."""
    return {name: value for name, value in vars(args).items() if type(value) is int}


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    sources = [
        source
        for path in ProgressBar(find_modules(args.source_dir), unit=" modules")
        for source in read_module(path, args.source_dir)
    ]
    documents, queries = make_collection(sources, args.min_words, args.max_words)
    splits = split_queries(queries, args.num_dev_queries, args.num_test_queries, args.seed)
    held_out = {normalize(query.text) for split in RANKED for query in splits[split]}
    trained = [("standard library", documents, splits["train"])]
    for name in ProgressBar(args.packages, unit=" packages"):
        trained.append((name, *package_collection(name, held_out, args.min_words, args.package_max_words)))
    chosen = sample([query for *_, of_one in trained for query in of_one], args.num_train_queries, args.seed)
    if not chosen:
        raise InputError(
            f"--num_dev_queries and --num_test_queries leave none of {len(queries)} queries for training; lower them, "
            "or name --packages that are installed"
        )
    library = Passages(documents, args.window, args.stride)
    num_words = sum(len(document.body.split()) for document in documents)
    figures = {
        "python": platform.python_version(),
        "settings": numbers(args),
        "documents": len(documents),
        "words_per_document": round(num_words / len(documents), 1),
        "passages": sum(map(len, library.passages.values())),
        "documents_of_several_passages": sum(len(parts) > 1 for parts in library.passages.values()),
    }

    args.output_dir.mkdir(parents=True, exist_ok=True)
    # The report is written last: a directory with a report has a complete collection.
    report_file = args.output_dir / "report.json"
    report_file.unlink(missing_ok=True)
    write_rows(args.output_dir / "docs.tsv", documents)
    for split in RANKED:
        queries = splits[split]
        run = library.candidates(queries, args.candidate_depth)
        write_rows(args.output_dir / f"queries.{split}.tsv", ((query.query_id, query.text) for query in queries))
        write_rows(
            args.output_dir / f"qrels.{split}.tsv", ((query.query_id, "0", query.doc_id, "1") for query in queries), " "
        )
        write_run(args.output_dir / f"top100.{split}", run, "bm25")
        pairs = pairs_to_rerank(queries, run, library.passages, args.rerank_depth)
        figures[split] = {
            "queries": len(queries),
            "pairs": write_pairs(args.output_dir / f"{split}_pairs.tsv", pairs),
            "relevant_within_rerank_depth": sum(
                query.doc_id in list(run[query.query_id])[: args.rerank_depth] for query in queries
            ),
        }
    figures["train"] = {"queries": len(chosen), "of": {}}

    def train_pairs() -> Iterator[Pair]:
        for name, of_package, of_one in trained:
            kept = [query for query in of_one if query in chosen]
            figures["train"]["of"][name] = {"documents": len(of_package), "queries": len(kept)}
            if kept:
                collection = Passages(of_package, args.window, args.stride)
                yield from training_pairs(kept, collection, args.num_negatives, args.negative_depth, args.seed)

    figures["train"]["pairs"] = write_pairs(args.output_dir / "train_pairs.tsv", train_pairs())
    with atomic_write(report_file) as file:
        file.write(json.dumps(figures, indent=2) + "\n")
    train, test, seconds = figures["train"], figures["test"], time.perf_counter() - start
    num_read = sum(len(of_one) for _, of_one, _ in trained)
    report(
        f"{args.output_dir}: {len(documents):,} documents in {figures['passages']:,} passages; {train['queries']:,} "
        f"queries and {train['pairs']:,} pairs to train, {test['queries']:,} and {test['pairs']:,} to test; "
        f"{num_read:,} documents with those of the packages in {seconds:.1f} s ({num_read / seconds:,.0f} documents/s)",
        args.output_dir,
        log=False,
    )


if __name__ == "__main__":
    run_script(main)
