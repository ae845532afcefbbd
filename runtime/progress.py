"""The progress of long work: a bar on a terminal, and now and then a line where stderr is a file or a pipe."""

import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm import tqdm

# Seconds until the first line, and between lines.
FIRST, EVERY = 9, 30


class ProgressBar(tqdm):
    """tqdm's bar. Without a terminal a thread prints lines such as `re-ranking: 96 of 3600 passages in 39 s`."""

    def __init__(self, *args: Any, desc: str = "working", unit: str = "", **named: Any) -> None:
        self._work, self._unit, self._start = desc, unit.strip(), time.monotonic()
        self._closed = threading.Event()
        super().__init__(*args, desc=desc, unit=unit, disable=None, **named)
        if self.disable and self.iterable is None:
            self._start_lines()

    def __iter__(self) -> Iterator:
        if not self.disable:
            yield from super().__iter__()
            return
        self._start_lines()  # not earlier: the iterable may fork
        try:
            for item in self.iterable:
                yield item
                self.n += 1
        finally:
            self.close()

    def update(self, n: float = 1) -> bool | None:
        if self.disable:
            self.n += n
        return super().update(n)

    def close(self) -> None:
        if hasattr(self, "_closed"):  # not if a signal came while the object was made
            self._closed.set()
        super().close()

    def line(self) -> str:
        """Returns the line for now."""
        of_total = f" of {self.total}" if self.total else ""
        done = f" {int(self.n)}{of_total} {self._unit} in" if self._unit else ""
        return f"{self._work}:{done} {time.monotonic() - self._start:.0f} s"

    def _start_lines(self) -> None:
        arguments = (weakref.ref(self), self._closed, sys.stderr)
        threading.Thread(target=_print_lines, args=arguments, daemon=True).start()


def _print_lines(reference: "weakref.ref[ProgressBar]", closed: threading.Event, stream: TextIO) -> None:
    """Prints lines until the work ends. It does not keep the object: one that is not closed ends its thread too."""
    seconds = FIRST
    while not closed.wait(seconds) and (progress := reference()) is not None:
        with contextlib.suppress(OSError, ValueError):  # a full disk; a stream that is closed
            print(progress.line(), file=stream, flush=True)
        del progress
        seconds = EVERY
