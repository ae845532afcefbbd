"""Inputs and outputs of all scripts: no input is lost, and files that belong together appear together."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from test_make_table import RECIPE
from tiny import (
    ONE_THREAD,
    ROOT,
    STUDENT,
    TEACHER,
    Finished,
    assert_refused,
    run_forked,
    run_main,
    run_script,
    student_weights,
    teacher_weights,
    write_tiny_features,
    write_transformers,
)

from formats.atomic import atomic_files, undo_unfinished_move

# A script; its inputs by flag; its outputs: a flag, and the suffixes of the files that it writes for this flag.
TOKENIZE = ("tokenize_to_features.py", {"raw_data_file": "test.tsv", "bert_model_dir": "model"},
            {"output_features_file": ("", ".log", ".rejected.tsv")},
            ["--set_name=test", "--skip_malformed"])  # fmt: skip
RERANK = ("rerank.py", {"features_file": "test.features", "model_dir": "model"},
          {"output_scores_file": ("", ".log", ".speed.json")}, ["--device=cpu"])  # fmt: skip
CONVERT = ("convert_to_trec_results.py", {"scores_file": "scores.tsv"},
           {"output_results_file": ("", ".rejected.tsv")}, ["--skip_malformed"])  # fmt: skip
EVALUATE = ("msmarco_mrr_eval.py", {"": "qrels", " ": "run", "baseline": "other.run"}, {"per_query": ("",)}, [])
COLLECTION = {"collection": "docs.tsv", "queries": "queries.tsv"}
CANDIDATES = ("data_preparation/make_candidates.py", COLLECTION | {"qrels": "qrels"},
              {"output_run_file": ("", ".log"), "output_qrels_file": ("",)}, [])  # fmt: skip
TRAIN_PAIRS = ("data_preparation/make_train_pairs.py", COLLECTION | {"qrels": "qrels", "candidates": "run"},
               {"output_pairs_file": ("", ".log", ".report.json"), "output_positives_file": ("",)}, [])  # fmt: skip
RERANK_PAIRS = ("data_preparation/make_rerank_pairs.py", COLLECTION | {"candidates": "run"},
                {"output_pairs_file": ("", ".log", ".report.json")}, [])  # fmt: skip
FILTER = ("data_preparation/filter_positives.py", {"pairs_file": "train.tsv", "scores_file": "positives.scores"},
          {"output_pairs_file": ("", ".log", ".png", ".report.json")}, [])  # fmt: skip
SPLIT = ("data_preparation/split_queries.py", {"qrels": "qrels"},
         {"output_train_qrels": ("", ".log"), "output_dev_qrels": ("",)}, ["--num_dev=1"])  # fmt: skip
TEXT = ("data_preparation/make_text.py", {"collection": "docs.tsv"}, {"output_text_file": ("", ".log")}, [])
SAMPLE = ("data_preparation/sample_run.py", {"run": "run"}, {"output_run_file": ("", ".log")}, ["--num_queries=2"])
RELEASED = ("data_preparation/take_released.py", {"source": "train.tsv"}, {"output": ("", ".log", ".rejected.tsv")},
            ["--kind=train_pairs", "--skip_malformed"])  # fmt: skip
SCRIPTS = [TOKENIZE, RERANK, CONVERT, EVALUATE, CANDIDATES, TRAIN_PAIRS, RERANK_PAIRS, FILTER, SPLIT, TEXT, SAMPLE,
           RELEASED]  # fmt: skip
# The output that appears last.
REPORT = "output_pairs_file.report.json"
LAST = {"make_candidates": "output_run_file", "split_queries": "output_dev_qrels", "make_train_pairs": REPORT,
        "make_rerank_pairs": REPORT, "filter_positives": REPORT}  # fmt: skip
SEVERAL_OUTPUTS = [CANDIDATES, TRAIN_PAIRS, RERANK_PAIRS, FILTER, SPLIT]


def name_of(script: tuple) -> str:
    return Path(script[0]).stem


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with an input of each kind."""
    directory = tmp_path / "files"
    directory.mkdir()
    write_transformers(directory / "model", STUDENT, student_weights())
    write_tiny_features(directory / "test.features", count=9, set_name="test")
    ids = [(query, f"d{document}") for query in range(3) for document in range(4)]
    texts = {
        "test.tsv": "".join(f"{query}#{doc}_0\tthe\tcat\n" for query, doc in ids),
        "train.tsv": "".join(f"{query}#{doc}_0\tthe\tcat\t{int(doc == 'd1')}\n" for query, doc in ids),
        "scores.tsv": "".join(f"{query}\t{doc}_0\t0.{query}\n" for query, doc in ids),
        "positives.scores": "".join(f"{query}\td1_0\t0.75\n" for query in range(3)),
        "docs.tsv": "".join(f"d{i}\turl\ttitle\tthe cat number{i} sat on {i} mats\n" for i in range(4)),
        "queries.tsv": "".join(f"{query}\tnumber{query} cat\n" for query in range(3)),
        "qrels": "".join(f"{query} 0 d1 1\n" for query in range(3)),
        "run": "".join(f"{query} Q0 {doc} 1 {1 / (1 + int(doc[1]))} x\n" for query, doc in ids),
        "other.run": "".join(f"{query} Q0 {doc} 1 {int(doc[1])} x\n" for query, doc in ids),
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
    return directory


def arguments(script: tuple, files: Path, outputs: dict[str, Path], *more: str) -> list[object]:
    """The command line of a script. A flag of one or no character is a positional argument."""
    inputs = {flag: files / name for flag, name in script[1].items()}
    positional = [path for flag, path in inputs.items() if not flag.strip()]
    flags = [f"--{flag}={path}" for flag, path in inputs.items() if flag.strip()]
    return [*positional, *flags, *(f"--{flag}={path}" for flag, path in outputs.items()), *script[3], *more]


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def output_paths(script: tuple, directory: Path) -> dict[str, Path]:
    return {flag: directory / f"out_{flag}" for flag in script[2]}


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "symbolic link": lambda output, source: output.symlink_to(source),
    "hard link": lambda output, source: output.hardlink_to(source),
}


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_no_output_replaces_an_input(files: Path, tmp_path: Path, script: tuple) -> None:
    """Each pair of input and output, as the same path and as a link; also files beside an output, and of a model."""
    before, tried = content(files), 0
    inputs = [files / name for name in script[1].values()]
    inputs = [part for path in inputs for part in (sorted(path.iterdir()) if path.is_dir() else [path])]
    for source in inputs:
        for flag, suffixes in script[2].items():
            for suffix in suffixes:
                for kind, link in LINKS.items():
                    outputs = output_paths(script, tmp_path)
                    path = outputs[flag].with_name(outputs[flag].name + suffix)
                    link(path, source)
                    done = run_main(script[0], *arguments(script, files, outputs, "--overwrite"))
                    assert_refused(done, f"--{flag}", path, "is also an input")
                    assert content(files) == before, (source, flag, suffix, kind)
                    path.unlink()
                    tried += 1
            done = run_main(script[0], *arguments(script, files, outputs | {flag: source}, "--overwrite"))
            assert_refused(done, f"--{flag}", source, "is also an input")
            assert content(files) == before
    assert tried >= 4
    assert os.listdir(tmp_path) == ["files"]


def test_a_result_in_a_model_directory_can_be_replaced(files: Path) -> None:
    for script, flag, name in (
        (RERANK, "output_scores_file", "scores"),
        (TOKENIZE, "output_features_file", "features"),
    ):
        for _ in range(2):
            done = run_main(script[0], *arguments(script, files, {flag: files / "model" / name}, "--overwrite"))
            assert done.status == 0, done.stderr


@pytest.mark.parametrize("script", [CANDIDATES, TRAIN_PAIRS, SPLIT], ids=name_of)
def test_no_output_replaces_another_output(files: Path, tmp_path: Path, script: tuple) -> None:
    (first, suffixes), (second, _) = script[2].items()
    for suffix in suffixes:
        outputs = {first: tmp_path / "out", second: tmp_path / f"out{suffix}"}
        assert_refused(run_main(script[0], *arguments(script, files, outputs)), f"--{second}", f"--{first}")
    assert os.listdir(tmp_path) == ["files"]


# --- distill.py


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Path:
    """The inputs of a training."""
    directory = tmp_path_factory.mktemp("training")
    write_transformers(directory / "teacher", TEACHER, teacher_weights())
    write_transformers(directory / "general", STUDENT, student_weights())
    write_tiny_features(directory / "features", count=8)
    write_tiny_features(directory / "dev", count=9, set_name="test")
    (directory / "qrels").write_text("".join(f"q{i} 0 D{i} 1\n" for i in range(3)))
    return directory


def distill_arguments(inputs: dict[str, Path], output: Path, *more: object) -> list[object]:
    flags = [f"--{flag}={path}" for flag, path in inputs.items()]
    return [*flags, f"--output_student_dir={output}", "--train_batch_size=4", "--num_train_epochs=1", "--device=cpu",
            "--no_teacher_check", *more]  # fmt: skip


WRITTEN = ("speed.jsonl", "train_loss.jsonl", "dev_eval.jsonl", "training.json", "distill.log", "training_curves.png",
           "config.json", "model.safetensors", "vocab.txt", "tokenizer.json", ".lock", "checkpoint-4/features",
           "best-2/features", ".x.12.partial", "checkpoint-7")  # fmt: skip


@pytest.mark.parametrize("flag", ["features_file", "dev_features_file", "dev_qrels"])
def test_a_training_removes_no_file_that_it_reads(training: Path, tmp_path: Path, flag: str) -> None:
    names = {"teacher_model": "teacher", "general_student_model": "general", "features_file": "features",
             "dev_features_file": "dev", "dev_qrels": "qrels"}  # fmt: skip
    inputs = {name: training / file for name, file in names.items()}
    for name in WRITTEN:
        for place in ("in it", "symbolic link", "hard link"):
            for more in ([], ["--overwrite"], ["--distill_model=tinybert"]):
                output = tmp_path / "out"
                path = (tmp_path / "out_intermediate" if "tinybert" in "".join(more) else output) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if place == "in it":
                    shutil.copy(inputs[flag], path)
                    given = inputs | {flag: path}
                else:
                    LINKS[place](path, inputs[flag])
                    given = inputs
                done = run_main("distill.py", *distill_arguments(given, output, *more))
                assert_refused(done, "--output_student_dir", f"{given[flag]} is an input and would be lost")
                assert path.read_bytes() == inputs[flag].read_bytes()
                for directory in tmp_path.iterdir():
                    shutil.rmtree(directory)


@pytest.mark.parametrize("flag", ["teacher_model", "general_student_model"])
def test_a_training_removes_no_model_that_it_reads(training: Path, tmp_path: Path, flag: str) -> None:
    names = {"teacher_model": "teacher", "general_student_model": "general", "features_file": "features"}
    inputs = {name: training / file for name, file in names.items()}
    output = tmp_path / "out"
    for place, more in (("", []), ("checkpoint-3", ["--resume"]), ("best-3", ["--overwrite"]), ("", ["--overwrite"])):
        shutil.copytree(inputs[flag], output / place, dirs_exist_ok=True)
        before = content(output)
        (tmp_path / "link").symlink_to(output / place)
        for name in (output / place, tmp_path / "link"):
            done = run_main("distill.py", *distill_arguments(inputs | {flag: name}, output, *more))
            assert_refused(done, "--output_student_dir", f"{name} is an input and would be lost")
        assert content(output) == before
        shutil.rmtree(output)
        (tmp_path / "link").unlink()
    # an input elsewhere in the directory stays, and the training runs
    shutil.copytree(inputs[flag], output / "models" / "mine")
    before = content(output)
    done = run_main("distill.py", *distill_arguments(inputs | {flag: output / "models" / "mine"}, output))
    assert done.status == 0, done.stderr
    assert before.items() <= content(output).items()


def test_a_table_removes_no_file_of_a_test_set(tmp_path: Path) -> None:
    written = ("results/tiny/table.md", "results/tiny/rows/teacher.json", "runs/tiny/test/simplified.42.run",
               "models/tiny/rows/simplified.42/qrels")  # fmt: skip
    for name in written:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(RECIPE.replace('qrels = "data/tiny/qrels"', f'qrels = "{name}"'))
        assert_refused(run_main("experiments/make_table.py", recipe), "test_sets.", name, "is also an output")


# --- standard output and logs that are full

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def full_stdout(*arguments: object) -> Finished:
    """Runs a script as a process with a full standard output."""
    with open(FULL, "w") as stdout:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, stdout=stdout, stderr=subprocess.PIPE, text=True)
    return Finished(done.returncode, "", done.stderr)


@needs_full
@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_with_a_full_stdout_the_output_is_complete_and_named(files: Path, tmp_path: Path, script: tuple) -> None:
    expected = output_paths(script, tmp_path)
    assert run_main(script[0], *arguments(script, files, expected)).status == 0
    (tmp_path / "other").mkdir()
    outputs = output_paths(script, tmp_path / "other")
    done = full_stdout(script[0], *arguments(script, files, outputs))
    first = next(iter(outputs.values()))
    assert_refused(done, f"standard output: No space left on device; {first} is complete")
    for flag, suffixes in script[2].items():
        for suffix in set(suffixes) - {".report.json", ".speed.json", ".rejected.tsv"}:  # with times and paths
            path, other = (Path(f"{paths[flag]}{suffix}") for paths in (expected, outputs))
            assert other.exists()
            assert suffix == ".log" or path.read_bytes() == other.read_bytes()


@needs_full
def test_measures_alone_on_a_full_stdout_are_one_line(files: Path) -> None:
    done = full_stdout("msmarco_mrr_eval.py", files / "qrels", files / "run")
    assert_refused(done, "standard output: No space left on device")
    assert "complete" not in done.stderr


@needs_full
@pytest.mark.parametrize(
    "script", [one for one in SCRIPTS if ".log" in next(iter(one[2].values()))], ids=name_of
)  # fmt: skip
def test_with_a_full_log_the_output_is_complete_and_named(files: Path, tmp_path: Path, script: tuple) -> None:
    outputs = output_paths(script, tmp_path)
    first = next(iter(outputs.values()))
    log = Path(f"{first}.log")
    log.symlink_to(FULL)
    done = run_main(script[0], *arguments(script, files, outputs))
    assert_refused(done, f"{log}: while writing: No space left on device; {first} is complete")
    assert first.stat().st_size > 0 and done.stdout.count("\n") == 1


@needs_full
def test_with_a_full_log_a_student_is_complete_and_named(training: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "distill.log").symlink_to(FULL)
    inputs = {"teacher_model": training / "teacher", "general_student_model": training / "general",
              "features_file": training / "features"}  # fmt: skip
    done = run_main("distill.py", *distill_arguments(inputs, output))
    assert done.status == 2
    last = done.stderr.splitlines()[-1]
    assert last.endswith(
        f"error: {output}/distill.log: while writing: No space left on device; {output} is complete"
    ) and "Traceback" not in done.stderr  # fmt: skip
    assert json.loads((output / "training.json").read_text())["finished"] is True
    assert (output / "model.safetensors").exists()


# --- several outputs


def complete_set(script: tuple, directory: Path) -> dict[str, bytes]:
    """The outputs without logs, and without times in the reports."""
    found = {name: data for name, data in content(directory).items() if not name.endswith(".log")}
    return {
        name: re.sub(rb'"(seconds|passages_per_second|overwrite)": .*', b"", data).replace(
            str(directory).encode(), b"DIRECTORY"
        )
        for name, data in found.items()
    }


@contextlib.contextmanager
def at_move(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Calls `act` before the move of this number: a rename after the note that lists the files to move."""
    replace, moves = os.replace, 0

    def counted(source: object, target: object, **named: object) -> None:
        nonlocal moves
        if moves or str(target).endswith(".moving"):
            moves += 1
            if moves == number + 1:
                act()
        replace(source, target, **named)

    with mock.patch.object(os, "replace", counted):
        yield


def fails() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("is_older", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("script", SEVERAL_OUTPUTS, ids=name_of)
def test_all_outputs_are_there_or_none(files: Path, tmp_path: Path, script: tuple, is_older: bool) -> None:
    """After a kill, SIGTERM or an error at each of the moves; then the same command runs."""
    expected = tmp_path / "expected"
    expected.mkdir()
    assert run_main(script[0], *arguments(script, files, output_paths(script, expected))).status == 0
    complete = complete_set(script, expected)
    more = ["--overwrite"] if is_older else []
    stopped = 0
    for number in range(1, len(complete) * (1 + is_older) + 2):
        for act, status in ((lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL),
                            (lambda: os.kill(os.getpid(), signal.SIGTERM), 143), (fails, 2)):  # fmt: skip
            out = tmp_path / "out"
            out.mkdir()
            older = dict.fromkeys(complete, b"older") if is_older else {}
            for name, data in older.items():
                (out / name).write_bytes(data)
            stack = contextlib.ExitStack()

            def prepare(stack=stack, number=number, act=act) -> None:
                stack.enter_context(at_move(number, act))

            command = [script[0], *arguments(script, files, output_paths(script, out), *more)]
            done = run_forked(tmp_path, *command, prepare=prepare)
            assert done.status in (0, status), done.stderr
            if done.status == status:
                stopped += 1
                if status != -signal.SIGKILL:
                    assert complete_set(script, out) == older
                    assert not list(out.glob(".*"))
                elif not is_older and (out / f"out_{LAST[name_of(script)]}").exists():
                    assert content(out).keys() >= complete.keys()
                if done.status == 2:
                    assert_refused(done, "No space left on device")
                done = run_forked(tmp_path, *command)  # the same command
                assert done.status == 0, done.stderr
            assert complete_set(script, out) == complete
            assert not list(out.glob(".*"))
            shutil.rmtree(out)
    assert stopped >= 3 * len(complete)


@pytest.mark.slow
@pytest.mark.parametrize("script", SEVERAL_OUTPUTS, ids=name_of)
def test_all_outputs_are_there_after_a_kill_at_any_moment(files: Path, tmp_path: Path, script: tuple) -> None:
    expected = tmp_path / "expected"
    expected.mkdir()
    assert run_main(script[0], *arguments(script, files, output_paths(script, expected))).status == 0
    complete = complete_set(script, expected)
    rng = random.Random(name_of(script))
    start = time.monotonic()
    run_script(script[0], *arguments(script, files, output_paths(script, expected)), "--overwrite")
    seconds = time.monotonic() - start
    killed = 0
    for _ in range(20):
        out = tmp_path / "out"
        out.mkdir()
        command = [sys.executable, ROOT / script[0], *arguments(script, files, output_paths(script, out))]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=ONE_THREAD, capture_output=True, timeout=rng.uniform(0.3, 1.1) * seconds)
        there = complete.keys() & content(out).keys()
        if there != complete.keys():
            killed += 1
            done = run_main(script[0], *arguments(script, files, output_paths(script, out)))
            assert done.status == 0, done.stderr
        assert {name: data for name, data in complete_set(script, out).items() if name in complete} == complete
        shutil.rmtree(out)
    assert killed


def test_files_that_move_are_listed_in_a_note_and_moved_back(tmp_path: Path) -> None:
    """What a kill leaves, by hand: the first file has moved, the second has not."""
    first, second = tmp_path / "a[1].gz", tmp_path / "b c"
    for is_older in (True, False):
        if is_older:
            first.write_text("older first")
        with pytest.raises(ZeroDivisionError), atomic_files(first, second) as (one, two):
            one.write_text("new first")
            two.write_text("new second")
            assert one.name == first.name and second.parent != two.parent
            stages = one.parent, two.parent
            saved = tmp_path / "saved"
            saved.mkdir()
            for stage in stages:
                shutil.copytree(stage, saved / stage.name)
            1 / 0  # noqa: B018
        assert (content(tmp_path / "saved") and not first.exists()) or first.read_text() == "older first"
        for stage in stages:
            shutil.move(saved / stage.name, stage)
        saved.rmdir()
        undo_unfinished_move(first, second)
        assert all(stage.exists() for stage in stages)  # without a note nothing had moved
        if is_older:
            first.rename(stages[0] / f"{first.name}.older")
        (stages[0] / first.name).rename(first)
        (stages[1] / f"{second.name}.moving").write_text(json.dumps([str(first), str(second)]))
        undo_unfinished_move(second)
        assert os.listdir(tmp_path) == ([first.name] if is_older else [])
        assert not is_older or first.read_text() == "older first"
        first.unlink(missing_ok=True)
