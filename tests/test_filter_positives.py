"""Filtering by the teacher's scores: the choice, the script's report and histogram, and what it refuses."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from small_collection import closing_figures
from tiny import Finished, assert_refused, run_main, run_script

from data_preparation.training_examples import choose_positives
from formats.pairs import Pair, read_pairs, write_pairs
from formats.scores import PassageScore, write_scores

SCRIPT = "data_preparation/filter_positives.py"
# (id, label, the teacher's score): two relevant documents of query 1, one of query 2, one of query 3 with low scores.
SMALL = [
    ("1#D1_passage-0", 1, 0.7),
    ("1#D1_passage-1", 1, 0.9),
    ("1#D1_passage-2", 1, 0.2),
    ("1#D_2_passage-0", 1, 0.6),
    ("1#D_2_passage-1", 1, 0.6),
    ("1#D5_passage-3", 0, None),
    ("2#D1_passage-0", 1, 0.5),
    ("3#D7_passage-0", 1, 0.4),
    ("3#D7_passage-1", 1, 0.45),
    ("3#D1_passage-2", 0, None),
    ("3#D5_passage-0", 0, None),
]


def write_inputs(
    directory: Path, rows: list[tuple[str, int, float | None]], order: random.Random | None = None
) -> None:
    directory.mkdir(exist_ok=True)
    pairs = (Pair(example_id, "what is", f"text of {example_id}", label) for example_id, label, _ in rows)
    write_pairs(directory / "pairs.tsv", pairs)
    scores = [PassageScore(*example_id.split("#"), score) for example_id, _, score in rows if score is not None]
    if order:
        order.shuffle(scores)
    write_scores(directory / "scores.tsv", scores)


def call(tmp_path: Path, *more: object, name: str = "filtered.tsv") -> Finished:
    files = tmp_path / "files"
    inputs = ["--pairs_file", files / "pairs.tsv", "--scores_file", files / "scores.tsv"]
    return run_main(SCRIPT, *inputs, "--output_pairs_file", tmp_path / name, *more)


def filter_pairs(
    tmp_path: Path, rows: list[tuple[str, int, float | None]], *more: object, order: random.Random | None = None
) -> list[str]:
    """Runs the script and returns the ids of the remaining pairs. Checks the pairs' texts and the report's counts."""
    write_inputs(tmp_path / "files", rows, order)
    done = call(tmp_path, *more, "--overwrite")
    assert (done.status, done.stderr) == (0, ""), done
    pairs = list(read_pairs(tmp_path / "filtered.tsv", labelled=True))
    assert set(pairs) <= set(read_pairs(tmp_path / "files" / "pairs.tsv", labelled=True))
    report = report_of(tmp_path)
    assert report["positives_read"] == sum(label for _, label, _ in rows)
    assert report["positives_read"] == report["positives"] + sum(report["positives_dropped"].values())
    assert report["positives"] == sum(pair.label for pair in pairs)
    assert report["negatives"] == len(rows) - report["positives_read"]
    assert report["passages"] == len(pairs) == report["positives"] + report["negatives"]
    return [pair.example_id for pair in pairs]


def report_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "filtered.tsv.report.json").read_text())


NEGATIVES = ["1#D5_passage-3", "3#D1_passage-2", "3#D5_passage-0"]


@pytest.mark.parametrize(
    ("more", "positives"),
    [
        ([], ["1#D1_passage-1", "1#D_2_passage-0", "2#D1_passage-0"]),
        (["--best", 2], ["1#D1_passage-0", "1#D1_passage-1", "1#D_2_passage-0", "1#D_2_passage-1", "2#D1_passage-0"]),
        (["--best", 0, "--threshold", 0.65], ["1#D1_passage-0", "1#D1_passage-1"]),
        (["--threshold", 0], ["1#D1_passage-1", "1#D_2_passage-0", "2#D1_passage-0", "3#D7_passage-1"]),
        (["--keep_best"], ["1#D1_passage-1", "1#D_2_passage-0", "2#D1_passage-0", "3#D7_passage-1"]),
        (
            ["--keep_best", "--best", 2, "--threshold", 0.65],
            ["1#D1_passage-0", "1#D1_passage-1", "1#D_2_passage-0", "2#D1_passage-0", "3#D7_passage-1"],
        ),
    ],
)
def test_a_small_file_by_hand(tmp_path: Path, more: list[object], positives: list[str]) -> None:
    left = filter_pairs(tmp_path, SMALL, *more)
    assert left == [example_id for example_id, *_ in SMALL if example_id in [*positives, *NEGATIVES]]
    assert filter_pairs(tmp_path, SMALL, *more, order=random.Random(1)) == left  # the order of scores has no effect


def test_report_and_line(tmp_path: Path) -> None:
    write_inputs(tmp_path / "files", SMALL)
    done = call(tmp_path)
    assert "kept 3 of 8 positives, dropped 3 below the threshold and 2 outside the best" in done.stdout
    assert "1 of 3 queries lost all" in done.stdout
    assert closing_figures(done, tmp_path / "filtered.tsv", best=1) == {
        "queries": 3,
        "queries_that_lost_all_positives": 1,
        "negatives_of_queries_that_lost_all_positives": 2,
        "relevant": 4,
        "relevant_that_lost_all_positives": 1,
        "positives_read": 8,
        "positives": 3,
        "positives_dropped": {"below the threshold": 3, "outside the best": 2},
        "negatives": 3,
        "passages": 6,
    }
    beside = ["filtered.tsv", "filtered.tsv.log", "filtered.tsv.png", "filtered.tsv.report.json"]
    assert set(os.listdir(tmp_path)) == {"files", *beside}


def test_of_equal_scores_the_lower_passage_number_is_better() -> None:
    scores = {"D_passage-10": 0.8, "D_passage-9": 0.8, "D_passage-2": 0.7}
    assert choose_positives(scores, 0.5, best=1) == ["D_passage-9"]
    assert choose_positives(scores, 0.5, best=2) == ["D_passage-9", "D_passage-10"]
    assert choose_positives(scores, 0.8) == ["D_passage-9", "D_passage-10"]
    assert choose_positives(scores, 0.81) == []
    assert choose_positives(scores, 0.81, keep_best=True) == ["D_passage-9"]


def reference_choice(rows: list[tuple[str, int, float | None]], threshold: float, best: int) -> list[str]:
    """Compares each positive with all others."""
    kept = []
    for example_id, label, score in rows:
        document, number = example_id.rsplit("-", 1)
        better = 0
        for other_id, other_label, other_score in rows:
            other_document, other_number = other_id.rsplit("-", 1)
            if label and other_label and other_document == document:
                better += other_score > score or (other_score == score and int(other_number) < int(number))
        if not label or (score >= threshold and (not best or better < best)):
            kept.append(example_id)
    return kept


@pytest.mark.parametrize("seed", range(10))
def test_random_pairs_against_the_reference(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = []
    for query_id in range(7):
        for doc_id in range(rng.randint(1, 4)):
            for number in range(rng.randint(0, 13)):
                rows.append((f"q{query_id}#D_{doc_id}_passage-{number}", 1, rng.randrange(11) / 10))
        rows += [(f"q{query_id}#N{i}_passage-{rng.randrange(4)}", 0, None) for i in range(rng.randint(0, 3))]
    if seed % 2:
        rng.shuffle(rows)
    threshold, best = rng.randrange(1, 10) / 10, rng.randrange(4)
    left = filter_pairs(tmp_path, rows, "--threshold", threshold, "--best", best, order=rng)
    assert left == reference_choice(rows, threshold, best)


def test_packed_and_as_a_command(tmp_path: Path) -> None:
    write_inputs(tmp_path / "files", SMALL)
    assert call(tmp_path).status == 0
    pairs = tmp_path / "pairs.tsv.gz"
    write_pairs(pairs, read_pairs(tmp_path / "files" / "pairs.tsv", labelled=True))
    arguments = ["--pairs_file", pairs, "--scores_file", tmp_path / "files" / "scores.tsv"]
    done = run_script(SCRIPT, *arguments, "--output_pairs_file", tmp_path / "filtered.tsv.gz")
    assert done.status == 0, done
    found = list(read_pairs(tmp_path / "filtered.tsv.gz", labelled=True))
    assert found == list(read_pairs(tmp_path / "filtered.tsv", labelled=True))


def test_histogram(tmp_path: Path) -> None:
    """The bars are at the scores, in the colors of kept and dropped, with areas proportional to their counts."""
    rows = [(f"1#D_passage-{i}", 1, (i + 0.5) / 200) for i in range(200)]
    filter_pairs(tmp_path, rows, "--threshold", 0.75, "--best", 40)
    image = imread(tmp_path / "filtered.tsv.png")[..., :3]
    height, width, _ = image.shape
    assert width > height > 400
    plot = image[: int(height * 0.8)]  # without the legend
    kept, dropped = (
        np.argwhere(np.abs(plot - np.array(color) / 255).max(axis=-1) < 0.01)[:, 1]
        for color in ((0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00))
    )
    # Four passages in every bin: 160 dropped below 0.8, 40 kept above.
    assert dropped.max() <= kept.min()
    assert len(dropped) / len(kept) == pytest.approx(160 / 40, rel=0.05)


# Refusals.


def refused(tmp_path: Path, rows: list[tuple[str, int, float | None]], *more: object, says: list[object]) -> None:
    write_inputs(tmp_path / "files", rows)
    assert_refused(call(tmp_path, *more), *says)
    assert os.listdir(tmp_path) == ["files"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--threshold", 1.5], ["--threshold", "1.5"]),
        (["--threshold", "nan"], ["--threshold", "nan"]),
        (["--best", -1], ["--best", "below 0"]),
        (["--best", 0, "--threshold", 0], ["--best", "--threshold", "nothing"]),
        (["--keep_best", "--threshold", 0], ["--keep_best", "no effect with --threshold 0"]),
        (["--threshold", 0.95], ["--threshold", "none of the 8", "0.9", "--keep_best"]),
    ],
)
def test_impossible_settings(tmp_path: Path, more: list[object], says: list[str]) -> None:
    refused(tmp_path, SMALL, *more, says=says)


def test_scores_and_positives_must_be_of_the_same_passages(tmp_path: Path) -> None:
    files = tmp_path / "files"
    without_score = [(i, label, None if i == "1#D1_passage-2" else score) for i, label, score in SMALL]
    refused(tmp_path, without_score, says=[files / "scores.tsv", files / "pairs.tsv", "1#D1_passage-2"])
    document_without = [row for row in SMALL if row[0] != "2#D1_passage-0"] + [("2#D1_passage-0", 1, None)]
    refused(tmp_path, document_without, says=[files / "scores.tsv", files / "pairs.tsv", "2#D1_passage-0"])
    scored_negative = [(i, label, score or 0.3) for i, label, score in SMALL]
    refused(tmp_path, scored_negative, says=[files / "scores.tsv", files / "pairs.tsv", "1#D5_passage-3"])
    write_inputs(files, SMALL)
    with open(files / "pairs.tsv", "a") as file:
        file.write("2#D1_passage-0\twhat is\tagain\t1\n")
    assert_refused(call(tmp_path), files / "scores.tsv", files / "pairs.tsv", "2#D1_passage-0", "twice")
    assert os.listdir(tmp_path) == ["files"]


def test_damaged_inputs(tmp_path: Path) -> None:
    files = tmp_path / "files"
    refused(tmp_path, [("1#D1_passage-0", 1, 1.25)], says=[files / "scores.tsv", "1.25", "probability"])
    refused(tmp_path, [("1#D1-passage", 1, 0.5)], says=[files / "scores.tsv", "D1-passage"])
    write_inputs(files, SMALL)
    for name, line, says in (
        ("pairs.tsv", "1#D1\tquery\tpassage\t0\n", "'D1'"),
        ("pairs.tsv", "1-D1_2\tquery\tpassage\t0\n", "'1-D1_2'"),
        ("pairs.tsv", "1#D1_2\tquery\tpassage\n", "line 12"),
        ("scores.tsv", "1\tD1_passage-0\t0.5\n", "line 9"),
        ("scores.tsv", "1\tD1_passage-9\n", "line 9"),
    ):
        whole = (files / name).read_bytes()
        (files / name).write_bytes(whole + line.encode())
        assert_refused(call(tmp_path), files / name, says)
        (files / name).write_bytes(whole)
    (files / "scores.tsv").write_bytes(b"")
    assert_refused(call(tmp_path), files / "scores.tsv", "empty")
    assert os.listdir(tmp_path) == ["files"]


def test_existing_results_are_kept_without_overwrite(tmp_path: Path) -> None:
    filter_pairs(tmp_path, SMALL)
    names = ("filtered.tsv", "filtered.tsv.png", "filtered.tsv.report.json")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    assert_refused(call(tmp_path, "--best", 2), "--output_pairs_file", "--overwrite")
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    (tmp_path / "filtered.tsv").unlink()
    assert_refused(call(tmp_path), "filtered.tsv.png", "--overwrite")
    filter_pairs(tmp_path, SMALL, "--best", 2)
    assert all((tmp_path / name).read_bytes() != content for name, content in before.items())


def test_an_input_is_never_the_output(tmp_path: Path) -> None:
    write_inputs(tmp_path / "files", SMALL)
    for name in ("pairs.tsv", "scores.tsv"):
        assert_refused(call(tmp_path, "--overwrite", name=f"files/{name}"), name, "also an input")
