"""A function computed in several processes. No process waits for another one that was killed."""

import contextlib
import ctypes
import itertools
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import TypeVar

from runtime.errors import InputError
from runtime.signals import TERMINATING

Item = TypeVar("Item")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_SIGNALS = (signal.SIGINT, *TERMINATING)


def map_in_processes(function: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """Yields `function(item)` for each item, in order. The main process reads `items`.

    The workers take turns. A worker has one item at a time: it receives the next one after its result was received.
    So the main process and a worker never both wait for the other one to receive.

    All workers are killed when the generator ends, is closed, or an exception passes through it. They end by
    themselves when the main process is killed.

    Raises InputError where a worker is killed.
    """
    workers: list[_Worker] = []
    busy: deque[_Worker] = deque()
    try:
        with _signals_blocked():
            for _ in range(processes):
                workers.append(_Worker(function, workers))
        for worker, item in zip(itertools.cycle(workers), items, strict=False):
            if len(busy) < processes:
                worker.send(item)
            else:
                result = busy.popleft().receive()  # of the same worker
                worker.send(item)
                yield result
            busy.append(worker)
        while busy:
            yield busy.popleft().receive()
    finally:
        for worker in workers:
            worker.process.kill()  # SIGKILL also ends a process that is stopped
        for worker in workers:
            worker.process.join()
            worker.connection.close()


class _Worker:
    """A process with its own pipe. No other process has an end of this pipe, so its death is an end of file."""

    def __init__(self, function: Callable, others: list["_Worker"]):
        self.connection, end = multiprocessing.Pipe()
        inherited = [self.connection, *(other.connection for other in others)]
        self.process = multiprocessing.Process(target=_work, args=(function, end, inherited), daemon=True)
        self.process.start()
        end.close()

    def send(self, item: object) -> None:
        with _death_named():
            self.connection.send(item)

    def receive(self) -> object:
        with _death_named():
            return self.connection.recv()


def _work(function: Callable, connection: Connection, inherited: list[Connection]) -> None:
    """Runs in a worker, until the main process is gone."""
    for other in inherited:  # a forked process has copies of the main process's ends
        other.close()
    for number in _SIGNALS:  # a terminal sends SIGINT and SIGHUP to all processes, and the main one handles them
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if sys.platform == "linux":  # a process that is stopped does not read the end of its pipe
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(function(connection.recv()))


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Delays SIGINT, SIGTERM and SIGHUP. So the main process knows each worker that it has started."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _death_named() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise InputError("a process that tokenizes was killed; is there enough memory? Run it again") from None
