"""Text lines in, whole files out: what every format of the project shares."""

import contextlib
import datetime
import gzip
import io
import json
import logging
import logging.handlers
import os
import re
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TypeVar

# Longer than any document of any collection; a longer line is a damaged or hostile file.
MAX_LINE_BYTES = 1 << 26
_LONGEST_MESSAGE = 2_000

# Takes the number of a line that is left out, and the reason.
OnMalformed = Callable[[int, str], None]
Row = TypeVar("Row")


class InputError(ValueError):
    """Something the user gave cannot be used. The message names the file and line, or the flag, and says what to do."""


def run_script(main: Callable[[], None], *user_errors: type[Exception]) -> None:
    """Runs a script's `main`. A user's mistake becomes one line on stderr and exit status 2.

    Such are InputError, OSError, and what the script names in `user_errors`. SIGTERM, unless it is handled already,
    ends `main` by SystemExit, so that nothing half written stays behind; the exit status is 143, as the shell gives it.
    """
    program = os.path.basename(sys.argv[0])
    handles_sigterm = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if handles_sigterm:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except (InputError, OSError, *user_errors) as error:
        is_about_file = isinstance(error, OSError) and error.filename is not None
        message = f"{error.filename}: {error.strerror}" if is_about_file else str(error)
        print(f"{program}: error: {_one_line(message)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        if handles_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _one_line(message: str) -> str:
    """A message may quote a file, which can hold anything: codes that a terminal obeys, or a line of 64 MiB."""
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[: _LONGEST_MESSAGE // 2]} ... {message[-_LONGEST_MESSAGE // 2 :]}"
    return "".join(character if character.isprintable() else "?" for character in " ".join(message.split()))


def read_lines(
    path: str | Path,
    on_position: Callable[[int], None] | None = None,
    web_text: bool = False,
    on_malformed: OnMalformed | None = None,
) -> Iterator[tuple[int, str]]:
    """Yields `(line number from 1, line)` of a UTF-8 text file, unpacked where the name ends in `.gz`.

    Only `\\n` ends a line; one `\\r` before it and a byte-order mark at the start are dropped. For a progress bar,
    `on_position` is called every 1,024 lines and at the end with the position in the file on disk, packed or not. In
    `web_text`, which nobody can mend by hand, a NUL and a `\\r` inside a line count as blanks.

    Raises InputError for an empty file or a damaged `.gz`; and for invalid UTF-8, a NUL, a lone `\\r` or a line over
    64 MiB, unless there is `on_malformed` to take it: then the line is left out.
    """
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory, a file is needed")
    number = 0
    try:
        with open(path, "rb", 1 << 18) as on_disk, _unpacked(on_disk) if str(path).endswith(".gz") else on_disk as file:
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
        if error.filename is None:  # of the disk, while reading
            raise OSError(error.errno, f"after line {number}: {error.strerror}", str(path)) from error
        raise
    if number == 0:
        raise InputError(f"{path} is empty")


def read_rows(
    path: str | Path, parse: Callable[[str], Row], on_malformed: OnMalformed | None = None
) -> Iterator[tuple[int, Row]]:
    """Yields `(line number from 1, parse(line))` of a text file. `parse` raises ValueError with the reason of a fault.

    Raises InputError as `read_lines` does, and for a line that `parse` refuses, unless there is `on_malformed` to take
    it; then for a file of which every line is left out.
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
    """Hands a faulty line to `on_malformed`, to be left out; raises InputError where that is None."""
    reason = " ".join(reason.split())
    if len(reason) > 400:  # a field may have megabytes
        reason = f"{reason[:200]} ... {reason[-200:]}"
    if on_malformed is None:
        raise InputError(f"{path} line {number}: {reason}")
    on_malformed(number, reason)


class RejectedLines:
    """Lists the lines that a script leaves out of an output, and why, in `OUTPUT.rejected.tsv`, if there are any.

    A context to write the output in: the list appears when it ends, one of an earlier run goes.
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
            self._file = self._stack.enter_context(write_whole(self.path))
        self._file.write(f"{number}\t{reason}\n")
        self.count += 1

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)
        if self._file is None and error[0] is None:
            self.path.unlink(missing_ok=True)

    def counts(self, taken: int) -> str:
        """The input's lines, for a report."""
        listed = f" (listed in {self.path})" if self.count else ""
        return f"{taken + self.count} lines: {taken} taken, {self.count} rejected{listed}"


class FirstLines:
    """Which line had a row's key before, at some 70 bytes a row: the keys' hashes are kept, lines are looked up."""

    def __init__(self, path: str | Path, parse: Callable[[str], Row], key: Callable[[Row], Hashable]) -> None:
        self._path, self._parse, self._key = path, parse, key
        self._hashes: set[int] = set()
        self._first: dict[Hashable, int] | None = None

    def earlier(self, number: int, row: Row) -> int | None:
        """The first line before line `number` with the key of `row`, if any. To be asked for all rows in order."""
        if (hashed := hash(self._key(row))) not in self._hashes:
            self._hashes.add(hashed)
            return None
        first = self.of_repeated(row)
        return first if first != number else None  # the hashes of different keys may agree

    def of_repeated(self, row: Row) -> int:
        """The first line with the key of a row that several lines have. The first call reads the file twice.

        Raises InputError where the file cannot be read again: it is a pipe, or was changed.
        """
        if self._first is None:
            self._first = self._find() if os.path.isfile(self._path) else {}
        if self._key(row) not in self._first:
            raise InputError(f"{self._path} has an id twice, and cannot be read again to find it; make it a plain file")
        return self._first[self._key(row)]

    def _find(self) -> dict[Hashable, int]:
        """`{key: first line}` of all keys whose hash several lines have."""

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
    """Yields `(line number from 1, object)` of a file with a JSON object a line; `on_position` as in `read_lines`.

    Raises InputError as `read_lines` does, and for a line that is no JSON object or holds what no UTF-8 file can.
    """
    for number, line in read_lines(path, on_position):
        try:
            row = json.loads(line)
            if "\\u" in line:  # an escape can name half a character
                json.dumps(row, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} line {number}: no JSON that can be used: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number}: {type(row).__name__} where a JSON object {{...}} is needed")
        yield number, row


def text_field(row: Mapping[str, object], name: str, default: str | None = None) -> str:
    """The text under a name of a JSON object; `default`, where there is one, if it is missing or null.

    Raises ValueError where it is missing, is no text, or holds a NUL.
    """
    if name not in row and default is None:
        raise ValueError(f"'{name}' is missing")
    value = default if row.get(name) is None else row[name]
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {type(value).__name__}, text is needed")
    if "\0" in value:
        raise ValueError(f"'{name}' holds a NUL, so it is no text")
    return value


def check_id(kind: str, value: str) -> str:
    """The id of a `kind` of things ("document"), if it fits into a run's column.

    Raises ValueError where it is empty or holds white space.
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
        raise ValueError("holds a NUL byte, so it is no text")
    if b"\r" in raw:
        raise ValueError("holds a carriage return inside the line; remove it")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8; convert the file") from None


def _unpacked(packed: IO[bytes]) -> IO[bytes]:
    """Unpacks gzip through a buffer of its own: `GzipFile.readline` costs more than many a line's unpacking."""
    return io.BufferedReader(gzip.GzipFile(fileobj=packed), 1 << 18)


def refuse_existing(path: str | Path, flag: str, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Raises InputError where `flag` would write over a result or an input, or into a directory that is not there."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{flag}: {path} is a directory, a file name is needed")
    if path.exists() and not path.is_file():
        raise InputError(f"{flag}: {path} is no ordinary file, name another")
    for source in inputs:
        if path.exists() and os.path.exists(source) and path.samefile(source):
            raise InputError(f"{flag}: {path} is also an input, name another file")
    if path.exists() and not overwrite:
        raise InputError(f"{flag}: {path} exists already; pass --overwrite to replace it, or name another file")
    if not path.parent.is_dir():
        raise InputError(f"{flag}: the directory {path.parent} does not exist; make it first")


@contextlib.contextmanager
def naming_errors(path: str | Path, doing: str) -> Iterator[None]:
    """An OSError that does not say of which file it speaks names `path`, and what was being done with it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, f"while {doing}: {error.strerror}", str(path)) from error
        raise


@contextlib.contextmanager
def hold_log() -> Iterator[list[logging.LogRecord]]:
    """Collects what is logged inside, to be handed on later: so that a refusal stays one line on stderr."""
    held = logging.handlers.MemoryHandler(capacity=1 << 16, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    logging.getLogger().addHandler(held)
    try:
        yield held.buffer
    finally:
        logging.getLogger().removeHandler(held)


def report(line: str, output: Path) -> None:
    """Prints a line about an output and appends it, with the time (UTC), to `OUTPUT.log` beside it."""
    print(line, flush=True)
    append_line(
        output.with_name(f"{output.name}.log"), f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} {line}"
    )


def append_line(path: str | Path, line: str) -> None:
    """Adds a line to a file that others may follow while it grows."""
    with naming_errors(path, "writing"), open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(f"{line}\n")


@contextlib.contextmanager
def hold_directory(path: Path, flag: str) -> Iterator[None]:
    """Keeps a directory for one process, making it where it is missing and taking it away if it stays empty.

    The lock is on a file `.lock` in it, and ends with the process however that ends. Raises InputError, naming `flag`,
    where another process holds it, or where the path is a file.
    """
    import fcntl  # late, since Windows has none

    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{flag}: {path} is a file, or lies below one; name another") from None
    lock = path / ".lock"
    with open(lock, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = os.fstat(file.fileno()).st_nlink > 0  # else a run that ends just now has taken it away
        except BlockingIOError:
            is_free = False
        if not is_free:
            raise InputError(f"{flag}: another run is writing into {path}; wait for it, or name another")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if made and not os.listdir(path):
                path.rmdir()


def remove_left_overs(directory: Path) -> None:
    """Removes what processes that were killed while they wrote left in a directory, which is held."""
    for path in directory.iterdir():
        if re.fullmatch(r"\..+\.[0-9]+\.partial", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def write_whole_directory(path: Path, last: str) -> Iterator[Path]:
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


def _sync(path: Path) -> None:
    """Has a file, or the names in a directory, survive a loss of power."""
    with naming_errors(path, "writing"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def write_whole(path: str | Path, binary: bool = False) -> Iterator[IO]:
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
def _text_writer(binary_file: IO[bytes]) -> Iterator[IO[str]]:
    """A UTF-8 text layer that, unlike TextIOWrapper's own close, leaves the file below open."""
    text = io.TextIOWrapper(binary_file, encoding="utf-8", newline="\n", write_through=False)
    try:
        yield text
    finally:
        text.flush()
        text.detach()
