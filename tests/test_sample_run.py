"""A sample of a run's queries."""

import gzip
import random
from pathlib import Path

import pytest
from tiny import assert_refused, run_main

SCRIPT = "data_preparation/sample_run.py"
LINES = [f"q{query} Q0 D{rank} {rank} {-rank} x" for query in range(9) for rank in range(3)]


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.gz"
    path.write_bytes(gzip.compress("".join(f"{line}\r\n" for line in LINES).encode()))
    return path


def sample(run_file: Path, name: str, *flags: object) -> list[str]:
    output = run_file.with_name(name)
    done = run_main(SCRIPT, "--run", run_file, "--output_run_file", output, *flags)
    assert done.status == 0, done.stderr
    lines = output.read_text().splitlines()
    queries = len({line.split()[0] for line in lines})
    assert done.stdout == f"wrote {output}: {queries} of 9 queries of {run_file}\n"
    return lines


def test_the_lines_of_the_chosen_queries_stay_in_order(run_file: Path, tmp_path: Path) -> None:
    assert sample(run_file, "all", "--query_ids=", "--num_queries=") == LINES
    ids = tmp_path / "ids"
    ids.write_text('q7 what is\nq2\nq4,"a, b"\nq100\tno such query\n')
    expected = [line for line in LINES if line[:3] in ("q2 ", "q4 ", "q7 ")]
    assert sample(run_file, "ids_only", "--query_ids", ids) == expected
    both = sample(run_file, "both", "--query_ids", ids, "--num_queries=2")
    assert len(both) == 6 and both == [line for line in expected if line in both]


def test_the_sample_depends_only_on_ids_and_seed(run_file: Path) -> None:
    first = sample(run_file, "first", "--num_queries=4")
    assert len(first) == 12
    shuffled = LINES.copy()
    random.Random(1).shuffle(shuffled)
    run_file.write_bytes(gzip.compress("".join(f"{line}\n" for line in shuffled).encode()))
    assert sorted(sample(run_file, "second", "--num_queries=4")) == sorted(first)
    seeded = [sample(run_file, f"seed{seed}", "--num_queries=4", f"--seed={seed}") for seed in range(5)]
    assert any(sorted(lines) != sorted(first) for lines in seeded)


def test_mistakes_are_one_line(run_file: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    ids.write_text("x\n")
    flags = ["--run", run_file, "--output_run_file", tmp_path / "out"]
    assert_refused(run_main(SCRIPT, *flags, "--query_ids", ids), "--query_ids", "share no query")
    assert_refused(run_main(SCRIPT, *flags, "--num_queries=0"), "--num_queries: 0 is below 1")
    assert_refused(run_main(SCRIPT, *flags, "--num_queries=10"), "there are only 9 queries to choose 10 from")
    assert_refused(run_main(SCRIPT, *flags, "--run", tmp_path / "none"), "none", "No such file")
    assert not (tmp_path / "out").exists()
