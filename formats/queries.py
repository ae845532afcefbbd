"""Queries: `query_id, text`, tab-separated, or the JSON lines of BEIR, one query per line; `.gz` by suffix."""

from collections.abc import Iterator
from pathlib import Path

from formats.documents import is_json_lines
from formats.lines import check_id, read_json_lines, read_lines, text_field
from runtime.errors import InputError


def read_queries(path: str | Path) -> dict[str, str]:
    """Reads `{query_id: text}` in the order of the file.

    A file whose name ends in `.jsonl` or `.jsonl.gz` holds objects with `_id` and `text`.

    Raises InputError, which names file and line, for a wrong number of columns, a line that is not such an object, an
    id that is empty or holds white space, an empty text, and an id that an earlier line has.
    """
    queries: dict[str, str] = {}
    for number, query_id, text in _rows(path):
        try:
            add_query(queries, query_id, text)
        except ValueError as error:
            raise InputError(f"{path} line {number}: {error}") from None
    return queries


def add_query(queries: dict[str, str], query_id: str, text: str) -> None:
    """Adds a query to `queries`.

    Raises ValueError for an id that is empty, holds white space or is already in `queries`, and for an empty text.
    """
    if check_id("query", query_id) in queries:
        raise ValueError(f"query {query_id} was there before")
    if not text.strip():
        raise ValueError(f"the text of query {query_id} is empty")
    queries[query_id] = text


def query_line(query_id: str, text: str) -> str:
    """Returns the line of a query. Consecutive white space in the text becomes one blank."""
    return f"{query_id}\t{' '.join(text.split())}\n"


def _rows(path: str | Path) -> Iterator[tuple[int, str, str]]:
    if is_json_lines(path):
        for number, row in read_json_lines(path):
            try:
                fields = text_field(row, "_id"), text_field(row, "text")
            except ValueError as error:
                raise InputError(f"{path} line {number}: {error}") from None
            yield number, *fields
        return
    for number, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) != 2:
            raise InputError(f"{path} line {number}: {len(fields)} columns where 2 are needed (query_id, text)")
        yield number, *fields
