"""The benchmarks of distilling and re-ranking at small sizes: their output, and their exit status 1."""

import argparse
import re
import sys

import pytest
from tiny import assert_refused, run_main

from benchmarks import child, distilling, host_share, reranking, synthetic
from runtime.distributed import world_size

SMALL = ["--teacher=4/24", "--student=2/12", "--max_seq_length=50", "--rounds=1", "--device=cpu"]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs children in this process, without another import of torch. Returns the names of what ran."""
    ran: list[str] = []

    def run(command: list) -> child.Finished:
        script = str(command[0]).removeprefix(f"{child.ROOT}/")
        ran.append(script if "--child" not in command else command[command.index("--child") + 1])
        done = run_main(script, *command[1:])
        assert done.status == 0, done
        return child.Finished(done.stdout + done.stderr, 5_000_000)

    assert world_size() == 1
    for benchmark in (distilling, reranking):
        monkeypatch.setattr(benchmark, "run", run)
    return ran


def measured(monkeypatch: pytest.MonkeyPatch, benchmark, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", [benchmark.__file__, *SMALL, *flags])
    with pytest.raises(SystemExit) as done:
        benchmark.main(benchmark.parse_args())
    return done.value.code


def test_distilling(in_this_process: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    flags = ["--updates=2", "--batch_size=3"]
    assert measured(monkeypatch, distilling, *flags) == 0
    printed = capsys.readouterr().out
    assert in_this_process == ["reference", "distill.py", "forward", "distill.py", "forward"] * 2
    assert re.search(r"fp32: losses of 2 steps differ by (0\.0e\+00|\d\.\de-(0[6-9]|1\d)) at most", printed), printed
    for precision in ("fp32", "bf16"):
        for dropout in ("0.0", "0.1"):
            name = f"distill.py {precision}, dropout {dropout}"
            assert re.search(rf"{name}: [\d.]+ x reference fp32, [\d.]+ x the teacher", printed), printed
    # losses that differ are an error
    monkeypatch.setitem(distilling.TOLERANCES, "bf16", 1e-12)
    assert measured(monkeypatch, distilling, *flags) == 1


def test_reranking(in_this_process: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(reranking.importlib.util, "find_spec", lambda name: None)
    assert measured(monkeypatch, reranking, "--pairs=110") == 0
    printed = capsys.readouterr().out
    ours = ["rerank.py"] * 3
    each = ["tokenize_to_features.py", "reference", *ours]
    assert in_this_process == ["tokenize_to_features.py", *each * 2, *ours]
    assert "CrossEncoder is not measured" in printed
    for precision in ("fp32", "bf16", "int8"):
        assert re.search(rf"{precision}: scores differ from the reference by \d\.\de-\d\d at most", printed), printed
        name = f"rerank.py {precision}"
        assert re.search(rf"{name}, full: [\d.]+ x reference fp32, [\d.]+ x teacher 4/24", printed), printed
        assert re.search(rf"{name}, mixed: [\d.]+ x reference fp32", printed), printed
    monkeypatch.setitem(reranking.TOLERANCES, "int8", 1e-12)
    assert measured(monkeypatch, reranking, "--pairs=10") == 1


def test_host_share(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    host_share.main(argparse.Namespace(pairs=700, steps=4, rounds=1))
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(r"cpu: ([\d.]+) microseconds a pair in rerank.py, ([\d.]+) ms a step in distill.py", line)
    assert found and all(0 < float(figure) < 10_000 for figure in found.groups()), line


def test_synthetic_pairs() -> None:
    pairs = synthetic.make_pairs(200, (15, 150))
    assert pairs == synthetic.make_pairs(200, (15, 150)) != synthetic.make_pairs(200, (15, 150), seed=2)
    assert all(len(query.split()) == 8 and 15 <= len(passage.split()) <= 150 for query, passage in pairs)
    words = [word for _, passage in pairs for word in passage.split()]
    assert 0.28 < sum(word.endswith("x") for word in words) / len(words) < 0.38


@pytest.mark.parametrize(
    ("benchmark", "flags"),
    [
        ("distilling", ["--updates=0"]),
        ("distilling", ["--precisions=int8"]),
        ("distilling", ["--max_seq_length=20"]),
        ("distilling", ["--device=tpu"]),
        ("host_share", ["--pairs=0"]),
        ("reranking", ["--pairs=3"]),
        ("reranking", ["--precisions=bf16"]),
        ("reranking", ["--device=tpu"]),
    ],
)
def test_refusals(benchmark: str, flags: list[str]) -> None:
    assert_refused(run_main(f"benchmarks/{benchmark}.py", *flags), flags[0].split("=")[0])
