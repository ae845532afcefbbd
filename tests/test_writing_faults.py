"""A full or broken disk, a read-only directory, a signal: no partial output, and one line that names the output."""

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from test_features import EXAMPLES, HEADER
from tiny import ONE_THREAD, ROOT, STUDENT, assert_refused, run_main, student_weights, write_published
from tiny import write_tiny_features as write_tiny

from formats.atomic import atomic_write
from formats.features import write_features
from formats.lines import read_lines
from formats.pairs import Pair, write_pairs
from formats.scores import PassageScore, write_scores
from formats.trec import write_run
from runtime.errors import InputError
from runtime.script import report, run_script

# Enough rows to fill a buffer several times.
COUNT = 8_000
WRITERS: dict[str, Callable[[Path], object]] = {
    "features": lambda path: write_features(path, HEADER, (EXAMPLES[i % 3] for i in range(COUNT))),
    "scores": lambda path: write_scores(path, (PassageScore("q", f"D_{i}", i / 7) for i in range(COUNT))),
    "scores.gz": lambda path: write_scores(path, (PassageScore("q", f"D_{i}", i / 7) for i in range(COUNT))),
    "pairs": lambda path: write_pairs(path, (Pair(f"q#D_{i}", "query", "passage") for i in range(COUNT))),
    "run": lambda path: write_run(path, {"q": {f"D{i}": -float(i) for i in range(COUNT)}}, "me"),
}


class FullFile(io.FileIO):
    """A file on a disk with space for `room` bytes. Writing more raises `error`."""

    def __init__(self, path: str, room: int, error: int):
        super().__init__(path, "wb")
        self.room, self.error = room, error

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(self.error, os.strerror(self.error))
        return super().write(data)


@contextlib.contextmanager
def fault(place: str, error: int) -> Iterator[None]:
    """Makes writing fail at `place`: open, first byte, later, sync, rename."""

    def fails(*paths: object) -> None:
        raise OSError(error, os.strerror(error), *paths[:1], *([None, paths[1]] if len(paths) > 1 else []))

    def opened(path: Path, mode: str = "r", *more: object, **named: object) -> IO:
        if "w" not in mode:
            return open(path, mode, *more, **named)
        if place == "open":
            fails(path)
        return io.BufferedWriter(FullFile(str(path), {"first byte": 0, "later": 20_000}.get(place, 1 << 30), error))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("formats.atomic.open", opened, raising=False)
        if place == "sync":
            patched.setattr(os, "fsync", lambda _: fails())
        if place == "rename":
            patched.setattr(os, "replace", fails)
        yield


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("place", ["open", "first byte", "later", "sync", "rename"])
def test_a_disk_that_fails_leaves_what_was_there_and_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture, name: str, place: str
) -> None:
    path = tmp_path / name
    for older in (None, b"older"):
        if older:
            path.write_bytes(older)
        for error in (errno.ENOSPC, errno.EIO):
            with pytest.raises(SystemExit) as done, fault(place, error):
                run_script(lambda: WRITERS[name](path))
            assert done.value.code == 2
            out, err = capfd.readouterr()
            assert out == "" and err.endswith(f": error: {path}: while writing: {os.strerror(error)}\n")
            assert len(err.splitlines()) == 1
            assert os.listdir(tmp_path) == ([name] if older else [])
        assert older is None or path.read_bytes() == older
    WRITERS[name](path)
    assert path.stat().st_size > 20_000


def in_a_process(tmp_path: Path, code: str, *arguments: object) -> subprocess.Popen:
    """Starts a process that runs `code` and then writes `path` as a script does. It loads no torch."""
    script = f"""
import ctypes, os, resource, shutil, struct, sys, time
from formats.features import Example, FeaturesHeader, write_features
from runtime.errors import InputError
from runtime.script import report, run_script
from formats.atomic import atomic_write
from formats.scores import PassageScore, write_scores
from pathlib import Path

header = FeaturesHeader(11, 40, True, "train", "ab" * 32)
path = Path(sys.argv[1])

def rows(make):
    for i in range(200_000):
        if i == 150_000:
            halfway()
        yield make(i)

def halfway():
    pass

def write():
    if path.name == "features":
        write_features(path, header, rows(lambda i: Example(f"e{{i}}", [2, 5, 3], 2, 1)))
    else:
        write_scores(path, rows(lambda i: PassageScore("q", f"D_{{i}}", i / 7)))

{textwrap.dedent(code)}
run_script(write)
"""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env=ONE_THREAD | {"OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused_line(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, ""), err
    assert len(err.splitlines()) == 1
    return err


LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
NO_PRIVILEGE = "ctypes.CDLL(None).capset(struct.pack('II', 0x20080522, 0), bytes(24))  # root ignores permissions"
REMOVE = "halfway = lambda: shutil.rmtree(path.parent)"


@pytest.mark.parametrize("name", ["features", "scores"])
def test_a_file_size_limit_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("older")
    assert f"error: {path}: while writing: File too large" in refused_line(in_a_process(tmp_path, LIMIT, path))
    assert (os.listdir(tmp_path), path.read_text()) == ([name], "older")


@pytest.mark.skipif(sys.platform != "linux", reason="gives up root's privileges as Linux knows them")
def test_a_read_only_directory_is_named_with_the_output(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "scores").write_text("older")
    folder.chmod(0o555)
    processes = [(name, in_a_process(tmp_path, NO_PRIVILEGE, folder / name)) for name in ("features", "scores")]
    for name, process in processes:
        assert f"error: {folder / name}: while writing: Permission denied" in refused_line(process)
    assert (os.listdir(folder), (folder / "scores").read_text()) == (["scores"], "older")


def test_a_directory_that_is_removed_meanwhile_is_named_with_the_output(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    line = refused_line(in_a_process(tmp_path, REMOVE, folder / "scores"))
    assert f"error: {folder / 'scores'}: while writing: No such file or directory" in line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["features", "scores", "scores.gz"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_leaves_the_old_file_and_no_partial_file(tmp_path: Path, name: str, number: int) -> None:
    path = tmp_path / name
    path.write_text("older")
    code = """
    def halfway():
        print(os.listdir(path.parent), flush=True)
        time.sleep(60)
    """
    process = in_a_process(tmp_path, code, path)
    assert f".{name}.{process.pid}.partial" in process.stdout.readline()
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 128 + number
    assert (os.listdir(tmp_path), path.read_text()) == ([name], "older")


def test_sigterm_ends_a_tokenization_and_its_processes(tmp_path: Path, model_dir: Path) -> None:
    os.mkfifo(tmp_path / "pairs")
    flags = ["--set_name", "test", "--raw_data_file", "pairs", "--output_features_file", "out"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "tokenize_to_features.py", *flags, "--bert_model_dir", model_dir],
        cwd=tmp_path,
        env=ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with open(tmp_path / "pairs", "w") as pairs:
        for i in range(4000):
            pairs.write(f"q#d_{i}\tthe cat {i}\tdog ran {i}\n")
        pairs.flush()
        deadline = time.monotonic() + 30
        while not (children := children_of(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert children or sys.platform != "linux"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 128 + signal.SIGTERM
    assert sorted(os.listdir(tmp_path)) == ["model", "pairs"]
    assert not any(os.path.exists(f"/proc/{child}") for child in children)


def children_of(pid: int) -> list[str]:
    if not os.path.exists(f"/proc/{pid}/task/{pid}/children"):
        return []
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_handler_of_sigterm_is_kept_and_the_default_comes_back() -> None:
    seen = []

    def end() -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run_script(end)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    for handler in (signal.SIG_IGN, print):
        signal.signal(signal.SIGTERM, handler)
        try:
            run_script(end)
            assert signal.getsignal(signal.SIGTERM) == handler
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert callable(seen[0]) and seen[1:] == [signal.SIG_IGN, print]


def test_scripts_on_a_full_disk_leave_no_output(tmp_path: Path, model_dir: Path) -> None:
    write_published(model_dir, STUDENT, student_weights())
    write_tiny(tmp_path / "features", count=9, set_name="test")
    (tmp_path / "pairs").write_text("q#d_0\tthe\tcat\n")
    before = sorted(os.listdir(tmp_path))
    rerank = ["--model_dir", model_dir, "--features_file", tmp_path / "features", "--device", "cpu"]
    tokenize = ["--set_name", "test", "--raw_data_file", tmp_path / "pairs", "--bert_model_dir", model_dir]
    out = tmp_path / "out"
    for script, *flags in (
        ("rerank.py", *rerank, "--output_scores_file", out),
        ("tokenize_to_features.py", *tokenize, "--output_features_file", out),
    ):
        for place in ("open", "first byte", "sync", "rename"):
            with fault(place, errno.ENOSPC):
                done = run_main(script, *flags)
            assert_refused(done, f"{out}: while writing: No space left on device")
            assert done.stdout == ""
            assert sorted(os.listdir(tmp_path)) == before


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out.log").mkdir()
    (tmp_path / "full.log").symlink_to("/dev/full")
    for name, what in (("out", "Is a directory"), ("full", "while writing: No space left on device")):
        if name == "full" and not os.path.exists("/dev/full"):
            continue
        with pytest.raises(SystemExit) as done:
            run_script(lambda name=name: report("wrote it", tmp_path / name))
        assert done.value.code == 2
        assert capsys.readouterr().err.endswith(
            f": error: {tmp_path / name}.log: {what}; {tmp_path / name} is complete\n"
        )


def test_an_error_of_the_input_is_not_put_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "out") as file:
        for _, line in read_lines(tmp_path / "missing"):
            file.write(line)
    assert str(caught.value.filename) == str(tmp_path / "missing")
    assert os.listdir(tmp_path) == []


def test_an_input_that_cannot_be_read_to_its_end_is_named_and_not_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BrokenFile(io.FileIO):
        def readinto(self, buffer: bytearray) -> int:
            if self.tell() > 100_000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(buffer[:4096])

    (tmp_path / "in").write_text("line of text\n" * 10_000)

    def copy() -> None:
        with atomic_write(tmp_path / "out") as file:
            file.writelines(line for _, line in read_lines(tmp_path / "in"))

    def opened(path: Path, mode: str = "r", *more: object, **named: object) -> IO:
        return open(path, mode, *more, **named) if "w" in mode else io.BufferedReader(BrokenFile(path), 1 << 12)

    monkeypatch.setattr("formats.lines.open", opened, raising=False)
    with pytest.raises(SystemExit) as done:
        run_script(copy)
    assert done.value.code == 2
    line = capsys.readouterr().err
    assert f" error: {tmp_path / 'in'}: after line " in line and line.endswith(": Input/output error\n")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("bad", ["\x1b]0;title\x07", "\x9b31m", "\u202egpj", "\x7f", "\ud800"])
def test_a_message_is_one_short_printable_line_whatever_it_quotes(capfd: pytest.CaptureFixture, bad: str) -> None:
    def fails() -> None:
        raise InputError(f"file line 3: '{bad}\n\u2028\x85{'x' * 10_000_000}' is no label; correct it")

    with pytest.raises(SystemExit):
        run_script(fails)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.isprintable() and len(line) < 2100
    assert "error: file line 3: '?" in line and line.endswith("xx' is no label; correct it")
