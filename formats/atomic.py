"""Files and directories that appear under their names only when complete: written beside, synced, renamed."""

import contextlib
import gzip
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from runtime.errors import naming_errors


@contextlib.contextmanager
def atomic_write(path: str | Path, binary: bool = False) -> Iterator[IO]:
    """Opens a file to write that appears under its name only when complete: written beside it, synced, renamed.

    Text is UTF-8 with `\\n`, packed where the name ends in `.gz`. On any error nothing is left and an older file stays.

    Raises OSError, which names `path`, where it cannot be written.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as raw:
            if binary:
                yield raw
            else:
                with contextlib.ExitStack() as stack:
                    # mtime 0: the same rows give the same bytes.
                    packed = (
                        stack.enter_context(gzip.GzipFile(path.stem, "wb", fileobj=raw, mtime=0))
                        if path.suffix == ".gz"
                        else None
                    )
                    yield stack.enter_context(_text_writer(packed or raw))
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error says more
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial), partial):
            raise OSError(error.errno, f"while writing: {error.strerror}", str(path)) from error
        raise


@contextlib.contextmanager
def atomic_directory(path: Path, last: str) -> Iterator[Path]:
    """Hands out a directory to fill; on leaving, `path` holds its files, or nothing of them on an error.

    All is synced before it gets its name. Where `path` exists its other files stay, and file `last`, without which the
    directory counts as incomplete, is taken away first and arrives last. The directory to fill then lies in `path`,
    which may be on another disk than what is above it (a link, a mount); else beside it.
    """
    path = Path(os.path.abspath(path))  # "." has no name
    partial = (path if path.is_dir() else path.parent) / f".{path.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with naming_errors(path, "writing"):
            partial.mkdir()
            yield partial
            for file in partial.iterdir():
                _sync(file)
            _sync(partial)
            if path.exists():
                path.joinpath(last).unlink(missing_ok=True)
                for file in sorted(partial.iterdir(), key=lambda file: file.name == last):
                    file.replace(path / file.name)
                _sync(path)
            else:
                partial.rename(path)
                _sync(path.parent)
    except OSError as error:
        if error.filename is not None:  # under its final name, which the user knows
            name = str(error.filename).replace(str(partial), str(path))
            raise OSError(error.errno, error.strerror, name) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial_files(directory: Path) -> None:
    """Removes what processes that were killed while they wrote left in a directory, which is held."""
    for path in directory.iterdir():
        if re.fullmatch(r"\..+\.[0-9]+\.partial", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(path: Path) -> None:
    """Has a file, or the names in a directory, survive a loss of power."""
    with naming_errors(path, "writing"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _text_writer(binary_file: IO[bytes]) -> Iterator[IO[str]]:
    """A UTF-8 text layer that, unlike TextIOWrapper's own close, leaves the file below open."""
    text = io.TextIOWrapper(binary_file, encoding="utf-8", newline="\n", write_through=False)
    try:
        yield text
    finally:
        text.flush()
        text.detach()
