"""Interpolation with the first stage: the function, and convert_to_trec_results.py with it."""

import math
import random
import statistics
from pathlib import Path

import pytest
from tiny import Finished, assert_refused, run_main

from evaluation.interpolation import WEIGHTS, interpolate, tune
from evaluation.measures import mean_measure
from formats.trec import rank_documents, read_run


def reference(scores: dict[str, float], first_stage: dict[str, float], weight: float) -> dict[str, float]:
    """The definition, document by document."""
    logits = {}
    for doc, p in scores.items():
        p = min(max(p, 1e-7), 1 - 1e-7)
        logits[doc] = math.log(p / (1 - p))
    of_ranker = list(logits.values())
    of_first = [first_stage[doc] for doc in scores]

    def z(x: float, values: list[float]) -> float:
        return (x - statistics.fmean(values)) / (statistics.pstdev(values) + 1e-9)

    return {doc: weight * z(logits[doc], of_ranker) + (1 - weight) * z(first_stage[doc], of_first) for doc in scores}


def ranking(scores: dict[str, float]) -> list[str]:
    return [doc for doc, _ in rank_documents(scores)]


def random_query(stream: random.Random) -> tuple[dict[str, float], dict[str, float]]:
    """Probabilities of some candidates, saturated ones too, and first-stage scores of all of them."""
    ids = [f"D{i}" for i in range(stream.randint(1, 30))]
    first_stage = {doc: stream.choice([stream.uniform(-5, 30), 7.5]) for doc in ids}
    probability = [0.0, 1.0, 1e-12, 1 - 1e-12, 0.5, *(stream.random() for _ in range(20))]
    return {doc: stream.choice(probability) for doc in stream.sample(ids, stream.randint(1, len(ids)))}, first_stage


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_against_a_reference_implementation(weight: float) -> None:
    """500 random queries. Documents that were not re-ranked follow in their order."""
    stream = random.Random(3)
    queries = {f"q{i}": random_query(stream) for i in range(500)}
    run = {query_id: scores for query_id, (scores, _) in queries.items()}
    candidates = {query_id: first_stage for query_id, (_, first_stage) in queries.items()}
    found = interpolate(run, candidates, weight)
    assert list(found) == list(run)
    for query_id, (scores, first_stage) in queries.items():
        expected = reference(scores, first_stage, weight)
        assert {doc: found[query_id][doc] for doc in scores} == pytest.approx(expected, abs=1e-9)
        rest = [doc for doc in ranking(first_stage) if doc not in scores]
        assert ranking(found[query_id])[len(scores) :] == rest and found[query_id].keys() == first_stage.keys()


def test_the_weights_0_and_1_give_the_order_of_one_stage() -> None:
    stream = random.Random(4)
    ids = [f"D{i}" for i in range(40)]
    scores = {doc: stream.uniform(1e-6, 1 - 1e-6) for doc in ids[:30]}
    first_stage = {doc: stream.uniform(0, 30) for doc in ids}
    first_only = interpolate({"q": scores}, {"q": first_stage}, 0)["q"]
    assert ranking(first_only)[:30] == [doc for doc in ranking(first_stage) if doc in scores]
    assert ranking(interpolate({"q": scores}, {"q": first_stage}, 1)["q"])[:30] == ranking(scores)


def test_equal_and_single_values_by_hand() -> None:
    """Logits 0, 0 have the z 0, 0; 3 and 1 have 1 and -1; one document has 0."""
    found = interpolate({"a": {"D1": 0.5, "D2": 0.5}}, {"a": {"D1": 3.0, "D2": 1.0}}, 0.25)
    assert found == {"a": pytest.approx({"D1": 0.75, "D2": -0.75})}
    assert interpolate({"a": {"D2": 0.9}}, {"a": {"D1": 3.0, "D2": 1.0, "D3": 9.0}}, 0.25) == {
        "a": {"D2": 0.0, "D3": -1.0, "D1": -2.0}
    }
    # probabilities that are clipped to the same value: the first stage decides
    saturated = {"D1": 1.0, "D2": 1 - 1e-9, "D3": 0.0}
    assert ranking(interpolate({"a": saturated}, {"a": {"D1": 1.0, "D2": 2.0, "D3": 3.0}}, 0.9)["a"])[:2] == [
        "D2",
        "D1",
    ]


def test_tune_measures_each_weight_as_a_run_file_gives_it() -> None:
    stream = random.Random(5)
    queries = {f"q{i}": random_query(stream) for i in range(20)}
    run = {query_id: scores for query_id, (scores, _) in queries.items()}
    candidates = {query_id: first_stage for query_id, (_, first_stage) in queries.items()}
    qrels = {query_id: {stream.choice(list(scores)): 1} for query_id, scores in candidates.items()}
    values = tune(run, candidates, qrels, "MRR@10")
    assert list(values) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0] == list(WEIGHTS)
    for weight in (0.0, 0.7):
        by_hand = mean_measure("MRR@10", qrels, interpolate(run, candidates, weight))
        assert values[weight] == pytest.approx(by_hand, abs=1e-6)
    assert len(set(values.values())) > 3


# --- the script. The logits of p = 0.2, 0.5, 0.8 are equally far apart.

SCORES = "a\tD1_0\t0.2\na\tD1_1\t0.5\na\tD2_0\t0.8\na\tD3_0\t0.2\nb\tD1_0\t0.2\nb\tD2_0\t0.8\nb\tD3_0\t0.5\n"
CANDIDATES = "".join(
    f"{query} Q0 {doc} 1 {score} x\n"
    for query, doc, score in [("a", "D1", 5), ("a", "D2", 3), ("a", "D3", 4), ("a", "D4", 9), ("a", "D5", 8),
                              ("b", "D1", 7), ("b", "D2", 6), ("b", "D3", 5), ("c", "D1", 1)]
)  # fmt: skip
QRELS = "a 0 D1 1\nb 0 D2 1\nz 0 D1 1\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, text in (("scores", SCORES), ("top", CANDIDATES), ("qrels", QRELS)):
        (tmp_path / name).write_text(text)
    return tmp_path


def convert(files: Path, *flags: object) -> Finished:
    paths = ["--scores_file", files / "scores", "--output_results_file", files / "run"]
    return run_main("convert_to_trec_results.py", *paths, *flags)


def documents(run: Path) -> dict[str, list[str]]:
    return {query_id: ranking(scores) for query_id, scores in read_run(run).items()}


def test_a_weight_by_hand(files: Path) -> None:
    """With s = sqrt(3/2), z of the logits and z of the first stage of D1, D2, D3.

    They are 0, s, -s and s, -s, 0 for query a, and -s, s, 0 and s, 0, -s for query b.
    """
    done = convert(files, "--interpolate_with", files / "top", "--interpolation_weight", 0.75)
    assert done.status == 0, done
    assert done.stderr == f"note: {files}/scores lacks 1 queries of {files}/top\n"
    lines = [line.split("\t") for line in (files / "run").read_text().splitlines()]
    assert [(query, doc, rank) for query, _, doc, rank, _, _ in lines] == [
        ("a", "D2", "1"), ("a", "D1", "2"), ("a", "D3", "3"), ("a", "D4", "4"), ("a", "D5", "5"),
        ("b", "D2", "1"), ("b", "D3", "2"), ("b", "D1", "3"),
    ]  # fmt: skip
    s = math.sqrt(3 / 2)
    expected = [0.5 * s, 0.25 * s, -0.75 * s, -0.75 * s - 1, -0.75 * s - 2, 0.75 * s, -0.25 * s, -0.5 * s]
    assert [float(fields[4]) for fields in lines] == pytest.approx(expected, abs=1e-6)
    assert {fields[5] for fields in lines} == {"bert_MaxP_interpolated"}


def test_without_the_flags_the_run_is_as_before(files: Path) -> None:
    assert convert(files).status == 0
    assert (files / "run").read_text() == (
        "a\tQ0\tD2\t1\t0.8\tbert_MaxP\na\tQ0\tD1\t2\t0.5\tbert_MaxP\na\tQ0\tD3\t3\t0.2\tbert_MaxP\n"
        "b\tQ0\tD2\t1\t0.8\tbert_MaxP\nb\tQ0\tD3\t2\t0.5\tbert_MaxP\nb\tQ0\tD1\t3\t0.2\tbert_MaxP\n"
    )


def test_the_weight_is_tuned_on_dev_queries(files: Path) -> None:
    """D1 of a is first if 1 - w > 2 w - 1, w < 2/3. D2 of b is first if w > 1 - 2 w, w > 1/3."""
    done = convert(files, "--interpolate_with", files / "top", "--tune_on", files / "qrels")
    assert done.status == 0, done
    head, *rows = [line.split() for line in done.stdout.splitlines()[:12]]
    assert head == ["weight", "MRR@10"] and [weight for weight, _ in rows] == [str(weight) for weight in WEIGHTS]
    assert [value for _, value in rows] == ["0.7500"] * 4 + ["1.0000"] * 3 + ["0.7500"] * 4
    assert done.stdout.splitlines()[12] == "best weight: 0.4"
    tuned = (files / "run").read_text()
    assert documents(files / "run") == {"a": ["D1", "D2", "D3", "D4", "D5"], "b": ["D2", "D1", "D3"]}
    flags = ["--interpolate_with", files / "top", "--interpolation_weight", 0.4, "--overwrite"]
    assert convert(files, *flags).status == 0 and (files / "run").read_text() == tuned
    done = convert(files, *flags[:2], "--tune_on", files / "qrels", "--tune_measure", "nDCG@10", "--overwrite")
    assert done.stdout.split()[:2] == ["weight", "nDCG@10"] and (files / "run").read_text() == tuned


def test_what_cannot_be_interpolated_is_refused(files: Path) -> None:
    top = ["--interpolate_with", files / "top"]
    weight, tune_on = ["--interpolation_weight", "0.5"], ["--tune_on", files / "qrels"]
    for flags, says in (
        (top, "--interpolate_with: needs either --interpolation_weight or --tune_on"),
        ([*top, *weight, *tune_on], "--interpolate_with: needs either"),
        (weight, "--interpolation_weight: has no use without --interpolate_with"),
        (tune_on, "--tune_on: has no use without --interpolate_with"),
        ([*top, *weight, "--tune_measure", "MAP"], "--tune_measure: has no use without --tune_on"),
        ([*top, *tune_on, "--tune_measure", "MAPP"], "--tune_measure: 'MAPP' is not a known measure"),
        ([*top, "--interpolation_weight", "1.5"], "--interpolation_weight: 1.5 is not from 0 to 1"),
        ([*top, "--interpolation_weight", "nan"], "--interpolation_weight: nan is not from 0 to 1"),
        (["--interpolate_with", files / "none", *weight], "No such file"),
    ):
        assert_refused(convert(files, *flags), says)
    (files / "qrels").write_text("a 0 D7 1\nb 0 D1 0\n")
    for name, text, flags, says in (
        ("top", CANDIDATES, tune_on, "--tune_on: no document of"),
        ("top", CANDIDATES.replace("b Q0 D2", "b Q0 D8"), weight, "--interpolate_with: query b has no candidate D2"),
        ("top", CANDIDATES + "short\n", weight, "top line 10: 1 columns"),
        ("scores", SCORES + "c\tD1_0\t1.5\n", weight, "document D1 of query c has score 1.5, which is no"),
    ):
        (files / "top").write_text(CANDIDATES)
        (files / name).write_text(text)
        assert_refused(convert(files, *top, *flags), says)
        assert not (files / "run").exists()
    (files / "scores").write_text(SCORES)
    (files / "qrels").write_text("a 0 D1 10001\n")
    flags = [*top, *tune_on, "--tune_measure", "NDCG@10"]
    assert_refused(convert(files, *flags), f"--tune_on: {files}/qrels: a relevance of 10001 is above 10000")
    same = ["--output_results_file", files / "top", "--overwrite"]
    assert_refused(convert(files, *top, *weight, *same), "is also an input")
