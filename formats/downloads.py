"""Downloads of one or several files: as they are, in a folder, or in a zip or tar archive."""

import contextlib
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import InputError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Archives of a Mac hold these beside the real files.
_NOT_FILES = "__MACOSX"


def find_download(path: Path) -> Path:
    """Returns `path`, or the one file beside it that has this name and a suffix: `teacher.tar.gz` for `teacher`.

    Raises InputError if there is none, or more than one.
    """
    if path.exists():
        return path
    found = sorted(other for other in path.parent.glob("*") if other.name.startswith(f"{path.name}."))
    if not found:
        raise InputError(f"there is no {path}, with or without a suffix; download it, or name another path")
    if len(found) > 1:
        raise InputError(f"{path} can be {' or '.join(other.name for other in found)}; name one of them")
    return found[0]


@contextlib.contextmanager
def files_of(source: Path, scratch: Path) -> Iterator[list[Path]]:
    """Yields the files of a download, sorted. An archive, and an archive in it, is unpacked in a temporary directory.

    The temporary directory is inside `scratch`, and is removed when the context ends. Hidden files are left out. An
    InputError that the context raises names the place in `source` instead of the temporary directory.

    Raises InputError for a damaged archive, and for one with a member that leaves its directory.
    """
    with tempfile.TemporaryDirectory(prefix=".unpacked.", dir=scratch) as temporary:
        try:
            yield sorted(_files(source, Path(temporary)))
        except InputError as error:
            raise InputError(str(error).replace(f"{temporary}{os.sep}", f"{source}: ")) from None


def _files(path: Path, scratch: Path) -> Iterator[Path]:
    if path.is_dir():
        for inside in path.iterdir():
            if not inside.name.startswith(".") and inside.name != _NOT_FILES and not inside.is_symlink():
                yield from _files(inside, scratch)
    elif path.name.lower().endswith(ARCHIVES):
        folder = Path(tempfile.mkdtemp(prefix=f"{path.name}.", dir=scratch))
        _unpack(path, folder)
        if path.is_relative_to(scratch):
            path.unlink()
        yield from _files(folder, folder)
    elif path.is_file():
        yield path


def _unpack(archive: Path, folder: Path) -> None:
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)  # without links; it drops ".." and "/" from the start of names
        else:
            with tarfile.open(archive) as packed:
                if not hasattr(tarfile, "data_filter"):
                    raise InputError("this needs Python 3.11.4 or newer; unpack the archive yourself")
                packed.extractall(folder, filter="data")  # raises for a member that leaves the folder
    except Exception as error:  # a damaged archive raises almost anything, also an OSError without a number
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{archive}: cannot be unpacked: {str(error) or repr(error)}") from None
