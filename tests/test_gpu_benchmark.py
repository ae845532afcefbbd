"""benchmarks/gpu.sh: the whole of it at tiny sizes on a CPU, and its parts with a python that runs nothing."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bash_runner import Ran, only_record, run_bash
from tiny import (
    ONE_THREAD,
    ROOT,
    STUDENT,
    TEACHER,
    Finished,
    assert_refused,
    run_main,
    student_weights,
    teacher_weights,
    write_tiny_features,
    write_transformers,
)

from benchmarks import gpu_summary, reference
from benchmarks.machine import Row
from benchmarks.synthetic import HEADS, Shape, make_features, make_model
from formats.features import Features

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PARTS = ["tests", "resume", "nccl", "distilling_2_12", "distilling_4_24", "reranking"]


@pytest.mark.slow
def test_the_whole_script_on_a_cpu(tmp_path: Path) -> None:
    out, hidden = tmp_path / "out", tmp_path / "hidden"
    hidden.mkdir()
    for name in ("pytrec_eval", "bm25s", "ir_datasets", "matplotlib"):
        hidden.joinpath(f"{name}.py").write_text("raise ImportError('not installed')\n")
    command = ["bash", SCRIPT, "quick=yes", "device=cpu", f"out={out}", "limit=600", f"python={sys.executable}"]
    environment = ONE_THREAD | {"PYTHONPATH": str(hidden)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done
    for name in PARTS:
        results = json.loads((out / f"{name}.json").read_text())
        assert results["passed"] is True and results["rows"]
        assert results["device"] == "cpu" and results["torch"] == torch.__version__ and results["date"]
        assert f"{name}: passed" in done.stdout and (out / f"{name}.log").exists()
    assert "resumed after step" in done.stdout and "0 files with other bytes (goal: at most 0)" in done.stdout
    assert "gloo, one process: 0 relative difference of losses (goal: at most 0)" in done.stdout
    assert len(done.stdout) < 12_000
    begin = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0 and done.stdout.count("has passed before") == len(PARTS), done
    assert time.monotonic() < begin + 60


def results_file_of(call: list[str]) -> Path | None:
    return next((Path(part.partition("=")[2]) for part in call if part.startswith("--results_file=")), None)


def passing(*call: str) -> Finished:
    """Runs nothing, and writes the results of a part that has passed."""
    if path := results_file_of([*call]):
        path.write_text('{"passed": true}\n')
    return Finished(0, "", "")


def run(tmp_path: Path, answer=passing, *arguments: str) -> Ran:
    return run_bash(SCRIPT, {"out": str(tmp_path / "out"), "device": "cpu"}, tmp_path, answer, arguments)


def parts_of(ran: Ran) -> set[str]:
    return {path.stem for path in map(results_file_of, ran.calls) if path}


def test_a_part_that_fails_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    def fails(*call: str) -> Finished:
        if call[:2] == ("benchmarks/checks.py", "resume") or "--student=6/768" in call:
            return Finished(1, "the reason\n", "")
        return passing(*call)

    done = run(tmp_path, fails)
    expected = {"tests", "resume", "nccl", "distilling_3_384", "distilling_6_768", "reranking"}
    assert parts_of(done) == expected
    assert done.returncode == 1 and "FAILED: resume distilling_6_768" in done.stdout
    for name, end in (("resume", ""), ("distilling_6_768", "the reason")):  # calls at once share the stub's output
        assert re.search(rf"{name}: FAILED with status 1 after \d+ s; the end of \S+/{name}.log:\n{end}", done.stdout)
    # the same command runs only what has not passed
    done = run(tmp_path)
    assert parts_of(done) == {"resume", "distilling_6_768"} and done.returncode == 0, done
    assert parts_of(run(tmp_path)) == set()
    assert parts_of(run(tmp_path, passing, "overwrite=yes", "parts=nccl distilling")) == {
        *("nccl", "distilling_3_384", "distilling_6_768")
    }


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n[[ $1 != *distilling.py ]] || exec sleep 60\n[[ $1 != *summary.py ]] || echo table\n"
    )
    python.chmod(0o755)
    command = ["bash", SCRIPT, "device=cpu", "students=3/384", "parts=distilling reranking", "limit=1"]
    command += [f"python={python}", f"out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1 and "distilling_3_384: FAILED, it took more than 1 s" in done.stdout, done
    assert "reranking: ended" in done.stdout and "table\nFAILED: distilling_3_384" in done.stdout


def test_every_call_has_flags_that_the_script_knows(tmp_path: Path) -> None:
    done = run(tmp_path, passing)
    assert done.calls[-1][0] == "benchmarks/gpu_summary.py"
    for call in done.calls[:-1]:
        checked = run_main(*call, "--check_flags")
        assert checked.status == 0, (call, checked)


@pytest.mark.slow
def test_the_recipe_trains_and_scores_each_method_and_seed(tmp_path: Path) -> None:
    data, models, out = tmp_path / "data", tmp_path / "models", tmp_path / "out"
    data.mkdir()
    write_transformers(models / "teacher", TEACHER, teacher_weights())
    write_transformers(models / "general_student", STUDENT, student_weights())
    write_tiny_features(data / "train.features", 16)
    write_tiny_features(data / "test.features", 8, "test")
    arguments = [f"data_dir={data}", f"models_dir={models}", "methods=hard tinybert", "seeds=1", "jobs=2"]
    arguments += ["parts=recipe", "precision=fp32", f"python={sys.executable}", "device=cpu", f"out={out}"]
    environment = ONE_THREAD | {"recipe_length": "17", "num_train_epochs": "1"}

    def finished() -> subprocess.CompletedProcess:
        command = ["bash", SCRIPT, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)

    done = finished()
    assert done.returncode == 0, (done, *(path.read_text() for path in out.glob("recipe/*.log")))
    for name in ("hard_seed1", "tinybert_seed1"):
        assert len((out / "recipe" / f"{name}.scores.tsv").read_text().splitlines()) == 8
        assert (out / "recipe" / name / "distill.log").exists() and f"recipe/{name}: " in done.stdout
    assert (out / "recipe" / "tinybert_seed1_intermediate" / "train_loss.jsonl").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("recipe/*.tsv")}
    out.joinpath("recipe", "hard_seed1.scores.tsv").unlink()  # its training is finished, so it is only scored again
    assert finished().returncode == 0
    after = {path: path.stat().st_mtime_ns for path in out.glob("recipe/*.tsv")}
    assert {path.name for path in after if before[path] != after[path]} == {"hard_seed1.scores.tsv"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["parts=all"], "parts: all is not a part"),
        (["steps=0"], "steps=0 is not a number from 1"),
        (["data_dir=data"], "set both of data_dir and models_dir"),
        (["quick=maybe"], "quick=maybe is neither yes nor no"),
        (["num_pairs=3"], "num_pairs is not a VARIABLE=VALUE"),
    ],
)
def test_refusals(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = run(tmp_path, only_record, *arguments)
    assert done.returncode == 2 and says in done.stderr and done.calls == []


def test_a_process_group_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert_refused(run_main("benchmarks/one_process_group.py", "--distill_flags="), "--distill_flags")
    done = run_main("benchmarks/one_process_group.py", "--distill_flags", "--features_file x")
    assert_refused(done, "MASTER_ADDR is not set; start this script by torchrun")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"device": "auto", "python": sys.executable, "out": str(tmp_path / "out")}
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2 and "torch finds no GPU; set quick=yes" in done.stderr, done


def test_a_missed_goal_is_marked() -> None:
    speed, cost = Row("x", 7.5, "x reference", 8), Row("x", 1.5, "x forward", 1.6, at_most=True)
    assert gpu_summary.line_of([speed, cost]) == (
        "  x: 7.50 x reference (goal: at least 8, MISSED), 1.50 x forward (goal: at most 1.6)"
    )
    assert gpu_summary.line_of([Row("x", 51_234.5, "pairs/s", 50_000)]) == "  x: 51,234 pairs/s (goal: at least 50,000)"
    assert_refused(run_main("benchmarks/gpu_summary.py", "/nowhere"), "/nowhere has no results")


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_the_reference_trains_under_autocast(tmp_path: Path, precision: torch.dtype) -> None:
    features = Features(make_features(tmp_path / "features", "train", 24, 60))
    batch = {name: torch.from_numpy(array) for name, array in features.batch(range(24), 60).items()}
    teacher = make_model(tmp_path / "teacher", Shape(4, 24), 1)
    student = make_model(tmp_path / "student", Shape(2, 12), 2, fit_to=24)

    def losses(precision: torch.dtype) -> list[float]:
        weights = [safetensors.torch.load_file(model / "model.safetensors") for model in (student, teacher)]
        history = reference.train("simplified", *weights, HEADS, [batch] * 12, lr=1e-3, precision=precision)
        return [line["loss"] for line in history]

    expected, found = losses(torch.float32), losses(precision)
    assert expected[-1] < 0.9 * expected[0]
    # float16 skips steps until its scaler has found a scale
    skipped = sum(loss == found[0] for loss in found) - sum(loss == expected[0] for loss in expected)
    assert skipped == 0 or precision == torch.float16
    assert found[skipped:] == pytest.approx(expected[: len(found) - skipped], rel=0.01)
