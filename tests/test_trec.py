"""Runs, qrels and the order of trec_eval."""

import math
import random
from collections.abc import Callable
from functools import cmp_to_key
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from formats.trec import keep_order_in_float32, rank_documents, read_qrels, read_run, write_qrels, write_run
from runtime.errors import InputError

JUST_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))  # 1 - 2^-24
IDS = ["D1", "D10", "D9", "d1", "é", "e\u0301", "z", "\uffff", "\U0001f600", "中", "~", "Dé1"]

# Ties, scores near 1 that are equal in 32 bits, ordinary scores, very small and negative scores.
some_score = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 0.25, 1.0, 1.0 - 1e-12, 1.0 - 2e-12, JUST_BELOW_ONE, 1.0 - 2**-23, 5e-324, 1e-45, -1e-50]
    ),
    st.floats(min_value=1.0 - 1e-6, max_value=1.0),
    st.floats(min_value=-1e30, max_value=1e30),
)
some_ids = st.one_of(st.sampled_from(IDS), st.text(alphabet="Dab19é\uffff\U0001f600", min_size=1, max_size=3))
some_scores = st.dictionaries(some_ids, some_score, min_size=1, max_size=12)


def float32(score: float) -> float:
    return float(np.float32(score))


def trec_eval_order(scores: dict[str, float]) -> list[str]:
    """The order of trec_eval, from its reciprocal ranks: in turn, each document is the only relevant one."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    evaluator = pytrec_eval.RelevanceEvaluator({doc_id: {doc_id: 1} for doc_id in scores}, {"recip_rank"})
    measured = evaluator.evaluate({doc_id: dict(scores) for doc_id in scores})
    return sorted(scores, key=lambda doc_id: -measured[doc_id]["recip_rank"])


def reference_order(scores: dict[str, float]) -> list[str]:
    """trec_eval's comparison written out: the score in 32 bits, then the id's UTF-8 bytes, both descending."""

    def compare(a: str, b: str) -> int:
        if float32(scores[a]) != float32(scores[b]):
            return -1 if float32(scores[a]) > float32(scores[b]) else 1
        return -1 if a.encode() > b.encode() else 1

    return sorted(scores, key=cmp_to_key(compare))


def written_scores(path) -> dict[str, float]:
    columns = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [fields[3] for fields in columns] == [str(rank) for rank in range(1, len(columns) + 1)]
    return {fields[2]: float(fields[4]) for fields in columns}


def refusal_of_line_2(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} line 2: ")
    return str(caught.value)


def test_rank_documents_by_hand() -> None:
    scores = {"D1": 0.5, "D10": 0.5, "D9": 0.5, "D2": 0.75, "D3": -1.0}
    assert rank_documents(scores) == [("D2", 0.75), ("D9", 0.5), ("D10", 0.5), ("D1", 0.5), ("D3", -1.0)]


def test_rank_documents_ties_what_32_bits_cannot_tell_apart() -> None:
    assert rank_documents({"D1": 1.0, "D2": 1.0 - 1e-12}) == [("D2", 1.0 - 1e-12), ("D1", 1.0)]
    assert rank_documents({"D1": 1.0, "D2": 1.0 - 1e-7}) == [("D1", 1.0), ("D2", 1.0 - 1e-7)]
    assert rank_documents({"D1": 1e300, "D2": 1e299}) == [("D2", 1e299), ("D1", 1e300)]


@settings(deadline=None)
@given(scores=some_scores)
@example(scores=dict.fromkeys(IDS, 1.0))
def test_rank_documents_agrees_with_the_reference_implementation_and_with_trec_eval(scores: dict[str, float]) -> None:
    ranked = rank_documents(scores)
    assert [doc_id for doc_id, _ in ranked] == reference_order(scores) == trec_eval_order(scores)
    assert dict(ranked) == scores


def test_keep_order_in_float32_by_hand() -> None:
    step = 2.0**-24  # between 32-bit floats just below 1
    assert keep_order_in_float32([0.9, 0.8, 0.8, 0.1]) == [0.9, 0.8, 0.8, 0.1]
    assert keep_order_in_float32([1.0, 1.0 - 1e-12, 1.0 - 1e-12, 1.0 - 2e-12]) == [
        1.0,
        1 - step,
        1 - step,
        1 - 2 * step,
    ]
    # In 32 bits the third differs from the first, but not from the new value of the second.
    assert keep_order_in_float32([1.0, 1.0 - 1e-12, 1.0 - step]) == [1.0, 1 - step, 1 - 2 * step]
    assert keep_order_in_float32([1e-50, 0.0]) == [1e-50, -(2.0**-149)]
    assert keep_order_in_float32([]) == []


@pytest.mark.parametrize(
    "scores", [[1e39], [0.5, -1e39], [math.inf], [math.nan], [-3.4028234663852886e38, -3.40282347e38]]
)
def test_keep_order_in_float32_refuses(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="beyond the 32-bit floats"):
        keep_order_in_float32(scores)


@settings(deadline=None)
@given(scores=some_scores)
@example(scores={"D1": 1.0, "D2": 1.0 - 1e-12, "D3": 1.0 - 2e-12, "D0": 1.0 - 1e-12, "D9": JUST_BELOW_ONE})
def test_trec_eval_sees_the_order_of_the_full_scores(tmp_path_factory, scores: dict[str, float]) -> None:
    path = tmp_path_factory.mktemp("run") / "run.txt"
    assert write_run(path, {"7": scores}, "x") == len(scores)
    expected = sorted(sorted(scores, reverse=True), key=lambda doc_id: scores[doc_id], reverse=True)
    written = written_scores(path)
    assert list(written) == expected == trec_eval_order(written)
    assert [doc_id for doc_id, _ in rank_documents(read_run(path)["7"])] == expected
    for a in scores:
        assert written[a] == scores[a] or written[a] == float32(written[a])
        for b in scores:
            assert (scores[a] == scores[b]) == (float32(written[a]) == float32(written[b]))


def test_saturated_ranker_keeps_its_order(tmp_path) -> None:
    """200 probabilities between 1 - 1e-7 and 1. In 32 bits they have two values. Some are exact ties."""
    stream = random.Random(5)
    pool = [1.0 - 1e-7 * stream.random() for _ in range(150)]
    scores = {f"D{i}": stream.choice(pool) for i in range(200)}
    write_run(tmp_path / "run.txt", {"7": scores}, "x")
    expected = sorted(scores, key=lambda doc_id: (scores[doc_id], doc_id), reverse=True)
    written = written_scores(tmp_path / "run.txt")
    assert list(written) == expected == trec_eval_order(written)
    assert min(written.values()) > 1 - 2e-5


def test_write_run_by_hand(tmp_path) -> None:
    path = tmp_path / "run.txt"
    assert write_run(path, {"9": {"D1": 0.5, "D2": 0.5, "D3": 0.1 + 0.2}, "10": {"D1": 1.0}}, "mine") == 4
    assert path.read_text() == (
        "9\tQ0\tD2\t1\t0.5\tmine\n9\tQ0\tD1\t2\t0.5\tmine\n9\tQ0\tD3\t3\t0.30000000000000004\tmine\n"
        "10\tQ0\tD1\t1\t1.0\tmine\n"
    )


def test_write_run_leaves_nothing_behind_on_an_error(tmp_path) -> None:
    path = tmp_path / "run.txt"
    path.write_text("old\n")
    with pytest.raises(InputError, match=r"query 8: score 1e\+39 is beyond"):
        write_run(path, {"7": {"D1": 0.5}, "8": {"D1": 1e39}}, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["run.txt"]
    assert path.read_text() == "old\n"


def test_read_run_takes_tabs_blanks_and_crlf(tmp_path) -> None:
    path = tmp_path / "run.txt"
    path.write_bytes("8 Q0 D1 1 0.5 x\r\n7\tQ0\tD\u00a02\t9\t-2e-1\tx\t\n 8  Q0 \tD0 1 0.5 x".encode())
    run = read_run(path)
    assert run == {"8": {"D1": 0.5, "D0": 0.5}, "7": {"D\u00a02": -0.2}}
    assert list(run) == ["8", "7"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 Q0 D2 1 0.5", "5 columns where 6"),
        ("7 Q0 D2 1 0.5 x y", "7 columns where 6"),
        ("", "0 columns where 6"),
        ("7 Q0 D2 1 high x", "score 'high' is not a finite number"),
        ("7 Q0 D2 1 nan x", "score 'nan' is not a finite number"),
        ("7 Q0 D2 1 -inf x", "score '-inf' is not a finite number"),
        ("7 Q0 D2 1 1e999 x", "score '1e999' is not a finite number"),
        ("7 Q0 D2 1 1_0 x", "score '1_0' is not a finite number"),
        ("7 Q0 D1 2 0.25 x", "document D1 of query 7 is already in line 1"),
        ("7 Q0 D1 1 0.5 x", "document D1 of query 7 is already in line 1"),
    ],
)
def test_read_run_names_file_and_line(tmp_path, line: str, message: str) -> None:
    path = tmp_path / "run.txt"
    path.write_text(f"7 Q0 D1 1 0.5 x\n{line}\n8 Q0 D1 1 0.5 x\n")
    assert message in refusal_of_line_2(read_run, path)


def test_read_qrels_takes_tabs_blanks_crlf_and_repetition(tmp_path) -> None:
    path = tmp_path / "qrels.txt"
    path.write_bytes(b"7 0 D1 1\r\n7\t0\tD2\t0\n8  Q0 D1 -1\n7 0 D1 1\n")
    assert read_qrels(path) == {"7": {"D1": 1, "D2": 0}, "8": {"D1": -1}}


@pytest.mark.parametrize("blank", ["\t", " "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_read_qrels_knows_beir_by_its_header(tmp_path, blank, end) -> None:
    path = tmp_path / "dev.tsv"
    rows = [("query-id", "corpus-id", "score"), ("7", "D1", "1"), ("7", "D2", "0"), ("8", "D1", "2")]
    path.write_bytes("".join(blank.join(row) + end for row in rows).encode())
    assert read_qrels(path) == {"7": {"D1": 1, "D2": 0}, "8": {"D1": 2}}
    path.write_bytes("".join(blank.join(row) + end for row in [*rows, ("9", "0", "D1", "1")]).encode())
    with pytest.raises(
        InputError, match=r"dev\.tsv line 5: 4 columns where 3 are needed \(query-id, corpus-id, score\)"
    ):
        read_qrels(path)
    path.write_bytes("".join(blank.join(row) + end for row in rows[1:]).encode())
    with pytest.raises(InputError, match=r"dev\.tsv line 1: 3 columns where 4"):
        read_qrels(path)


def test_write_qrels(tmp_path) -> None:
    path = tmp_path / "qrels.txt"
    qrels = {"8": {"D1": -1, "D0": 2}, "7": {"D1": 0}}
    assert write_qrels(path, qrels) == 3
    assert path.read_text() == "8\t0\tD1\t-1\n8\t0\tD0\t2\n7\t0\tD1\t0\n"
    assert read_qrels(path) == qrels


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0 D2", "3 columns where 4"),
        ("7 0 D2 1 x", "5 columns where 4"),
        ("", "0 columns where 4"),
        ("7 0 D2 yes", "relevance 'yes' is not an integer"),
        ("7 0 D2 1.0", "relevance '1.0' is not an integer"),
        ("7 0 D2 1_0", "relevance '1_0' is not an integer"),
        ("7 0 D2 ٣", "relevance '٣' is not an integer"),
        ("7 0 D1 0", "document D1 of query 7 has relevance 0, but 1 in line 1"),
    ],
)
def test_read_qrels_names_file_and_line(tmp_path, line: str, message: str) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text(f"7 0 D1 1\n{line}\n8 0 D1 1\n", encoding="utf-8")
    assert message in refusal_of_line_2(read_qrels, path)


def test_read_qrels_reports_conflicts_and_keeps_the_higher_relevance(tmp_path) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text("7 0 D1 0\n7 0 D1 2\n7 0 D1 1\n7 0 D2 1\n7 0 D2 1\n")
    conflicts: list[str] = []
    assert read_qrels(path, on_conflict=conflicts.append) == {"7": {"D1": 2, "D2": 1}}
    assert conflicts == [
        f"{path} line 2: document D1 of query 7 has relevance 2, but 0 in line 1",
        f"{path} line 3: document D1 of query 7 has relevance 1, but 2 in line 2",
    ]


def test_three_columns_without_the_header_of_beir_name_it(tmp_path: Path) -> None:
    path = tmp_path / "qrels.tsv"
    path.write_text("q1\td1\t1\n")
    with pytest.raises(InputError, match=r"3 columns where 4 .*; BEIR's three columns need the first line 'query-id "):
        read_qrels(path)
