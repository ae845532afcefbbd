"""What all scripts share: errors in one line, logs, a lock, and outputs that are overwritten only with a flag."""

import contextlib
import datetime
import io
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from runtime.errors import InputError, naming_errors
from runtime.paths import printable
from runtime.signals import signals_raised

LOCK_FILE = ".lock"
_LONGEST_MESSAGE = 2_000
_LONGEST_NAME = 200  # bytes of a file name; most systems allow 255, and partial files have longer names


def run_script(main: Callable[..., None], *args: object) -> None:
    """Runs the `main` of a script with `args`. An InputError or OSError becomes one line on stderr and exit status 2.

    SIGINT, SIGTERM and SIGHUP raise an exception in `main` (see `signals_raised`), so that no partial file is left. The
    exit status is 128 + the signal's number, as in a shell. It is that of SIGPIPE if the reader of stdout has gone.
    """
    program = os.path.basename(sys.argv[0])
    status, message = 0, ""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path can have bytes that are not text, in any locale
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with signals_raised():
            try:
                main(*args)
                print_text("")
            except BrokenPipeError:
                status = 128 + signal.SIGPIPE
            except (InputError, OSError) as error:
                status, message = 2, f"error: {error_message(error)}"
            except KeyboardInterrupt:
                status, message = 128 + signal.SIGINT, "interrupted"
            if message:
                with contextlib.suppress(OSError):
                    print(f"{program}: {message}", file=sys.stderr)
    finally:
        _drop_unwritten_output()
    if status:
        sys.exit(status)


def _drop_unwritten_output() -> None:
    """Drops what stdout or stderr cannot take. Otherwise Python tries again at its end, and changes the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # it is closed
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def error_message(error: Exception) -> str:
    """Returns the one line about an error; of an OSError, the file and the reason."""
    is_about_file = isinstance(error, OSError) and error.filename is not None
    return one_line(f"{error.filename}: {error.strerror}" if is_about_file else str(error))


def one_line(message: str) -> str:
    """Returns a message as one short printable line. A message can quote control characters or a line of 64 MiB."""
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[: _LONGEST_MESSAGE // 2]} ... {message[-_LONGEST_MESSAGE // 2 :]}"
    return printable(" ".join(message.split()))


def refuse_existing(
    path: str | Path,
    flag: str,
    overwrite: bool,
    inputs: Iterable[str | Path] = (),
    beside: Iterable[str] = (),
) -> None:
    """Raises InputError if `flag` names an existing result, an input, or a file in a directory that does not exist.

    `beside`: the suffixes of files that the script writes beside the output, such as `.log`. They can exist, but they
    must not be an input.
    """
    path = Path(path)
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise InputError(f"{flag}: the name {path.name} is longer than {_LONGEST_NAME} bytes, shorten it")
    if path.is_dir():
        raise InputError(f"{flag}: {path} is a directory, a file name is needed")
    if path.exists() and not path.is_file():
        raise InputError(f"{flag}: {path} is not a regular file, name another")
    if lost := same_files([path, *(path.with_name(path.name + suffix) for suffix in beside)], inputs):
        raise InputError(f"{flag}: {lost[0]} is also an input, name another file")
    if path.exists() and not overwrite:
        raise InputError(f"{flag}: {path} exists already; pass --overwrite to replace it, or name another file")
    if not path.parent.is_dir():
        raise InputError(f"{flag}: the directory {path.parent} does not exist; make it first")


def same_files(paths: Iterable[str | Path], others: Iterable[str | Path]) -> list[str | Path]:
    """Returns those of `paths` that are also in `others`: by the same path, a symbolic link or a hard link."""
    known = {key for other in others for key in _identity(other)}
    return [path for path in paths if not known.isdisjoint(_identity(path))]


def _identity(path: str | Path) -> list[str | tuple[int, int]]:
    """Returns the real path of a file and, if it exists, its device and inode."""
    keys: list[str | tuple[int, int]] = [os.path.realpath(path)]
    with contextlib.suppress(OSError):
        found = os.stat(path)
        keys.append((found.st_dev, found.st_ino))
    return keys


@contextlib.contextmanager
def buffered_log() -> Iterator[list[logging.LogRecord]]:
    """Yields a list that collects the log records of the context. So an error in it is the only line on stderr."""
    handler = logging.handlers.MemoryHandler(capacity=1 << 16, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    logging.getLogger().addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logging.getLogger().removeHandler(handler)


def report(line: str, output: str | Path, log: bool = True) -> None:
    """Prints a line about a complete output. With `log`, appends it with the time (UTC) to `OUTPUT.log`.

    Raises OSError, which says that the output is complete, if standard output or the log cannot be written.
    """
    with already_complete(output):
        try:
            print_text(f"{line}\n")
        finally:
            if log:
                log_line(line, output)


def log_line(line: str, output: str | Path) -> None:
    """Appends a line about an output, with the time (UTC), to `OUTPUT.log`."""
    append_line(f"{output}.log", f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} {line}")


def print_text(text: str) -> None:
    """Writes text to standard output at once. Raises OSError, which names standard output, if that fails."""
    try:
        if sys.stdout is not None:
            print(text, end="", flush=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


@contextlib.contextmanager
def already_complete(output: str | Path | None) -> Iterator[None]:
    """Inside, `output` is complete, and an OSError says so. None: there is no output."""
    try:
        yield
    except OSError as error:
        if output is None:
            raise
        raise OSError(error.errno, f"{error.strerror}; {output} is complete", error.filename) from error


def append_line(path: str | Path, line: str) -> None:
    """Appends a line to a file. Other programs can read the file while it grows."""
    with naming_errors(path, "writing"), open(path, "ab") as file:
        file.write(f"{line}\n".encode("utf-8", "backslashreplace"))  # a path in it can have bytes that are not text


@contextlib.contextmanager
def lock_directory(path: Path, flag: str) -> Iterator[None]:
    """Locks a directory for one process. A missing directory is made, and removed again if it stays empty.

    The lock is on the file `LOCK_FILE` in it. It ends with the process, even if the process is killed. Raises
    InputError, which names `flag`, if another process has the lock or if the path is a file.
    """
    import fcntl  # here, because Windows has none

    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{flag}: {path} is a file, or lies below one; name another") from None
    lock = path / LOCK_FILE
    with open(lock, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = os.fstat(file.fileno()).st_nlink > 0  # 0: a run that has just ended removed it
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


class _LogFile(logging.FileHandler):
    """A log file that remembers that it could not be written. logging itself ignores it here, see `log_to`."""

    error: OSError | None = None

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.error = error

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            self.error = error


@contextlib.contextmanager
def log_to(path: str | Path, output: str | Path) -> Iterator[None]:
    """Inside, writes log records to stderr and appends them to a file.

    A full disk stops nothing inside. Raises OSError at the end if the file misses lines; it says that `output` is
    complete.
    """
    log_file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handlers = [logging.StreamHandler(), log_file]
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=handlers, force=True
    )
    logging.raiseExceptions = False  # a full disk must not print a traceback per line
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler in handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
    if log_file.error is not None:
        with already_complete(output):
            raise OSError(log_file.error.errno, f"while writing: {log_file.error.strerror}", str(path))
