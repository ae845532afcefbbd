"""MRR of a run."""

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import run_main

from convert_to_trec_results import read_documents
from evaluation.aggregation import aggregation_function
from evaluation.measures import first_relevant_rank, mean_reciprocal_rank
from formats.trec import write_qrels, write_run

ROOT = Path(__file__).resolve().parent.parent


def evaluate(qrels: Path, run: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "msmarco_mrr_eval.py", str(qrels), str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def evaluate_text(tmp_path: Path, qrels: str, run: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "qrels.txt").write_text(qrels, encoding="utf-8")
    (tmp_path / "run.txt").write_text(run, encoding="utf-8")
    return evaluate(tmp_path / "qrels.txt", tmp_path / "run.txt")


# Document D9 of query 103 is judged twice, and the published figures count it as relevant.
PUBLISHED_QRELS = """\
19 0 D4 0
19 0 D5 1
19 0 D6 1
7 0 D4 2
103 0 D2 2
103 0 D5 0
103 0 D9 0
19 0 D3 1
7 0 D1 1
103 0 D9 1
"""


@pytest.mark.parametrize(
    ("aggregation", "mrr"),
    [
        ("MaxP", "0.27777777777777773"),
        ("FirstP", "0.2253968253968254"),
        ("SumP", "0.39999999999999997"),
        ("AvgP", "0.5111111111111111"),
        ("2-Max&AvgP", "0.611111111111111"),
        ("3-Max&AvgP", "0.3888888888888889"),
    ],
)
def test_published_figures(tmp_path, aggregation: str, mrr: str) -> None:
    run, qrels = tmp_path / "run.txt", tmp_path / "qrels.txt"
    qrels.write_text(PUBLISHED_QRELS)
    documents, _ = read_documents(str(ROOT / "tests/data/passage_scores.tsv"), first_only=aggregation == "FirstP")
    aggregate = aggregation_function(aggregation)
    write_run(run, {query: {doc: aggregate(s) for doc, s in docs.items()} for query, docs in documents.items()}, "x")
    done = evaluate(qrels, run)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"query_num: 3\nMRR: {mrr}\nMRR@10: {mrr}\n"
    assert done.stderr == (
        f"note: 1 contradictory judgements, of which the higher relevance holds: {qrels} line 10: "
        "document D9 of query 103 has relevance 1, but 0 in line 7\n"
    )


def test_by_hand(tmp_path) -> None:
    """Ranks 2, 11, none relevant and not judged: (1/2 + 1/11) / 4 and (1/2) / 4."""
    eleven = "".join(f"b Q0 D{i} {i} {1 / i!r} x\n" for i in range(1, 12))
    run = "a Q0 D1 1 0.5 x\na Q0 D2 2 0.25 x\n" + eleven + "c Q0 D1 1 0.5 x\nd Q0 D1 1 0.5 x\n"
    done = evaluate_text(tmp_path, "a 0 D1 0\na 0 D2 3\nb 0 D11 1\nc 0 D1 -1\nc 0 D2 1\ne 0 D1 1\n", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"query_num: 4\nMRR: {(1 / 2 + 1 / 11) / 4!r}\nMRR@10: 0.125\n"
    assert done.stderr == (
        "note: 1 of 4 queries have no judgements and count 0\n"
        "note: 1 judged queries are not in the run and do not count\n"
    )


def test_ranks_come_from_the_scores_and_ties_from_the_ids(tmp_path) -> None:
    """The rank column is wrong, and 1.0 and 1.0 - 1e-12 are one score in 32 bits: D3, D2, D1."""
    run = "7 Q0 D1 1 1.0 x\n7 Q0 D2 2 0.999999999999 x\n7 Q0 D3 3 2.0 x\n"
    assert evaluate_text(tmp_path, "7 0 D2 1\n", run).stdout == "query_num: 1\nMRR: 0.5\nMRR@10: 0.5\n"
    assert evaluate_text(tmp_path, "7 0 D3 1\n", run).stdout == "query_num: 1\nMRR: 1.0\nMRR@10: 1.0\n"


def test_mean_reciprocal_rank_by_hand() -> None:
    assert mean_reciprocal_rank([1, None, 4, 11]) == (1 + 1 / 4 + 1 / 11) / 4
    assert mean_reciprocal_rank([1, None, 4, 11], cutoff=10) == 1.25 / 4
    assert mean_reciprocal_rank([10], cutoff=10) == 0.1


def random_collection(seed: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Twenty queries whose scores tie, collapse in 32 bits or are all alike, and whose ids are not only ASCII."""
    stream = random.Random(seed)
    ids = [f"D{i}" for i in range(12)] + ["é", "e\u0301", "\uffff", "\U0001f600", "中1", "中10"]
    pool = [0.5, 0.25, 1.0, 1.0 - 1e-12, 1.0 - 1e-9, 1.0 - 1e-8, 1.0 - 5e-8, 0.1 + 0.2, 0.3]
    run, qrels = {}, {}
    for query in range(20):
        values = pool[: stream.randint(1, len(pool))]
        docs = stream.sample(ids, stream.randint(1, len(ids)))
        run[f"q{query}"] = {doc_id: stream.choice(values) for doc_id in docs}
        judged = stream.sample(ids, 4)
        qrels[f"q{query}"] = {doc_id: stream.choice([0, 0, 1, 2]) for doc_id in judged}
    return run, qrels


@pytest.mark.parametrize("seed", range(25))
def test_every_reciprocal_rank_is_that_of_trec_eval(seed: int) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    run, qrels = random_collection(seed)
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)
    for query_id, scores in run.items():
        rank = first_relevant_rank(scores, qrels[query_id])
        assert (0.0 if rank is None else 1 / rank) == pytest.approx(measured[query_id]["recip_rank"], rel=1e-12)


def test_script_gives_the_mean_of_trec_eval(tmp_path) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    run, qrels = random_collection(99)
    run_text = "".join(f"{q} Q0 {d} 1 {s!r} x\n" for q, scores in run.items() for d, s in scores.items())
    qrels_text = "".join(f"{q} 0 {d} {g}\n" for q, grades in qrels.items() for d, g in grades.items())
    done = evaluate_text(tmp_path, qrels_text, run_text)
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)
    mean = sum(values["recip_rank"] for values in measured.values()) / len(run)
    printed = dict(line.split(": ") for line in done.stdout.splitlines())
    assert float(printed["MRR"]) == pytest.approx(mean, rel=1e-12)
    assert printed["query_num"] == "20"


def test_measures_of_10_000_random_queries_are_those_of_trec_eval(tmp_path) -> None:
    """Runs and judgements with ties; of the queries 500 are not judged, and 500 judged ones are not in the run."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    run, qrels = {}, {}
    for seed in range(525):
        some_run, some_qrels = random_collection(seed)
        run |= {f"{seed}-{query_id}": scores for query_id, scores in some_run.items() if seed >= 25}
        qrels |= {f"{seed}-{query_id}": grades for query_id, grades in some_qrels.items() if seed < 500}
    qrels_file, run_file = tmp_path / "qrels.txt", tmp_path / "run.txt"
    rows = [(query_id, doc_id, score) for query_id, scores in run.items() for doc_id, score in scores.items()]
    random.Random(1).shuffle(rows)
    run_file.write_text("".join(f"{q} Q0 {d} 1 {score!r} x\n" for q, d, score in rows), encoding="utf-8")
    write_qrels(qrels_file, qrels)
    done = run_main("msmarco_mrr_eval.py", qrels_file, run_file)
    assert done.stderr == (
        "note: 500 of 10000 queries have no judgements and count 0\n"
        "note: 500 judged queries are not in the run and do not count\n"
    )
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)
    assert len(measured) == 9500
    reciprocal_ranks = [measured[query_id]["recip_rank"] if query_id in measured else 0.0 for query_id in run]
    printed = dict(line.split(": ") for line in done.stdout.splitlines())
    assert printed["query_num"] == "10000"
    assert float(printed["MRR"]) == pytest.approx(math.fsum(reciprocal_ranks) / 10000, rel=1e-12)
    best_ten = math.fsum(value for value in reciprocal_ranks if value >= 0.1)
    assert float(printed["MRR@10"]) == pytest.approx(best_ten / 10000, rel=1e-12)


GOOD_QRELS, GOOD_RUN = "7 0 D1 1\n", "7 Q0 D1 1 0.5 x\n"


@pytest.mark.parametrize(
    ("qrels", "run", "message"),
    [
        ("", GOOD_RUN, "qrels.txt is empty"),
        (GOOD_QRELS, "", "run.txt is empty"),
        (GOOD_QRELS + "7 0 D2 1.5\n", GOOD_RUN, "qrels.txt line 2: relevance '1.5'"),
        (GOOD_QRELS, GOOD_RUN + "7 Q0 D2 2 nan x\n", "run.txt line 2: score 'nan'"),
        (GOOD_QRELS, GOOD_RUN + GOOD_RUN, "run.txt line 2: document D1 of query 7 stands in line 1 already"),
        (GOOD_RUN, GOOD_QRELS, "qrels.txt line 1: 6 columns where 4"),
        ("8 0 D1 1\n", GOOD_RUN, "share no query"),
    ],
)
def test_malformed_input(tmp_path, qrels: str, run: str, message: str) -> None:
    done = evaluate_text(tmp_path, qrels, run)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_missing_file_and_missing_argument(tmp_path) -> None:
    missing = evaluate(tmp_path / "qrels.txt", tmp_path / "run.txt")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1 and "qrels.txt" in missing.stderr
    bare = subprocess.run([sys.executable, "msmarco_mrr_eval.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert bare.returncode == 2 and bare.stderr.count("\n") == 1


def test_loads_no_torch() -> None:
    code = "import sys, msmarco_mrr_eval; print('torch' in sys.modules, 'transformers' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert loaded.stdout == "False False\n", loaded.stderr
