"""What SIGINT (Ctrl-C), SIGTERM and SIGHUP do to a script. Loads nothing that takes time."""

import contextlib
import signal
from collections.abc import Callable, Iterator

# A closed terminal sends SIGHUP. Windows has none.
TERMINATING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def quiet_interrupt() -> None:
    """SIGINT ends the process at once, without the traceback of an import. The first call of a script.

    In `signals_raised` it raises KeyboardInterrupt again. If it is ignored, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """Inside, SIGINT raises KeyboardInterrupt. SIGTERM and SIGHUP raise SystemExit with 128 + the signal's number.

    So partial files are removed. After the first signal the others are ignored, so that they do not stop this. A signal
    that already has a handler, or is ignored (nohup ignores SIGHUP), stays as it is.
    """
    default = [number for number in (signal.SIGINT, *TERMINATING) if signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: object) -> None:
        for other in default:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in default:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in default:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def signals_handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP call `handler`. Where SIGTERM or SIGHUP is ignored, it stays ignored."""
    numbers = (signal.SIGINT, *filter(_is_not_ignored, TERMINATING))
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def handle_terminating(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    """Sets a handler of SIGTERM and SIGHUP, except where they are ignored."""
    for number in filter(_is_not_ignored, TERMINATING):
        signal.signal(number, handler)


def _is_not_ignored(number: int) -> bool:
    return signal.getsignal(number) != signal.SIG_IGN
