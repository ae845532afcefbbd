"""Measures of a run."""

import math
import random
import sys

import pytest
import pytrec_eval

from evaluation.measures import (
    Qrels,
    Run,
    canonical_name,
    first_relevant_rank,
    judged_share,
    mean_measure,
    measure_per_query,
    official_msmarco,
    reciprocal_rank,
    retrieves_relevant,
    summarize,
    trec_eval_name,
)
from runtime.errors import InputError

QRELS = {"a": {"D1": 2, "D2": 0, "D3": 1}, "b": {"D1": 1}, "c": {"D1": 0, "D9": 0}, "e": {"D1": 1}}
# a: D4 (not judged), D1, D2, D3; b: no relevant document in the run; c: no relevant document at all; d: not judged.
RUN = {
    "b": {"D7": 0.5, "D8": 0.25, "D9": 0.125},
    "a": {"D1": 0.5, "D2": 0.5 - 1e-9, "D3": 0.25, "D4": 2.0},
    "c": {"D1": 1.0, "D2": 0.5},
    "d": {"D1": 1.0},
}
# In 32 bits D1 and D2 of query a have the same score, so the higher id comes first: D4, D2, D1, D3.
BY_HAND = {
    "MRR": {"b": 0, "a": 1 / 3, "c": 0},
    "mrr@2": {"b": 0, "a": 0, "c": 0},
    "MRR@3": {"b": 0, "a": 1 / 3, "c": 0},
    "MAP": {"b": 0, "a": (1 / 3 + 2 / 4) / 2, "c": 0},
    "MAP@3": {"b": 0, "a": 1 / 3 / 2, "c": 0},
    "P@3": {"b": 0, "a": 1 / 3, "c": 0},
    "P@8": {"b": 0, "a": 2 / 8, "c": 0},
    "Recall@3": {"b": 0, "a": 1 / 2, "c": 0},
    "R@4": {"b": 0, "a": 1, "c": 0},
    "Success@2": {"b": 0, "a": 0, "c": 0},
    "NDCG@3": {"b": 0, "a": (2 / 2) / (2 + 1 / math.log2(3)), "c": 0},
    "NDCG": {"b": 0, "a": (2 / 2 + 1 / math.log2(5)) / (2 + 1 / math.log2(3)), "c": 0},
    "Judged@3": {"b": 0, "a": 2 / 3, "c": 1 / 2},
    "judged@1": {"b": 0, "a": 0, "c": 1},
    "num_ret": {"b": 3, "a": 4, "c": 2},
    "num_rel": {"b": 1, "a": 2, "c": 0},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    """Only queries in both, in the run's order."""
    found = measure_per_query(name, QRELS, RUN)
    assert found == pytest.approx(BY_HAND[name], abs=1e-12)
    assert list(found) == ["b", "a", "c"]


def test_summaries_by_hand() -> None:
    assert mean_measure("MAP", QRELS, RUN) == pytest.approx(5 / 12 / 3)
    assert mean_measure("num_ret", QRELS, RUN) == 9
    assert mean_measure("num_q", QRELS, RUN) == 3
    # trec_eval's minimum of 0.00001 for a query
    assert mean_measure("gm_map", QRELS, RUN) == pytest.approx((5 / 12 * 1e-5 * 1e-5) ** (1 / 3))
    assert mean_measure("MRR", QRELS, {"d": {"D1": 1.0}}) == 0.0
    assert mean_measure("gm_map", QRELS, {}) == 0.0
    assert summarize("MRR@10", dict(enumerate([1, 0, 1 / 4]))) == 1.25 / 3


def test_every_measure_of_trec_eval_is_its_own() -> None:
    """On random runs, by the names that trec_eval prints. Summaries equal those of pytrec_eval."""
    stream = random.Random(8)
    ids = [f"D{i}" for i in range(30)]
    qrels = {f"q{i}": {doc: stream.choice([0, 0, 1, 2, 3]) for doc in stream.sample(ids, 12)} for i in range(17)}
    run = {f"q{i}": {doc: stream.randint(0, 9) / 8 for doc in stream.sample(ids, 23)} for i in range(3, 20)}
    expected = pytrec_eval.RelevanceEvaluator(qrels, pytrec_eval.supported_measures).evaluate(run)
    names = set(expected["q5"]) - {"runid", "relstring"}
    assert len(names) > 90
    for name in names:
        values = measure_per_query(name, qrels, run)
        assert values == {query_id: of_query[name] for query_id, of_query in expected.items()}, name
        theirs = pytrec_eval.compute_aggregated_measure(name, list(values.values()))
        assert summarize(name, values) == pytest.approx(theirs, rel=1e-12), name


@pytest.mark.parametrize("seed", range(20))
def test_judged_and_reciprocal_rank_against_reference_implementations(seed: int) -> None:
    stream = random.Random(seed)
    ids = [f"D{i}" for i in range(9)]
    scores = {doc: stream.choice([0.5, 0.25]) for doc in stream.sample(ids, stream.randint(1, 9))}
    grades = {doc: stream.choice([-1, 0, 1]) for doc in stream.sample(ids, 4)}
    ranking = sorted(sorted(scores, reverse=True), key=lambda doc: -scores[doc])
    for k in range(1, 12):
        first = ranking[:k]
        assert judged_share(scores, grades, k) == len([doc for doc in first if doc in grades]) / len(first)
        relevant = [rank for rank, doc in enumerate(first, start=1) if grades.get(doc, 0) == 1]
        expected = 1 / relevant[0] if relevant else 0.0
        assert reciprocal_rank(first_relevant_rank(scores, grades), k) == expected
        assert measure_per_query(f"MRR@{k}", {"q": grades}, {"q": scores}) == {"q": expected}


def test_official_msmarco_by_hand() -> None:
    """a: ranks tie at 5, so the order is D10, D2, D9; b is missing; c is beyond the cut-off; d is within it."""
    qrels = {"a": {"D9": 1, "D10": 0}, "b": {"D1": 1}, "c": {"D101": 1}, "d": {"D100": 3}, "e": {"D1": 0}}
    hundred = {f"D{i}": i for i in range(1, 102)}
    ranks = {"a": {"D9": 5, "D2": 5, "D10": 5, "D1": 7}, "c": hundred, "d": hundred, "e": {"D1": 1}, "x": {"D1": 1}}
    assert official_msmarco(qrels, ranks) == {"a": 1 / 3, "b": 0.0, "c": 0.0, "d": 0.01, "e": 0.0}


@pytest.mark.parametrize(
    ("names", "canonical"),
    [
        (("NDCG@10", "ndcg@10", "ndcg_cut.10", "ndcg_cut_10"), "ndcg_cut.10"),
        (("MAP", "map"), "map"),
        (("MAP@5", "map_cut.5"), "map_cut.5"),
        (("R@7", "recall@7", "recall_7"), "recall.7"),
        (("P@5", "p@5", "P.5", "P_5"), "P.5"),
        (("MRR", "mrr"), "MRR"),
        (("MRR@10", "mrr@10"), "MRR@10"),
        (("RR", "rr"), "MRR"),  # from here to Judged@3: the names of ir_measures
        (("RR@10", "MRR@10"), "MRR@10"),
        (("AP", "ap", "MAP"), "map"),
        (("AP@5", "MAP@5"), "map_cut.5"),
        (("nDCG", "NDCG"), "ndcg"),
        (("nDCG@10", "NDCG@10"), "ndcg_cut.10"),
        (("P@10",), "P.10"),
        (("R@100", "Recall@100"), "recall.100"),
        (("Judged@3", "JUDGED@3"), "Judged@3"),
        (("Rprec", "RPrec"), "Rprec"),
        (("iprec_at_recall_0.10", "iprec_at_recall.0.10"), "iprec_at_recall.0.10"),
        (("11pt_avg",), "11pt_avg"),
    ],
)
def test_names(names: tuple[str, ...], canonical: str) -> None:
    assert {canonical_name(name) for name in names} == {canonical}


BAD_NAMES = "NDGC@10 NDCG@0 NDCG@-1 NDCG@1.5 NDCG@1e1 NDCG@1000000000 NDCG@010 MRR@ MRR@0 MRR10 Judged Judged@x P.5,10"
BAD_NAMES += " bpref@10 map.10 runid relstring official iprec_at_recall.1.5 P@5@6 set_F.1 @ @10 P. ."


@pytest.mark.parametrize("name", [*BAD_NAMES.split(), "", "P@5 ", "P@\u0665", "MRR@10\n"])
def test_unknown_names_are_refused_and_known_names_listed(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not a known measure\. Known are MRR, MAP, NDCG; .*MRR@k, .*, map, "):
        measure_per_query(name, QRELS, RUN)


@pytest.mark.parametrize(("name", "example"), [("P", "P.10"), ("ndcg_cut", "ndcg_cut.10"), ("Rprec_mult", "mult.0.1")])
def test_a_cut_off_that_is_missing(name: str, example: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' needs a number, as in .*{example}"):
        trec_eval_name(name)


def test_a_relevance_that_would_fill_the_memory() -> None:
    """trec_eval would return 0, or not end."""
    with pytest.raises(ValueError, match="relevance of 999999999 is above 10000"):
        measure_per_query("NDCG@10", {"a": {"D1": 999_999_999}}, RUN)
    assert measure_per_query("MRR", {"c": {"D1": 999_999_999}}, RUN) == {"c": 1.0}
    assert measure_per_query("NDCG", {"c": {"D1": 10_000}}, RUN) == {"c": 1.0}


def reference_measures(scores: dict[str, float], grades: dict[str, int]) -> dict[str, float]:
    """trec_eval's measures of one query, written out. A relevance below 0: in the pool, but not judged."""
    ranking = sorted(sorted(scores, reverse=True), key=lambda doc: -scores[doc])
    num_rel = sum(grade > 0 for grade in grades.values())
    num_nonrel = sum(grade == 0 for grade in grades.values())
    precisions, bpref, inf_ap, rel, nonrel, not_in_pool = [], 0.0, 0.0, 0, 0, 0
    for rank, doc in enumerate(ranking, start=1):
        if doc not in grades:
            not_in_pool += 1
        elif grades[doc] == 0:
            nonrel += 1
        elif grades[doc] > 0:
            before = rank - 1
            in_pool = (before - not_in_pool) / before if before else 0.0
            inf_ap += (1 + before * in_pool * (rel + 1e-5) / (rel + nonrel + 2e-5)) / rank
            bpref += 1 - min(nonrel, num_rel) / min(num_nonrel, num_rel) if nonrel else 1
            rel += 1
            precisions.append(rel / rank)

    def dcg(gains: list[int]) -> float:
        return sum(max(gain, 0) / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))

    gains, ideal = [grades.get(doc, 0) for doc in ranking], sorted(grades.values(), reverse=True)
    first = next((rank for rank, gain in enumerate(gains, start=1) if gain > 0), None)
    return {
        "map": sum(precisions) / max(num_rel, 1),
        "recip_rank": 1 / first if first else 0.0,
        "MRR@3": 1 / first if first and first <= 3 else 0.0,
        "P.3": sum(gain > 0 for gain in gains[:3]) / 3,
        "recall.3": sum(gain > 0 for gain in gains[:3]) / max(num_rel, 1),
        "Rprec": sum(gain > 0 for gain in gains[:num_rel]) / max(num_rel, 1),
        "ndcg": dcg(gains) / (dcg(ideal) or 1),
        "ndcg_cut.3": dcg(gains[:3]) / (dcg(ideal[:3]) or 1),
        "bpref": bpref / max(num_rel, 1),
        "infAP": inf_ap / max(num_rel, 1),
        "num_ret": len(ranking),
        "num_rel": num_rel,
        "num_rel_ret": rel,
    }


def test_negative_relevances_against_a_reference_implementation() -> None:
    """2,000 random queries with relevances from -5 to 4; in every third one all are below 0."""
    stream = random.Random(11)
    ids = [f"D{i}" for i in range(12)]
    qrels, run = {}, {}
    for number in range(2000):
        highest = -1 if number % 3 == 0 else 4
        judged = stream.sample(ids, stream.randint(1, 9))
        qrels[f"q{number}"] = {doc: stream.randint(-5, highest) for doc in judged}
        run[f"q{number}"] = {doc: stream.randint(0, 5) / 4 for doc in stream.sample(ids, stream.randint(1, 9))}
    expected = {query_id: reference_measures(run[query_id], qrels[query_id]) for query_id in run}
    for name in expected["q0"]:
        by_reference = {query_id: measures[name] for query_id, measures in expected.items()}
        assert measure_per_query(name, qrels, run) == pytest.approx(by_reference, abs=1e-6), name
        for query_id in list(run)[:40]:
            alone = measure_per_query(name, {query_id: qrels[query_id]}, {query_id: run[query_id]})
            assert alone == {query_id: pytest.approx(by_reference[query_id], abs=1e-6)}, name


@pytest.mark.parametrize("relevance", [-1, -2, -999_999_999])
def test_every_measure_of_a_query_with_negative_relevances_alone(relevance: int) -> None:
    """They crashed the process. The values are those of a query without relevant documents."""
    qrels: Qrels = {"a": {"D1": relevance, "D9": relevance}}
    run: Run = {"a": {"D1": 0.5, "D2": 0.25}}
    expected = {"num_q": 1, "num_ret": 2, "gm_map": math.log(1e-5), "gm_bpref": math.log(1e-5), "utility": -2}
    any_query = pytrec_eval.RelevanceEvaluator({"q": {"D1": 1}}, pytrec_eval.supported_measures).evaluate(
        {"q": {"D1": 1}}
    )
    for name in any_query["q"].keys() - {"runid", "relstring"}:
        assert measure_per_query(name, qrels, run) == {"a": pytest.approx(expected.get(name, 0.0))}, name


def test_whether_a_run_retrieves_a_relevant_document() -> None:
    assert retrieves_relevant(QRELS, RUN)
    assert not retrieves_relevant(QRELS, {name: RUN[name] for name in "bcd"})
    assert not retrieves_relevant({"a": {"D1": -1, "D2": 0}}, RUN)


def test_without_pytrec_eval_mrr_is_measured_and_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    assert mean_measure("MRR@10", {"q": {"D1": 1}}, {"q": {"D2": 2.0, "D1": 1.0}}) == 0.5
    with pytest.raises(InputError, match="pytrec_eval is not installed"):
        canonical_name("NDCG@10")
