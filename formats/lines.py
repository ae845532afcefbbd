"""Reads lines of UTF-8 text and of JSON: the common part of all text formats."""

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import IO, TypeVar

from formats.atomic import atomic_write
from runtime.errors import InputError

# No document of any collection is as long. A longer line comes from a damaged or hostile file.
MAX_LINE_BYTES = 1 << 26

# Called with the number of a line that is skipped, and the reason.
OnMalformed = Callable[[int, str], None]
Row = TypeVar("Row")


def read_lines(
    path: str | Path,
    on_position: Callable[[int], None] | None = None,
    web_text: bool = False,
    on_malformed: OnMalformed | None = None,
) -> Iterator[tuple[int, str]]:
    """Yields `(line number from 1, line)` of a UTF-8 text file, decompressed if its name ends in `.gz`.

    Only `\\n` ends a line. One `\\r` before it and a byte-order mark at the start are dropped. For a progress bar,
    `on_position` is called every 1,024 lines and at the end. Its argument is the position in the file on disk, also if
    that is compressed. With `web_text`, a NUL and a `\\r` inside a line count as blanks, because nobody can correct a
    crawled collection by hand.

    Raises InputError for an empty file, for a damaged `.gz`, and for a malformed line: invalid UTF-8, a NUL, a `\\r`
    inside it, or more than 64 MiB. With `on_malformed`, malformed lines are skipped and passed to it.
    """
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory, a file is needed")
    number = 0
    try:
        with (
            open(path, "rb", 1 << 18) as on_disk,
            _decompressed(on_disk) if str(path).endswith(".gz") else on_disk as file,
        ):
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if on_position and not number % 1024:
                    on_position(on_disk.tell())
                try:
                    line = _decode_line(raw, web_text)
                except ValueError as error:
                    refuse_line(path, number, str(error), on_malformed)
                    while raw and not raw.endswith(b"\n"):  # the rest of a line that is too long
                        raw = file.readline(1 << 18)
                    continue
                yield number, line if number > 1 else line.removeprefix("\ufeff")
            if on_position:
                on_position(on_disk.tell())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged after line {number}: {error}") from None
    except OSError as error:
        if error.filename is None:  # the disk failed while reading
            raise OSError(error.errno, f"after line {number}: {error.strerror}", str(path)) from error
        raise
    if number == 0:
        raise InputError(f"{path} is empty")


def read_rows(
    path: str | Path, parse: Callable[[str], Row], on_malformed: OnMalformed | None = None
) -> Iterator[tuple[int, Row]]:
    """Yields `(line number from 1, parse(line))` of a text file. `parse` raises ValueError for a malformed line.

    Raises InputError as `read_lines` does, and for a line that `parse` refuses. With `on_malformed`, such lines are
    skipped and passed to it, and InputError is raised if all lines were skipped.
    """
    found = False
    for number, line in read_lines(path, on_malformed=on_malformed):
        try:
            row = parse(line)
        except ValueError as error:
            refuse_line(path, number, str(error), on_malformed)
            continue
        found = True
        yield number, row
    if not found:
        raise InputError(f"{path} has no usable line")


def refuse_line(path: str | Path, number: int, reason: str, on_malformed: OnMalformed | None) -> None:
    """Passes a malformed line to `on_malformed`, so that it is skipped. Raises InputError if `on_malformed` is None."""
    reason = " ".join(reason.split())
    if len(reason) > 400:  # a field can have megabytes
        reason = f"{reason[:200]} ... {reason[-200:]}"
    if on_malformed is None:
        raise InputError(f"{path} line {number}: {reason}")
    on_malformed(number, reason)


class RejectedLines:
    """Lists the lines that a script skips, and the reasons, in `OUTPUT.rejected.tsv`. It is an `OnMalformed`.

    Use it as a context around the write of the output. The list appears when the context ends. If no line was skipped,
    there is no list, and that of an earlier run is removed.
    """

    def __init__(self, output: str | Path) -> None:
        self.path = Path(f"{output}.rejected.tsv")
        self.count = 0
        self._stack = contextlib.ExitStack()
        self._file: IO[str] | None = None

    def __enter__(self) -> "RejectedLines":
        return self

    def __call__(self, number: int, reason: str) -> None:
        if self._file is None:
            self._file = self._stack.enter_context(atomic_write(self.path))
        self._file.write(f"{number}\t{reason}\n")
        self.count += 1

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)
        if self._file is None and error[0] is None:
            self.path.unlink(missing_ok=True)

    def counts(self, taken: int) -> str:
        """How many lines the input has, for a report."""
        listed = f" (listed in {self.path})" if self.count else ""
        return f"{taken + self.count} lines: {taken} taken, {self.count} rejected{listed}"


class FirstLines:
    """Finds the first line with the key of a row, to detect duplicates.

    It needs about 70 bytes per row, because it stores only the hashes of keys. It reads the file again for the lines.
    """

    def __init__(self, path: str | Path, parse: Callable[[str], Row], key: Callable[[Row], Hashable]) -> None:
        self._path, self._parse, self._key = path, parse, key
        self._hashes: set[int] = set()
        self._first: dict[Hashable, int] | None = None

    def earlier(self, number: int, row: Row) -> int | None:
        """The first line before line `number` with the key of `row`, if there is one. Call it for all rows in order."""
        if (hashed := hash(self._key(row))) not in self._hashes:
            self._hashes.add(hashed)
            return None
        first = self.of_repeated(row)
        return first if first != number else None  # the hashes of different keys can be equal

    def of_repeated(self, row: Row) -> int:
        """The first line with the key of `row`, which occurs in several lines. The first call reads the file twice.

        Raises InputError if the file cannot be read again, because it is a pipe or was changed.
        """
        if self._first is None:
            self._first = self._find() if os.path.isfile(self._path) else {}
        if self._key(row) not in self._first:
            raise InputError(
                f"{self._path} has an id twice, and cannot be read again to find it; make it a regular file"
            )
        return self._first[self._key(row)]

    def _find(self) -> dict[Hashable, int]:
        """Returns `{key: first line}` of all keys whose hash occurs in several lines."""

        def keys() -> Iterator[tuple[int, Hashable]]:
            return ((number, self._key(row)) for number, row in read_rows(self._path, self._parse, lambda *_: None))

        once, often = set(), set()
        for _, key in keys():
            (often if hash(key) in once else once).add(hash(key))
        first: dict[Hashable, int] = {}
        for number, key in keys():
            if hash(key) in often:
                first.setdefault(key, number)
        return first


def read_json_lines(
    path: str | Path, on_position: Callable[[int], None] | None = None
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yields `(line number from 1, object)` of a file of JSON objects, one per line. `on_position`: see `read_lines`.

    Raises InputError as `read_lines` does, and for a line that is not a JSON object or that holds a surrogate.
    """
    for number, line in read_lines(path, on_position):
        try:
            row = json.loads(line)
            if "\\u" in line:  # an escape can be a surrogate, which UTF-8 cannot hold
                json.dumps(row, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError) as error:
            reason = error if line.strip() else "the line is empty; remove it"
            raise InputError(f"{path} line {number}: no JSON that can be used: {reason}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number}: {type(row).__name__} where a JSON object {{...}} is needed")
        yield number, row


def text_field(row: Mapping[str, object], name: str, default: str | None = None) -> str:
    """The text of the field `name` of a JSON object. A missing field and null give `default`, if that is not None.

    Raises ValueError if the field is missing, is not text, or holds a NUL.
    """
    if name not in row and default is None:
        raise ValueError(f"'{name}' is missing")
    value = default if row.get(name) is None else row[name]
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {type(value).__name__}, text is needed")
    if "\0" in value:
        raise ValueError(f"'{name}' holds a NUL, so it is not text")
    return value


def check_id(kind: str, value: str) -> str:
    """Returns an id that fits into a column of a run. `kind`, such as "document", is for the message.

    Raises ValueError if it is empty or holds white space.
    """
    if value.split() != [value]:
        raise ValueError(f"the {kind} id '{value}' is empty or holds white space")
    return value


def _decode_line(raw: bytes, web_text: bool) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    if web_text:
        raw = raw.replace(b"\0", b" ").replace(b"\r", b" ")
    if b"\0" in raw:
        raise ValueError("holds a NUL byte, so it is not text")
    if b"\r" in raw:
        raise ValueError("holds a carriage return inside the line; remove it")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8; convert the file") from None


def _decompressed(compressed: IO[bytes]) -> IO[bytes]:
    """Decompresses gzip into a buffer of its own, because `GzipFile.readline` is slower than the decompression."""
    return io.BufferedReader(gzip.GzipFile(fileobj=compressed), 1 << 18)
