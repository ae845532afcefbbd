"""Atomic writes: a file or directory is written beside its final place, synced, and renamed when it is complete."""

import contextlib
import glob
import gzip
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
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
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
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
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error tells the reason
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial), partial):
            raise OSError(error.errno, f"while writing: {error.strerror}", str(path)) from error
        raise


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


@contextlib.contextmanager
def atomic_files(*paths: Path) -> Iterator[list[Path]]:
    """Yields a temporary path for each of `paths`. When the context ends, all files move to their places.

    After an error none of them do, and older files are unchanged. The last of `paths` moves last, so it marks the files
    as complete. If the process is killed while they move, `undo_unfinished_move` restores what was there before.
    """
    finals = [Path(os.path.realpath(path)) for path in paths]
    stages = _stages(finals, str(os.getpid()))
    note = _note(stages[-1], finals[-1])
    try:
        for stage in stages:
            stage.mkdir()
        yield [stage / final.name for stage, final in zip(stages, finals, strict=True)]
        with atomic_write(note) as file:
            json.dump([str(final) for final in finals], file)
        try:
            for stage, final in zip(stages, finals, strict=True):
                if final.exists():
                    os.replace(final, _older(stage, final))
            for stage, final in zip(stages, finals, strict=True):
                os.replace(stage / final.name, final)
        except BaseException:
            _move_back(stages, finals)
            note.unlink()
            raise
        note.unlink()
    except OSError as error:
        for stage, final in zip(stages, finals, strict=True):  # the user knows only the final names
            if str(error.filename).startswith(str(stage)):
                reason = error.strerror.removeprefix("while writing: ")
                raise OSError(error.errno, f"while writing: {reason}", str(final)) from error
        raise
    finally:
        if not note.exists():
            for stage in stages:
                shutil.rmtree(stage, ignore_errors=True)


def undo_unfinished_move(*paths: Path) -> None:
    """Restores what was there before `atomic_files`, if a process was killed while it moved files to `paths`."""
    for path in map(Path, map(os.path.realpath, paths)):
        for stage in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            note = _note(stage, path)
            if not note.exists():
                continue
            finals = [Path(name) for name in json.loads(note.read_text("utf-8"))]
            stages = _stages(finals, stage.name.split(".")[-2])
            if any((own / final.name).exists() for own, final in zip(stages, finals, strict=True)):
                _move_back(stages, finals)
            for own in stages:  # the note is in the last one
                shutil.rmtree(own)


def _stages(finals: Sequence[Path], process: str) -> list[Path]:
    return [final.with_name(f".{final.name}.{process}.partial") for final in finals]


def _note(stage: Path, final: Path) -> Path:
    """The file that lists the files that are moved. It exists only while they are moved."""
    return stage / f"{final.name}.moving"


def _older(stage: Path, final: Path) -> Path:
    return stage / f"{final.name}.older"


def _move_back(stages: Sequence[Path], finals: Sequence[Path]) -> None:
    for stage, final in zip(stages, finals, strict=True):
        if _older(stage, final).exists():
            os.replace(_older(stage, final), final)
        elif not (stage / final.name).exists():
            final.unlink(missing_ok=True)


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
