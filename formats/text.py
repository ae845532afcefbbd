"""Plain text: a document is one or more lines, and blank lines separate documents; `.gz` by suffix."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from formats.lines import read_lines


class TextLine(NamedTuple):
    """A line that is not blank, such as a sentence or a paragraph."""

    text: str
    begins_document: bool


def read_text(path: str | Path) -> Iterator[TextLine]:
    """Streams the lines of a text file that are not blank.

    Raises InputError as `read_lines` does.
    """
    begins_document = True
    for _, text in read_lines(path):
        if text.strip():
            yield TextLine(text, begins_document)
            begins_document = False
        else:
            begins_document = True
