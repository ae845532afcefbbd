"""Tokenization in several processes: the order of results, and what remains when a process is killed or stopped."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path

import pytest
from tiny import ONE_THREAD, ROOT, assert_refused, run_main

from runtime.errors import InputError
from tokenization.workers import map_in_processes

linux = pytest.mark.skipif(sys.platform != "linux", reason="finds the children of a process in /proc")


def slow_square(number: int) -> int:
    time.sleep(0.02 if number % 3 == 0 else 0)
    return number * number


@pytest.mark.parametrize("count", [0, 1, 3, 4, 50])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    assert list(map_in_processes(slow_square, range(count), 3)) == [i * i for i in range(count)]
    assert active_children() == []


def test_large_items_and_results_do_not_block_each_other() -> None:
    items = [bytes([i]) * 3_000_000 for i in range(9)]  # many times what a pipe holds
    assert list(map_in_processes(bytes.upper, items, 2)) == [item.upper() for item in items]


def test_items_are_read_one_ahead_of_the_workers() -> None:
    read = []
    results = map_in_processes(slow_square, (read.append(i) or i for i in range(100)), 3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert read == list(range(8))


def test_an_error_of_the_items_ends_the_workers() -> None:
    def items() -> Iterator[int]:
        yield from range(7)
        raise ValueError("line 8")

    with pytest.raises(ValueError, match="line 8"):
        list(map_in_processes(slow_square, items(), 3))
    assert active_children() == []


def test_a_generator_that_is_closed_ends_the_workers() -> None:
    results = map_in_processes(slow_square, itertools.count(), 3)
    assert next(results) == 0
    assert len(active_children()) == 3
    results.close()
    assert active_children() == []


def test_an_exception_in_the_caller_ends_the_workers() -> None:
    with pytest.raises(KeyboardInterrupt):
        for _ in map_in_processes(slow_square, itertools.count(), 3):
            raise KeyboardInterrupt
    assert active_children() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_is_an_error(number: signal.Signals) -> None:
    results = map_in_processes(slow_square, itertools.count(), 3)
    next(results)
    os.kill(active_children()[1].pid, number)
    with pytest.raises(InputError, match="a process that tokenizes was killed"):
        list(results)
    assert active_children() == []


# The script. It reads pairs from a pipe that never ends, so it runs until a process is ended.


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[Path]:
    """A named pipe with endless pairs of texts that all differ."""
    path = tmp_path / "pairs"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)  # opened for reading too, so that it does not wait for a reader
    os.set_blocking(pipe, False)
    ended = threading.Event()

    def write() -> None:
        content, number = b"", 0
        while not ended.is_set():
            if not content:  # the next pairs
                texts = (b"q#d_%d\tthe cat %d\tdog ran %d\n" % (i, i, i) for i in range(number, number + 99))
                content, number = b"".join(texts), number + 99
            try:
                content = content[os.write(pipe, content) :]
            except BlockingIOError:
                time.sleep(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    yield path
    ended.set()
    thread.join()
    os.close(pipe)


def flags(directory: Path) -> list[object]:
    inputs = ["--raw_data_file", directory / "pairs", "--bert_model_dir", directory / "model"]
    return ["--set_name", "test", *inputs, "--output_features_file", directory / "out"]


def kill_a_worker(directory: Path, number: int, seconds: float) -> None:
    """Runs the script in this process, and kills one of its three workers some time after they have started."""

    def kill() -> None:
        while len(workers := active_children()) < 3:
            time.sleep(0.002)
        time.sleep(seconds)
        os.kill(workers[number].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.monotonic()
    done = run_main("tokenize_to_features.py", *flags(directory))
    killer.join()
    assert_refused(done, "a process that tokenizes was killed")
    assert done.stdout == ""
    assert time.monotonic() - start < 20
    assert active_children() == []
    assert sorted(os.listdir(directory)) == ["model", "pairs"]


def test_a_killed_worker_ends_the_script_with_one_line(
    tmp_path: Path, model_dir: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenization.pair_encoding.useful_processes", lambda: 3)
    for number, seconds in ((0, 0.1), (2, 0)):
        kill_a_worker(tmp_path, number, seconds)


@pytest.mark.slow
def test_a_worker_killed_at_any_of_twenty_moments_ends_the_script_with_one_line(
    tmp_path: Path, model_dir: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenization.pair_encoding.useful_processes", lambda: 3)
    rng = random.Random(1)
    for _ in range(20):
        kill_a_worker(tmp_path, rng.randrange(3), rng.uniform(0, 0.4))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end_the_script(
    directory: Path, seconds: float, end: Callable[[subprocess.Popen, list[int]], None], says: str = ""
) -> int:
    """Starts the script, calls `end` with it and its workers some time after these exist, and returns the exit status.

    Checks that all workers end, and that only `says` is printed, on stderr. The script has its own process group.
    """
    program = (
        "import runpy, sys, tokenization.pair_encoding as pairs; pairs.useful_processes = lambda: 3; "
        "sys.argv.pop(0); sys.path.insert(0, '.'); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "tokenize_to_features.py", *map(str, flags(directory))],
        cwd=ROOT,
        env=ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (workers := children_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(seconds)
    workers = children_of(process.pid) or workers
    end(process, workers)
    assert process.communicate(timeout=20) == ("", says)
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process.returncode


def terminate(process: subprocess.Popen, workers: list[int]) -> None:
    process.terminate()


def stop_a_worker_and_terminate(process: subprocess.Popen, workers: list[int]) -> None:
    os.kill(workers[-1], signal.SIGSTOP)
    time.sleep(0.05)
    process.terminate()


@linux
def test_sigterm_ends_workers_that_are_stopped(tmp_path: Path, model_dir: Path, pairs: Path) -> None:
    assert end_the_script(tmp_path, 0.1, stop_a_worker_and_terminate) == 128 + signal.SIGTERM
    assert sorted(os.listdir(tmp_path)) == ["model", "pairs"]


@linux
@pytest.mark.slow
def test_sigterm_at_random_moments_ends_all_workers(tmp_path: Path, model_dir: Path, pairs: Path) -> None:
    rng = random.Random(2)
    for end in (terminate, stop_a_worker_and_terminate) * 8:
        assert end_the_script(tmp_path, rng.uniform(0, 0.3), end) == 128 + signal.SIGTERM
        assert sorted(os.listdir(tmp_path)) == ["model", "pairs"]


def signal_to_the_group(number: int) -> Callable[[subprocess.Popen, list[int]], None]:
    return lambda process, workers: os.killpg(process.pid, number)


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_process_group_has_one_line_at_most(
    tmp_path: Path, model_dir: Path, pairs: Path, number: int
) -> None:
    says = "tokenize_to_features.py: interrupted\n" if number == signal.SIGINT else ""
    assert end_the_script(tmp_path, 0.1, signal_to_the_group(number), says) == 128 + number
    assert sorted(os.listdir(tmp_path)) == ["model", "pairs"]


@linux
@pytest.mark.slow
def test_signals_to_the_whole_process_group_at_random_moments(tmp_path: Path, model_dir: Path, pairs: Path) -> None:
    rng = random.Random(3)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) * 10:
        says = "tokenize_to_features.py: interrupted\n" if number == signal.SIGINT else ""
        assert end_the_script(tmp_path, rng.uniform(0, 0.3), signal_to_the_group(number), says) == 128 + number
        assert sorted(os.listdir(tmp_path)) == ["model", "pairs"]


def stop_a_worker_and_kill(process: subprocess.Popen, workers: list[int]) -> None:
    os.kill(workers[-1], signal.SIGSTOP)
    time.sleep(0.05)
    process.kill()


@linux
def test_a_stopped_worker_ends_when_the_main_process_is_killed(tmp_path: Path, model_dir: Path, pairs: Path) -> None:
    assert end_the_script(tmp_path, 0.1, stop_a_worker_and_kill) == -signal.SIGKILL


@linux
def test_workers_end_when_the_main_process_is_killed(tmp_path: Path, model_dir: Path, pairs: Path) -> None:
    assert end_the_script(tmp_path, 0.1, lambda process, workers: process.kill()) == -signal.SIGKILL
