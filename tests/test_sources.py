"""One small collection in every layout of collections, and malformed collections."""

import argparse
import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny import ROOT, assert_refused, run_main

from data_preparation.sources import (
    Collection,
    add_collection_arguments,
    input_files,
    needed_documents,
    open_collection,
)
from formats.documents import Document
from runtime.errors import InputError

DOCUMENTS = [
    Document("D1", "Cats", "The cat sat on a mat."),
    Document("D10", "", "A dog ran “fast” \u4e2d\u56fd."),
    Document("D2#a_b", "Empty", ""),
    Document("D3", "Caf\u00e9", "what  is deep ?"),
]
QUERIES = {"7": "what is a cat", "19": "dog, 中国!", "20": "nothing"}
QRELS = {"7": {"D1": 1, "D3": 0}, "19": {"D10": 2}}
# Lines are not in the order of ranks.
RUN = {"19": {"D1": -4.5, "D10": -4.25}, "7": {"D3": 2.5, "D2#a_b": 2.5, "D1": 3.0, "gone": 0.125}}
BEST_FIRST = {"19": ["D10", "D1"], "7": ["D1", "D3", "D2#a_b", "gone"]}

# The column separator, the end of lines, and the suffix of the files.
LINES = list(itertools.product("\t ", ("\n", "\r\n"), ("", ".gz")))


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    """Writes lines, packed if the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(packed) if path.suffix == ".gz" else packed)
    return path


def run_lines(separator: str) -> list[str]:
    rows = [(query_id, doc_id, score) for query_id, scores in RUN.items() for doc_id, score in scores.items()]
    return [separator.join((query_id, "Q0", doc_id, "1", repr(score), "tiny")) for query_id, doc_id, score in rows]


def qrels_rows() -> list[tuple[str, str, str]]:
    return [(query_id, doc_id, str(grade)) for query_id, grades in QRELS.items() for doc_id, grade in grades.items()]


def trec_qrels(separator: str) -> list[str]:
    return [separator.join((query_id, "0", doc_id, grade)) for query_id, doc_id, grade in qrels_rows()]


def beir_qrels(separator: str) -> list[str]:
    return [separator.join(row) for row in [("query-id", "corpus-id", "score"), *qrels_rows()]]


def corpus_lines(ascii_only: bool) -> list[str]:
    """The lines have no title if it is empty."""
    rows = [{"_id": doc_id, "title": title, "text": body, "metadata": {}} for doc_id, title, body in DOCUMENTS]
    return [
        json.dumps({name: value for name, value in row.items() if value or name != "title"}, ensure_ascii=ascii_only)
        for row in rows
    ]


def arguments(*flags: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_collection_arguments(parser, qrels=True, candidates=True)
    return parser.parse_args([str(flag) for flag in flags])


def opened(*flags: object) -> Collection:
    return open_collection(arguments(*flags))


def assert_same(collection: Collection, queries: dict[str, str] = QUERIES) -> None:
    assert list(collection.documents()) == list(collection.documents()) == DOCUMENTS
    assert list(collection.queries.items()) == list(queries.items())
    assert collection.qrels == QRELS
    assert collection.candidates == RUN
    assert {query_id: list(scores) for query_id, scores in collection.candidates.items()} == BEST_FIRST


@pytest.mark.parametrize(("separator", "end", "suffix"), LINES)
def test_msmarco_files(tmp_path, separator, end, suffix):
    collection = opened(
        "--collection",
        write(
            tmp_path / f"docs.tsv{suffix}", [f"{d}\thttp://x/{d}\t{title}\t{body}" for d, title, body in DOCUMENTS], end
        ),
        "--queries",
        write(tmp_path / f"queries.tsv{suffix}", [f"{query_id}\t{text}" for query_id, text in QUERIES.items()], end),
        "--qrels",
        write(tmp_path / f"qrels{suffix}", trec_qrels(separator), end),
        "--candidates",
        write(tmp_path / f"top100{suffix}", run_lines(separator), end),
    )
    assert_same(collection)


@pytest.mark.parametrize(("separator", "end", "suffix"), LINES)
@pytest.mark.parametrize("of_split", [False, True])
@pytest.mark.parametrize("qrels_name", ["qrels/dev.tsv", "qrels.dev.txt", "qrels.dev.tsv"])
@pytest.mark.parametrize("kind", ["jsonl", "tsv"])
def test_beir_folder(tmp_path, separator, end, suffix, of_split, qrels_name, kind):
    folder = tmp_path / "beir"
    write(folder / f"corpus.jsonl{suffix}", corpus_lines(ascii_only=end == "\n"), end)
    queries = [f"{query_id}\t{text}" for query_id, text in QUERIES.items()]
    if kind == "jsonl":
        queries = [json.dumps({"_id": query_id, "text": text, "metadata": {}}) for query_id, text in QUERIES.items()]
    write(folder / f"queries{'.dev' if of_split else ''}.{kind}{suffix}", queries, end)
    write(folder / f"{qrels_name}{suffix}", (beir_qrels if qrels_name.endswith("tsv") else trec_qrels)(separator), end)
    candidates = write(tmp_path / f"run{suffix}", run_lines(separator), end)
    # A split without its own file of queries has the queries in its qrels.
    in_qrels = {query_id: QUERIES[query_id] for query_id in QRELS}
    assert_same(
        opened("--collection", folder, "--split=dev", "--candidates", candidates), QUERIES if of_split else in_qrels
    )


def test_beir_folder_without_splits(tmp_path):
    folder = tmp_path / "beir"
    write(folder / "corpus.jsonl", corpus_lines(ascii_only=True))
    write(folder / "queries.tsv", [f"{query_id}\t{text}" for query_id, text in QUERIES.items()])
    write(folder / "qrels.txt", trec_qrels(" "))
    assert_same(opened("--collection", folder, "--candidates", write(tmp_path / "run", run_lines(" "))))
    assert opened("--collection", folder).candidates is None


def test_jsonl_file(tmp_path):
    corpus = write(tmp_path / "any.jsonl.gz", corpus_lines(ascii_only=False))
    queries = write(
        tmp_path / "q.jsonl", [json.dumps({"_id": query_id, "text": text}) for query_id, text in QUERIES.items()]
    )
    flags = ("--collection", corpus, "--queries", queries)
    qrels, candidates = write(tmp_path / "qrels", beir_qrels(" ")), write(tmp_path / "run", run_lines(" "))
    assert_same(opened(*flags, "--qrels", qrels, "--candidates", candidates))
    assert opened(*flags).qrels is None


def test_flags_replace_the_files_of_a_folder(tmp_path):
    folder = tmp_path / "beir"
    write(folder / "corpus.jsonl", corpus_lines(ascii_only=True))
    write(folder / "queries.tsv", ["7\tof the folder"])
    write(folder / "qrels.txt", ["7 0 D1 3"])
    queries = write(tmp_path / "queries", ["8\tmine"])
    assert opened("--collection", folder, "--queries", queries)[1:3] == ({"8": "mine"}, {"7": {"D1": 3}})
    qrels = write(tmp_path / "qrels", ["7 0 D3 1"])
    assert opened("--collection", folder, "--qrels", qrels)[1:3] == ({"7": "of the folder"}, {"7": {"D3": 1}})
    (folder / "queries.tsv").write_text("broken")  # it is not read
    assert opened("--collection", folder, "--queries", queries).queries == {"8": "mine"}


def test_without_a_flag_in_the_parser_nothing_is_read(tmp_path):
    folder = tmp_path / "beir"
    write(folder / "corpus.jsonl", corpus_lines(ascii_only=True))
    for name in ("queries.tsv", "qrels.txt"):
        write(folder / name, ["broken"])
    parser = argparse.ArgumentParser()
    add_collection_arguments(parser, queries=False)
    collection = open_collection(parser.parse_args(["--collection", str(folder)]))
    assert collection[1:4] == ({}, None, None)
    assert list(collection.documents()) == DOCUMENTS


def test_contradictory_qrels_are_noted(tmp_path, capsys):
    docs = write(tmp_path / "docs.tsv", ["D1\tu\tt\tb"])
    flags = ("--collection", docs, "--queries", write(tmp_path / "queries", ["7\ttext"]))
    qrels = write(tmp_path / "qrels", ["7 0 D1 0", "7 0 D1 2"])
    assert opened(*flags, "--qrels", qrels).qrels == {"7": {"D1": 2}}
    (note,) = capsys.readouterr().err.splitlines()
    assert "1 contradictory judgments" in note and "line 2" in note


def test_needed_documents(tmp_path):
    path = write(tmp_path / "docs.tsv.gz", [f"{d}\tu\t{title}\t{body}" for d, title, body in DOCUMENTS])
    collection = opened("--collection", path, "--queries", write(tmp_path / "queries", ["7\ttext"]))
    assert needed_documents(collection, ["D3", "D10", "gone", "D3"]) == {"D10": DOCUMENTS[1], "D3": DOCUMENTS[3]}
    assert needed_documents(collection, []) == {}


def test_needed_documents_occur_once(tmp_path):
    path = write(tmp_path / "docs.tsv", [f"D{i % 5}\tu\tt\tbody {i}" for i in range(7)])
    collection = opened("--collection", path, "--queries", write(tmp_path / "queries", ["7\ttext"]))
    assert set(needed_documents(collection, ["D2", "D3"])) == {"D2", "D3"}  # D0 and D1 occur twice, but are not needed
    with pytest.raises(InputError, match=r"docs\.tsv line 7: document D1 occurs twice"):
        needed_documents(collection, ["D1"])


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("docs.tsv", "D2\tu\tbody", "line 2: 3 columns where 4"),
        ("docs.tsv", "D2\tu\tt\tb\t", "line 2: 5 columns where 4"),
        ("docs.tsv", "", "line 2: 1 columns where 4"),
        ("docs.tsv", "\tu\tt\tb", "line 2: the document id '' is empty"),
        ("docs.tsv", " D2\tu\tt\tb", "line 2: the document id ' D2' is empty or holds white space"),
        ("docs.tsv", "D\u00a02\tu\tt\tb", "white space"),
        ("docs.jsonl", '{"_id": "D2", "text": "b"', "line 2: no JSON"),
        ("docs.jsonl", '["D2", "b"]', "line 2: list where a JSON object"),
        ("docs.jsonl", "null", "line 2: NoneType where a JSON object"),
        ("docs.jsonl", '{"title": "t", "text": "b"}', "line 2: '_id' is missing"),
        ("docs.jsonl", '{"_id": "D2", "title": "t"}', "line 2: 'text' is missing"),
        ("docs.jsonl", '{"_id": 2, "text": "b"}', "line 2: '_id' is int, text is needed"),
        ("docs.jsonl", '{"_id": "D2", "text": null}', "line 2: 'text' is NoneType"),
        ("docs.jsonl", '{"_id": "D2", "title": ["t"], "text": "b"}', "line 2: 'title' is list"),
        ("docs.jsonl", '{"_id": "", "text": "b"}', "line 2: the document id '' is empty"),
        ("docs.jsonl", '{"_id": "D 2", "text": "b"}', "line 2: the document id 'D 2'"),
        ("docs.jsonl", '{"_id": "D2", "text": "b\\u0000"}', "line 2: 'text' holds a NUL"),
        ("docs.jsonl", '{"_id": "D2", "text": "\\ud83d"}', "line 2: no JSON that can be used"),
        ("docs.jsonl", "[" * 100_000, "line 2: no JSON"),
        ("docs.jsonl", "", "line 2: no JSON"),
    ],
)
def test_malformed_documents(tmp_path, name, line, message):
    good = '{"_id": "D1", "text": "b"}' if name.endswith("jsonl") else "D1\tu\tt\tb"
    path = write(tmp_path / name, [good, line, good])
    collection = opened("--collection", path, "--queries", write(tmp_path / "queries", ["7\ttext"]))
    with pytest.raises(InputError) as caught:
        needed_documents(collection, ["D9"])
    assert str(caught.value).startswith(f"{path} ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_titles_of_json_lines(tmp_path):
    lines = ['{"_id": "D1", "text": "b"}', '{"_id": "D2", "title": null, "text": "\\u00e9 \\ud83d\\ude00"}']
    collection = opened(
        "--collection", write(tmp_path / "docs.jsonl", lines), "--queries", write(tmp_path / "queries", ["7\ttext"])
    )
    assert list(collection.documents()) == [Document("D1", "", "b"), Document("D2", "", "é 😀")]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("q.tsv", ["7\ttext", "8 text"], "line 2: 1 columns where 2"),
        ("q.tsv", ["7\ttext", "8\ttext\tmore"], "line 2: 3 columns where 2"),
        ("q.tsv", ["7\ttext", "8\t "], "line 2: the text of query 8 is empty"),
        ("q.tsv", ["7\ttext", "7\tother"], "line 2: query 7 was there before"),
        ("q.tsv", ["7\ttext", "\tother"], "line 2: the query id '' is empty"),
        ("q.tsv", ["7 8\ttext"], "line 1: the query id '7 8'"),
        ("q.jsonl", ['{"_id": "7", "text": "a"}', '{"_id": "7", "text": "a"}'], "line 2: query 7 was there before"),
        ("q.jsonl", ['{"_id": "7"}'], "line 1: 'text' is missing"),
        ("q.jsonl", ["7\ttext"], "line 1: no JSON"),
        ("q.tsv", [], "is empty"),
    ],
)
def test_malformed_queries(tmp_path, name, lines, message):
    path = write(tmp_path / name, lines)
    with pytest.raises(InputError) as caught:
        opened("--collection", write(tmp_path / "docs.tsv", ["D1\tu\tt\tb"]), "--queries", path)
    assert str(caught.value).startswith(f"{path} ") and message in str(caught.value)


def test_refusals_name_the_flag(tmp_path):
    docs, queries = write(tmp_path / "docs.tsv", ["D1\tu\tt\tb"]), write(tmp_path / "queries", ["7\ttext"])
    folder = tmp_path / "beir"
    folder.mkdir()
    for flags, message in (
        (("--collection", tmp_path / "none"), "--collection: there is no file or folder"),
        (("--collection", docs), "--queries: .* has no queries;"),
        (("--collection", docs, "--queries", queries, "--split=dev"), "--split: .* is not a BEIR folder"),
        (("--collection", "ir_datasets:x", "--queries", queries, "--split=dev"), "--split: .* is not a BEIR folder"),
        (("--collection", folder), "--collection: .* has no corpus.jsonl"),
    ):
        with pytest.raises(InputError, match=message):
            opened(*flags)
    write(folder / "corpus.jsonl", corpus_lines(ascii_only=True))
    with pytest.raises(InputError, match=r"--queries: .* has no queries.jsonl or queries.tsv$"):
        opened("--collection", folder)
    write(folder / "queries.train.tsv", ["7\ttext"])
    write(folder / "qrels" / "test.tsv", beir_qrels("\t"))
    with pytest.raises(InputError, match="pass --split with one of: test, train"):
        opened("--collection", folder)
    with pytest.raises(InputError, match="no split 'dev'; pass --split with one of: test, train"):
        opened("--collection", folder, "--split=dev")
    with pytest.raises(InputError, match=r"--queries: .* has no queries.jsonl"):
        opened("--collection", folder, "--split=test")  # there are qrels, but no queries
    with pytest.raises(InputError, match=r"has no queries.jsonl or queries.tsv$"):  # not "pass --split" again
        opened("--collection", folder, "--split=test")
    write(folder / "queries.jsonl", ['{"_id": "x1", "text": "a"}'])
    with pytest.raises(
        InputError, match=r"no query of .*queries.jsonl is in .*test.tsv; the ids differ, such as x1 and"
    ):
        opened("--collection", folder, "--split=test")


@pytest.mark.parametrize(("names", "shown"), [(("train", "test"), "test, train"), (("test",), "test")])
def test_a_beir_folder_without_split_names_its_splits(tmp_path, names, shown):
    """As BEIR's folders are: one file of queries, and relevance judgments of each split. A split is never guessed."""
    folder = tmp_path / "scifact"
    write(folder / "corpus.jsonl", corpus_lines(ascii_only=True))
    write(folder / "queries.jsonl", [json.dumps({"_id": query_id, "text": text}) for query_id, text in QUERIES.items()])
    for name in names:
        write(folder / "qrels" / f"{name}.tsv", beir_qrels("\t"))
    out = ("--output_run_file", tmp_path / "run"), ("--output_pairs_file", tmp_path / "pairs")
    for script, flags in (("make_candidates", out[0]), ("make_train_pairs", (*out[1], "--candidates", tmp_path))):
        done = run_main(f"data_preparation/{script}.py", "--collection", folder, *flags)
        assert_refused(done, f"--split: {folder} has no qrels.txt or qrels.tsv; pass --split with one of: {shown}, or")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scifact"]
    # named queries, and scripts that read no relevance judgments, need no split
    assert opened("--collection", folder, "--queries", folder / "queries.jsonl").queries == QUERIES
    assert opened("--collection", folder, "--qrels", folder / "qrels" / "test.tsv").qrels == QRELS


def test_input_files(tmp_path):
    folder = tmp_path / "beir"
    names = ["corpus.jsonl.gz", "qrels/dev.tsv", "queries.dev.tsv"]
    for name in [*names, "train_pairs.tsv"]:
        write(folder / name, ["x"])
    files = input_files(arguments("--collection", folder, "--candidates", tmp_path / "run"))
    assert set(files) == {folder, tmp_path / "run", *(folder / name for name in names)}


# ir_datasets: its own classes, and its own way to register datasets.


class WebDocument(NamedTuple):
    """As in msmarco-document: the field of the text is `body`, and there are other fields before it."""

    doc_id: str
    url: str
    title: str
    body: str

    def default_text(self) -> str:
        return f"{self.title} {self.body}"


class Report(NamedTuple):
    """A document without text in the usual fields."""

    doc_id: str
    text: bytes
    title: str

    def default_text(self) -> str:
        return f"{self.title}. {self.text.decode()}"


class Topic(NamedTuple):
    """As in TREC: a query without the field `text`."""

    query_id: str
    title: str
    narrative: str

    def default_text(self) -> str:
        return self.title


@pytest.fixture
def register(tmp_path_factory, monkeypatch):
    """Registers a dataset as ir_datasets does, and returns its name for --collection."""
    home = tmp_path_factory.mktemp("ir_datasets")
    monkeypatch.setenv("IR_DATASETS_HOME", str(home))
    monkeypatch.setenv("IR_DATASETS_TMP", str(home))
    ir_datasets = pytest.importorskip("ir_datasets")
    from ir_datasets import formats

    names: list[str] = []

    def handler(base: type, method: str, rows: Any) -> Any:
        return type("Handler", (base,), {method: lambda self: iter(rows) if isinstance(rows, list) else rows()})()

    def register(docs: Any = None, queries: Any = None, qrels: Any = None, scoreddocs: Any = None) -> str:
        names.append(f"tiny/{len(names)}")
        parts = [
            handler(base, method, rows)
            for base, method, rows in (
                (formats.BaseDocs, "docs_iter", docs),
                (formats.BaseQueries, "queries_iter", queries),
                (formats.BaseQrels, "qrels_iter", qrels),
                (formats.BaseScoredDocs, "scoreddocs_iter", scoreddocs),
            )
            if rows is not None
        ]
        ir_datasets.registry.register(names[-1], ir_datasets.Dataset(*parts))
        return f"ir_datasets:{names[-1]}"

    yield register
    for name in names:
        del ir_datasets.registry._registered[name]


def some_dataset() -> dict[str, list[Any]]:
    from ir_datasets.formats import GenericQuery, GenericScoredDoc, TrecQrel

    return {
        "docs": [WebDocument(doc_id, "http://x", title, body) for doc_id, title, body in DOCUMENTS],
        "queries": [GenericQuery(query_id, text) for query_id, text in QUERIES.items()],
        "qrels": [TrecQrel(query_id, doc_id, int(grade), "0") for query_id, doc_id, grade in qrels_rows()],
        "scoreddocs": [
            GenericScoredDoc(query_id, doc_id, score)
            for query_id, scores in RUN.items()
            for doc_id, score in scores.items()
        ],
    }


def test_ir_datasets(register):
    assert_same(opened("--collection", register(**some_dataset())))


def test_ir_datasets_with_documents_of_beir(register):
    from ir_datasets.datasets.beir import BeirTitleDoc

    docs = [BeirTitleDoc(doc_id, body, title) for doc_id, title, body in DOCUMENTS]
    assert_same(opened("--collection", register(**some_dataset() | {"docs": docs})))


def test_ir_datasets_fields(register):
    from ir_datasets.formats import GenericDoc

    docs = [GenericDoc("D1", "just text"), Report("D2", b"bytes", "Title")]
    collection = opened("--collection", register(docs, [Topic("7", "a topic", "and what it is about")]))
    assert list(collection.documents()) == [Document("D1", "", "just text"), Document("D2", "", "Title. bytes")]
    assert collection[1:4] == ({"7": "a topic"}, None, None)


def test_ir_datasets_repeated_qrels(register):
    from ir_datasets.formats import TrecQrel

    qrels = [TrecQrel("7", "D1", grade, "0") for grade in (-1, 2, 1)]
    assert opened("--collection", register(**some_dataset() | {"qrels": qrels})).qrels == {"7": {"D1": 2}}


def test_ir_datasets_reads_only_what_is_needed(register, tmp_path):
    def forbidden():
        raise AssertionError

    name = register(some_dataset()["docs"], forbidden, forbidden, forbidden)
    parser = argparse.ArgumentParser()
    add_collection_arguments(parser, queries=False)
    assert list(open_collection(parser.parse_args(["--collection", name])).documents()) == DOCUMENTS
    queries, qrels, run = (
        write(tmp_path / file, lines)
        for file, lines in (("q", ["7\tmine"]), ("qrels", ["7 0 D1 1"]), ("run", ["7 Q0 D1 1 1 x"]))
    )
    given = opened("--collection", name, "--queries", queries, "--qrels", qrels, "--candidates", run)
    assert given[1:4] == ({"7": "mine"}, {"7": {"D1": 1}}, {"7": {"D1": 1.0}})


def test_ir_datasets_through_a_script(register, tmp_path):
    out = tmp_path / "text.txt"
    done = run_main(
        "data_preparation/make_text.py", "--collection", register(some_dataset()["docs"]), "--output_text_file", out
    )
    assert done.status == 0, done.stderr
    assert out.read_text() == "Cats\nThe cat sat on a mat.\n\nA dog ran “fast” 中国.\n\nEmpty\n\nCafé\nwhat is deep ?\n"


def test_ir_datasets_failing_download_is_one_line(register, tmp_path):
    def unreachable():
        raise ConnectionError("no route\nto host")
        yield

    dataset = some_dataset()
    out = tmp_path / "text.txt"
    for broken in ("docs", "queries", "qrels"):
        name = register(**dataset | {broken: unreachable})
        command = ("data_preparation/make_candidates.py", "--output_run_file", out, "--collection", name)
        assert_refused(run_main(*command), name, "ConnectionError: no route to host", "online?")
        assert not out.exists()


def test_ir_datasets_refusals(register):
    dataset = some_dataset()
    with pytest.raises(InputError, match="--collection: ir_datasets knows no 'no/such'"):
        opened("--collection", "ir_datasets:no/such")
    with pytest.raises(InputError, match="has no documents"):
        opened("--collection", register(queries=dataset["queries"]))
    with pytest.raises(InputError, match=r"--queries: .* has no queries;"):
        opened("--collection", register(docs=dataset["docs"]))
    with pytest.raises(InputError, match="query 7 was there before"):
        opened("--collection", register(**dataset | {"queries": dataset["queries"] * 2}))
    collection = opened("--collection", register(**dataset | {"docs": dataset["docs"] * 2}))
    with pytest.raises(InputError, match=r"ir_datasets:tiny/\d+ document 5: document D1 occurs twice"):
        needed_documents(collection, ["D1"])
    documents = [WebDocument("D 1", "u", "t", "b")]
    with pytest.raises(InputError, match="the document id 'D 1' is empty or holds white space"):
        needed_documents(opened("--collection", register(**dataset | {"docs": documents})), [])


def test_files_need_no_ir_datasets_and_no_torch(tmp_path):
    """ir_datasets makes a directory in the user's home at its first use."""
    docs, home = write(tmp_path / "docs.tsv", ["D1\tu\tt\tb"]), tmp_path / "home"
    home.mkdir()
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--collection', {str(docs)!r}, '--output_text_file', {str(tmp_path / 'out')!r}]\n"
        "runpy.run_path('data_preparation/make_text.py', run_name='__main__')\n"
        "assert not {'ir_datasets', 'torch'} & set(sys.modules)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IR_DATASETS")}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment | {"HOME": str(home)}, timeout=60)
    assert done.returncode == 0
    assert list(home.iterdir()) == []
