"""Measures of runs, and comparisons."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Finished, assert_refused, run_main

from convert_to_trec_results import read_documents
from evaluation import tables
from evaluation.aggregation import aggregation_function
from evaluation.measures import first_relevant_rank
from formats.trec import write_qrels, write_run

ROOT = Path(__file__).resolve().parent.parent


def evaluate_text(tmp_path: Path, qrels: str, run: str) -> Finished:
    (tmp_path / "qrels.txt").write_text(qrels, encoding="utf-8")
    (tmp_path / "run.txt").write_text(run, encoding="utf-8")
    return run_main("msmarco_mrr_eval.py", tmp_path / "qrels.txt", tmp_path / "run.txt")


# Document D9 of query 103 has two judgments. The published figures count it as relevant.
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
    done = run_main("msmarco_mrr_eval.py", qrels, run)
    assert done.status == 0, done.stderr
    assert done.stdout == f"query_num: 3\nMRR: {mrr}\nMRR@10: {mrr}\n"
    assert done.stderr == (
        f"note: 1 contradictory judgments, the higher relevance is used: {qrels} line 10: "
        "document D9 of query 103 has relevance 1, but 0 in line 7\n"
    )


def test_by_hand(tmp_path) -> None:
    """Ranks 2, 11, nothing relevant, not judged: (1/2 + 1/11) / 4 and (1/2) / 4."""
    eleven = "".join(f"b Q0 D{i} {i} {1 / i!r} x\n" for i in range(1, 12))
    run = "a Q0 D1 1 0.5 x\na Q0 D2 2 0.25 x\n" + eleven + "c Q0 D1 1 0.5 x\nd Q0 D1 1 0.5 x\n"
    done = evaluate_text(tmp_path, "a 0 D1 0\na 0 D2 3\nb 0 D11 1\nc 0 D1 -1\nc 0 D2 1\ne 0 D1 1\n", run)
    assert done.status == 0, done.stderr
    assert done.stdout == f"query_num: 4\nMRR: {(1 / 2 + 1 / 11) / 4!r}\nMRR@10: 0.125\n"
    assert done.stderr == (
        "note: 1 of 4 queries have no judgments and count 0\n"
        "note: 1 judged queries are not in the run and do not count\n"
    )


def test_ranks_come_from_the_scores_and_ties_from_the_ids(tmp_path) -> None:
    """The rank column is wrong, and 1.0 and 1.0 - 1e-12 are one score in 32 bits: D3, D2, D1."""
    run = "7 Q0 D1 1 1.0 x\n7 Q0 D2 2 0.999999999999 x\n7 Q0 D3 3 2.0 x\n"
    assert evaluate_text(tmp_path, "7 0 D2 1\n", run).stdout == "query_num: 1\nMRR: 0.5\nMRR@10: 0.5\n"
    assert evaluate_text(tmp_path, "7 0 D3 1\n", run).stdout == "query_num: 1\nMRR: 1.0\nMRR@10: 1.0\n"


def random_collection(seed: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Twenty queries whose scores tie, are equal in 32 bits or are all equal, and whose ids are not only ASCII."""
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


@pytest.mark.slow
def test_measures_of_10_000_random_queries_are_those_of_trec_eval(tmp_path) -> None:
    """Runs and qrels with ties; 500 queries of the run are not judged, and 500 judged queries are not in the run."""
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
        "note: 500 of 10000 queries have no judgments and count 0\n"
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
        (GOOD_QRELS, GOOD_RUN + GOOD_RUN, "run.txt line 2: document D1 of query 7 is already in line 1"),
        (GOOD_RUN, GOOD_QRELS, "qrels.txt line 1: 6 columns where 4"),
        ("8 0 D1 1\n", GOOD_RUN, "share no query"),
    ],
)
def test_malformed_input(tmp_path, qrels: str, run: str, message: str) -> None:
    done = evaluate_text(tmp_path, qrels, run)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_missing_file_and_missing_argument(tmp_path) -> None:
    missing = run_main("msmarco_mrr_eval.py", tmp_path / "qrels.txt", tmp_path / "run.txt")
    assert missing.status == 2 and missing.stderr.count("\n") == 1 and "qrels.txt" in missing.stderr
    bare = subprocess.run([sys.executable, "msmarco_mrr_eval.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert bare.returncode == 2 and bare.stderr.count("\n") == 1


def test_loads_no_torch() -> None:
    code = "import sys, msmarco_mrr_eval; print('torch' in sys.modules, 'transformers' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert loaded.stdout == "False False\n", loaded.stderr


# Queries a and b are judged and in all runs; c is not in two.run, d is in no run, x is not judged.
FILES = {
    "qrels.txt": "a 0 D1 1\na 0 D2 0\nb 0 D1 2\nb 0 D3 1\nc 0 D2 1\nd 0 D1 1\n",
    "one.run": (
        "a Q0 D1 1 0.75 x\na Q0 D4 2 0.5 x\nb Q0 D2 1 4 x\nb Q0 D1 2 2 x\nc Q0 D3 2 1 x\nc Q0 D2 1 0.5 x\n"
        "x Q0 D1 1 1 x\n"
    ),
    "two.run": "b Q0 D1 1 9 x\nb Q0 D3 2 8 x\na Q0 D2 1 7 x\na Q0 D1 2 6 x\n",
    "3_%.run": "a Q0 D9 1 7 x\nb Q0 D9 1 7 x\nc Q0 D9 1 7 x\n",
}
NOTES_OF_ONE = """\
note: 1 of 4 queries have no judgments and do not count
note: 1 judged queries are not in the run and do not count
"""


@pytest.fixture
def files(tmp_path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def evaluate_files(files: Path, *args: object) -> Finished:
    """Runs the script; an argument that is a key of FILES becomes the path of that file."""
    return run_main("msmarco_mrr_eval.py", *(files / str(arg) if arg in FILES else arg for arg in args))


def test_measures_of_one_run_by_hand(files) -> None:
    """The first relevant document of a, b, c has rank 1, 2, 2. One of the first two is relevant, and one is judged."""
    done = evaluate_files(files, "qrels.txt", "one.run", "--measures", "MRR@1", "P@2,Judged@2", "recip_rank", "num_ret")
    assert done.stdout == (
        f"query_num: 3\nMRR@1: {1 / 3!r}\nP@2: 0.5\nJudged@2: 0.5\nrecip_rank: {2 / 3!r}\nnum_ret: 6\n"
    )
    assert done.stderr == NOTES_OF_ONE


def test_official_msmarco_by_hand(files) -> None:
    """In the rank column D2 of query c is first, unlike in the scores. d counts 0: (1 + 1/2 + 1 + 0) / 4."""
    done = evaluate_files(files, "qrels.txt", "one.run", "--official_msmarco")
    assert done.stdout == "query_num: 4\nMRR: 0.5\nMRR@10: 0.5\nofficial_MRR@100: 0.625\n"
    assert done.stderr == (
        "note: 1 of 4 queries have no judgments and count 0\n"
        "note: 1 judged queries are not in the run and do not count, but count 0 in official_MRR@100\n"
    )


@pytest.mark.parametrize("rank", ["1.5", "", "x", "1e2", "9999999999"])
def test_official_msmarco_needs_ranks(files, rank: str) -> None:
    (files / "one.run").write_text(f"a Q0 D1 {rank or '-'} 0.5 x\na Q0 D2 7 0.75 x\n")
    assert_refused(evaluate_files(files, "qrels.txt", "one.run", "--official_msmarco"), "one.run line 1: rank '")
    assert evaluate_files(files, "qrels.txt", "one.run").stdout == "query_num: 1\nMRR: 0.5\nMRR@10: 0.5\n"
    skipped = evaluate_files(files, "qrels.txt", "one.run", "--official_msmarco", "--skip_malformed")
    assert skipped.stdout == "query_num: 1\nMRR: 0.0\nMRR@10: 0.0\nofficial_MRR@100: 0.0\n"
    assert "1 lines of" in skipped.stderr


def test_several_runs_are_a_table_that_names_them(files) -> None:
    done = evaluate_files(files, "qrels.txt", "one.run", "two.run", "3_%.run")
    assert done.stdout == (
        "run      query_num     MRR  MRR@10\n"
        "one.run          4  0.5000  0.5000\n"
        "two.run          2  0.7500  0.7500\n"
        "3_%.run          3  0.0000  0.0000\n"
    )
    assert done.stderr.splitlines()[2] == f"note: {files}/two.run: 2 judged queries are not in the run and do not count"


def test_runs_of_one_file_name_are_named_by_their_paths(files) -> None:
    (files / "other").mkdir()
    (files / "other" / "one.run").write_text(FILES["two.run"])
    done = evaluate_files(files, "qrels.txt", "one.run", files / "other" / "one.run", "--format", "tsv")
    rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == [str(files / "one.run")] * 2 + [str(files / "other" / "one.run")] * 2


def test_queries_of_another_run_by_hand(files) -> None:
    """MRR of a, b, c: 1, 1/2, 1/2 in one.run; 1/2, 1 and a missing query in two.run. x is not judged."""
    done = evaluate_files(files, "qrels.txt", "two.run", "--queries_of", "one.run")
    assert done.stdout == "query_num: 3\nMRR: 0.5\nMRR@10: 0.5\n"
    assert done.stderr == (
        f"note: {files}/one.run: 1 queries have no judgments and do not count\n"
        f"note: 1 judged queries are not in {files}/one.run and do not count\n"
        f"WARNING: {files}/two.run lacks 1 of the 3 judged queries of {files}/one.run; they count 0\n"
    )
    done = evaluate_files(
        files, "qrels.txt", "one.run", "two.run", "--queries_of", "one.run", "--measures", "RR", "P@1"
    )
    assert done.stdout == (
        "run      query_num      RR     P@1\none.run          3  0.6667  0.3333\ntwo.run          3  0.5000  0.3333\n"
    )
    done = evaluate_files(files, "qrels.txt", "one.run", "--queries_of", "two.run")  # a and b
    assert done.stdout == "query_num: 2\nMRR: 0.75\nMRR@10: 0.75\n"
    assert done.stderr == f"note: 2 judged queries are not in {files}/two.run and do not count\n"
    (files / "3_%.run").write_text("x Q0 D1 1 7 x\n")
    refused = evaluate_files(files, "qrels.txt", "one.run", "--queries_of", "3_%.run")
    assert_refused(refused, "--queries_of", "share no query")


def test_queries_of_another_run_are_those_of_the_comparison(files) -> None:
    """one.run and two.run over a and b: MRR 1 and 1/2 against 1/2 and 1."""
    flags = ["--queries_of", "two.run", "--baseline", "two.run", "--format", "json"]
    one = json.loads(evaluate_files(files, "qrels.txt", "one.run", *flags).stdout)["runs"][1]
    assert one["query_num"] == 2 and one["measures"] == {"MRR": 0.75, "MRR@10": 0.75}
    tested = one["against_baseline"]["MRR"]
    assert [tested[name] for name in ("compared_queries", "wins", "ties", "losses")] == [2, 1, 0, 1]


def test_a_run_without_any_relevant_document_gives_a_warning(files) -> None:
    for qrels in ("a 0 D1 0\nb 0 D1 -2\n", "a 0 D1 0\na 0 doc1 1\n", "a 0 D1 -5\nz 0 D1 1\n"):
        (files / "qrels.txt").write_text(qrels)
        for measure in ("MRR", "NDCG@10", "MAP"):
            done = evaluate_files(files, "qrels.txt", "two.run", "--measures", measure)
            assert done.status == 0 and done.stdout.endswith(f"{measure}: 0.0\n")
            warning = f"WARNING: no document of {files}/two.run is relevant in {files}/qrels.txt"
            assert sum(line.startswith(warning) for line in done.stderr.splitlines()) == 1
    assert "WARNING" not in evaluate_text(files, "a 0 D1 1\n", FILES["two.run"]).stderr


def test_measures_have_the_names_that_the_user_gave(files) -> None:
    names = ["AP", "RR@10", "nDCG@10", "P@10", "R@100", "Judged@10"]
    usual = ["MAP", "MRR@10", "NDCG@10", "P_10", "Recall@100", "judged@10"]
    printed = [evaluate_files(files, "qrels.txt", "one.run", "--measures", *given).stdout for given in (names, usual)]
    lines = [[line.split(": ") for line in text.splitlines()[1:]] for text in printed]
    assert [name for name, _ in lines[0]] == names and [name for name, _ in lines[1]] == usual
    assert [value for _, value in lines[0]] == [value for _, value in lines[1]]
    assert_refused(evaluate_files(files, "qrels.txt", "one.run", "--measures", "AP", "map"), "map is given twice")


# P@1 of a, b, c: 1, 0, 0 in one.run; 0, 1 in two.run, which lacks c; 0, 0, 0 in 3_%.run.
BASELINE = ["--measures", "P@1", "--baseline", "3_%.run"]


def test_baseline_by_hand(files) -> None:
    """Differences 1, 0, 0 and 0, 1, 0: mean 1/3, standard deviation 1/sqrt(3); t is 1, with two degrees of freedom.

    So p = 0.4226 (1 - 1/sqrt(3)); the randomization test gives 1. Holm doubles both p-values, since they are equal.
    """
    done = evaluate_files(files, "qrels.txt", "one.run", "two.run", *BASELINE)
    head = ["t-test p", "Holm", "randomization p", "Holm", "effect size", "wins/ties/losses"]
    figures = ["  0.4226", "0.8453", "         1.0000", "1.0000", "       0.58", "           1/2/0"]
    assert done.stdout.splitlines() == [
        "run      query_num     P@1",
        "3_%.run          3  0.0000",
        "one.run          3  0.3333",
        "two.run          2  0.5000",
        "",
        "Against 3_%.run:",
        "",
        f"run      measure  queries  difference  {head[0]}    {head[1]}  {head[2]}    {'  '.join(head[3:])}",
        f"one.run      P@1        3      0.3333  {'  '.join(figures)}",
        f"two.run      P@1        3      0.3333  {'  '.join(figures)}",
    ]
    two = (
        f"note: {files}/two.run: 2 judged queries are not in the run and do not count, but count 0 in the comparison\n"
    )
    assert two in done.stderr


def test_baseline_can_be_one_of_the_runs(files) -> None:
    apart = evaluate_files(files, "qrels.txt", "one.run", *BASELINE, "--format", "json")
    among = evaluate_files(files, "qrels.txt", "3_%.run", "one.run", *BASELINE, "--format", "json")
    assert apart == among
    assert json.loads(among.stdout)["runs"][1]["run"] == "one.run"


def test_json_and_tsv_hold_full_figures(files) -> None:
    flags = ["--official_msmarco", *BASELINE]
    found = json.loads(evaluate_files(files, "qrels.txt", "one.run", "two.run", *flags, "--format", "json").stdout)
    assert found["baseline"] == "3_%.run"
    baseline, one, two = found["runs"]
    assert baseline == {"run": "3_%.run", "query_num": 3, "measures": {"P@1": 0.0, "official_MRR@100": 0.0}}
    assert two["measures"] == {"P@1": 0.5, "official_MRR@100": 0.375}
    assert one["against_baseline"]["P@1"] == {
        "compared_queries": 3,
        "difference": 1 / 3,
        "t_test_p": pytest.approx(1 - 1 / math.sqrt(3)),
        "t_test_p_holm": pytest.approx(2 - 2 / math.sqrt(3)),
        "randomization_p": 1.0,
        "randomization_p_holm": 1.0,
        "effect_size": pytest.approx(1 / math.sqrt(3)),
        "wins": 1,
        "ties": 2,
        "losses": 0,
    }
    official = one["against_baseline"]["official_MRR@100"]
    assert (official["compared_queries"], official["difference"], official["wins"]) == (4, 0.625, 3)
    tsv = evaluate_files(files, "qrels.txt", "one.run", "two.run", *flags, "--format", "tsv").stdout
    head, *rows = [line.split("\t") for line in tsv.splitlines()]
    assert head == ["run", "measure", "queries", "value", *one["against_baseline"]["P@1"]]
    assert rows[0] == ["3_%.run", "P@1", "3", "0.0", *[""] * 10]
    for row, run, measure, queries in ((rows[2], one, "P@1", "3"), (rows[5], two, "official_MRR@100", "4")):
        assert row[:4] == [run["run"], measure, queries, repr(run["measures"][measure])]
        assert row[4:] == [repr(value) for value in run["against_baseline"][measure].values()]


def test_an_infinite_effect_is_null_in_json(files) -> None:
    (files / "two.run").write_text("a Q0 D1 1 1 x\nb Q0 D1 1 1 x\nc Q0 D2 1 1 x\n")
    done = evaluate_files(files, "qrels.txt", "two.run", *BASELINE, "--format", "json")
    found = json.loads(done.stdout)["runs"][1]["against_baseline"]["P@1"]
    assert (found["effect_size"], found["t_test_p"], found["randomization_p"]) == (None, 0.0, 0.25)
    assert "inf" in evaluate_files(files, "qrels.txt", "two.run", *BASELINE).stdout


def test_formats_of_the_default_measures(files) -> None:
    done = evaluate_files(files, "qrels.txt", "one.run", "--format", "json")
    runs = [{"run": "one.run", "query_num": 4, "measures": {"MRR": 0.5, "MRR@10": 0.5}}]
    assert json.loads(done.stdout) == {"baseline": None, "runs": runs}
    tsv = evaluate_files(files, "qrels.txt", "one.run", "--format", "tsv").stdout
    assert tsv == "run\tmeasure\tqueries\tvalue\none.run\tMRR\t4\t0.5\none.run\tMRR@10\t4\t0.5\n"


def test_latex_and_markdown_escape_names(files) -> None:
    latex = evaluate_files(files, "qrels.txt", "3_%.run", "--format", "latex")
    assert latex.stdout == (
        "\\begin{tabular}{lrrr}\n\\hline\nrun & query\\_num & MRR & MRR@10 \\\\\n\\hline\n"
        "3\\_\\%.run & 3 & 0.0000 & 0.0000 \\\\\n\\hline\n\\end{tabular}\n"
    )
    markdown = evaluate_files(files, "qrels.txt", "3_%.run", "--format", "markdown")
    assert markdown.stdout == (
        "| run | query\\_num | MRR | MRR@10 |\n| --- | ---: | ---: | ---: |\n| 3\\_%.run | 3 | 0.0000 | 0.0000 |\n"
    )
    compared = evaluate_files(files, "qrels.txt", "one.run", *BASELINE, "--format", "latex").stdout
    assert "\nAgainst 3\\_\\%.run:\n" in compared and compared.count("\\begin{tabular}") == 2


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a&b%c$d#e_f{g}", r"a\&b\%c\$d\#e\_f\{g\}"),
        ("\\~^<>|", r"\textbackslash{}\textasciitilde{}\textasciicircum{}$<$$>$$|$"),
        ("-0.5", "$-$0.5"),
        ("my-run--2", "my-run-{}-2"),
        ("[1]*", "{[}1]{*}"),
        ("0.1 ± 0.2†‡§", r"0.1 $\pm$ 0.2$^{\dagger}$$^{\ddagger}$$^{\S}$"),
    ],
)
def test_escape_latex(text: str, escaped: str) -> None:
    assert tables.escape_latex(text) == escaped


def test_markdown_table_by_hand() -> None:
    rows = [["run", "x"], ["a|b*c`<d>[e]\\", "-1"]]
    assert tables.markdown_table(rows).splitlines() == [
        "| run | x |",
        "| --- | ---: |",
        r"| a\|b\*c\`\<d\>\[e\]\\ | -1 |",
    ]


def test_per_query_file(files) -> None:
    out = files / "values.tsv"
    flags = ["--measures", "MRR@10", "num_ret", "--per_query", out]
    done = evaluate_files(files, "qrels.txt", "one.run", "two.run", *flags)
    assert done.status == 0
    assert out.read_text() == (
        "run\tmeasure\tquery_id\tvalue\n"
        "one.run\tMRR@10\ta\t1.0\none.run\tMRR@10\tb\t0.5\none.run\tMRR@10\tc\t0.5\n"
        "one.run\tnum_ret\ta\t2.0\none.run\tnum_ret\tb\t2.0\none.run\tnum_ret\tc\t2.0\n"
        "two.run\tMRR@10\tb\t1.0\ntwo.run\tMRR@10\ta\t0.5\ntwo.run\tnum_ret\tb\t2.0\ntwo.run\tnum_ret\ta\t2.0\n"
    )
    assert_refused(evaluate_files(files, "qrels.txt", "one.run", *flags), "--per_query", "--overwrite")
    released = evaluate_files(files, "qrels.txt", "one.run", "--per_query", out, "--overwrite")
    assert released.stdout == evaluate_files(files, "qrels.txt", "one.run").stdout
    assert out.read_text().endswith("one.run\tMRR@10\tx\t0.0\n")


def test_skip_malformed_with_several_runs(files) -> None:
    for name in ("one.run", "two.run"):
        (files / name).write_text(FILES[name] + f"bad line of {name}\n")
    assert_refused(evaluate_files(files, "qrels.txt", "one.run", "two.run"), "one.run line 8: 4 columns")
    done = evaluate_files(files, "qrels.txt", "one.run", "two.run", "--skip_malformed")
    assert done.status == 0
    for name, line in (("one.run", 8), ("two.run", 5)):
        assert f"{files}/{name} line {line}: 4 columns" in done.stderr
        assert f"note: 1 lines of {files}/{name} are malformed and were skipped\n" in done.stderr


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["one.run", "--measures", "NDGC@10"], ["--measures: 'NDGC@10' is not a known measure", "MRR@k"]),
        (["one.run", "--measures", "P"], ["--measures: 'P' needs a number"]),
        (["one.run", "--measures", "MAP,,P@5"], ["--measures: '' is not a known measure"]),
        (["one.run", "--measures", "NDCG@10", "ndcg_cut.10"], ["--measures: ndcg_cut.10 is given twice"]),
        (["one.run", "two.run", "one.run"], ["one.run is given twice"]),
        (["one.run", "--baseline", "one.run"], ["--baseline: there is no other run"]),
        (["one.run", "--baseline", "two.run", "--measures", "num_ret"], ["--baseline: num_ret is not a mean"]),
        (["one.run", "--baseline", "two.run", "--measures", "MAP", "gm_map"], ["--baseline: gm_map is not a mean"]),
        (["one.run", "--baseline", "none.run"], ["none.run", "No such file"]),
        (["one.run", "--queries_of", "two.run", "--measures", "num_ret"], ["--queries_of: num_ret is not a mean"]),
        (["one.run", "--queries_of", "two.run", "--official_msmarco"], ["--queries_of: --official_msmarco"]),
        (["one.run", "--queries_of", "none.run"], ["none.run", "No such file"]),
        (["one.run", "--overwrite"], ["--overwrite: replaces only a --per_query file"]),
        (["one.run", "--per_query", "one.run", "--overwrite"], ["--per_query", "is also an input"]),
        (["one.run", "--format", "csv"], ["--format", "csv"]),
    ],
)
def test_refused(files, args: list[str], parts: list[str]) -> None:
    done = evaluate_files(files, "qrels.txt", *args)
    assert_refused(done, *parts)
    assert done.stdout == ""
    assert {path.name: path.read_text() for path in files.iterdir()} == FILES


def test_one_query_is_too_few_to_compare(files) -> None:
    for name in ("one.run", "two.run"):
        (files / name).write_text("a Q0 D1 1 1 x\n")
    out = files / "values.tsv"
    done = evaluate_files(files, "qrels.txt", "one.run", "--baseline", "two.run", "--per_query", out)
    assert_refused(
        done._replace(stderr=done.stderr.splitlines()[-1]),
        "--baseline: a paired test needs at least two queries, not 1",
    )
    assert done.stdout == "" and not out.exists()


def test_a_relevance_beyond_trec_eval(files) -> None:
    (files / "qrels.txt").write_text("a 0 D1 999999999\n")
    done = evaluate_files(files, "qrels.txt", "3_%.run", "--measures", "NDCG@10")
    assert done.status == 2 and "relevance of 999999999 is above 10000" in done.stderr


def test_official_msmarco_against_a_reference_implementation(files) -> None:
    """Random ranks with gaps and ties, lines in random order, and scores in the opposite order."""
    stream = random.Random(2)
    qrels = {f"q{i}": {f"D{stream.randint(1, 150)}": 1 for _ in range(2)} for i in range(40)}
    run = {f"q{i}": {f"D{d}": stream.randint(0, 120) for d in range(stream.randint(1, 150))} for i in range(5, 45)}
    write_qrels(files / "qrels.txt", qrels)
    rows = [f"{q} Q0 {d} {rank} {rank} x\n" for q, ranks in run.items() for d, rank in ranks.items()]
    stream.shuffle(rows)
    (files / "one.run").write_text("".join(rows))
    total = 0.0
    for query_id, grades in qrels.items():
        ranking = sorted((rank, doc_id) for doc_id, rank in run.get(query_id, {}).items())
        total += max((1 / (i + 1) for i, (_, doc_id) in enumerate(ranking[:100]) if doc_id in grades), default=0.0)
    done = evaluate_files(files, "qrels.txt", "one.run", "--official_msmarco", "--format", "json")
    measured = json.loads(done.stdout)["runs"][0]["measures"]["official_MRR@100"]
    assert 0 < measured == pytest.approx(total / 40, rel=1e-12)
