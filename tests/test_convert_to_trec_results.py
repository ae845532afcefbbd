"""convert_to_trec_results.py: passage scores to a run."""

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Finished, run_main

from evaluation.aggregation import aggregation_function
from formats.trec import read_run

ROOT = Path(__file__).resolve().parent.parent
PASSAGE_SCORES = ROOT / "tests" / "data" / "passage_scores.tsv"

# Runs of the published implementation for tests/data/passage_scores.tsv: a query, its documents in order, `id:score`.
PUBLISHED = {
    "MaxP": """
        19 D9:0.97 D8:0.97 D6:0.95 D10:0.93 D2:0.82
           D0:0.78 D1:0.77 D4:0.73 D5:0.54
        7 D5:1.0 D9:0.98 D6:0.98 D4:0.95 D1:0.92
           D10:0.87 D0:0.86 D2:0.84 D8:0.34
        103 D6:0.99 D5:0.98 D8:0.96 D9:0.94 D4:0.84
           D0:0.79 D2:0.77 D1:0.74 D10:0.48
    """,
    "FirstP": """
        19 D1:0.77 D8:0.76 D0:0.74 D10:0.62 D2:0.6
           D4:0.38 D5:0.29 D9:0.18 D6:0.06
        7 D5:1.0 D6:0.98 D4:0.95 D1:0.92 D0:0.86
           D2:0.63 D10:0.63 D8:0.34 D9:0.15
        103 D5:0.98 D8:0.96 D0:0.79 D4:0.7 D2:0.67
           D6:0.62 D10:0.32 D1:0.27 D9:0.2
    """,
    "SumP": """
        19 D10:3.6799999999999997 D6:3.2200000000000006 D2:2.6699999999999995 D9:2.42 D0:2.31
           D8:2.0 D4:1.96 D5:0.8300000000000001 D1:0.77
        7 D5:4.7 D6:2.9999999999999996 D10:2.9800000000000004 D9:2.77 D1:2.2300000000000004
           D2:2.09 D4:0.95 D0:0.86 D8:0.34
        103 D8:3.52 D2:2.66 D6:2.63 D4:2.31 D9:2.3099999999999996
           D0:2.24 D5:1.5 D1:1.3599999999999999 D10:0.8
    """,
    "AvgP": """
        19 D1:0.77 D10:0.6133333333333333 D6:0.5366666666666667 D2:0.5339999999999999 D8:0.5
           D4:0.49 D0:0.462 D5:0.41500000000000004 D9:0.4033333333333333
        7 D4:0.95 D0:0.86 D5:0.7833333333333333 D9:0.6925 D6:0.5999999999999999
           D10:0.5960000000000001 D1:0.44600000000000006 D2:0.418 D8:0.34
        103 D4:0.77 D5:0.75 D0:0.7466666666666667 D8:0.5866666666666667 D2:0.532
           D6:0.526 D9:0.4619999999999999 D1:0.4533333333333333 D10:0.4
    """,
    "2-Max&AvgP": """
        19 D10:0.91 D6:0.895 D8:0.865 D1:0.77 D2:0.76
           D0:0.76 D9:0.69 D4:0.6499999999999999 D5:0.41500000000000004
        7 D5:0.995 D6:0.97 D4:0.95 D9:0.9099999999999999 D10:0.87
           D0:0.86 D1:0.775 D2:0.735 D8:0.34
        103 D9:0.83 D6:0.81 D8:0.8049999999999999 D4:0.8049999999999999 D0:0.775
           D5:0.75 D2:0.745 D1:0.5449999999999999 D10:0.4
    """,
    "3-Max&AvgP": """
        19 D10:0.8666666666666667 D6:0.7799999999999999 D1:0.77 D0:0.7233333333333333 D2:0.7066666666666667
           D8:0.6233333333333334 D9:0.5599999999999999 D4:0.5599999999999999 D5:0.41500000000000004
        7 D5:0.9700000000000001 D4:0.95 D9:0.8733333333333334 D0:0.86 D6:0.8066666666666666
           D10:0.79 D1:0.62 D2:0.6133333333333333 D8:0.34
        103 D4:0.7699999999999999 D8:0.7533333333333333 D5:0.75 D6:0.7466666666666667 D0:0.7466666666666667
           D2:0.7200000000000001 D9:0.6466666666666666 D1:0.4533333333333333 D10:0.4
    """,
}


def convert(*arguments: object) -> Finished:
    return run_main("convert_to_trec_results.py", *arguments)


def convert_text(tmp_path: Path, text: str, *arguments: object) -> Finished:
    (tmp_path / "scores.tsv").write_text(text, encoding="utf-8")
    return convert("--scores_file", tmp_path / "scores.tsv", "--output_results_file", tmp_path / "run.txt", *arguments)


@pytest.mark.parametrize("aggregation", PUBLISHED)
def test_published_runs(tmp_path, aggregation: str) -> None:
    output = tmp_path / "run.txt"
    done = convert("--scores_file", PASSAGE_SCORES, "--output_results_file", output, "--aggregation", aggregation)
    assert done.status == 0, done.stderr
    expected = []
    for word in PUBLISHED[aggregation].split():
        if ":" not in word:
            query_id, rank = word, 0
            continue
        rank += 1
        doc_id, score = word.split(":")
        expected.append([query_id, "Q0", doc_id, str(rank), score, f"bert_{aggregation}"])
    if aggregation == "SumP":
        # One score differs from the published one. 2.3099999999999996 and the score of D4 above it, 2.31, are equal in
        # 32 bits, so trec_eval would rank D9 first.
        (collapsed,) = (row for row in expected if row[4] == "2.3099999999999996")
        collapsed[4] = "2.309999704360962"
    assert [line.split("\t") for line in output.read_text().splitlines()] == expected


def test_aggregations_by_hand() -> None:
    scores = [0.25, 1.0, 0.5, 0.25]
    by_hand = {"MaxP": 1.0, "SumP": 2.0, "AvgP": 0.5, "1-Max&AvgP": 1.0, "2-Max&AvgP": 0.75, "9-Max&AvgP": 0.5}
    for name, expected in by_hand.items():
        assert aggregation_function(name)(scores) == expected
    assert aggregation_function("FirstP")([0.25]) == 0.25
    assert scores == [0.25, 1.0, 0.5, 0.25]


def test_both_forms_of_passage_id_and_the_default_aggregation(tmp_path) -> None:
    text = "9\tD1_2_0\t0.5\n9\tD1_2_1\t0.75\n10\tD1_passage-3\t0.5\n9\tD2_passage-10\t0.625\n"
    done = convert_text(tmp_path, text)
    assert done.status == 0, done.stderr
    assert (tmp_path / "run.txt").read_text() == (
        "9\tQ0\tD1_2\t1\t0.75\tbert_MaxP\n9\tQ0\tD2\t2\t0.625\tbert_MaxP\n10\tQ0\tD1\t1\t0.5\tbert_MaxP\n"
    )
    assert done.stdout.startswith(f"{tmp_path / 'run.txt'}: MaxP of 4 passages, 3 documents, 2 queries, in ")
    assert done.stderr == ""


def test_first_p_uses_passage_0_at_any_place(tmp_path) -> None:
    done = convert_text(
        tmp_path, "9\tD1_10\t0.9\n9\tD1_0\t0.5\n9\tD2_0\t0.75\n", "--aggregation", "FirstP", "--run_name", "é"
    )
    assert done.status == 0, done.stderr
    assert (tmp_path / "run.txt").read_text(encoding="utf-8") == "9\tQ0\tD2\t1\t0.75\té\n9\tQ0\tD1\t2\t0.5\té\n"


def test_saturated_scores_still_order_documents(tmp_path) -> None:
    done = convert_text(tmp_path, "9\tD1_0\t1.0\n9\tD2_0\t0.999999999999\n9\tD3_0\t0.9999999999999\n")
    assert done.status == 0, done.stderr
    assert [line.split("\t")[2:5:2] for line in (tmp_path / "run.txt").read_text().splitlines()] == [
        ["D1", "1.0"],
        ["D3", "0.9999999403953552"],  # 1 - 2^-24
        ["D2", "0.9999998807907104"],  # 1 - 2^-23
    ]


def measures_of(ranking: list[str], grades: dict[str, int]) -> dict[str, float]:
    """Measures of documents in order. The gain of trec_eval is the grade divided by log2(rank + 1)."""
    found = [grades.get(doc_id, 0) for doc_id in ranking]
    ideal = sorted(grades.values(), reverse=True)

    def dcg(gains: list[int]) -> float:
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:10], start=1) if gain > 0)

    return {
        "recip_rank": next((1 / rank for rank, grade in enumerate(found, start=1) if grade > 0), 0.0),
        "P_5": sum(grade > 0 for grade in found[:5]) / 5,
        "ndcg_cut_10": dcg(found) / dcg(ideal) if dcg(ideal) else 0.0,
    }


@pytest.mark.parametrize(
    ("aggregation", "queries"),
    [
        pytest.param("MaxP", 10_000, marks=pytest.mark.slow),
        *(("MaxP", 1000), ("FirstP", 1000), ("SumP", 1000), ("AvgP", 1000), ("2-Max&AvgP", 1000)),
    ],
)
def test_ranks_are_trec_evals_on_random_scores(tmp_path, aggregation: str, queries: int) -> None:
    """trec_eval's measures, computed from the scores of the run, equal those computed from its rank column.

    Documents have one to three passages. Scores tie in 64 bits or only in 32 bits. Ids sort in unusual ways.
    """
    pytrec_eval = pytest.importorskip("pytrec_eval")
    stream = random.Random(queries)
    ids = ["D1", "D10", "D9", "d1", "D1_1", "é", "e\u0301", "\uffff", "\U0001f600", "中1", "中10", "~", "-"]
    pool = [0.0, 0.25, 0.5, 0.1 + 0.2, 0.3, 1.0, 1.0 - 1e-12, 1.0 - 2e-12, 1.0 - 1e-9, 1.0 - 5e-8, 1e-45, 5e-324]
    qrels, lines = {}, []
    for number in range(queries):
        values = pool[: stream.randint(1, len(pool))]
        qrels[f"q{number}"] = {doc_id: stream.choice([0, 1, 2, 3]) for doc_id in stream.sample(ids, 5)}
        for doc_id in stream.sample(ids, stream.randint(1, len(ids))):
            for passage in range(stream.randint(1, 3)):
                lines.append(f"q{number}\t{doc_id}_{passage}\t{stream.choice(values)!r}\n")
    stream.shuffle(lines)
    scores, output = tmp_path / "scores.tsv", tmp_path / "run.txt"
    scores.write_text("".join(lines), encoding="utf-8")
    flags = ["--scores_file", scores, "--output_results_file", output, "--aggregation", aggregation]
    assert convert(*flags).status == 0

    run: dict[str, dict[str, float]] = {}
    ranking: dict[str, list[str]] = {}
    for line in output.read_text(encoding="utf-8").split("\n")[:-1]:
        query_id, _, doc_id, rank, score, _ = line.split("\t")
        run.setdefault(query_id, {})[doc_id] = float(score)
        ranking.setdefault(query_id, []).append(doc_id)
        assert int(rank) == len(ranking[query_id])
    assert len(run) == queries
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank", "P.5", "ndcg_cut.10"}).evaluate(run)
    for query_id, measures in measured.items():
        assert measures == pytest.approx(measures_of(ranking[query_id], qrels[query_id]), rel=1e-12), query_id
    assert len(measured) == queries


GOOD = "9\tD1_0\t0.5\n"


@pytest.mark.parametrize(
    ("text", "aggregation", "message"),
    [
        ("", "MaxP", "is empty"),
        (GOOD + "9\tD1_1\n", "MaxP", "line 2: 2 columns"),
        (GOOD + "9\tD 1_1\t0.5\n", "MaxP", "line 2: the passage id 'D 1_1'"),
        (GOOD + "9\tD1_1\tnan\n", "MaxP", "line 2: score 'nan'"),
        (GOOD + "9\tD1_1\t1e999\n", "MaxP", "line 2: score '1e999'"),
        (GOOD + "9\tD1\t0.5\n", "MaxP", "line 2: passage id 'D1'"),
        (GOOD + GOOD, "SumP", "line 2: passage D1_0 of query 9 has a score already"),
        (GOOD + "9\tD1_passage-0\t0.5\n", "FirstP", "line 2: document D1 has a passage 0 already"),
        (GOOD + "9\tD2_1\t0.5\n", "FirstP", "document D2 of query 9 has no passage 0"),
        (GOOD + "9\tD2_1\t1e39\n", "MaxP", "query 9: score 1e+39 is beyond the 32-bit floats"),
    ],
)
def test_malformed_input(tmp_path, text: str, aggregation: str, message: str) -> None:
    """One line that names the place, status 2, no output. An older output stays, even with --overwrite."""
    older = tmp_path / "run.txt"
    older.write_text("older\n")
    done = convert_text(tmp_path, text, "--aggregation", aggregation, "--overwrite")
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr and message in done.stderr
    assert older.read_text() == "older\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.txt", "scores.tsv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--aggregation", "maxp"], "'maxp' is not one of MaxP, FirstP, SumP, AvgP"),
        (["--aggregation", "k-Max&AvgP"], "with a number for k"),
        (["--aggregation", "0-Max&AvgP"], "with a number for k"),
        (["--run_name", ""], "--run_name"),
        (["--run_name", "two words"], "--run_name"),
        (["--no_such_flag"], "unrecognized arguments"),
    ],
)
def test_refused_settings(tmp_path, arguments: list[str], message: str) -> None:
    done = convert_text(tmp_path, GOOD, *arguments)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "run.txt").exists()


def test_output_is_replaced_only_with_overwrite(tmp_path) -> None:
    output = tmp_path / "run.txt"
    output.write_text("older\n")
    refused = convert_text(tmp_path, GOOD)
    assert refused.status == 2
    assert refused.stderr.count("\n") == 1
    assert "--overwrite" in refused.stderr and str(output) in refused.stderr
    assert output.read_text() == "older\n"
    assert convert_text(tmp_path, GOOD, "--overwrite").status == 0
    assert output.read_text() == "9\tQ0\tD1\t1\t0.5\tbert_MaxP\n"


def test_impossible_paths(tmp_path) -> None:
    scores = tmp_path / "scores.tsv"
    missing = convert("--scores_file", scores, "--output_results_file", tmp_path / "run.txt")
    assert missing.status == 2 and str(scores) in missing.stderr and missing.stderr.count("\n") == 1
    scores.write_text(GOOD)
    same = convert("--scores_file", scores, "--output_results_file", scores, "--overwrite")
    assert same.status == 2 and "is also an input" in same.stderr
    assert scores.read_text() == GOOD
    nowhere = convert("--scores_file", scores, "--output_results_file", tmp_path / "no" / "run.txt")
    assert nowhere.status == 2 and "does not exist" in nowhere.stderr


def test_round_trip_of_a_compressed_run(tmp_path) -> None:
    (tmp_path / "scores.tsv").write_text(GOOD + "9\tD1_1\t0.25\n")
    output = tmp_path / "run.txt.gz"
    done = convert("--scores_file", tmp_path / "scores.tsv", "--output_results_file", output, "--aggregation", "SumP")
    assert done.status == 0, done.stderr
    assert read_run(output) == {"9": {"D1": 0.75}}


def test_help_and_no_torch() -> None:
    code = "import sys, convert_to_trec_results; print('torch' in sys.modules, 'transformers' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert loaded.stdout == "False False\n", loaded.stderr
    shown = convert("--help")
    assert shown.status == 0
    assert "python convert_to_trec_results.py --scores_file" in " ".join(shown.stdout.split())
