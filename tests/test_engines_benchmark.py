"""The benchmark of engines at a small size: its table, its picture, and the engines that are not installed."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from tiny import (
    STUDENT,
    assert_refused,
    random_weights,
    run_main,
    run_script,
    some_pairs,
    write_transformers,
)

from benchmarks import child, engine_runs, engines
from formats.pairs import Pair, write_pairs
from runtime.distributed import world_size

SCRIPT = "benchmarks/engines.py"
ROW = re.compile(r"^\| ([\w ]+) \| (\w+) \| ([\d.]+) \| [\d.]+ \| (\S+) \| (\S+) \| ([\d.]+) \| ([\d.]+) \|$", re.M)


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """The flags of a tiny model, whose scores differ, and of 30 pairs."""
    write_transformers(tmp_path / "student", STUDENT, random_weights(STUDENT, seed=2, std=1.0))
    write_pairs(tmp_path / "pairs.tsv", (Pair(f"q#D{i}_0", *texts) for i, texts in enumerate(some_pairs(30))))
    flags = [f"--model_dir={tmp_path}/student", f"--pairs={tmp_path}/pairs.tsv", "--max_seq_length=17", "--threads=1"]
    return [*flags, f"--output_dir={tmp_path}"]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs children in this process, and finds no other engine than CrossEncoder. Returns what ran."""
    ran: list[str] = []

    def run(command: list, threads: int | None = None) -> child.Finished:
        script = str(command[0]).removeprefix(f"{child.ROOT}/")
        ran.append(script if "--child" not in command else " ".join(map(str, command[command.index("--child") + 3 :])))
        done = run_main(script, *command[1:])
        assert done.status == 0, done
        return child.Finished(done.stderr + done.stdout, 5_000_000)

    assert world_size() == 1
    monkeypatch.setattr(engine_runs, "run", run)
    find_spec = importlib.util.find_spec
    hidden = {"onnx", "onnxruntime", "openvino", "ctranslate2"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name in hidden else find_spec(name, *of))
    return ran


def rows_of(table: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """Engine and precision: pairs/s, largest difference, Spearman correlation, start-up and memory."""
    return {match.group(1, 2): match.groups()[2:] for match in ROW.finditer(table)}


def run_benchmark(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", [engines.__file__, *flags])
    engines.main(engines.parse_args())


def test_the_table_of_the_installed_engines(
    inputs: list[str],
    in_this_process: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
) -> None:
    small = ["--num_pairs=20", "--rounds=2", "--whole_process=30"]
    run_benchmark(monkeypatch, *inputs, *small)
    ours = ["tokenize_to_features.py", "rerank.py"]
    measured = ["crossencoder fp32", "crossencoder bf16", "transformers fp32", "transformers bf16"]
    whole = [*ours * 3, "fp32 30.tsv", "bf16 30.tsv"]
    assert in_this_process == ["model_tools/export_student.py", *[*ours * 6, *measured] * 2, *whole * 2]

    written = (tmp_path / "engines.md").read_text()
    assert written.partition("\n\n")[2].partition("\n\n")[2].partition("\n![")[0] in capsys.readouterr().out
    assert str(tmp_path) not in written
    assert "Model: 3 layers, hidden size 12, student. Pairs: 20, the first pairs of pairs.tsv, at most 17" in written
    for name in ("onnxruntime", "openvino", "ctranslate2"):
        assert re.search(rf"^{name} is skipped\. Not installed: .*\b{name}\b.*\.$", written, re.M), written
    rows = rows_of(written)
    assert list(rows) == [
        *(("this project", precision) for precision in ("fp32", "bf16", "int8")),
        *((name, precision) for name in ("CrossEncoder", "transformers") for precision in ("fp32", "bf16")),
    ]
    for name in ("this project", "CrossEncoder", "transformers"):
        _, difference, correlation, *_ = rows[name, "fp32"]
        assert float(difference) < 1e-6
        assert correlation == "1.0000"
    assert 1e-6 < float(rows["this project", "int8"][1]) < 0.5
    assert rows["this project", "fp32"][-1] == "5"  # MB
    # sizes that were not run are empty
    assert re.search(r"^\| this project \| int8 \| [\d.]+ \|  \|  \|  \|$", written, re.M), written
    assert re.search(r"^\| CrossEncoder \| bf16 \| [\d.]+ \|  \|  \|  \|$", written, re.M), written
    assert (tmp_path / "engines.png").read_bytes().startswith(b"\x89PNG")

    # existing files stay without --overwrite; scores that differ are an error
    assert_refused(run_main(SCRIPT, *inputs, *small), "--output_dir", "engines.md", "--overwrite")
    monkeypatch.setattr(engines, "TOLERANCE", -1)
    with pytest.raises(SystemExit) as done:
        run_benchmark(monkeypatch, *inputs, "--num_pairs=5", "--rounds=1", "--whole_process=0", "--overwrite")
    assert done.value.code == 1
    assert "whole processes" not in (tmp_path / "engines.md").read_text()


@pytest.mark.slow
def test_each_engine_runs_or_is_skipped(tmp_path: Path) -> None:
    """With processes of their own, and whatever engines are installed."""
    flags = ["--student=2/24", "--num_pairs=20", "--rounds=1", "--whole_process=0", "--threads=1"]
    done = run_script(SCRIPT, *flags, "--output_dir", tmp_path)
    assert done.status == 0, done
    written = (tmp_path / "engines.md").read_text()
    rows = rows_of(written)
    for engine, label in zip(
        ("ours", "crossencoder", "transformers", "onnxruntime", "openvino", "ctranslate2"),
        ("this project", "CrossEncoder", "transformers", "ONNX Runtime", "OpenVINO", "CTranslate2"),
        strict=True,
    ):
        if engines.missing_modules(engine):
            assert f"{engine} is skipped." in written
            continue
        speed, difference, _, start_up, megabytes = map(float, rows[label, "fp32"])
        assert speed > 0
        assert difference < 1e-5
        assert 0 < start_up < 300
        assert megabytes > 20


def test_refusals(inputs: list[str], tmp_path: Path) -> None:
    for flags in (
        ["--num_pairs=1"],
        ["--engines=ours,tensorrt"],
        ["--engines=crossencoder"],
        ["--whole_process=many"],
        ["--whole_process=-5"],
        ["--rounds=0"],
        ["--max_seq_length=4"],
        [f"--output_dir={tmp_path}/none"],
        [f"--pairs={tmp_path}/pairs.tsv"],
    ):
        assert_refused(run_main(SCRIPT, *flags), flags[0].split("=")[0])
    assert_refused(run_main(SCRIPT, *inputs, "--num_pairs=31"), "--pairs", "pairs.tsv has 30 pairs", "1000")
