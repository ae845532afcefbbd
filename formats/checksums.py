"""`SHA256SUMS`: the SHA-256 of every other file of a directory, in the layout that `sha256sum -c` checks."""

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from runtime.errors import InputError

FILE_NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)\n")


def write_checksums(directory: Path) -> None:
    """Writes `SHA256SUMS` for all files that are in the directory now."""
    lines = [f"{file_sha256(directory / name)}  {name}\n" for name in _file_names(directory)]
    directory.joinpath(FILE_NAME).write_bytes("".join(lines).encode("utf-8"))


def check_checksums(directory: Path, needed: Collection[str]) -> None:
    """Checks that the files listed in `SHA256SUMS` are unchanged and that all `needed` files are listed.

    Files that were added later are ignored. Raises InputError, which names the file, if one is missing or changed.
    """
    path = directory / FILE_NAME
    try:
        text = path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{directory} has no {FILE_NAME}, so it is not complete") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is damaged") from None
    sums = {name: digest for digest, name in _LINE.findall(text)}
    if "".join(f"{digest}  {name}\n" for name, digest in sums.items()) != text:
        raise InputError(f"{path} is damaged")
    if missing := (set(needed) - set(sums)) | (set(sums) - set(_file_names(directory))):
        raise InputError(f"{directory / min(missing)} is missing, or not in {FILE_NAME}")
    for name, digest in sums.items():
        if file_sha256(directory / name) != digest:
            raise InputError(f"{directory / name} is damaged: its SHA-256 is not that of {FILE_NAME}")


def _file_names(directory: Path) -> list[str]:
    return sorted(set(os.listdir(directory)) - {FILE_NAME})


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
