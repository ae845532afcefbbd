"""A user's mistake, and which file an error of the system is about."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot be used. The message names the file and line, or the flag, and says what to do."""


@contextlib.contextmanager
def naming_errors(path: str | Path, doing: str) -> Iterator[None]:
    """An OSError that does not say of which file it speaks names `path`, and what was being done with it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, f"while {doing}: {error.strerror}", str(path)) from error
        raise
