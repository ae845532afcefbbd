"""SIGINT, SIGTERM and SIGHUP during a training."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from runtime.ranks import rank
from runtime.signals import signals_handled


@contextlib.contextmanager
def defer_signals(message: str = "finishing and saving") -> Iterator[list[int]]:
    """Inside, SIGINT, SIGTERM and SIGHUP only add their number to the list that it yields. The first prints `message`.

    A signal that is ignored stays ignored: nohup ignores SIGHUP.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1 and rank() == 0:
            name = signal.Signals(number).name
            with contextlib.suppress(OSError, AttributeError):  # Ctrl-C also ends a `tee` that reads stderr
                os.write(sys.__stderr__.fileno(), f"\n{name}: {message}\n".encode())

    with signals_handled(note):
        yield received
