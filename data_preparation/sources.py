"""Collections: MS MARCO files, BEIR folders, JSON lines, ir_datasets. All give the same rows."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from formats.documents import Document, read_documents
from formats.lines import check_id
from formats.queries import add_query, read_queries
from formats.trec import rank_documents, read_qrels_with_note, read_run
from runtime.errors import InputError
from runtime.progress import ProgressBar

IR_DATASETS = "ir_datasets:"


class Collection(NamedTuple):
    """Documents as a stream; queries, relevance judgments and candidates in memory."""

    documents: Callable[[], Iterator[Document]]  # each call yields all documents once, with a progress bar
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] | None
    candidates: dict[str, dict[str, float]] | None  # a run, best document first
    place: str = "document"  # for messages, before a document's number: "docs.tsv line"


def add_collection_arguments(
    parser: argparse.ArgumentParser, *, queries: bool = True, qrels: bool = False, candidates: bool = False
) -> None:
    """Adds `--collection`, and as asked for `--queries` with `--split`, `--qrels` and `--candidates`."""
    group = parser.add_argument_group("input")
    group.add_argument(
        "--collection",
        required=True,
        help="a MS MARCO file of documents (tab-separated: docid, url, title, body), a BEIR folder (corpus.jsonl, "
        "queries, qrels), a .jsonl corpus (_id, title, text), all .gz or not, or ir_datasets:ID",
    )
    if queries:
        group.add_argument(
            "--queries",
            type=Path,
            help="query_id and text, tab-separated, or .jsonl (_id, text); default: those of the folder or dataset",
        )
        group.add_argument(
            "--split",
            help="of a BEIR folder: reads queries.SPLIT.tsv and qrels/SPLIT.tsv (or qrels.SPLIT.txt); of a "
            "queries.jsonl with all splits only the queries in the qrels of this split are taken",
        )
    if qrels:
        group.add_argument(
            "--qrels", type=Path, help="relevance judgments, TREC or BEIR; default: those of the folder or dataset"
        )
    if candidates:
        group.add_argument("--candidates", type=Path, help="a TREC run; default: that of the dataset, if it has one")


def open_collection(args: argparse.Namespace) -> Collection:
    """Opens the collection that the flags of `add_collection_arguments` name. Only the documents are not read here.

    Without `--queries` in the parser the queries are {}; without `--qrels` or `--candidates` in the parser these are
    None. They are also None if neither a flag nor the folder or dataset has them.

    Raises InputError for a file that is missing, cannot be read, or has another layout.
    """
    given = {name: path for name in ("queries", "qrels", "candidates") if (path := getattr(args, name, None))}
    # read from the collection itself, if it has them
    own = {name for name in ("queries", "qrels", "candidates") if name in args and name not in given}
    path, split = Path(args.collection), getattr(args, "split", None)
    is_dataset = args.collection.startswith(IR_DATASETS)
    if not is_dataset and not path.exists():
        raise InputError(f"--collection: there is no file or folder {path}")
    if split is not None and (is_dataset or not path.is_dir()):
        raise InputError(f"--split: {args.collection} is not a BEIR folder, and only these have splits; leave it out")
    if is_dataset:
        collection = _open_ir_datasets(args.collection, own)
    elif path.is_dir():
        collection = _open_folder(path, split, own)
    else:
        collection = _open_file(path)
    if "queries" in own and not collection.queries:
        raise InputError(f"--queries: {args.collection} has no queries; name a file of them")
    readers = {"queries": read_queries, "qrels": read_qrels_with_note, "candidates": _read_candidates}
    return collection._replace(**{name: readers[name](path) for name, path in given.items()})


def input_files(args: argparse.Namespace) -> list[Path]:
    """The files that `open_collection` can read. An output must not replace them."""
    given = (getattr(args, name, None) for name in ("queries", "qrels", "candidates"))
    folder = Path(args.collection)
    of_folder = (path for pattern in ("corpus.*", "queries.*", "qrels.*", "qrels/*") for path in folder.glob(pattern))
    return [folder, *of_folder, *filter(None, given)]


def needed_documents(collection: Collection, doc_ids: Iterable[str]) -> dict[str, Document]:
    """Returns the documents with `doc_ids` that the collection has. Reads it once, and keeps only these in memory.

    Raises InputError if one of these documents occurs twice.
    """
    needed = set(doc_ids)
    found: dict[str, Document] = {}
    for number, document in enumerate(collection.documents(), start=1):
        if document.doc_id in needed:
            if document.doc_id in found:
                raise InputError(f"{collection.place} {number}: document {document.doc_id} occurs twice")
            found[document.doc_id] = document
    return found


def _open_file(path: Path) -> Collection:
    """A file of documents, without queries."""
    return Collection(lambda: _stream_file(path), {}, None, None, f"{path} line")


def _stream_file(path: Path) -> Iterator[Document]:
    size = os.path.getsize(path)
    with ProgressBar(total=size, desc=f"reading {path.name}", unit="B", unit_scale=True) as progress:
        yield from read_documents(path, lambda position: progress.update(position - progress.n))


def _open_folder(folder: Path, split: str | None, own: set[str]) -> Collection:
    """A BEIR folder: its corpus, and its queries and qrels if they are in `own`, those of a split or of all splits."""
    corpus = _first_of(folder, "corpus.jsonl")
    if corpus is None:
        raise InputError(f"--collection: {folder} has no corpus.jsonl or corpus.jsonl.gz, so it is not a BEIR folder")
    queries_file = _first_of(folder, "queries.jsonl", "queries.tsv")
    qrels_file = _first_of(folder, "qrels.txt", "qrels.tsv")
    if split is not None:
        of_split = _first_of(folder, f"queries.{split}.tsv", f"queries.{split}.jsonl")
        qrels_file = _first_of(folder, f"qrels/{split}.tsv", f"qrels.{split}.txt", f"qrels.{split}.tsv")
        if of_split is None and qrels_file is None:
            raise InputError(f"--split: {folder} has no split '{split}'{_splits_there(folder)}")
        queries_file = of_split or queries_file
    if "queries" in own and queries_file is None:
        splits = _splits_there(folder) if split is None else ""
        raise InputError(f"--queries: {folder} has no queries.jsonl or queries.tsv{splits}")
    if split is None and qrels_file is None and {"queries", "qrels"} <= own and (splits := _splits_there(folder)):
        raise InputError(f"--split: {folder} has no qrels.txt or qrels.tsv{splits}, or name --queries and --qrels")
    # One file has the queries of all splits: those in the qrels of this split belong to it.
    only_in_qrels = "queries" in own and split is not None and of_split is None
    qrels = read_qrels_with_note(qrels_file) if qrels_file and ("qrels" in own or only_in_qrels) else None
    queries = read_queries(queries_file) if "queries" in own else {}
    if only_in_qrels:
        in_qrels = {query_id: text for query_id, text in queries.items() if query_id in qrels}
        if queries and not in_qrels:
            raise InputError(
                f"--queries: no query of {queries_file} is in {qrels_file}; the ids differ, such as "
                f"{next(iter(queries))} and {next(iter(qrels))}"
            )
        queries = in_qrels
    return _open_file(corpus)._replace(queries=queries, qrels=qrels if "qrels" in own else None)


def _first_of(folder: Path, *names: str) -> Path | None:
    """The first of the files that exists in a folder, packed or not."""
    paths = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _splits_there(folder: Path) -> str:
    """The end of an error message: the splits of the folder, if it has any."""
    files = [*folder.glob("queries.*.*"), *folder.glob("qrels.*.*"), *folder.glob("qrels/*.tsv*")]
    names = (path.name.removesuffix(".gz").rpartition(".")[0].rpartition(".")[2] for path in files)
    splits = sorted({name for name in names if name not in ("queries", "qrels", "")})
    return f"; pass --split with one of: {', '.join(splits)}" if splits else ""


def _read_candidates(path: Path) -> dict[str, dict[str, float]]:
    run = read_run(path)
    _sort_run(run)
    return run


def _sort_run(run: dict[str, dict[str, float]]) -> None:
    """Sorts each query's documents, best first. In place, because MS MARCO's training run takes gigabytes."""
    for query_id, scores in run.items():
        run[query_id] = dict(rank_documents(scores))


def _open_ir_datasets(name: str, own: set[str]) -> Collection:
    """A dataset of ir_datasets (MacAvaney et al., SIGIR 2021), which downloads the files that are read and missing."""
    import ir_datasets  # late: it makes a directory in the user's home

    dataset_id = name.removeprefix(IR_DATASETS)
    try:
        dataset = ir_datasets.load(dataset_id)
    except KeyError:
        raise InputError(
            f"--collection: ir_datasets knows no '{dataset_id}'; https://ir-datasets.com lists all"
        ) from None
    if not dataset.has_docs():
        raise InputError(f"--collection: {name} has no documents")

    def documents() -> Iterator[Document]:
        with (
            ProgressBar(desc=f"reading {dataset_id}", unit=" documents") as progress,
            _one_line_errors(name),
        ):
            for row in dataset.docs_iter():
                title, body = (text.replace("\0", " ") for text in _title_and_body(row))
                yield Document(check_id("document", row.doc_id), title, body)
                progress.update()

    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] | None = None
    candidates: dict[str, dict[str, float]] | None = None
    with _one_line_errors(name):
        if "queries" in own and dataset.has_queries():
            for row in dataset.queries_iter():
                add_query(queries, row.query_id, row.text if hasattr(row, "text") else row.default_text())
        if "qrels" in own and dataset.has_qrels():
            qrels = {}
            for row in dataset.qrels_iter():
                grades = qrels.setdefault(row.query_id, {})
                grades[row.doc_id] = max(row.relevance, grades.get(row.doc_id, row.relevance))
        if "candidates" in own and dataset.has_scoreddocs():
            candidates = {}
            for row in dataset.scoreddocs_iter():
                candidates.setdefault(row.query_id, {})[row.doc_id] = row.score
            _sort_run(candidates)
    return Collection(documents, queries, qrels, candidates, f"{name} document")


def _title_and_body(row: Any) -> tuple[str, str]:
    """The title and body of a document of ir_datasets. Datasets have different fields, but all have `default_text()`.

    `default_text()` also has the body if that is not text, such as a list of sections.
    """
    title = getattr(row, "title", None)
    body = next((getattr(row, field) for field in ("body", "text", "abstract") if hasattr(row, field)), None)
    return (title if isinstance(title, str) else "", body) if isinstance(body, str) else ("", row.default_text())


@contextlib.contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turns any error, such as one of the network or a checksum, into an InputError."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    except Exception as error:
        raise InputError(
            f"{name} cannot be read: {type(error).__name__}: {error}. ir_datasets downloads it at the first use: is "
            "this machine online?"
        ) from error
