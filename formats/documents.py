"""Documents of a collection: the tab-separated files of MS MARCO or the JSON lines of BEIR, with or without `.gz`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from formats.lines import check_id, read_json_lines, read_lines, text_field
from runtime.errors import InputError


class Document(NamedTuple):
    """A document. Its title and body can be empty."""

    doc_id: str
    title: str
    body: str


def is_json_lines(path: str | Path) -> bool:
    """Whether the name of a file says that each line is a JSON object."""
    return str(path).endswith((".jsonl", ".jsonl.gz"))


def read_documents(path: str | Path, on_position: Callable[[int], None] | None = None) -> Iterator[Document]:
    """Streams the documents of a file, one per line. `on_position` is as in `read_lines`.

    A file whose name ends in `.jsonl` or `.jsonl.gz` has the layout of BEIR: objects with `_id`, `title` (optional) and
    `text`. Any other file has the layout of MS MARCO: docid, url, title and body, tab-separated. There, a NUL or a
    `\\r` inside a line counts as a blank.

    Raises InputError, which names file and line, for a wrong number of columns, for a line that is not such an object,
    and for an id that is empty or holds white space.
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
        fields = line.split("\t", 3)  # `in` finds a further tab ten times faster than a split
        if len(fields) != 4 or "\t" in fields[3]:
            columns = line.count("\t") + 1
            raise InputError(f"{path} line {number}: {columns} columns where 4 are needed (docid, url, title, body)")
        try:
            check_id("document", fields[0])
        except ValueError as error:
            raise InputError(f"{path} line {number}: {error}") from None
        yield Document(fields[0], fields[2], fields[3])


def document_line(document: Document) -> str:
    """Returns the line of a document in a `.jsonl` file."""
    row = {"_id": document.doc_id, "title": document.title, "text": document.body}
    return json.dumps(row, ensure_ascii=False) + "\n"
