"""BM25 candidates, and the script that writes them."""

import math
import random

import bm25s
import pytest
import Stemmer
from bm25s.stopwords import STOPWORDS_EN
from tiny import assert_refused, run_main

from data_preparation.candidates import bm25_candidates
from formats.trec import rank_documents, read_qrels, read_run

SCRIPT = "data_preparation/make_candidates.py"
_WORDS = "apple apples pear pears tree trees red green run running runs the of a max_length café x 7 77"
WORDS = _WORDS.split()


def reference_candidates(documents: dict[str, str], queries: dict[str, str], depth: int) -> dict[str, dict[str, float]]:
    """Scores all documents with bm25s on their tokens, and sorts all of them."""
    stem = Stemmer.Stemmer("english").stemWord

    def terms(text: str) -> list[str]:
        words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
        return [stem(word) for word in words if len(word) > 1 and word not in STOPWORDS_EN]

    index = bm25s.BM25(k1=1.5, b=0.75)
    index.index([terms(text) for text in documents.values()], show_progress=False)
    run = {}
    for query_id, text in queries.items():
        ids = index.get_tokens_ids(terms(text))
        scores = index.get_scores_from_ids(ids).tolist() if ids else [0.0] * len(documents)
        found = {doc_id: score for doc_id, score in zip(documents, scores, strict=True) if score > 0}
        run[query_id] = dict(rank_documents(found)[:depth])
    return run


def test_by_hand():
    documents = {"D1": "red apples", "D2": "a green pear", "D10": "red apple", "D3": "max_length of the red pear tree"}
    queries = {"q": "An apple!", "r": "of the", "s": "unknown", "t": "length"}
    run = bm25_candidates(documents.items(), queries, depth=2)
    assert list(run["q"]) == ["D10", "D1"]  # equal scores: ids in descending order
    assert run["q"]["D1"] == run["q"]["D10"] > 0
    assert run["r"] == run["s"] == {}
    assert list(run["t"]) == ["D3"]
    assert len(bm25_candidates(documents.items(), {"q": "red"}, depth=2)["q"]) == 2


def test_score_by_hand():
    # The documents have 2, 4 and 3 terms. "pear" occurs in 2 of 3 documents, twice in D2: idf ln(1 + 1.5 / 2.5).
    documents = {"D1": "apple tree", "D2": "pear pears apple tree", "D3": "red pear tree"}
    run = bm25_candidates(documents.items(), {"q": "pear"}, depth=10)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = {
        "D2": idf * 2 / (2 + 1.5 * (0.25 + 0.75 * 4 / 3)),
        "D3": idf * 1 / (1 + 1.5 * (0.25 + 0.75 * 3 / 3)),
    }
    assert run["q"] == pytest.approx(expected, rel=1e-6)
    assert list(run["q"]) == ["D2", "D3"]


def test_script_takes_k1_and_b(tmp_path):
    # The same documents as above: "pear" occurs twice in D2, and D2 is longer than D3.
    corpus, queries = tmp_path / "corpus.jsonl", tmp_path / "queries.tsv"
    texts = {"D1": "apple tree", "D2": "pear pears apple tree", "D3": "red pear tree"}
    corpus.write_text("".join(f'{{"_id": "{doc_id}", "text": "{text}"}}\n' for doc_id, text in texts.items()))
    queries.write_text("q\tpear\n")
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    flags = ["--collection", corpus, "--queries", queries, "--output_run_file", tmp_path / "run", "--overwrite"]
    for k1, b in ((1.5, 0.75), (0.9, 0.4), (0, 0.75), (3, 1), (1.2, 0)):
        done = run_main(SCRIPT, *flags, f"--k1={k1}", f"--b={b}")
        assert done.status == 0, done.stderr
        assert f"k1 {float(k1)}, b {float(b)}" in done.stdout
        expected = {
            "D2": idf * 2 / (2 + k1 * (1 - b + b * 4 / 3)),
            "D3": idf * 1 / (1 + k1 * (1 - b + b * 3 / 3)),
        }
        assert read_run(tmp_path / "run")["q"] == pytest.approx(expected, rel=1e-6)
    assert "k1 1.5, b 0.75" in run_main(SCRIPT, *flags).stdout
    for flag in ("--k1=-0.1", "--k1=nan", "--k1=inf", "--b=-0.1", "--b=1.1", "--b=nan"):
        assert_refused(run_main(SCRIPT, *flags, flag), flag.partition("=")[0], "is not a number from 0")


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_the_reference(seed):
    """Documents are short and similar, so many have the same score at the end of every depth."""
    stream = random.Random(seed)

    def text(most: int) -> str:
        return stream.choice([" ", ", ", "-"]).join(stream.choices(WORDS, k=stream.randint(0, most)))

    documents = {f"D{i}": text(5) for i in range(60)}
    queries = {f"q{i}": text(4) for i in range(12)}
    for depth in (1, 2, 7, 59, 60, 1000):
        run = bm25_candidates(iter(documents.items()), queries, depth)
        expected = reference_candidates(documents, queries, depth)
        assert run == expected
        assert [list(scores) for scores in run.values()] == [list(scores) for scores in expected.values()]


def test_documents_without_a_term():
    assert bm25_candidates([("D1", "of the"), ("D2", "")], {"q": "apple"}, depth=3) == {"q": {}}
    assert list(bm25_candidates([("D1", ""), ("D2", "apple"), ("D3", "")], {"q": "apple"}, depth=3)["q"]) == ["D2"]


@pytest.fixture
def collection(tmp_path):
    """Five documents and four queries of a split. Three queries have qrels, one of them without a relevant document."""
    folder = tmp_path / "fruit"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text(
        '{"_id": "D1", "title": "Apples", "text": "They are red."}\n'
        '{"_id": "D2", "title": "", "text": "A green pear."}\n'
        '{"_id": "D3", "text": "A red apple and a red pear."}\n'
        '{"_id": "D4", "title": "Nothing", "text": ""}\n'
        '{"_id": "D5", "title": "Red", "text": "Pears of that tree, a tree!"}\n'
    )
    (folder / "queries.dev.tsv").write_text("1\tred apple\n2\tunknown words\n3\tpear\n4\tnothing\n")
    (folder / "qrels.dev.txt").write_text("1 0 D1 1\n1 0 D2 2\n1 0 D3 0\n2 0 D4 1\n3 0 D2 0\n")
    return folder


def test_script(collection, tmp_path):
    out = tmp_path / "run.txt"
    done = run_main(SCRIPT, "--collection", collection, "--split=dev", "--output_run_file", out, "--depth=2")
    assert done.status == 0, done.stderr
    run = read_run(out)
    # Titles are indexed: D1 has "apples" in its title. D5 and D3 have equal scores. Query 4 has no qrels, query 2 no
    # candidates.
    assert {query_id: set(scores) for query_id, scores in run.items()} == {"1": {"D1", "D3"}, "3": {"D2", "D5"}}
    assert out.read_text().splitlines()[0].endswith("bm25")
    line = done.stdout.strip()
    assert "4 candidates for 3 of 4 queries, 1 without any; 1 of 3 relevant documents (33.3%)" in line
    assert (tmp_path / "run.txt.log").read_text().strip().endswith(line)


def test_script_without_qrels_ranks_all_queries(collection, tmp_path):
    out = tmp_path / "run.txt"
    (collection / "qrels.dev.txt").unlink()
    done = run_main(SCRIPT, "--collection", collection, "--split=dev", "--output_run_file", out)
    assert done.status == 0, done.stderr
    assert list(read_run(out)) == ["1", "3", "4"]
    assert "for 4 of 4 queries, 1 without any; no judgments" in done.stdout


def test_script_writes_the_qrels_of_the_ranked_queries(collection, tmp_path):
    run_file, qrels_file = tmp_path / "run", tmp_path / "qrels"
    expected = read_qrels(collection / "qrels.dev.txt")
    with open(collection / "qrels.dev.txt", "a") as file:
        file.write("9 0 D1 1\n")  # a query without text
    flags = ["--collection", collection, "--split=dev", "--output_qrels_file", qrels_file]
    done = run_main(SCRIPT, *flags, "--output_run_file", run_file)
    assert done.status == 0, done
    assert read_qrels(qrels_file) == expected
    assert_refused(run_main(SCRIPT, *flags, "--output_run_file", tmp_path / "other"), "--output_qrels_file", "exists")
    assert_refused(run_main(SCRIPT, *flags, "--output_run_file", qrels_file, "--overwrite"), "--output_qrels_file")
    (collection / "qrels.dev.txt").unlink()
    done = run_main(SCRIPT, *flags, "--output_run_file", tmp_path / "other", "--overwrite")
    assert_refused(done, "--output_qrels_file", "has no relevance judgments")
    assert not (tmp_path / "other").exists()


def test_script_refuses(collection, tmp_path):
    out = tmp_path / "run.txt"
    common = (SCRIPT, "--output_run_file", out, "--collection", collection)
    assert_refused(run_main(*common, "--split=dev", "--depth=0"), "--depth")
    assert_refused(run_main(*common), "--queries", "--split", "dev")
    other = tmp_path / "other.txt"
    other.write_text("9 0 D1 1\n")
    assert_refused(run_main(*common, "--split=dev", "--qrels", other), "--qrels", "4 queries")
    words = tmp_path / "words.tsv"
    words.write_text("1\tnothing known here\n")
    (collection / "corpus.jsonl").write_text('{"_id": "D1", "text": "red"}\n')
    assert_refused(run_main(*common, "--split=dev", "--queries", words), "--queries", "shares a word")
    (collection / "corpus.jsonl").write_text('{"_id": "D1", "text": "red"}\n{"_id": "D1", "text": "red"}\n')
    assert_refused(run_main(*common, "--split=dev"), "corpus.jsonl line 2", "D1", "occurs twice")
    assert not out.exists()
    inside = collection / "queries.dev.tsv"
    refused = run_main(SCRIPT, "--output_run_file", inside, "--collection", collection, "--split=dev", "--overwrite")
    assert_refused(refused, "--output_run_file", "also an input")
