"""Pseudo-queries: titles and sentences that are removed from their documents, and the collection without them."""

import errno
import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_writing_faults import fault
from tiny import ONE_THREAD, ROOT, Finished, assert_refused, run_main

from data_preparation.pseudo_queries import PhraseFinder, Unsuitable, Wanted, take_sentence, take_title
from data_preparation.searchable import is_searchable
from data_preparation.sentences import sentence_spans
from formats.documents import Document, read_documents
from formats.pairs import read_pairs
from formats.queries import read_queries
from formats.trec import read_qrels, read_run

SCRIPT = "data_preparation/make_pseudo_queries.py"
OUTPUTS = {"queries": "queries.tsv", "qrels": "qrels.tsv", "collection": "corpus.jsonl"}

DOCUMENTS = [
    Document("D1", "Sleep and memory in mice", "Mice slept. Memory was tested after a week."),
    Document("D2", "How glaciers move downhill.", "HOW GLACIERS\tmove  downhill: Ice flows slowly."),
    Document("D3", "Growing rice in salt water", "Some farmers are growing rice in salt water today."),
    Document("D4", "The history of tea", "Tea came from China."),
    Document("D5", "the history of TEA!", "Tea came from India."),
    Document("D6", "A short history of bread", "Bread is old. Read the history of tea as well."),
    Document("D7", "Bees", "Bees build combs of wax."),
    Document("D8", "A title without any body", " "),
    Document("D9#a_b", "What wasps eat in autumn?", "Wasps eat fruit."),
]


def write_corpus(path: Path, documents: list[Document]) -> Path:
    rows = ({"_id": doc_id, "title": title, "text": body} for doc_id, title, body in documents)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(corpus: Path, output: Path, *flags: object) -> Finished:
    output.mkdir(exist_ok=True)
    outputs = [f"--output_{name}_file={output / file}" for name, file in OUTPUTS.items()]
    return run_main(SCRIPT, "--collection", corpus, *outputs, *flags)


def made(corpus: Path, output: Path, *flags: object) -> tuple[dict[str, str], list[Document]]:
    """Runs the script. Returns what `read` does."""
    done = run(corpus, output, *flags)
    assert done.status == 0, done.stderr
    return read(output)


def read(output: Path) -> tuple[dict[str, str], list[Document]]:
    """Returns `{doc_id: text}` of the queries, and the documents of the written collection."""
    queries, qrels = read_queries(output / "queries.tsv"), read_qrels(output / "qrels.tsv")
    assert list(queries) == list(qrels) and all(list(grades.values()) == [1] for grades in qrels.values())
    documents = list(read_documents(output / "corpus.jsonl"))
    return {next(iter(qrels[query_id])): text for query_id, text in queries.items()}, documents


# --- titles


def test_titles_by_hand(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in.jsonl", DOCUMENTS)
    queries, documents = made(corpus, tmp_path / "out")
    assert queries == {
        "D1": "Sleep and memory in mice",
        "D2": "How glaciers move downhill",
        "D6": "A short history of bread",
        "D9#a_b": "What wasps eat in autumn?",
    }
    changed = {
        "D1": Document("D1", "", DOCUMENTS[0].body),
        "D2": Document("D2", "", "Ice flows slowly."),
        "D6": Document("D6", "", DOCUMENTS[5].body),
        "D9#a_b": Document("D9#a_b", "", "Wasps eat fruit."),
    }
    assert documents == [changed.get(document.doc_id, document) for document in DOCUMENTS]
    assert (tmp_path / "out" / "queries.tsv").read_text().startswith("title-1\tSleep and memory in mice\ntitle-2\t")
    assert (tmp_path / "out" / "qrels.tsv").read_text().endswith("title-9\t0\tD9#a_b\t1\n")


def test_the_report(tmp_path: Path) -> None:
    done = run(write_corpus(tmp_path / "in.jsonl", DOCUMENTS), tmp_path / "out", "--seed=7")
    report = json.loads((tmp_path / "out" / "queries.tsv.report.json").read_text())
    assert report.pop("seconds") >= 0 and report.pop("documents_per_second") > 0
    settings_ = report.pop("settings")
    assert (settings_["seed"], settings_["kind"], settings_["min_words"], settings_["num"]) == (7, "title", 4, 4000)
    assert report == {
        "documents": 9,
        "queries": 4,
        "queries_asked_for": 4000,
        "candidates": 6,
        "candidates_that_stand_elsewhere": 2,
        "documents_tried_without_a_candidate": {
            "remains in its document": 1, "title too short or too long": 1, "no other text in the document": 1,
        },
    }  # fmt: skip
    assert "4 of 4000 queries from 9 documents; of 6 candidates 2 stand elsewhere" in done.stdout
    assert (tmp_path / "out" / "queries.tsv.log").read_text().endswith(done.stdout)


@pytest.mark.parametrize(
    ("title", "body", "left"),
    [
        ("Red cars", "red  CARS. They are fast.", "They are fast."),
        ("Red cars?", "Red cars? They are fast.", "They are fast."),
        ("Red cars .", "red cars . they are fast .", "they are fast ."),
        ("Red-cars", "Red cars - they are fast.", "they are fast."),
        ("Red cars", '"Red cars" are fast.', None),
        ("Red cars", "Red carsten is fast.", "Red carsten is fast."),
        ("Red cars", "Fast red, cars.", None),
        ("Red cars", "Red cars. Red cars are fast.", None),
        ("Red cars", "Red cars.", None),
        ("Red cars", "...", None),
    ],
)
def test_a_title_is_removed_from_the_start_of_the_body_only(title: str, body: str, left: str | None) -> None:
    if left is None:
        with pytest.raises(Unsuitable):
            take_title(Document("D", title, body), Wanted(1, 9))
    else:
        assert take_title(Document("D", title, body), Wanted(1, 9)).document == Document("D", "", left)


def test_the_titles_of_all_documents_can_be_removed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in.jsonl", DOCUMENTS)
    queries, documents = made(corpus, tmp_path / "out", "--remove_all_titles", "--num=2")
    assert len(queries) == 2 and {document.title for document in documents} == {""}
    bodies = {document.doc_id: document.body for document in documents}
    kept = [document for document in DOCUMENTS if document.doc_id not in queries]
    assert all(bodies[document.doc_id] == document.body for document in kept)


# --- sentences


def test_sentences_by_hand(tmp_path: Path) -> None:
    documents = [
        Document("D1", "Ice", "See above. Glaciers flow downhill under their weight. It is 5 m."),
        Document("D2", "Tea", "Tea first came from China by ship. \nTea is drunk."),
        Document("D3", "", "However, Tea first came from China by ship, as said."),
        Document("D4", "Bees build combs of pure wax", "Bees build combs of pure wax. Bees die."),
        Document("D5", "Wasps", "Wasps eat sweet fruit in late autumn."),
        Document("D6", "Rice", "Rice needs plenty of fresh water. Rice needs plenty of fresh water!"),
    ]
    queries, written = made(write_corpus(tmp_path / "in.jsonl", documents), tmp_path / "out", "--kind=sentence")
    assert queries == {"D1": "Glaciers flow downhill under their weight"}
    assert written == [Document("D1", "Ice", "See above. It is 5 m."), *documents[1:]]
    assert (tmp_path / "out" / "queries.tsv").read_text().startswith("sentence-1\t")
    report = json.loads((tmp_path / "out" / "queries.tsv.report.json").read_text())
    assert report["documents_tried_without_a_candidate"] == {
        "remains in its document": 2, "no sentence that can be a query": 1, "no other text in the document": 1,
    }  # fmt: skip


SEARCHABLE = [
    "Cytokines play a critical role in the immune system.",
    "Blockade of Wnt/beta-catenin signaling specifically disrupts angiogenesis (CNS).",
    "The human Golli-MBP gene contains two transcription start sites.",
    "linearized slender-body theory is applied to bodies in supersonic flow .",
    "How do glaciers move?",
    "Tea, coffee and cocoa were sold in “Old London”.",
]
NOT_SEARCHABLE = [
    "",
    "This suggests that clones home to the mucosa.",
    "However, the prognosis becomes diverse.",
    "Importantly, the model predicts elimination.",
    "In contrast, loss of Bdf1 had no effect.",
    "Here we show that cells die.",
    "Cells were treated as described above.",
    "BACKGROUND Patients are at increased risk.",
    "RESULTS: Patients are at increased risk.",
    "Main outcome measures: Patients are at risk.",
    "The release() method should be called once.",
    "Example: print('hello') prints it.",
    "Set x = 5 and go on.",
    "Use the file_or_dir option to read files.",
    "See https://example.org for more help.",
    "The risk was 3.4 in 45 of 99 and 0.7 in 33.",
    "Patients (n 45 had an increased risk.",
    "The list has - one item - two items.",
    "Fruit is ripe. eat it now and enjoy.",
    "Mach numbers were from 0 to 2.",
    "it is an incomplete line without an end",
    "(They went home in the evening.)",
    "- an item of a list is here.",
    "5 patients were treated with the drug.",
]


def test_which_sentences_are_searchable() -> None:
    assert [sentence for sentence in SEARCHABLE if not is_searchable(sentence)] == []
    assert [sentence for sentence in NOT_SEARCHABLE if is_searchable(sentence)] == []


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("See ref. 7 of Vol. 2, i.e. The end. Next.", ["See ref. 7 of Vol. 2, i.e. The end.", "Next."]),
        ("a wing in a slipstream . an experimental study .", ["a wing in a slipstream .", "an experimental study ."]),
        ("Contents . . . . . page 5", ["Contents . . . . . page 5"]),
        ("A heading\n\nThe text\nof a line", ["A heading", "The text\nof a line"]),
        ("Needed:\n- salt\n- rice\n2. water", ["Needed:", "- salt", "- rice", "2. water"]),
    ],
)  # fmt: skip
def test_sentences_are_split(text: str, sentences: list[str]) -> None:
    assert [text[start:end].strip() for start, end in sentence_spans(text)] == sentences


def test_only_sentences_of_the_first_words() -> None:
    body = "Glaciers flow downhill under gravity. Rivers of ice carve deep valleys. Farmers grow rice in wet fields."
    assert {take_sentence(Document("D", "", body), Wanted(4, 9), seed).text[0] for seed in range(30)} == set("GRF")
    taken = {take_sentence(Document("D", "", body), Wanted(4, 9), seed, 11).text[0] for seed in range(30)}
    assert taken == set("GR")
    with pytest.raises(Unsuitable):
        take_sentence(Document("D", "", body), Wanted(4, 9), 1, 4)


# --- never a text that stands elsewhere

WORD = st.sampled_from(["red", "Tea", "cat", "ÉTÉ", "x_1"])
MARK = st.sampled_from([" ", " ", " ", ", ", "-", ". ", " . ", "\n"])
TEXT = st.lists(st.tuples(WORD, MARK), max_size=9).map(lambda parts: "".join(map("".join, parts)))


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def stands_in(phrase: list[str], text: str) -> bool:
    words = words_of(text)
    return any(words[i : i + len(phrase)] == phrase for i in range(len(words)))


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=9), kind=st.sampled_from(["title", "sentence"]))
def test_never_a_text_that_stands_elsewhere(tmp_path_factory: pytest.TempPathFactory, texts: list, kind: str) -> None:
    directory = tmp_path_factory.mktemp("drawn")
    documents = [Document(f"D{i}", title, body + ("end." if i % 2 else "")) for i, (title, body) in enumerate(texts)]
    corpus = write_corpus(directory / "in.jsonl", documents)
    done = run(corpus, directory / "out", f"--kind={kind}", "--min_words=1")
    if done.status:
        assert_refused(done, f"--kind {kind}: ")
    queries, written = ({}, documents) if done.status else read(directory / "out")
    assert [document.doc_id for document in written] == [document.doc_id for document in documents]
    for document, left in zip(documents, written, strict=True):
        if document.doc_id not in queries:
            assert left == document
            continue
        phrase = words_of(queries[document.doc_id])
        assert not any(stands_in(phrase, f"{other.title} {other.body}") for other in written)
        assert words_of(left.body) and (kind == "title") == (left.title == "" != document.title)
        # In the body one span is removed: the sentence, or the title if it is at the start.
        bodies = words_of(document.body), words_of(left.body)
        removed = len(bodies[0]) - len(bodies[1])
        assert removed in ((len(phrase), 0) if kind == "title" else (len(phrase),))
        starts = [0] if kind == "title" else range(len(bodies[0]))
        assert any(bodies[0][:i] + bodies[0][i + removed :] == bodies[1] for i in starts)
    if kind == "title":  # and none is left out without a reason
        for document in documents:
            phrase = words_of(document.title)
            others = (f"{other.title} {other.body}" for other in documents if other != document)
            if phrase and words_of(document.body) and not stands_in(phrase, document.body):
                assert (document.doc_id in queries) == (not any(stands_in(phrase, text) for text in others))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(WORD, min_size=1, max_size=5), max_size=6), TEXT)
def test_phrases_are_found_wherever_they_stand(phrases: list[list[str]], text: str) -> None:
    lower = {" ".join(words_of(" ".join(phrase))) for phrase in phrases}
    assert PhraseFinder(lower).find(text) == {phrase for phrase in lower if stands_in(phrase.split(), text)}


def test_a_query_of_the_test_is_never_a_pseudo_query(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in.jsonl", DOCUMENTS)
    (tmp_path / "test.tsv").write_text("1\twhat WASPS eat, in autumn\n2\tbread\n")
    (tmp_path / "dev.jsonl").write_text('{"_id": "1", "text": "Sleep and memory in mice."}\n')
    flags = [f"--not_in={tmp_path / name}" for name in ("test.tsv", "dev.jsonl")]
    queries, documents = made(corpus, tmp_path / "out", *flags)
    assert sorted(queries) == ["D2", "D6"]
    assert documents[0] == DOCUMENTS[0] and documents[8] == DOCUMENTS[8]
    sentences = [Document("D1", "Bees", "Bees live in a hive of wax. Bees build combs of pure wax.")]
    (tmp_path / "test.tsv").write_text("1\tBees build combs of pure wax\n")
    corpus = write_corpus(tmp_path / "sentences.jsonl", sentences)
    for seed in range(9):
        queries, _ = made(corpus, tmp_path / "out", flags[0], "--kind=sentence", f"--seed={seed}", "--overwrite")
        assert queries == {"D1": "Bees live in a hive of wax"}


# --- the sample


@pytest.fixture(scope="module")
def many() -> list[Document]:
    """60 documents. The titles of 20 of them are equal in pairs."""
    numbers = [i - i // 3 % 2 * 3 if i % 3 == 0 else i for i in range(60)]
    return [Document(f"D{i}", f"The number {number} of all", f"One is {i}.") for i, number in enumerate(numbers)]


@pytest.mark.parametrize("kind", ["title", "sentence"])
def test_the_sample_depends_only_on_ids_and_seed(tmp_path: Path, many: list[Document], kind: str) -> None:
    bodies = [f"Cats like plants {'a' * i} very much. Dogs dig for {'b' * i} bones often." for i in range(1, 61)]
    documents = [document._replace(body=body) for document, body in zip(many, bodies, strict=True)]
    flags = (f"--kind={kind}", "--num=9")
    queries, _ = made(write_corpus(tmp_path / "a.jsonl", documents), tmp_path / "out", *flags)
    assert len(queries) == 9
    random.Random(4).shuffle(documents)
    corpus = write_corpus(tmp_path / "b.jsonl", documents)
    shuffled, _ = made(corpus, tmp_path / "shuffled", *flags)
    assert shuffled == queries and list(shuffled) != list(queries)
    assert made(corpus, tmp_path / "seeded", *flags, "--seed=1")[0].keys() != queries.keys()
    more, _ = made(corpus, tmp_path / "more", *flags[:1], "--num=10")
    assert queries.items() < more.items()


def test_the_first_ones_by_their_hash_are_taken(tmp_path: Path, many: list[Document]) -> None:
    """Although candidates are dropped while the collection is read, and some later, which stand elsewhere."""
    count = {document.title: sum(other.title == document.title for other in many) for document in many}
    assert sum(number == 2 for number in count.values()) == 10
    ordered = sorted(many, key=lambda document: hashlib.sha256(f"42 {document.doc_id}".encode()).digest())
    corpus = write_corpus(tmp_path / "in.jsonl", many)
    for number in (1, 2, 5, 11):
        candidates = ordered[: 4 * number]
        expected = [document.doc_id for document in candidates if count[document.title] == 1][:number]
        queries, _ = made(corpus, tmp_path / "out", f"--num={number}", "--overwrite")
        assert sorted(queries) == sorted(expected) and len(expected) == number


def test_the_same_bytes_with_any_hash_seed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in.jsonl", DOCUMENTS)
    outputs = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        names = [f"--output_{name}_file={tmp_path / seed / file}" for name, file in OUTPUTS.items()]
        command = [sys.executable, SCRIPT, "--collection", corpus, "--kind=sentence", "--min_words=2", *names]
        subprocess.run(command, cwd=ROOT, env=ONE_THREAD | {"PYTHONHASHSEED": seed}, check=True, capture_output=True)
        outputs.append([(tmp_path / seed / file).read_bytes() for file in OUTPUTS.values()])
    assert outputs[0] == outputs[1]


# --- files


def test_every_layout_of_a_collection_gives_the_same(tmp_path: Path) -> None:
    documents = [document for document in DOCUMENTS if "\t" not in document.body]
    expected = made(write_corpus(tmp_path / "in.jsonl", documents), tmp_path / "jsonl")
    tsv = "".join(f"{doc_id}\thttp://x\t{title}\t{body}\r\n" for doc_id, title, body in documents).encode()
    (tmp_path / "docs.tsv.gz").write_bytes(gzip.compress(tsv))
    assert made(tmp_path / "docs.tsv.gz", tmp_path / "tsv") == expected
    (tmp_path / "beir").mkdir()
    write_corpus(tmp_path / "beir" / "corpus.jsonl", documents)
    assert made(tmp_path / "beir", tmp_path / "folder") == expected


def test_packed_outputs(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in.jsonl", DOCUMENTS)
    expected = made(corpus, tmp_path / "plain")
    names = [f"--output_{name}_file={tmp_path / file}.gz" for name, file in OUTPUTS.items()]
    done = run_main(SCRIPT, "--collection", corpus, *names)
    assert done.status == 0, done.stderr
    assert list(read_queries(tmp_path / "queries.tsv.gz").values()) == list(expected[0].values())
    assert list(read_documents(tmp_path / "corpus.jsonl.gz")) == expected[1]


def test_the_outputs_make_training_pairs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    queries, _ = made(write_corpus(tmp_path / "in.jsonl", DOCUMENTS), out)
    flags = ["--collection", out / "corpus.jsonl", "--queries", out / "queries.tsv", "--qrels", out / "qrels.tsv"]
    done = run_main("data_preparation/make_candidates.py", *flags, "--output_run_file", out / "top100")
    assert done.status == 0, done.stderr
    assert read_run(out / "top100")
    flags += ["--candidates", out / "top100", "--num_negatives=1", "--output_pairs_file", out / "pairs.tsv"]
    done = run_main("data_preparation/make_train_pairs.py", *flags)
    assert done.status == 0, done.stderr
    positives = [pair for pair in read_pairs(out / "pairs.tsv", labelled=True) if pair.label == 1]
    assert [pair.query for pair in positives] == list(queries.values())
    assert not any(pair.query.lower() in pair.passage.lower() for pair in positives)


@pytest.mark.parametrize("place", ["open", "first byte", "later", "sync", "rename", "second rename"])
def test_all_outputs_or_none(tmp_path: Path, many: list[Document], monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    corpus = write_corpus(tmp_path / "in.jsonl", [document._replace(body="word " * 500) for document in many])
    out = tmp_path / "out"

    def failing_run(*flags: str) -> Finished:
        if place != "second rename":
            with fault(place, errno.ENOSPC):
                return run(corpus, out, *flags)
        replace, calls = os.replace, []

        def second_fails(*paths: Path) -> None:
            calls.append(paths)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(paths[0]), None, str(paths[1]))
            replace(*paths)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", second_fails)
            return run(corpus, out, *flags)

    done = failing_run()
    assert_refused(done, str(out), "while writing: No space left on device")
    assert done.stdout == "" and os.listdir(out) == []
    if place == "second rename":
        return  # nothing can restore an older file then
    made(corpus, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert_refused(failing_run("--overwrite", "--seed=1", "--num=3"), str(out), "while writing")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_existing_files_and_inputs_are_not_overwritten(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in.jsonl", DOCUMENTS)
    out = tmp_path / "out"
    made(corpus, out)
    for name in OUTPUTS.values():
        for other in out.iterdir():
            other.rename(tmp_path / other.name)
        (tmp_path / name).rename(out / name)
        assert_refused(run(corpus, out), f"{out / name} exists already", "--overwrite")
        (out / name).unlink()
        made(corpus, out)
    for name in OUTPUTS.values():
        (out / name).unlink()
    assert_refused(run(corpus, out), "queries.tsv.report.json", "--overwrite")
    assert run(corpus, out, "--overwrite").status == 0
    (tmp_path / "test.tsv").write_text("1\tbread\n")
    flags = [f"--not_in={tmp_path}/test.tsv", "--overwrite"]
    assert_refused(run(corpus, out, *flags, f"--output_qrels_file={tmp_path}/test.tsv"), "also an input")
    assert_refused(run(corpus, out, *flags, f"--output_collection_file={corpus}"), "also an input")
    assert_refused(run(corpus, out, f"--output_qrels_file={out}/queries.tsv", "--overwrite"), "--output_queries_file")
    assert_refused(run(corpus, out, f"--output_collection_file={out}/corpus.tsv"), ".jsonl or .jsonl.gz")


def test_script_refuses(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in.jsonl", DOCUMENTS)
    out = tmp_path / "out"
    for name in ("num", "min_words"):
        assert_refused(run(corpus, out, f"--{name}=0"), f"--{name}: 0 is below 1")
    assert_refused(run(corpus, out, "--kind=sentence", "--first_words=0"), "--first_words: 0 is below 1")
    assert_refused(run(corpus, out, "--max_words=3"), "--max_words: 3 is below --min_words, 4")
    assert_refused(run(corpus, out, "--first_words=9"), "--first_words", "--kind title")
    assert_refused(run(corpus, out, "--kind=sentence", "--remove_all_titles"), "--remove_all_titles")
    assert run(corpus, out, "--kind=word").status == 2
    assert_refused(run(corpus, out, "--min_words=9"), "--kind title", "9 title too short or too long", "--min_words")
    assert_refused(run(corpus, out, f"--not_in={tmp_path}/none"), "none")
    twins = write_corpus(tmp_path / "twins.jsonl", DOCUMENTS[3:5])
    assert_refused(run(twins, out), "each of the 2 texts stands in several documents")
    twice = write_corpus(tmp_path / "twice.jsonl", [DOCUMENTS[0], DOCUMENTS[5], DOCUMENTS[0]])
    assert_refused(run(twice, out), "twice.jsonl line 3: document D1 occurs twice")
    assert os.listdir(out) == []
