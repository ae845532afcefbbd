"""Documents and queries of the bundled example, made from docstrings."""

import hashlib
import re
from collections import Counter
from typing import NamedTuple

from data_preparation.pseudo_queries import normalize
from experiments.python_docs.docstrings import Function, Source
from runtime.errors import InputError

RANKED = ("dev", "test")  # the splits whose candidates are re-ranked
MIN_QUERY_WORDS = 4


class Document(NamedTuple):
    """A row of docs.tsv."""

    doc_id: str
    url: str
    title: str
    body: str


class Query(NamedTuple):
    """A query and its relevant document. `signature` is the range of the body's words before the removed query."""

    query_id: str
    text: str
    doc_id: str
    signature: range


def clean(text: str) -> str:
    """Returns the text in one line, without control characters and without lines such as `-----`."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(re.sub(r"[-=*#~_+^]{4,}", " ", text).split())


def make_collection(sources: list[Source], min_words: int, max_words: int) -> tuple[list[Document], list[Query]]:
    """Returns documents and queries. Documents outside the two lengths, and their queries, are left out.

    Every possible query is removed from its document, even if no split uses it. Else a signature without text after it
    would reveal the relevant passage.
    """
    count_of = Counter(normalize(function.summary) for source in sources for function in source.functions)
    documents: list[Document] = []
    queries: list[Query] = []
    titles: set[str] = set()
    for source in sources:
        words = clean(source.description).split()
        removed: list[tuple[str, range]] = []
        for function in source.functions:
            start = len(words)
            words += function.signature.split()
            if is_query(function) and count_of[normalize(function.summary)] == 1:
                removed.append((clean(function.summary), range(start, len(words))))
            else:
                words += clean(function.summary).split()
            words += clean(function.description).split()
        # A class can have two definitions (`if WINDOWS: class A`, `else: class A`); only the first is used.
        if not min_words <= len(words) <= max_words or source.title in titles:
            continue
        titles.add(source.title)
        document = Document(f"D{len(documents) + 1}", source.url, source.title, " ".join(words))
        documents.append(document)
        text = f" {normalize(f'{document.title} {document.body}')} "
        for line, signature in removed:
            # A line that the document repeats would be too easy to find.
            if f" {normalize(line)} " not in text:
                queries.append(Query(str(len(queries) + 1), line, document.doc_id, signature))
    return documents, queries


def is_query(function: Function) -> bool:
    """Returns whether a summary can be a query: a public function's, long enough, and not a signature."""
    return (
        len(normalize(function.summary).split()) >= MIN_QUERY_WORDS
        and "->" not in function.summary  # the oldest modules write a signature there
        and not function.name.startswith("_")
    )


def sample(queries: list[Query], count: int, seed: int) -> set[Query]:
    """Samples at most `count` queries: those with the lowest SHA-256 of seed and text."""
    return set(_shuffled(queries, seed)[:count])


def split_queries(queries: list[Query], num_dev: int, num_test: int, seed: int) -> dict[str, list[Query]]:
    """Returns `{"test": queries, "dev": queries, "train": the others}`, sampled as `sample` does.

    Each list is in the collection's order. Raises InputError if there are too few queries.
    """
    if len(queries) < num_dev + num_test:
        raise InputError(
            f"--num_dev_queries and --num_test_queries ask for {num_dev} + {num_test} queries, "
            f"but the collection has {len(queries)}; lower them, or use another --source_dir"
        )
    shuffled = _shuffled(queries, seed)
    parts = {"test": shuffled[:num_test], "dev": shuffled[num_test:][:num_dev], "train": shuffled[num_test + num_dev :]}
    return {split: sorted(part, key=lambda query: int(query.query_id)) for split, part in parts.items()}


def _shuffled(queries: list[Query], seed: int) -> list[Query]:
    return sorted(queries, key=lambda query: hashlib.sha256(f"{seed} {normalize(query.text)}".encode()).digest())
