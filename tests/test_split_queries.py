"""Held-out queries."""

import random

import pytest
from tiny import assert_refused, run_main

from formats.trec import read_qrels

SCRIPT = "data_preparation/split_queries.py"


def split(tmp_path, qrels_file, num_dev, *flags, name=""):
    train, dev = tmp_path / f"train{name}", tmp_path / f"dev{name}"
    done = run_main(
        SCRIPT,
        *("--qrels", qrels_file, f"--num_dev={num_dev}"),
        *("--output_train_qrels", train, "--output_dev_qrels", dev, *flags),
    )
    return done, train, dev


@pytest.fixture
def qrels_file(tmp_path):
    """Queries 0 to 19 with one to three relevance judgments each."""
    path = tmp_path / "qrels"
    path.write_text("".join(f"{i} 0 D{i + j} {j}\n" for i in range(20) for j in range(i % 3 + 1)))
    return path


def test_every_judgment_is_in_one_of_the_two_files(tmp_path, qrels_file):
    done, train, dev = split(tmp_path, qrels_file, 7)
    assert done.status == 0, done.stderr
    qrels = [read_qrels(path) for path in (qrels_file, train, dev)]
    assert [len(part) for part in qrels] == [20, 13, 7]
    assert qrels[1] | qrels[2] == qrels[0]
    for part in qrels[1:]:
        assert list(part) == sorted(part, key=int)
    assert dev.read_text().splitlines()[0].count("\t") == 3
    assert f"{train}: {sum(map(len, qrels[1].values()))} judgments of 13 queries" in done.stdout


def test_the_sample_depends_only_on_ids_and_seed(tmp_path, qrels_file):
    lines = qrels_file.read_text().splitlines(keepends=True)
    random.Random(3).shuffle(lines)
    shuffled = tmp_path / "shuffled"
    shuffled.write_text("query-id\tcorpus-id\tscore\n" + "".join(line.replace(" 0 D", "\tD", 1) for line in lines))
    first, other = (read_qrels(split(tmp_path, path, 7, name=path.name)[2]) for path in (qrels_file, shuffled))
    assert first == other
    seeded = read_qrels(split(tmp_path, qrels_file, 7, "--seed=1", name="seeded")[2])
    assert first.keys() != seeded.keys()
    # With one more held-out query the seven stay.
    assert first.keys() < read_qrels(split(tmp_path, qrels_file, 8, name="eight")[2]).keys()


def test_every_query_is_held_out_by_some_seed(tmp_path, qrels_file):
    samples = [read_qrels(split(tmp_path, qrels_file, 5, f"--seed={i}", name=str(i))[2]).keys() for i in range(30)]
    assert set().union(*samples) == set(read_qrels(qrels_file))
    assert all(len(sample) == 5 for sample in samples)


@pytest.mark.parametrize("num_dev", [-1, 0, 20, 21])
def test_an_empty_file_is_refused(tmp_path, qrels_file, num_dev):
    done, train, dev = split(tmp_path, qrels_file, num_dev)
    assert_refused(done, "--num_dev", "20 queries", "1 to 19")
    assert not train.exists() and not dev.exists()


def test_existing_files_and_inputs_are_not_overwritten(tmp_path, qrels_file):
    _, train, dev = split(tmp_path, qrels_file, 7)
    assert_refused(split(tmp_path, qrels_file, 7)[0], "--output_train_qrels", "--overwrite")
    train.unlink()
    assert_refused(split(tmp_path, qrels_file, 7)[0], "--output_dev_qrels", "--overwrite")
    assert split(tmp_path, qrels_file, 7, "--overwrite")[0].status == 0
    same = run_main(
        SCRIPT, "--qrels", dev, "--num_dev=1", "--output_train_qrels", tmp_path / "x", "--output_dev_qrels", dev
    )
    assert_refused(same, "--output_dev_qrels", "also an input")
    twice = run_main(
        SCRIPT, "--qrels", dev, "--num_dev=1", *(f"--output_{name}_qrels={tmp_path}/x" for name in ("train", "dev"))
    )
    assert_refused(twice, "--output_dev_qrels", "--output_train_qrels")
