"""The error for a mistake of the user, and the file name for errors of the system."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """An input of the user cannot be used. The message names the file and line, or the flag, and says what to do."""


@contextlib.contextmanager
def naming_errors(path: str | Path, doing: str) -> Iterator[None]:
    """Adds `path` and the activity, such as "reading", to an OSError that names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, f"while {doing}: {error.strerror}", str(path)) from error
        raise
