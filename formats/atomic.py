"""Atomic writes: a file or directory is written beside its final place, synced, and renamed when it is complete."""

import contextlib
import gzip
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from runtime.errors import naming_errors


@contextlib.contextmanager
def atomic_write(path: str | Path, binary: bool = False) -> Iterator[IO]:
    """Opens a file for an atomic write: it appears under its name only when it is complete.

    Text is UTF-8 with `\\n`, compressed if the name ends in `.gz`. After an error no partial file is left, and an older
    file is unchanged.

    Raises OSError, which names `path`, if the file cannot be written.
    """
    with atomic_writes([path], binary) as (file,):
        yield file


@contextlib.contextmanager
def atomic_writes(paths: Iterable[str | Path], binary: bool = False) -> Iterator[list[IO]]:
    """Opens several files as `atomic_write` does. They appear under their names only when all are complete and synced.

    If a file cannot be renamed then, those that were renamed before it are removed.
    """
    paths = [Path(os.path.realpath(path)) for path in paths]
    with contextlib.ExitStack() as partial_files:
        partials = [partial_files.enter_context(_partial_file(path)) for path in paths]
        with contextlib.ExitStack() as files:
            yield [
                files.enter_context(_synced_file(partial, path, binary))
                for partial, path in zip(partials, paths, strict=True)
            ]
        with contextlib.ExitStack() as renamed:
            for partial, path in zip(partials, paths, strict=True):
                os.replace(partial, path)
                renamed.callback(path.unlink, missing_ok=True)
            renamed.pop_all()


@contextlib.contextmanager
def _partial_file(path: Path) -> Iterator[Path]:
    """Yields the name of the partial file. After an error it removes the file, and names `path` in an OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error tells the reason
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial), partial):
            raise OSError(error.errno, f"while writing: {error.strerror}", str(path)) from error
        raise


@contextlib.contextmanager
def _synced_file(partial: Path, path: Path, binary: bool) -> Iterator[IO]:
    """Opens the partial file of `path`, and syncs it to the disk at the end."""
    with open(partial, "wb") as raw:
        if binary:
            yield raw
        else:
            with contextlib.ExitStack() as stack:
                # mtime=0: the same rows give the same bytes.
                compressed = (
                    stack.enter_context(gzip.GzipFile(path.stem, "wb", fileobj=raw, mtime=0))
                    if path.suffix == ".gz"
                    else None
                )
                yield stack.enter_context(_text_writer(compressed or raw))
        raw.flush()
        os.fsync(raw.fileno())


@contextlib.contextmanager
def atomic_directory(path: Path, last: str) -> Iterator[Path]:
    """Yields a temporary directory. When the context ends, its files move to `path`.

    After an error in the context, none of them do. All files are synced first. If `path` exists, its other files stay.
    A directory without the file `last` counts as incomplete, so an older `last` is removed before the files move, and
    the new one moves last. The temporary directory is then inside `path`, because the parent of `path` can be on
    another disk (a link, a mount). If `path` does not exist, the temporary directory is beside it and is renamed.
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
        if error.filename is not None:  # the user knows only the final name
            name = str(error.filename).replace(str(partial), str(path))
            raise OSError(error.errno, error.strerror, name) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial_files(directory: Path) -> None:
    """Removes the partial files of killed processes from a directory. The caller holds its lock."""
    for path in directory.iterdir():
        if re.fullmatch(r"\..+\.[0-9]+\.partial", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(path: Path) -> None:
    """Syncs a file, or the names in a directory, to the disk."""
    with naming_errors(path, "writing"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _text_writer(binary_file: IO[bytes]) -> Iterator[IO[str]]:
    """A UTF-8 text layer. Unlike `TextIOWrapper.close`, it leaves the binary file open."""
    text = io.TextIOWrapper(binary_file, encoding="utf-8", newline="\n", write_through=False)
    try:
        yield text
    finally:
        text.flush()
        text.detach()
