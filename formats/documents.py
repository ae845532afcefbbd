"""Documents as collections are published: MS MARCO's tab-separated files and BEIR's JSON lines, `.gz` or not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from formats.lines import check_id, read_json_lines, read_lines, text_field
from runtime.errors import InputError


class Document(NamedTuple):
    """A document; title and body may be empty."""

    doc_id: str
    title: str
    body: str


def is_json_lines(path: str | Path) -> bool:
    """Whether a file's name says that it holds a JSON object a line."""
    return str(path).endswith((".jsonl", ".jsonl.gz"))


def read_documents(path: str | Path, on_position: Callable[[int], None] | None = None) -> Iterator[Document]:
    """Streams a file's documents, one a line; `on_position` is told of the progress, as in `read_lines`.

    A name that ends in `.jsonl` or `.jsonl.gz` is of BEIR's layout, an object with `_id`, `title` (which may be
    missing) and `text`. Any other is of MS MARCO's: docid, url, title and body, tab-separated, where a NUL or a `\\r`
    inside a line counts as a blank.

    Raises InputError, naming file and line, for a wrong number of columns, what is no such object, or an id that is
    empty or holds white space.
    """
    if is_json_lines(path):
        for number, row in read_json_lines(path, on_position):
            try:
                doc_id = check_id("document", text_field(row, "_id"))
                document = Document(doc_id, text_field(row, "title", default=""), text_field(row, "text"))
            except ValueError as error:
                raise InputError(f"{path} line {number}: {error}") from None
            yield document
        return
    for number, line in read_lines(path, on_position, web_text=True):
        fields = line.split("\t", 3)  # a search beyond the third tab, by `in`, is ten times faster than a split
        if len(fields) != 4 or "\t" in fields[3]:
            columns = line.count("\t") + 1
            raise InputError(f"{path} line {number}: {columns} columns where 4 are needed (docid, url, title, body)")
        try:
            check_id("document", fields[0])
        except ValueError as error:
            raise InputError(f"{path} line {number}: {error}") from None
        yield Document(fields[0], fields[2], fields[3])
