"""Progress where stderr is no terminal: plain lines from long work, none from short work."""

import fcntl
import gc
import io
import os
import re
import struct
import sys
import termios
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
from tiny import STUDENT, TEACHER, run_main, student_weights, teacher_weights, write_tiny_features, write_transformers

import runtime.progress
from runtime.progress import ProgressBar


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line after 0.05 seconds, then one every 0.1 seconds."""
    monkeypatch.setattr(runtime.progress, "FIRST", 0.05)
    monkeypatch.setattr(runtime.progress, "EVERY", 0.1)


def wait_for(stream: io.StringIO, count: int) -> list[str]:
    end = time.monotonic() + 10
    while len(stream.getvalue().splitlines()) < count and time.monotonic() < end:
        time.sleep(0.005)
    return stream.getvalue().splitlines()


def test_the_first_line_comes_within_ten_seconds() -> None:
    assert runtime.progress.FIRST < 10 < runtime.progress.EVERY <= 60


@pytest.mark.usefixtures("soon")
def test_long_work_prints_lines_also_within_one_item() -> None:
    with mock.patch.object(sys, "stderr", io.StringIO()) as stderr:
        with ProgressBar(total=7, desc="re-ranking", unit=" passages") as bar:
            bar.update(2)
            assert re.fullmatch(r"re-ranking: 2 of 7 passages in \d+ s", wait_for(stderr, 1)[0])
            bar.update()
            assert wait_for(stderr, 2)[1].startswith("re-ranking: 3 of 7 passages in")
        lines = stderr.getvalue()
        for number in ProgressBar(iter(range(3)), desc="tokenizing", unit=" pairs"):
            wait_for(stderr, 3 + number)
        assert [line.partition(" in")[0] for line in stderr.getvalue()[len(lines) :].splitlines()][:3] == [
            f"tokenizing: {number} pairs" for number in range(3)
        ]
        with ProgressBar(desc="downloading x"):
            wait_for(stderr, 7)
        assert re.fullmatch(r"downloading x: \d+ s", stderr.getvalue().splitlines()[-1])


@pytest.mark.usefixtures("soon")
def test_no_thread_stays_behind() -> None:
    before = set(threading.enumerate())
    with mock.patch.object(sys, "stderr", io.StringIO()):
        closed, forgotten = ProgressBar(total=1, unit=" x"), ProgressBar(total=1, unit=" x")
        abandoned = iter(ProgressBar(range(9)))
        next(abandoned)
        closed.close()
        del forgotten, abandoned
        gc.collect()
    end = time.monotonic() + 10
    while not before.issuperset(threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)
    assert before.issuperset(threading.enumerate())


def test_a_terminal_has_a_bar() -> None:
    main, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with open(terminal, "w") as stream, mock.patch.object(sys, "stderr", stream):
        for _ in ProgressBar(range(5), desc="work"):
            pass
        shown = os.read(main, 10_000).decode()
    os.close(main)
    assert "work: 100%" in shown and "5/5" in shown


@pytest.mark.usefixtures("soon")
def test_the_scripts_print_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.progress, "FIRST", 0.0001)
    monkeypatch.setattr(runtime.progress, "EVERY", 0.001)
    write_transformers(tmp_path / "teacher", TEACHER, teacher_weights())
    write_transformers(tmp_path / "general", STUDENT, student_weights())
    write_tiny_features(tmp_path / "train", count=40)
    write_tiny_features(tmp_path / "test", count=200, set_name="test")
    (tmp_path / "pairs").write_text("".join(f"q#D_{i}\tthe cat {i}\ta mat {i}\n" for i in range(3000)))
    models = ["--teacher_model", tmp_path / "teacher", "--general_student_model", tmp_path / "general"]
    distill = [*models, "--features_file", tmp_path / "train", "--output_student_dir", tmp_path / "out"]
    tokenize = ["--raw_data_file", tmp_path / "pairs", "--output_features_file", tmp_path / "features"]
    rerank = ["--features_file", tmp_path / "test", "--output_scores_file", tmp_path / "scores"]
    commands = {
        "distilling: \\d+ of 20 steps": ("distill.py", *distill, "--train_batch_size=4", "--no_teacher_check"),
        "tokenizing: \\d+ pairs": ("tokenize_to_features.py", *tokenize, "--set_name=test", "--bert_model_dir",
                                   tmp_path / "teacher"),
        "re-ranking: \\d+ of 200 passages": ("rerank.py", *rerank, "--model_dir", tmp_path / "teacher"),
    }  # fmt: skip
    for pattern, command in commands.items():
        done = run_main(*command)
        assert done.status == 0, done.stderr
        assert re.search(rf"^{pattern} in \d+ s$", done.stderr, flags=re.M), done.stderr
