"""Paths with bytes that are not text. In Python such bytes are surrogates; in the C locale they are all above 127."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def printable(text: str) -> str:
    """Returns a text with `?` for each character that cannot be printed."""
    return "".join(character if character.isprintable() else "?" for character in text)


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[str]:
    """Yields another name of a file for libraries that open only UTF-8 paths. It is `path` itself if that is UTF-8."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield os.fspath(path)
