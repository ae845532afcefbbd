"""What every script has around its `main`: errors as one line, logs, outputs that are not overwritten unasked."""

import contextlib
import datetime
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from runtime.errors import InputError, naming_errors

_LONGEST_MESSAGE = 2_000


def run_script(main: Callable[..., None], *args: object) -> None:
    """Runs a script's `main` with `args`. A user's mistake, InputError or OSError, becomes one line on stderr and exit
    status 2.

    SIGTERM, unless it is handled already, ends `main` by SystemExit, so that no partial file stays behind; the exit
    status is 143, as the shell gives it.
    """
    program = os.path.basename(sys.argv[0])
    handles_sigterm = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if handles_sigterm:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main(*args)
    except (InputError, OSError) as error:
        is_about_file = isinstance(error, OSError) and error.filename is not None
        message = f"{error.filename}: {error.strerror}" if is_about_file else str(error)
        print(f"{program}: error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        if handles_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def one_line(message: str) -> str:
    """A message may quote a file, which can hold anything: codes that a terminal obeys, or a line of 64 MiB."""
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[: _LONGEST_MESSAGE // 2]} ... {message[-_LONGEST_MESSAGE // 2 :]}"
    return "".join(character if character.isprintable() else "?" for character in " ".join(message.split()))


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
def buffered_log() -> Iterator[list[logging.LogRecord]]:
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
def lock_directory(path: Path, flag: str) -> Iterator[None]:
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
