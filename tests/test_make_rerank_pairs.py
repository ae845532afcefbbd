"""Pairs to re-rank: the script on small and on random collections, and what it refuses."""

import gzip
import json
import os
from pathlib import Path

import pytest
from small_collection import (
    SmallCollection,
    closing_figures,
    flags,
    random_collection,
    reference_passages,
    write_collection,
)
from tiny import Finished, assert_refused, run_main, run_script

SCRIPT = "data_preparation/make_rerank_pairs.py"
TINY = ["--window", 4, "--stride", 2]
SMALL = SmallCollection(
    documents={
        "D1": ("On pets", "a b c d e f g"),
        "D2": ("", "x y"),
        "D3": ("A title alone", ""),
        "D_4": ("T", "beyond the depth"),
    },
    queries={"7": "what  is a pet", "8": "who", "9": "not in the run"},
    qrels={},
    run={"8": ["D2", "D1"], "7": ["D3", "D9", "D2", "D_4"]},
)


def make(tmp_path: Path, collection: SmallCollection, *more: object, name: str = "pairs.tsv") -> Finished:
    paths = write_collection(tmp_path / "files", collection)
    del paths["qrels"]
    return run_main(SCRIPT, *flags(paths), "--output_pairs_file", tmp_path / name, *more)


def test_a_small_collection_by_hand(tmp_path: Path) -> None:
    done = make(tmp_path, SMALL, "--depth", 3, *TINY)
    assert (done.status, done.stderr) == (0, ""), done
    assert (tmp_path / "pairs.tsv").read_text() == (
        "8#D2_passage-0\twho\tx y\n"
        "8#D1_passage-0\twho\tOn pets a b c d\n"
        "8#D1_passage-1\twho\tOn pets c d e f\n"
        "8#D1_passage-2\twho\tOn pets e f g\n"
        "7#D2_passage-0\twhat is a pet\tx y\n"
    )
    assert "5 passages of 2 documents for 2 queries" in done.stdout
    assert closing_figures(done, tmp_path / "pairs.tsv", depth=3) == {
        "queries": 2,
        "queries_without_passages": 0,
        "candidates": 5,
        "candidates_dropped": {"document missing": 1, "document empty": 1},
        "documents": 2,
        "documents_missing": 1,
        "documents_missing_for_example": ["D9"],
        "documents_empty": 1,
        "passages": 5,
    }
    assert sorted(os.listdir(tmp_path)) == ["files", "pairs.tsv", "pairs.tsv.log", "pairs.tsv.report.json"]


def test_cap_on_passages(tmp_path: Path) -> None:
    make(tmp_path, SMALL, "--depth", 2, *TINY, "--max_passages", 2)
    assert [line.split("\t")[2] for line in (tmp_path / "pairs.tsv").read_text().splitlines()] == [
        "x y",
        "On pets a b c d",
        "On pets e f g",
    ]


def test_runs_as_a_command_from_elsewhere_and_packs(tmp_path: Path) -> None:
    assert make(tmp_path, SMALL).status == 0
    paths = write_collection(tmp_path / "files", SMALL)
    del paths["qrels"]
    done = run_script(SCRIPT, *flags(paths), "--output_pairs_file", tmp_path / "pairs.tsv.gz")
    assert done.status == 0 and done.stderr == "", done
    assert gzip.decompress((tmp_path / "pairs.tsv.gz").read_bytes()) == (tmp_path / "pairs.tsv").read_bytes()


@pytest.mark.parametrize("seed", range(8))
def test_random_collections(tmp_path: Path, seed: int) -> None:
    collection = random_collection(seed)
    collection = collection._replace(run={i: ids for i, ids in collection.run.items() if i in collection.queries})
    depth, window, stride = 3 + seed, 7, 3
    done = make(tmp_path, collection, "--depth", depth, "--window", window, "--stride", stride)
    assert done.status == 0, done
    expected = []
    dropped = {"document missing": 0, "document empty": 0}
    for query_id, doc_ids in collection.run.items():
        for doc_id in doc_ids[:depth]:
            if doc_id not in collection.documents:
                dropped["document missing"] += 1
            elif not (passages := reference_passages(*collection.documents[doc_id], window, stride)):
                dropped["document empty"] += 1
            else:
                text = collection.queries[query_id]
                expected += [f"{query_id}#{doc_id}_passage-{i}\t{text}\t{part}" for i, part in enumerate(passages)]
    assert (tmp_path / "pairs.tsv").read_text().splitlines() == expected
    report = json.loads((tmp_path / "pairs.tsv.report.json").read_text())
    assert report["candidates_dropped"] == dropped
    assert report["passages"] == len(expected)
    used = {line.split("#")[1].rpartition("_")[0] for line in expected}
    assert report["documents"] == len(used)
    named = {doc_id for doc_ids in collection.run.values() for doc_id in doc_ids[:depth]}
    assert report["documents"] + report["documents_missing"] + report["documents_empty"] == len(named)


def test_an_existing_result_is_kept_without_overwrite(tmp_path: Path) -> None:
    make(tmp_path, SMALL)
    before = (tmp_path / "pairs.tsv").read_bytes()
    assert_refused(make(tmp_path, SMALL, *TINY), "--output_pairs_file", "exists already", "--overwrite")
    assert (tmp_path / "pairs.tsv").read_bytes() == before
    assert make(tmp_path, SMALL, *TINY, "--overwrite").status == 0
    assert (tmp_path / "pairs.tsv").read_bytes() != before
    (tmp_path / "pairs.tsv").unlink()
    assert_refused(make(tmp_path, SMALL), "pairs.tsv.report.json", "--overwrite")


def test_an_input_is_never_the_output(tmp_path: Path) -> None:
    for name in ("collection.tsv", "queries.tsv", "candidates.tsv"):
        done = make(tmp_path, SMALL, "--overwrite", name=f"files/{name}")
        assert_refused(done, "--output_pairs_file", name, "also an input")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--depth", 0], ["--depth", "below 1"]),
        (["--window", 0], ["--window", "below 1"]),
        (["--window", 5, "--stride", 6], ["--stride", "--window"]),
        (["--stride", 0], ["--stride"]),
        (["--max_passages", 0], ["--max_passages"]),
    ],
)
def test_impossible_settings(tmp_path: Path, more: list[object], says: list[str]) -> None:
    assert_refused(make(tmp_path, SMALL, *more), *says)
    assert os.listdir(tmp_path) == ["files"]


def test_unusable_inputs(tmp_path: Path) -> None:
    without_text = SMALL._replace(queries={"7": "what"})
    assert_refused(make(tmp_path, without_text), "--queries", "query 8")
    elsewhere = SMALL._replace(run={"7": ["E1", "E2"]})
    assert_refused(make(tmp_path, elsewhere), "--candidates", "'E1'", "--collection")
    empty = SMALL._replace(run={"7": ["D3", "E2"]})
    assert_refused(make(tmp_path, empty), "--candidates", "has 1 of the 2 documents, none with a body")
    hash_sign = SMALL._replace(queries={"7#1": "what"}, run={"7#1": ["D1"]})
    assert_refused(make(tmp_path, hash_sign), "7#1", "'#'")
    paths = write_collection(tmp_path / "files", SMALL)
    arguments = ["--collection", paths["collection"], "--queries", paths["queries"]]
    done = run_main(SCRIPT, *arguments, "--output_pairs_file", tmp_path / "pairs.tsv")
    assert_refused(done, "--candidates", "name a run")
    assert os.listdir(tmp_path) == ["files"]


def test_a_damaged_run_is_named_with_its_line(tmp_path: Path) -> None:
    paths = write_collection(tmp_path / "files", SMALL)
    del paths["qrels"]
    with open(paths["candidates"], "a") as file:
        file.write("7 Q0 D1 5\n")
    done = run_main(SCRIPT, *flags(paths), "--output_pairs_file", tmp_path / "pairs.tsv")
    assert_refused(done, f"{paths['candidates']} line 7", "columns")
