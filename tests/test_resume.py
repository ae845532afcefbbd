"""A distillation that was stopped or killed resumes to the same bytes. One that cannot resume says why."""

import errno
import fcntl
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny import (
    STUDENT,
    TEACHER,
    Finished,
    assert_refused,
    run_forked,
    run_main,
    run_script,
    student_weights,
    teacher_weights,
    write_published,
    write_tiny_features,
    write_transformers,
)

import modeling.losses
import training.unread_steps
from formats.checksums import check_checksums
from modeling.model_files import load_ranker
from runtime.errors import InputError
from training.checkpoints import CHECKPOINT_FILES
from training.optimizer import BertAdam
from training.precision import Precision
from training.state import Progress, Training, TrainingStateError, save_training_state

STOPPED = 75
STEPS = 10  # two epochs of 5
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "teacher", TEACHER, teacher_weights())
    write_transformers(directory / "general", STUDENT, student_weights(), **DROPOUT)
    write_tiny_features(directory / "features", count=21, pairs_per_query=5)  # 5 batches of 4, and one example over
    return directory


def arguments(inputs: Path, output: Path, *more: object) -> list[object]:
    flags = ["--features_file", inputs / "features", "--general_student_model", inputs / "general", "--device", "cpu"]
    flags += ["--output_student_dir", output, "--train_batch_size", 4, "--num_train_epochs", 2, "--train_loss_step", 3]
    flags += ["--learning_rate", 1e-2, "--save_model_step", 2]
    flags += [] if "hard" in more else ["--teacher_model", inputs / "teacher"]
    return [*flags, *([] if {"hard", "intermediate"} & set(more) else ["--no_teacher_check"]), *more]


def distil(inputs: Path, output: Path, *more: object) -> None:
    done = run_main("distill.py", *arguments(inputs, output, *more))
    assert done.status == 0, done


def at_step(count: int, act: Callable[[], object]) -> Callable[[], None]:
    """Returns a `prepare` that calls `act` in step `count`, counted from 1 since the start of the process."""

    def prepare() -> None:
        step, made = BertAdam.step, 0

        def watched(self, closure=None) -> None:
            nonlocal made
            made += 1
            if made == count:
                act()
            step(self, closure)

        BertAdam.step = watched

    return prepare


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def result(output: Path) -> dict[str, bytes]:
    """The files of a run that do not depend on time: student, losses, and checkpoints with the optimizer's state."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in ("distill.log", "speed.jsonl", "training_curves.png")
    }


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    distil(inputs, output)
    assert {path.name for path in output.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (2, 4, 6, 8)}
    return result(output)


# Resuming.


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 9])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_and_saves_a_checkpoint(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], stop: int, number: int
) -> None:
    output = tmp_path / "out"
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, output), prepare=at_step(stop, send(number)))
    assert done.status == STOPPED, done
    assert f"{signal.Signals(number).name}: finishing the step" in done.stderr
    assert f"stopped by a signal after step {stop}; --resume resumes it" in done.stderr
    check_checksums(output / f"checkpoint-{stop}", CHECKPOINT_FILES)
    assert not (output / "config.json").exists()
    assert not (output / ".lock").exists()
    distil(inputs, output, "--resume")
    assert f"resuming from {output / f'checkpoint-{stop}'}" in (output / "distill.log").read_text()
    ended = result(output)
    for name in set(ended) - set(uninterrupted):
        assert name.startswith(f"checkpoint-{stop}/")  # only this checkpoint is new
    assert {name: ended[name] for name in uninterrupted} == uninterrupted


def test_a_clock_that_is_set_back_changes_nothing(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(2e9, -1e5)  # a day back at each look
    monkeypatch.setattr(time, "time", lambda: next(clock))
    output = tmp_path / "out"
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, output), prepare=at_step(5, send(signal.SIGKILL)))
    assert done.status == -signal.SIGKILL
    for step in (2, 4):  # the newer checkpoint has the older files
        for path in (output / f"checkpoint-{step}").iterdir():
            os.utime(path, (1e9 - 1e8 * step,) * 2)
    distil(inputs, output, "--resume")
    assert f"resuming from {output / 'checkpoint-4'}" in (output / "distill.log").read_text()
    assert result(output) == uninterrupted


def test_nohup_lets_a_training_go_on(inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        at_step(3, send(signal.SIGHUP))()

    done = run_forked(tmp_path, "distill.py", *arguments(inputs, tmp_path / "out"), prepare=prepare)
    assert done.status == 0, done
    assert result(tmp_path / "out") == uninterrupted


def test_a_signal_saves_a_checkpoint_without_a_reader_of_stderr(inputs: Path, tmp_path: Path) -> None:
    def interrupt() -> None:  # as Ctrl-C does in `distill.py ... 2>&1 | tee log`
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 2)
        os.kill(os.getpid(), signal.SIGINT)

    done = run_forked(tmp_path, "distill.py", *arguments(inputs, tmp_path / "out"), prepare=at_step(3, interrupt))
    assert done.status != 0
    check_checksums(tmp_path / "out" / "checkpoint-3", CHECKPOINT_FILES)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs another file system")
def test_a_linked_directory_on_another_disk(inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        tmp_path.joinpath("out").symlink_to(elsewhere)
        distil(inputs, tmp_path / "out")
        assert result(Path(elsewhere)) == uninterrupted


def test_a_signal_in_the_last_step_is_too_late_to_stop(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    prepare = at_step(STEPS, send(signal.SIGTERM))
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, tmp_path / "out"), prepare=prepare)
    assert done.status == 0, done
    assert result(tmp_path / "out") == uninterrupted


def test_a_signal_while_the_student_is_written_is_too_late_to_stop(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    def prepare() -> None:
        replace = Path.replace

        def watched(self: Path, target: Path) -> Path:
            os.kill(os.getpid(), signal.SIGTERM)
            return replace(self, target)

        Path.replace = watched

    done = run_forked(tmp_path, "distill.py", *arguments(inputs, tmp_path / "out"), prepare=prepare)
    assert done.status == 0, done
    assert result(tmp_path / "out") == uninterrupted


@pytest.mark.parametrize("kill", [1, 2, 5, 6, 8])
def test_after_sigkill_in_a_step(inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], kill: int) -> None:
    output = tmp_path / "out"
    prepare = at_step(kill, send(signal.SIGKILL))
    assert run_forked(tmp_path, "distill.py", *arguments(inputs, output), prepare=prepare).status == -signal.SIGKILL
    prepare_resumed = at_step(1, send(signal.SIGKILL))
    # kill the resumed run too; before the first checkpoint it starts from the beginning
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, output, "--resume"), prepare=prepare_resumed)
    assert done.status == -signal.SIGKILL
    distil(inputs, output, "--resume")
    assert result(output) == uninterrupted


def fail_at(count: int, act: Callable[[], object], name: str = "checkpoint-4") -> Callable[[], None]:
    """Returns a `prepare` that calls `act` before call `count` to the file system with `name` in its arguments."""

    def prepare() -> None:
        calls = 0

        def watched(function: Callable) -> Callable:
            def call(*args, **kwargs):
                nonlocal calls
                if any(name in str(arg) for arg in args):
                    calls += 1
                    if calls == count:
                        act()
                return function(*args, **kwargs)

            return call

        for function in ("open", "rename", "mkdir"):
            setattr(os, function, watched(getattr(os, function)))
        for function in ("write_bytes", "write_text"):
            setattr(Path, function, watched(getattr(Path, function)))
        shutil.copyfile = watched(shutil.copyfile)

    return prepare


@pytest.mark.parametrize("call", [1, 2, 3, 4, 6, 8, 9, 12, 15, 17, 18])
def test_after_sigkill_inside_a_save(inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], call: int) -> None:
    output = tmp_path / "out"
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, output), prepare=fail_at(call, send(signal.SIGKILL)))
    assert done.status == -signal.SIGKILL
    assert {path.name for path in output.glob("checkpoint-*")} <= {"checkpoint-2", "checkpoint-4"}
    distil(inputs, output, "--resume")
    assert result(output) == uninterrupted
    assert not list(output.rglob(".*"))


@pytest.mark.slow
def test_after_sigkill_at_fifty_random_moments(inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    generator = random.Random(1)
    output = tmp_path / "out"
    killed = finished = 0
    start = time.monotonic()
    assert run_forked(tmp_path, "distill.py", *arguments(inputs, output)).status == 0
    seconds = time.monotonic() - start  # of a whole run
    shutil.rmtree(output)

    def kill_later(seconds: float) -> Callable[[], None]:
        def prepare() -> None:
            target = os.getpid()
            if os.fork() == 0:
                time.sleep(seconds)
                if os.getppid() == target:
                    os.kill(target, signal.SIGKILL)
                os._exit(0)

        return prepare

    # each run resumes the one before, until one finishes; then the next starts from the beginning
    while killed < 50 or not finished:
        prepare = kill_later(generator.uniform(0.02, 1) * seconds)
        status = run_forked(tmp_path, "distill.py", *arguments(inputs, output, "--resume"), prepare=prepare).status
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        if status == 0:
            assert result(output) == uninterrupted
            shutil.rmtree(output)
            finished += 1


@pytest.mark.parametrize(
    "more",
    [
        ["--distill_model", "hard"],
        ["--distill_model", "intermediate"],
        ["--distill_model", "standard", "--alpha", 0.3, "--gradient_accumulation_steps", 2],
        ["--precision", "bf16", "--teacher_dropout"],
        ["--ignore_padding", "--att_weight", 0.5, "--temperature", 2],
        ["--distill_model", "margin_mse"],
        ["--margin_weight", 0.5, "--gradient_accumulation_steps", 2],
    ],
    ids=lambda more: " ".join(map(str, more)),
)
def test_every_method_resumes_exactly(inputs: Path, tmp_path: Path, more: list[object]) -> None:
    distil(inputs, tmp_path / "whole", *more)
    output = tmp_path / "out"
    prepare = at_step(4, send(signal.SIGTERM))
    assert run_forked(tmp_path, "distill.py", *arguments(inputs, output, *more), prepare=prepare).status == STOPPED
    distil(inputs, output, "--resume", *more)
    assert result(output) == result(tmp_path / "whole")


@pytest.mark.parametrize("kill", [3, STEPS - 1, STEPS + 1, STEPS + 5])
def test_tinybert_resumes_in_either_training(inputs: Path, tmp_path: Path, kill: int) -> None:
    more = ["--distill_model", "tinybert"]
    distil(inputs, tmp_path / "whole", *more)
    output = tmp_path / "out"
    prepare = at_step(kill, send(signal.SIGKILL))
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, output, *more), prepare=prepare)
    assert done.status == -signal.SIGKILL
    first = (tmp_path / "out_intermediate" / "distill.log").read_text()
    assert (tmp_path / "out_intermediate" / "config.json").exists() == (kill > STEPS)
    distil(inputs, output, "--resume", *more)
    for name in ("", "_intermediate"):
        assert result(tmp_path / f"out{name}") == result(tmp_path / f"whole{name}")
    if kill > STEPS:  # a finished training is not repeated
        assert (tmp_path / "out_intermediate" / "distill.log").read_text() == first
    done = run_main("distill.py", *arguments(inputs, output, "--resume", *more))
    assert (done.status, done.stdout.count("is finished, there is nothing to resume")) == (0, 2)


def test_tinybert_that_replaces_a_finished_run_resumes_in_its_first_training(inputs: Path, tmp_path: Path) -> None:
    more = ["--distill_model", "tinybert"]
    output = tmp_path / "out"
    distil(inputs, output, *more)  # with checkpoints
    changed = [*more, "--seed", 7]
    prepare = at_step(4, send(signal.SIGTERM))
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, output, *changed, "--overwrite"), prepare=prepare)
    assert done.status == STOPPED
    assert (output / "config.json").exists()  # until the second training replaces it
    distil(inputs, output, "--resume", *changed)
    distil(inputs, tmp_path / "whole", *changed)
    for name in ("", "_intermediate"):
        assert result(tmp_path / f"out{name}") == result(tmp_path / f"whole{name}")


def test_two_threads_resume_exactly(inputs: Path, tmp_path: Path) -> None:
    def run(name: str, *more: object, **settings) -> Finished:
        return run_forked(tmp_path, "distill.py", *arguments(inputs, tmp_path / name, *more), threads=2, **settings)

    assert run("whole").status == 0
    assert "(2 threads)" in (tmp_path / "whole" / "distill.log").read_text()
    assert run("out", prepare=at_step(7, send(signal.SIGKILL))).status == -signal.SIGKILL
    assert run("out", "--resume").status == 0
    assert result(tmp_path / "out") == result(tmp_path / "whole")


def test_another_number_of_threads_gives_a_warning(inputs: Path, tmp_path: Path) -> None:
    stop_early(inputs, tmp_path)
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, tmp_path / "out", "--resume"), threads=2)
    assert done.status == 0
    assert "until now the run was on" in done.stderr
    assert "rounding may differ" in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gpu_resumes_exactly(inputs: Path, tmp_path: Path, precision: str) -> None:
    more = ["--device", "cuda", "--deterministic", "--precision", precision]
    done = run_script("distill.py", *arguments(inputs, tmp_path / "whole", *more))
    assert done.status == 0, done
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    for name in ("training.json", "config.json", "model.safetensors"):
        tmp_path.joinpath("out", name).unlink()
    tmp_path.joinpath("out", "training.json").write_text("{}")
    for step in (6, 8):
        shutil.rmtree(tmp_path / "out" / f"checkpoint-{step}")
    done = run_script("distill.py", *arguments(inputs, tmp_path / "out", "--resume", *more))
    assert done.status == 0, done
    assert result(tmp_path / "out") == result(tmp_path / "whole")


def stop_early(inputs: Path, directory: Path, after: int = 5, *more: object) -> Path:
    """Runs until a signal after step `after`, which is saved as a checkpoint."""
    output = directory / "out"
    prepare = at_step(after, send(signal.SIGTERM))
    assert run_forked(directory, "distill.py", *arguments(inputs, output, *more), prepare=prepare).status == STOPPED
    return output


def test_without_a_checkpoint_it_starts_from_the_beginning(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    distil(inputs, tmp_path / "new", "--resume")
    assert result(tmp_path / "new") == uninterrupted
    output = tmp_path / "out"
    prepare = at_step(1, send(signal.SIGKILL))
    run_forked(tmp_path, "distill.py", *arguments(inputs, output), prepare=prepare)
    assert not list(output.glob("checkpoint-*"))
    # there is no checkpoint to lose, so other settings are accepted
    distil(inputs, output, "--resume", "--distill_model", "standard")


def test_a_finished_run_says_so_and_stays(inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    distil(inputs, tmp_path / "out")
    log = (tmp_path / "out" / "distill.log").read_bytes()
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", "--resume"))
    assert (done.status, done.stderr) == (0, "")
    assert "is finished, there is nothing to resume" in done.stdout
    assert result(tmp_path / "out") == uninterrupted
    assert (tmp_path / "out" / "distill.log").read_bytes() == log
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", "--resume", "--seed", 43))
    assert_refused(done, "--resume", "differs in --seed (42 there, 43 here)")


def test_a_run_that_replaces_another_resumes(inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    output = tmp_path / "out"
    distil(inputs, output, "--seed", 43, "--save_model_step", 3)
    for kill in (1, 5):
        more = ["--overwrite"] if kill == 1 else ["--resume"]
        prepare = at_step(kill, send(signal.SIGKILL))
        done = run_forked(tmp_path, "distill.py", *arguments(inputs, output, *more), prepare=prepare)
        assert done.status == -signal.SIGKILL
        load_ranker(output)  # the earlier student stays until the new one is finished
    distil(inputs, output, "--resume")
    assert result(output) == uninterrupted


def test_without_resume_an_unfinished_run_is_kept(inputs: Path, tmp_path: Path) -> None:
    output = stop_early(inputs, tmp_path)
    before = result(output)
    done = run_main("distill.py", *arguments(inputs, output))
    assert_refused(done, "holds checkpoint-2 of an earlier run", "--resume to resume it", "--overwrite to replace it")
    assert result(output) == before
    done = run_main("distill.py", *arguments(inputs, output, "--resume", "--overwrite"))
    assert_refused(done, "--resume", "--overwrite")
    assert result(output) == before


def test_only_the_newest_checkpoints_are_kept(inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    distil(inputs, tmp_path / "out", "--keep_checkpoints", 2)
    kept = {
        name: content
        for name, content in uninterrupted.items()
        if not name.startswith(("checkpoint-2/", "checkpoint-4/"))
    }
    assert result(tmp_path / "out") == kept
    output = stop_early(inputs, tmp_path, 5, "--overwrite", "--keep_checkpoints", 1)
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-5"]


# What a run does not resume with.


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (["--learning_rate", 1e-3], "--learning_rate (0.01 there, 0.001 here)"),
        (["--distill_model", "standard"], "--distill_model (simplified there, standard here)"),
        (["--num_train_epochs", 3], "--num_train_epochs (2 there, 3 here)"),
        (["--train_batch_size", 2], "--train_batch_size (4 there, 2 here)"),
        (["--train_loss_step", 1], "--train_loss_step (3 there, 1 here)"),
        (["--pooled_activation", "relu"], "--pooled_activation (none there, relu here)"),
        (["--layer_map", "1,2,3"], "--layer_map ([0, 2, 4, 6] there, [0, 1, 2, 3] here)"),
        (["--precision", "bf16"], "--precision (fp32 there, bf16 here)"),
        (["--weight_decay", 0], "--weight_decay (0.01 there, 0.0 here)"),
        (["--seed", 1], "--seed (42 there, 1 here)"),
    ],
)
def test_other_settings_are_refused_and_named(
    inputs: Path, tmp_path: Path, more: list[object], difference: str
) -> None:
    output = stop_early(inputs, tmp_path)
    before = result(output)
    done = run_main("distill.py", *arguments(inputs, output, "--resume", *more))
    assert_refused(done, "--resume", str(output), difference)
    assert result(output) == before


def test_other_data_and_models_are_refused_and_named_but_not_other_places(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    output = stop_early(inputs, tmp_path)
    before = result(output)
    write_tiny_features(tmp_path / "features", count=21, seed=1)
    weights = teacher_weights()
    weights["bert.encoder.layer.5.output.dense.bias"][3] += 1e-3
    write_published(tmp_path / "teacher", TEACHER, weights)
    write_transformers(tmp_path / "general", STUDENT, student_weights())  # without dropout
    for flag, name in (
        ("--features_file", "features"),
        ("--teacher_model", "teacher"),
        ("--general_student_model", "general"),
    ):
        done = run_main("distill.py", *arguments(inputs, output, "--resume", flag, tmp_path / name))
        assert_refused(done, f"differs in {flag} (other content);")
    assert result(output) == before
    moved = tmp_path / "moved"
    shutil.copytree(inputs, moved)
    # the same teacher in another file format
    shutil.rmtree(moved / "teacher")
    write_transformers(moved / "teacher", TEACHER, teacher_weights())
    done = run_main("distill.py", *arguments(moved, output, "--resume", "--save_model_step", 4, "--layer_map", "2,4,6"))
    assert done.status == 0, done
    assert result(output)["model.safetensors"] == uninterrupted["model.safetensors"]


def test_a_second_run_into_a_directory_is_refused(inputs: Path, tmp_path: Path) -> None:
    output = stop_early(inputs, tmp_path)
    before = result(output)
    with open(output / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for more in (["--resume"], ["--overwrite"], []):
            done = run_main("distill.py", *arguments(inputs, output, *more))
            assert_refused(done, "--output_student_dir", "another run is writing into", str(output))
    assert {name: content for name, content in result(output).items() if name != ".lock"} == before
    distil(inputs, output, "--resume")  # the lock file alone, without a lock, stops nothing


def test_a_run_locks_its_directory_while_it_trains(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def second() -> None:
        with open(output / ".lock", "rb") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    done = run_forked(tmp_path, "distill.py", *arguments(inputs, output), prepare=at_step(3, second))
    assert done.status == 0, done


# Damage.


def damaged(checkpoint: Path) -> bool:
    try:
        check_checksums(checkpoint, CHECKPOINT_FILES)
    except InputError as error:
        assert str(checkpoint) in str(error)
        return True
    return False


@pytest.mark.slow
def test_a_checkpoint_with_any_bit_flipped_or_any_part_cut_off_is_refused(inputs: Path, tmp_path: Path) -> None:
    checkpoint = stop_early(inputs, tmp_path) / "checkpoint-4"
    assert not damaged(checkpoint)
    generator = random.Random(2)
    files = sorted(checkpoint.iterdir())
    assert len(files) == 8
    sizes = [file.stat().st_size for file in files]

    def with_content(file: Path, content: bytes) -> bool:
        before = file.read_bytes()
        file.write_bytes(content)
        found = damaged(checkpoint)
        file.write_bytes(before)
        return found

    # half of the faults in any file, half in SHA256SUMS, which has no checksum itself
    for place in range(1000):
        file = generator.choices(files, sizes)[0] if place % 2 else checkpoint / "SHA256SUMS"
        content = bytearray(file.read_bytes())
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        assert with_content(file, bytes(content)), file
    for place in range(200):
        file = generator.choice(files) if place % 2 else checkpoint / "SHA256SUMS"
        content = file.read_bytes()
        if content:  # train_loss.jsonl can be empty
            assert with_content(file, content[: generator.randrange(len(content))]), file
    assert not damaged(checkpoint)


def test_other_files_in_a_checkpoint_do_no_harm(inputs: Path, tmp_path: Path) -> None:
    output = stop_early(inputs, tmp_path, 4)
    (output / "checkpoint-4" / "scores.tsv").write_text("of the checkpoint")
    distil(inputs, output, "--resume")
    assert f"resuming from {output / 'checkpoint-4'}" in (output / "distill.log").read_text()


def test_a_checkpoint_that_is_a_link_or_a_file_is_removed_alone(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    output = stop_early(inputs, tmp_path, 6)
    (output / "checkpoint-6").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "config.json").write_text("damaged")
    (output / "checkpoint-6").symlink_to(tmp_path / "elsewhere")
    (output / "checkpoint-8").write_text("no directory")
    distil(inputs, output, "--resume")
    assert result(output) == uninterrupted
    assert (tmp_path / "elsewhere" / "SHA256SUMS").exists()


def test_a_disk_error_does_not_count_as_damage(inputs: Path, tmp_path: Path) -> None:
    output = stop_early(inputs, tmp_path, 4)
    before = result(output)
    failing = mock.patch("formats.checksums.file_sha256", side_effect=OSError(errno.EIO, "I/O error", "the file"))
    with failing:
        done = run_main("distill.py", *arguments(inputs, output, "--resume"))
    assert_refused(done, "the file: I/O error")
    assert result(output) == before


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.safetensors", "train_loss.jsonl", "SHA256SUMS"])
@pytest.mark.parametrize("fault", ["flipped", "cut", "missing"])
def test_the_checkpoint_before_a_damaged_one_is_used(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], name: str, fault: str
) -> None:
    output = stop_early(inputs, tmp_path, 6)
    path = output / "checkpoint-6" / name
    content = path.read_bytes()
    path.write_bytes(content[:-5] if fault == "cut" else content[:-1] + bytes([content[-1] ^ 4]))
    if fault == "missing":
        path.unlink()
    done = run_main("distill.py", *arguments(inputs, output, "--resume"))
    assert done.status == 0, done
    log = (output / "distill.log").read_text()
    assert f"{output / 'checkpoint-6'}" in log
    assert "resuming from an earlier checkpoint" in log
    assert f"resuming from {output / 'checkpoint-4'}" in log
    assert result(output) == uninterrupted


def test_with_all_checkpoints_damaged_it_starts_from_the_beginning(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    output = stop_early(inputs, tmp_path, 4)
    for checkpoint in output.glob("checkpoint-*"):
        (checkpoint / "model.safetensors").write_bytes(b"")
    done = run_main("distill.py", *arguments(inputs, output, "--resume"))
    assert done.status == 0, done
    assert "resuming from the beginning" in done.stderr
    assert result(output) == uninterrupted


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"finished": 1}', b"\xff", b'{"finished": true, "settings": 3}']
)
def test_a_damaged_training_json_loses_nothing(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], content: bytes
) -> None:
    output = stop_early(inputs, tmp_path, 4)
    (output / "training.json").write_bytes(content)
    distil(inputs, output, "--resume")
    assert "resuming from" in (output / "distill.log").read_text()
    assert result(output) == uninterrupted


# Disk errors.


@pytest.mark.parametrize("call", [1, 2, 4, 8, 9, 15, 18])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_an_error_while_a_checkpoint_is_saved(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], call: int, number: int
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    output = tmp_path / "out"
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, output), prepare=fail_at(call, fail))
    assert done.status == 2, done
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"distill.py: error: {output / 'checkpoint-4'}"), last
    assert os.strerror(number) in last
    assert ".partial" not in last
    assert "Traceback" not in done.stderr
    check_checksums(output / "checkpoint-2", CHECKPOINT_FILES)
    load_ranker(output / "checkpoint-2")
    assert not (output / "checkpoint-4").exists() or call == 18  # at call 18 it was complete; only the last sync failed
    assert not list(output.rglob(".*"))
    distil(inputs, output, "--resume")
    assert result(output) == uninterrupted


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.safetensors"])
def test_a_limit_on_the_size_of_files(inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], name: str) -> None:
    output = tmp_path / "out"
    size = len(uninterrupted[f"checkpoint-4/{name}"])
    limit = at_step(3, lambda: limit_files(size - 1))
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, output), prepare=limit)
    assert done.status == 2, done
    assert (
        done.stderr.splitlines()[-1] == f"distill.py: error: {output / 'checkpoint-4'}: while writing: File too large"
    )
    check_checksums(output / "checkpoint-2", CHECKPOINT_FILES)
    assert not (output / "checkpoint-4").exists()
    distil(inputs, output, "--resume")
    assert result(output) == uninterrupted


def test_losses_that_cannot_be_written(inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    output = tmp_path / "out"

    def limit() -> None:
        limit_files((output / "train_loss.jsonl").stat().st_size + 20)

    more = ["--save_model_step", 3]
    done = run_forked(tmp_path, "distill.py", *arguments(inputs, output, *more), prepare=at_step(5, limit))
    assert done.status == 2, done
    assert done.stderr.splitlines()[-1].startswith(f"distill.py: error: {output / 'train_loss.jsonl'}: while writing: ")
    assert "Traceback" not in done.stderr
    distil(inputs, output, "--resume", *more)
    assert result(output)["train_loss.jsonl"] == uninterrupted["train_loss.jsonl"]
    assert result(output)["model.safetensors"] == uninterrupted["model.safetensors"]


# Losses, gradients and weights that are not finite.


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    trained = torch.nn.ModuleDict({"fit_dense": torch.nn.Linear(2, 3)})
    training = Training(trained, BertAdam(trained.parameters(), lr=1, total_steps=1), torch.amp.GradScaler("cpu"))
    trained["fit_dense"].bias.data[1] = float("inf")
    with pytest.raises(TrainingStateError, match=r"fit_dense\.bias is not finite"):
        save_training_state(tmp_path, training, [], Progress(), {})
    assert not list(tmp_path.iterdir())


def with_loss(name: str, change: Callable[[torch.Tensor], torch.Tensor], first: int, last: int | None = None):
    """Patches one of the losses: its calls `first` to `last` return a changed value."""
    original, calls = getattr(modeling.losses, name), 0

    def changed(*args, **kwargs) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = original(*args, **kwargs)
        return change(loss) if first <= calls <= (last or first) else loss

    return mock.patch.object(modeling.losses, name, changed)


def without_finite_gradient(loss: torch.Tensor) -> torch.Tensor:
    return loss + torch.sqrt(0.0 * loss)  # its derivative is 0 / 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["attention_loss", "hidden_states_loss", "soft_label_loss", "hard_label_loss"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], name: str, value: float
) -> None:
    output = tmp_path / "out"
    with with_loss(name, lambda loss: loss * 0 + value, first=5):
        done = run_main("distill.py", *arguments(inputs, output, "--save_model_step", 4))
    assert done.status == 2
    term = {"attention_loss": "att", "hidden_states_loss": "rep", "soft_label_loss": "soft", "hard_label_loss": "hard"}
    last = done.stderr.splitlines()[-1]
    assert last.startswith("distill.py: error: step 5: loss, ")
    assert f"{term[name]}_loss not finite" in last or f"{term[name]}_loss, " in last
    named = last.rpartition("look at the teacher and the examples ")[2].split(", ")
    assert len(set(named)) == 4 and all(re.fullmatch(r"q\d#e\d+", example_id) for example_id in named)
    assert not (output / "config.json").exists()
    distil(inputs, output, "--resume", "--save_model_step", 4)
    assert result(output)["model.safetensors"] == uninterrupted["model.safetensors"]


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with with_loss(
        "hard_label_loss", without_finite_gradient, first=STEPS
    ):  # in the last step, so that no later loss shows it
        done = run_main("distill.py", *arguments(inputs, output))
    assert done.status == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"distill.py: error: step {STEPS}: the norm of a gradient is not finite")
    assert not (output / "config.json").exists()


@pytest.fixture
def read_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a CPU read the losses of steps as late as a GPU does."""
    monkeypatch.setitem(training.unread_steps.AT_ONCE, "cpu", 1000)


@pytest.mark.parametrize("fault", [lambda loss: loss * float("nan"), without_finite_gradient], ids=["loss", "gradient"])
def test_an_error_that_is_read_late_stops_before_the_weights_change(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], read_late: None, fault: Callable
) -> None:
    output, more = tmp_path / "out", ["--train_loss_step", STEPS, "--save_model_step", 3]
    with with_loss("hard_label_loss", fault, first=4):  # step 6 reads steps 4 to 6
        done = run_main("distill.py", *arguments(inputs, output, *more))
    assert done.status == 2
    names = "the norm of a gradient is" if fault is without_finite_gradient else "loss, cls_loss, hard_loss"
    assert f"error: step 4: {names} not finite" in done.stderr.splitlines()[-1]
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-3"]
    distil(inputs, output, "--resume", *more)
    assert result(output)["model.safetensors"] == uninterrupted["model.safetensors"]


def test_losses_that_are_read_late_are_the_same(
    inputs: Path, tmp_path: Path, uninterrupted: dict[str, bytes], read_late: None
) -> None:
    distil(inputs, tmp_path / "out")
    assert result(tmp_path / "out") == uninterrupted


def test_no_step_follows_one_that_is_not_finite() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer, precision = BertAdam([weight], lr=0.1, total_steps=9, warmup=0.0), Precision("bf16", torch.device("cpu"))
    precision.initialize(torch.nn.ModuleDict(), optimizer)
    skipped, kept = [], []
    for loss, gradient in ((1.0, 1.0), (1.0, float("inf")), (1.0, 1.0), (float("nan"), 1.0)):
        weight.grad = torch.full((2,), gradient)
        skipped.append(precision.step(optimizer, torch.tensor([loss, 2.0])))
        kept.append(weight.detach().clone())
    assert torch.stack(skipped).tolist() == [0, 1, 1, 1]
    assert kept[0].tolist() != [1, 2]
    assert all(torch.equal(kept[0], later) for later in kept[1:])


def test_a_teacher_that_overflows_stops_the_run(inputs: Path, tmp_path: Path) -> None:
    weights = teacher_weights()
    weights["bert.encoder.layer.0.output.dense.weight"] *= 1e37
    write_published(tmp_path / "teacher", TEACHER, weights)
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", "--teacher_model", tmp_path / "teacher"))
    assert done.status == 2
    assert "error: step 1: loss, " in done.stderr.splitlines()[-1]
    assert "look at the teacher and the examples q" in done.stderr.splitlines()[-1]


@pytest.fixture
def float16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a CPU train in float16, with the same scaler; slow, but it needs no GPU."""
    monkeypatch.setattr("runtime.device.choose_precision", lambda *_: "fp16")


@pytest.mark.parametrize("fault", [lambda loss: loss * float("inf"), without_finite_gradient], ids=["loss", "gradient"])
def test_in_float16_a_step_that_overflows_is_skipped_and_counted(
    inputs: Path, tmp_path: Path, float16_on_a_cpu: None, fault: Callable
) -> None:
    more = ["--distill_model", "hard", "--train_loss_step", 1]
    with with_loss("hard_label_loss", fault, first=3, last=4):
        done = run_main("distill.py", *arguments(inputs, tmp_path / "out", *more))
    assert done.status == 0, done
    assert f"2 of {STEPS} steps skipped" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "train_loss.jsonl").read_text().splitlines()]
    assert lines[3]["learning_rate"] == lines[2]["learning_rate"] == lines[4]["learning_rate"]
    assert lines[5]["learning_rate"] != lines[4]["learning_rate"]
    assert [line["loss"] is None for line in lines] == [
        number in (3, 4) and fault is not without_finite_gradient for number in range(1, STEPS + 1)
    ]


def test_in_float16_the_scaler_resumes_exactly(inputs: Path, tmp_path: Path, float16_on_a_cpu: None) -> None:
    more = ["--distill_model", "hard"]
    with with_loss("hard_label_loss", without_finite_gradient, first=2, last=3):
        distil(inputs, tmp_path / "whole", *more)
    output = tmp_path / "out"
    with with_loss("hard_label_loss", without_finite_gradient, first=2, last=3):
        prepare = at_step(2, send(signal.SIGTERM))  # the second step that is not skipped
        done = run_forked(tmp_path, "distill.py", *arguments(inputs, output, *more), prepare=prepare)
    assert done.status == STOPPED
    distil(inputs, output, "--resume", *more)
    assert result(output) == result(tmp_path / "whole")


def test_in_float16_a_run_that_skips_every_step_stops(inputs: Path, tmp_path: Path, float16_on_a_cpu: None) -> None:
    more = ["--distill_model", "hard", "--num_train_epochs", 30, "--save_model_step", 0]
    with with_loss("hard_label_loss", lambda loss: loss * float("nan"), first=11, last=1000):
        done = run_main("distill.py", *arguments(inputs, tmp_path / "out", *more))
    assert done.status == 2
    assert "error: step 110: a loss or a gradient was not finite in float16, 100 times" in done.stderr
    assert not (tmp_path / "out" / "config.json").exists()
