"""A small collection to rank, made of the documentation that every Python carries."""

import argparse
import hashlib
import json
import platform
import random
import re
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_preparation.candidates import bm25_candidates
from data_preparation.passages import passage_spans, split_into_passages
from experiments.python_docs.docstrings import Source, find_modules, read_module
from formats.atomic import atomic_write
from formats.pairs import Pair, write_pairs
from formats.trec import write_run
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import refuse_existing, run_script

DESCRIPTION = """Makes a collection of the documentation in the standard library's sources, which are parsed, never
imported. A document is a class or a module: its docstring, and the signatures and docstrings of its functions. A query
is the summary line of a public function, taken out of its document, which is the relevant one. Writes the files of
MS MARCO's document task (docs.tsv, queries, qrels, top100, the last by BM25) and the pairs to train and to re-rank.
Call: python experiments/python_docs/build_collection.py --output_dir data"""

SPLITS = ("train", "test")
OUTPUTS = [
    "docs.tsv",
    *(f"{name}.{split}{suffix}" for split in SPLITS for name, suffix in (("queries", ".tsv"), ("qrels", ".tsv"))),
    *(f"top100.{split}" for split in SPLITS),
    *(f"{split}_pairs.tsv" for split in SPLITS),
    "report.json",
]
MIN_QUERY_WORDS = 4


class Document(NamedTuple):
    """A row of docs.tsv."""

    doc_id: str
    url: str
    title: str
    body: str


class Query(NamedTuple):
    """A query and its relevant document. `place` are the body's words of the signature that the text stood behind."""

    query_id: str
    text: str
    doc_id: str
    place: range


def clean(text: str) -> str:
    """Text in one line, without control characters and the rules drawn under headings."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(re.sub(r"[-=*#~_+^]{4,}", " ", text).split())


def normalised(text: str) -> str:
    """Lower-case words alone: texts that are equal in this are taken for the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def make_collection(sources: list[Source], min_words: int, max_words: int) -> tuple[list[Document], list[Query]]:
    """Documents and queries. Documents outside the two lengths are left out, and their queries with them.

    Every line that could be a query is taken out of its document, also where it is drawn for neither training nor test:
    else a signature with nothing behind it would give the relevant passage away.
    """
    seen = Counter(normalised(function.summary) for source in sources for function in source.functions)
    documents: list[Document] = []
    queries: list[Query] = []
    titles: set[str] = set()
    for source in sources:
        words = clean(source.description).split()
        taken: list[tuple[str, range]] = []
        for function in source.functions:
            text = normalised(function.summary)
            start = len(words)
            words += function.signature.split()
            if (
                seen[text] == 1
                and len(text.split()) >= MIN_QUERY_WORDS
                and "->" not in function.summary  # a signature, as the oldest modules write them
                and not function.name.startswith("_")
            ):
                taken.append((clean(function.summary), range(start, len(words))))
            else:
                words += clean(function.summary).split()
            words += clean(function.description).split()
        # The first of two definitions, as of `if WINDOWS: class A` and `else: class A`, stands for both.
        if not min_words <= len(words) <= max_words or source.title in titles:
            continue
        titles.add(source.title)
        document = Document(f"D{len(documents) + 1}", source.url, source.title, " ".join(words))
        documents.append(document)
        text = f" {normalised(f'{document.title} {document.body}')} "
        for line, place in taken:
            if f" {normalised(line)} " not in text:  # said twice, it would be found by its very words
                queries.append(Query(str(len(queries) + 1), line, document.doc_id, place))
    return documents, queries


def draw_queries(queries: list[Query], num_train: int, num_test: int, seed: int) -> dict[str, list[Query]]:
    """Train and test queries by the hash of their text, each in the collection's order.

    Raises InputError where there are not enough.
    """
    if len(queries) < num_train + num_test:
        raise InputError(
            f"--num_train_queries and --num_test_queries ask for {num_train} + {num_test} queries, "
            f"but the collection has {len(queries)}; lower them, or name another --source_dir"
        )
    drawn = sorted(queries, key=lambda query: hashlib.sha256(f"{seed} {normalised(query.text)}".encode()).digest())
    test, train = drawn[:num_test], drawn[num_test : num_test + num_train]
    return {
        split: sorted(part, key=lambda query: int(query.query_id))
        for split, part in zip(SPLITS, (train, test), strict=True)
    }


def passage_at(place: range, spans: list[tuple[int, int]]) -> int:
    """The number of the last passage that begins at or before a place: it has the most of what follows there."""
    return max(number for number, (start, _) in enumerate(spans) if start <= place.start)


def training_pairs(
    queries: list[Query],
    run: dict[str, dict[str, float]],
    spans: dict[str, list[tuple[int, int]]],
    passages: dict[str, list[str]],
    num_negatives: int,
    negative_depth: int,
    seed: int,
) -> Iterator[Pair]:
    """The relevant passage of each query, and passages of other documents. `seed` draws them.

    By turns of its best candidates and of the whole collection: the first are what a ranker has to tell apart, but with
    them alone one that starts from nothing takes far longer to learn anything.
    """
    for place, query in enumerate(queries):
        # Not all passages of the document: we know where the line stood, and the others tell of other functions.
        chosen = [(query.doc_id, passage_at(query.place, spans[query.doc_id]), 1)]
        generator = random.Random(f"{seed} {query.query_id}")
        candidates = list(run[query.query_id])[:negative_depth]
        for turn in range(place, place + num_negatives):
            taken = {doc_id for doc_id, _, _ in chosen}
            others = [doc_id for doc_id in (candidates if turn % 2 else passages) if doc_id not in taken]
            if others:
                doc_id = generator.choice(others)
                chosen.append((doc_id, generator.randrange(len(passages[doc_id])), 0))
        for doc_id, number, label in chosen:
            yield Pair(f"{query.query_id}#{doc_id}_passage-{number}", query.text, passages[doc_id][number], label)


def pairs_to_rerank(
    queries: list[Query], run: dict[str, dict[str, float]], passages: dict[str, list[str]], depth: int
) -> Iterator[Pair]:
    """Every passage of each query's best candidates."""
    for query in queries:
        for doc_id in list(run[query.query_id])[:depth]:
            for number, passage in enumerate(passages[doc_id]):
                yield Pair(f"{query.query_id}#{doc_id}_passage-{number}", query.text, passage)


def write_rows(path: Path, rows: Iterable[Iterable[str]], separator: str = "\t") -> None:
    """Writes a file of columns."""
    with atomic_write(path) as file:
        file.writelines(separator.join(row) + "\n" for row in rows)


def parse_args() -> argparse.Namespace:
    parser = Parser(DESCRIPTION)

    def add_number(flag: str, default: int, meaning: str) -> None:
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")

    parser.add_argument("--output_dir", type=Path, required=True, help="the directory to write")
    parser.add_argument(
        "--source_dir",
        type=Path,
        default=sysconfig.get_path("stdlib"),
        help="the Python sources to read (default: this Python's standard library)",
    )
    add_number("--min_words", 50, "a document of fewer words is left out: it says too little")
    add_number("--max_words", 450, "a longer one is left out: its passages take too long to re-rank on a CPU")
    add_number("--window", 150, "words in a passage")
    add_number("--stride", 75, "words from the beginning of a passage to that of the next")
    add_number("--num_train_queries", 950, "queries to train with")
    add_number("--num_test_queries", 110, "queries to test with")
    add_number("--num_negatives", 1, "passages that are not relevant, for each query to train with")
    add_number("--negative_depth", 20, "half of them are of this many of BM25's best documents")
    add_number("--candidate_depth", 100, "documents of each query in the files top100")
    add_number("--rerank_depth", 10, "the best of these, whose passages are in test_pairs.tsv")
    add_number("--seed", 42, "draws the queries and the passages that are not relevant")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing collection")
    args = parser.parse_args()
    for name, value in numbers(args).items():
        if name != "seed" and value < 1:
            parser.error(f"--{name}: {value} is below 1")
    if args.stride > args.window:
        parser.error(f"--stride: {args.stride} is above --window, {args.window}: words between passages would be lost")
    if args.max_words < args.min_words:
        parser.error(f"--max_words: {args.max_words} is below --min_words, {args.min_words}")
    for name in ("negative_depth", "rerank_depth"):
        if getattr(args, name) > args.candidate_depth:
            parser.error(f"--{name}: {getattr(args, name)} is above --candidate_depth, {args.candidate_depth}")
    if not args.source_dir.is_dir():
        parser.error(f"--source_dir: there is no directory {args.source_dir}")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        parser.error(f"--output_dir: {args.output_dir} is a file, a directory is needed")
    if args.output_dir.exists():
        for name in OUTPUTS:
            refuse_existing(args.output_dir / name, "--output_dir", args.overwrite)
    return args


def numbers(args: argparse.Namespace) -> dict[str, int]:
    """The settings that are numbers."""
    return {name: value for name, value in vars(args).items() if type(value) is int}


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    modules = find_modules(args.source_dir)
    sources = [
        source for path in tqdm(modules, unit=" modules", disable=None) for source in read_module(path, args.source_dir)
    ]
    documents, queries = make_collection(sources, args.min_words, args.max_words)
    drawn = draw_queries(queries, args.num_train_queries, args.num_test_queries, args.seed)
    texts = {document.doc_id: f"{document.title} {document.body}" for document in documents}
    num_words = {document.doc_id: len(document.body.split()) for document in documents}
    spans = {doc_id: passage_spans(count, args.window, args.stride) for doc_id, count in num_words.items()}
    passages = {
        document.doc_id: split_into_passages(document.title, document.body, args.window, args.stride)
        for document in documents
    }
    report = {
        "python": platform.python_version(),
        "settings": numbers(args),
        "documents": len(documents),
        "words_per_document": round(sum(num_words.values()) / len(documents), 1),
        "passages": sum(map(len, passages.values())),
        "documents_of_several_passages": sum(len(parts) > 1 for parts in passages.values()),
    }

    args.output_dir.mkdir(parents=True, exist_ok=True)
    # Written last, so that it stands beside nothing but a complete collection.
    report_file = args.output_dir / "report.json"
    report_file.unlink(missing_ok=True)
    write_rows(args.output_dir / "docs.tsv", documents)
    for split, chosen in drawn.items():
        run = bm25_candidates(texts.items(), {query.query_id: query.text for query in chosen}, args.candidate_depth)
        if split == "train":
            pairs = training_pairs(chosen, run, spans, passages, args.num_negatives, args.negative_depth, args.seed)
        else:
            pairs = pairs_to_rerank(chosen, run, passages, args.rerank_depth)
        write_rows(args.output_dir / f"queries.{split}.tsv", ((query.query_id, query.text) for query in chosen))
        write_rows(
            args.output_dir / f"qrels.{split}.tsv", ((query.query_id, "0", query.doc_id, "1") for query in chosen), " "
        )
        write_run(args.output_dir / f"top100.{split}", run, "bm25")
        report[split] = {
            "queries": len(chosen),
            "pairs": write_pairs(args.output_dir / f"{split}_pairs.tsv", pairs),
            "relevant_within_rerank_depth": sum(
                query.doc_id in list(run[query.query_id])[: args.rerank_depth] for query in chosen
            ),
        }
    with atomic_write(report_file) as file:
        file.write(json.dumps(report, indent=2) + "\n")
    train, test, seconds = report["train"], report["test"], time.perf_counter() - start
    print(
        f"{args.output_dir}: {len(documents):,} documents in {report['passages']:,} passages; {train['queries']:,} "
        f"queries and {train['pairs']:,} pairs to train, {test['queries']:,} and {test['pairs']:,} to test; "
        f"{len(modules):,} modules in {seconds:.1f} s ({len(modules) / seconds:,.0f} modules/s)"
    )


if __name__ == "__main__":
    run_script(main)
