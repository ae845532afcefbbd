"""Pairs to train with: the script on small and on random collections, the sampled negatives, and what it refuses."""

import json
import os
import random
from collections import Counter
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

from data_preparation.training_examples import all_ids, sample_documents, sample_negatives
from formats.pairs import Pair, read_pairs, split_example_id
from formats.scores import split_passage_id

SCRIPT = "data_preparation/make_train_pairs.py"
TINY = ["--window", 4, "--stride", 2]
SMALL = SmallCollection(
    documents={
        "D1": ("On pets", "a b c d e f g"),
        "D2": ("", "x y"),
        "D3": ("A title alone", ""),
        "D4": ("T", "of low relevance"),
        "D5": ("T", "not relevant"),
        "D6": ("T", "beyond the ranks"),
    },
    queries={"7": "what  is a pet", "8": "who", "9": "no candidates", "10": "nothing relevant"},
    qrels={
        "9": {"D2": 2},
        "7": {"D1": 2, "D4": 1, "D5": 0},
        "8": {"D8": 2, "D3": 3},
        "10": {"D1": 1},
        "11": {"D1": 2},
    },
    run={"7": ["D4", "D1", "D5", "D6"], "8": ["D3", "D9", "D2"], "10": ["D1"], "11": ["D2"]},
)


def make(
    tmp_path: Path,
    collection: SmallCollection,
    *more: object,
    name: str = "pairs.tsv",
    order: random.Random | None = None,
) -> Finished:
    paths = write_collection(tmp_path / "files", collection, order)
    return run_main(SCRIPT, *flags(paths), "--output_pairs_file", tmp_path / name, *more)


def report_of(tmp_path: Path, name: str = "pairs.tsv") -> dict:
    return json.loads((tmp_path / f"{name}.report.json").read_text())


def rows(path: Path) -> list[tuple[str, str, int, Pair]]:
    """Query, document and number of each pair, and the pair."""
    parsed = []
    for pair in read_pairs(path, labelled=True):
        query_id, passage_id = split_example_id(pair.example_id)
        parsed.append((query_id, *split_passage_id(passage_id), pair))
    return parsed


def test_a_small_collection_by_hand(tmp_path: Path) -> None:
    settings = ["--min_relevance", 2, "--num_negatives", 2, "--negatives_to_rank", 3]
    done = make(tmp_path, SMALL, *TINY, *settings)
    assert (done.status, done.stderr) == (0, ""), done
    # Negatives of query 7: only D5, because D4 has a low relevance, and D6 has rank 4. Negatives of query 8: D9, which
    # is not in the collection, and D2. The relevant D8 is not in the collection either, and D3 is empty.
    assert (tmp_path / "pairs.tsv").read_text() == (
        "9#D2_passage-0\tno candidates\tx y\t1\n"
        "7#D1_passage-0\twhat is a pet\tOn pets a b c d\t1\n"
        "7#D1_passage-1\twhat is a pet\tOn pets c d e f\t1\n"
        "7#D1_passage-2\twhat is a pet\tOn pets e f g\t1\n"
        "7#D5_passage-0\twhat is a pet\tT not relevant\t0\n"
        "8#D2_passage-0\twho\tx y\t0\n"
    )
    assert "4 positives and 2 negatives of 3 queries" in done.stdout
    assert closing_figures(done, tmp_path / "pairs.tsv", num_negatives=2) == {
        "queries": 3,
        "queries_left_out": {"no text": 1, "no relevant document": 1},
        "queries_without_candidates": 1,
        "queries_without_positives": 1,
        "relevant": 4,
        "relevant_dropped": {"document missing": 1, "document empty": 1},
        "negatives_asked_for": 6,
        "negatives_drawn": 3,
        "negatives_dropped": {"document missing": 1, "document empty": 0},
        "documents": 3,
        "documents_missing": 2,
        "documents_missing_for_example": ["D8", "D9"],
        "documents_empty": 1,
        "passages": 6,
        "positives": 4,
        "negatives": 2,
    }


def test_positives_without_label_for_the_teacher(tmp_path: Path) -> None:
    settings = ["--min_relevance", 2, *TINY, "--max_positive_passages", 2]
    make(tmp_path, SMALL, *settings, "--output_positives_file", tmp_path / "positives.tsv")
    assert (tmp_path / "positives.tsv").read_text() == (
        "9#D2_passage-0\tno candidates\tx y\n"
        "7#D1_passage-0\twhat is a pet\tOn pets a b c d\n"
        "7#D1_passage-1\twhat is a pet\tOn pets c d e f\n"
    )
    labelled = [pair._replace(label=-1) for *_, pair in rows(tmp_path / "pairs.tsv") if pair.label == 1]
    assert labelled == list(read_pairs(tmp_path / "positives.tsv", labelled=False))


def check_against_reference(tmp_path: Path, collection: SmallCollection, settings: dict[str, int]) -> None:
    window, stride, cap = settings["window"], settings["stride"], settings["max_positive_passages"]
    first, last = settings["negatives_from_rank"], settings["negatives_to_rank"]
    done = make(tmp_path, collection, *(part for name, value in settings.items() for part in (f"--{name}", value)))
    assert done.status == 0, done
    found: dict[str, list] = {}
    for query_id, doc_id, number, pair in rows(tmp_path / "pairs.tsv"):
        found.setdefault(query_id, []).append((doc_id, number, pair))
    passages = {doc_id: reference_passages(*text, window, stride) for doc_id, text in collection.documents.items()}
    used = []
    sampled = dropped = 0
    for query_id, grades in collection.qrels.items():
        relevant = [doc_id for doc_id, relevance in grades.items() if relevance >= settings["min_relevance"]]
        if query_id not in collection.queries or not relevant:
            assert query_id not in found
            continue
        used.append(query_id)
        of_query = found.get(query_id, [])
        assert all(pair.query == collection.queries[query_id] for *_, pair in of_query)
        assert all(pair.passage == passages[doc_id][number] for doc_id, number, pair in of_query)
        labels = [pair.label for *_, pair in of_query]
        assert labels == sorted(labels, reverse=True)
        positives = [(doc_id, number) for doc_id, number, pair in of_query if pair.label == 1]
        assert positives == [(d, n) for d in relevant for n in range(min(cap, len(passages.get(d, []))))]
        negatives = [doc_id for doc_id, _, pair in of_query if pair.label == 0]
        assert len(set(negatives)) == len(negatives)
        assert all(grades.get(doc_id, 0) <= 0 for doc_id in negatives)
        eligible = [d for d in collection.run.get(query_id, [])[first - 1 : last] if grades.get(d, 0) <= 0]
        usable = [doc_id for doc_id in eligible if passages.get(doc_id)]
        sampled += min(settings["num_negatives"], len(eligible))
        dropped += min(settings["num_negatives"], len(eligible)) - len(negatives)
        if settings["num_negatives"] >= len(eligible):
            assert sorted(negatives) == sorted(usable)
        else:
            assert set(negatives) <= set(usable)
            assert len(negatives) >= settings["num_negatives"] - (len(eligible) - len(usable))
    assert list(found) == [query_id for query_id in used if query_id in found]
    report = report_of(tmp_path)
    labels = Counter(pair.label for *_, pair in rows(tmp_path / "pairs.tsv"))
    assert (report["positives"], report["negatives"]) == (labels[1], labels[0])
    assert report["passages"] == labels.total()
    assert report["queries"] == len(used)
    assert sum(report["queries_left_out"].values()) == len(collection.qrels) - len(used)
    assert report["negatives_asked_for"] == len(used) * settings["num_negatives"]
    assert report["negatives_drawn"] == sampled == report["negatives"] + sum(report["negatives_dropped"].values())
    assert dropped == sum(report["negatives_dropped"].values())
    with_positives = {query_id for query_id, *_, pair in rows(tmp_path / "pairs.tsv") if pair.label == 1}
    assert report["queries_without_positives"] == len(used) - len(with_positives)


@pytest.mark.parametrize("seed", range(12))
def test_random_collections(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    first = rng.randint(1, 5)
    settings = {
        "window": 7,
        "stride": rng.randint(2, 7),
        "min_relevance": rng.randint(1, 2),
        "max_positive_passages": rng.randint(1, 4),
        "num_negatives": rng.randint(0, 6),
        "negatives_from_rank": first,
        "negatives_to_rank": rng.randint(first, 20),
        "seed": seed,
    }
    check_against_reference(tmp_path, random_collection(100 + seed), settings)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_depend_on_the_seed_and_not_on_the_order_of_lines(tmp_path: Path, seed: int) -> None:
    collection = random_collection(200 + seed)
    settings = ["--num_random_negatives", 2, *TINY]
    written = {}
    for name, more, order in (
        ("first", [], None),
        ("again", [], None),
        ("shuffled", [], random.Random(seed)),
        ("other", ["--seed", 43], None),
    ):
        assert make(tmp_path, collection, *settings, *more, name=name, order=order).status == 0
        written[name] = (tmp_path / name).read_bytes()
    assert written["first"] == written["again"]
    assert sorted(written["first"].splitlines()) == sorted(written["shuffled"].splitlines())
    assert sorted(written["first"].splitlines()) != sorted(written["other"].splitlines())
    positives = [[line for line in written[name].splitlines() if line.endswith(b"1")] for name in ("first", "other")]
    assert positives[0] == positives[1]


def test_a_beir_folder_gives_the_same_pairs(tmp_path: Path) -> None:
    collection = random_collection(5)
    make(tmp_path, collection)
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    rows_of = {
        "corpus.jsonl": [{"_id": i, "title": title, "text": body} for i, (title, body) in collection.documents.items()],
        "queries.jsonl": [{"_id": query_id, "text": text} for query_id, text in collection.queries.items()],
    }
    for name, objects in rows_of.items():
        folder.joinpath(name).write_text("".join(json.dumps(row) + "\n" for row in objects))
    qrels = [f"{q}\t{d}\t{grade}" for q, grades in collection.qrels.items() for d, grade in grades.items()]
    folder.joinpath("qrels", "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]) + "\n")
    arguments = ["--collection", folder, "--split", "train", "--candidates", tmp_path / "files" / "candidates.tsv"]
    done = run_main(SCRIPT, *arguments, "--output_pairs_file", tmp_path / "of_beir.tsv")
    assert done.status == 0, done
    assert (tmp_path / "of_beir.tsv").read_bytes() == (tmp_path / "pairs.tsv").read_bytes()
    done = run_main(SCRIPT, *arguments, "--output_pairs_file", folder / "corpus.jsonl", "--overwrite")
    assert_refused(done, "corpus.jsonl", "also an input")


def test_the_hash_seed_has_no_effect(tmp_path: Path) -> None:
    paths = write_collection(tmp_path / "files", random_collection(7))
    for name in ("first", "again"):  # each process has its own seed for hashes of texts
        done = run_script(SCRIPT, *flags(paths), "--num_random_negatives", 3, "--output_pairs_file", tmp_path / name)
        assert done.status == 0 and done.stderr == "", done
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_random_negatives(tmp_path: Path, seed: int) -> None:
    collection = random_collection(300 + seed)
    without = [*TINY, "--num_negatives", 2]
    make(tmp_path, collection, *without, name="without")
    make(tmp_path, collection, *without, "--num_random_negatives", 3, name="with")
    before, after = (rows(tmp_path / name) for name in ("without", "with"))
    assert {pair for *_, pair in before} < {pair for *_, pair in after}  # in addition
    pool = {doc_id for _, doc_id, *_ in before}
    for query_id in dict.fromkeys(query_id for query_id, *_ in after):
        negatives = [doc_id for found, doc_id, _, pair in after if found == query_id and pair.label == 0]
        assert len(set(negatives)) == len(negatives) <= 5
        assert set(negatives) <= pool
        assert all(collection.qrels[query_id].get(doc_id, 0) <= 0 for doc_id in negatives)
    report = report_of(tmp_path, "with")
    assert report["negatives_drawn"] == report["negatives"] + sum(report["negatives_dropped"].values())
    assert report["negatives_asked_for"] == 5 * report["queries"]


def test_every_eligible_document_is_sampled_about_as_often() -> None:
    run = {str(i): ["D0", "D1", "D2", "D3", "D4", "D5", "D6"] for i in range(3000)}
    qrels = {query_id: {"D3": 1, "E": 1} for query_id in run}
    settings = {"min_relevance": 1, "ranks": (2, 6), "num_negatives": 2, "num_random_negatives": 0, "seed": 1}
    documents = sample_documents(qrels, run, **settings)
    count = Counter(doc_id for of_query in documents.values() for doc_id in of_query.negative)
    assert set(count) == {"D1", "D2", "D4", "D5"}
    assert all(1400 < number < 1600 for number in count.values())  # 1,500 expected, a standard deviation of 27
    assert all_ids(documents) == {"D1", "D2", "D3", "D4", "D5", "E"}


def test_the_passage_of_a_negative_is_any_of_its_passages(tmp_path: Path) -> None:
    body = " ".join(f"w{i}" for i in range(10))
    query_ids = [f"q{i}" for i in range(200)]
    collection = SmallCollection(
        {"D1": ("T", body), "D2": ("T", "relevant")},
        dict.fromkeys(query_ids, "what"),
        {query_id: {"D2": 1} for query_id in query_ids},
        {query_id: ["D2", "D1"] for query_id in query_ids},
    )
    make(tmp_path, collection, *TINY)
    count = Counter(number for _, _, number, pair in rows(tmp_path / "pairs.tsv") if pair.label == 0)
    assert set(count) == {0, 1, 2, 3}
    assert all(25 < number < 75 for number in count.values())  # 50 expected, a standard deviation of 6


def test_few_are_sampled_of_many_without_reading_all() -> None:
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    pool = Counting(range(1_000_000))
    sampled = sample_negatives(random.Random(1), pool, {5, 6}, 3)
    assert len(set(sampled)) == 3 and not {5, 6} & set(sampled)
    assert pool.reads == 5
    assert sorted(sample_negatives(random.Random(1), [4, 5, 6, 7], {5, 6}, 3)) == [4, 7]


# Refusals.


def test_existing_results_are_kept_without_overwrite(tmp_path: Path) -> None:
    positives = ["--output_positives_file", tmp_path / "positives.tsv"]
    assert make(tmp_path, SMALL, *positives).status == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("pairs.tsv", "positives.tsv")}
    assert_refused(make(tmp_path, SMALL, *TINY), "--output_pairs_file", "--overwrite")
    assert_refused(make(tmp_path, SMALL, *TINY, *positives, name="new"), "--output_positives_file", "--overwrite")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert make(tmp_path, SMALL, *TINY, *positives, "--overwrite").status == 0
    assert all((tmp_path / name).read_bytes() != content for name, content in before.items())


def test_an_input_is_never_the_output(tmp_path: Path) -> None:
    for name in ("collection.tsv", "queries.tsv", "qrels.tsv", "candidates.tsv"):
        assert_refused(make(tmp_path, SMALL, "--overwrite", name=f"files/{name}"), name, "also an input")
        done = make(tmp_path, SMALL, "--overwrite", "--output_positives_file", tmp_path / "files" / name)
        assert_refused(done, "--output_positives_file", name, "also an input")
    done = make(tmp_path, SMALL, "--output_positives_file", tmp_path / "pairs.tsv")
    assert_refused(done, "--output_positives_file", "--output_pairs_file")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--min_relevance", 0], ["--min_relevance", "below 1"]),
        (["--max_positive_passages", 0], ["--max_positive_passages", "below 1"]),
        (["--num_negatives", -1], ["--num_negatives", "below 0"]),
        (["--num_random_negatives", -1], ["--num_random_negatives", "below 0"]),
        (["--negatives_from_rank", 0], ["--negatives_from_rank", "below 1"]),
        (["--negatives_from_rank", 7, "--negatives_to_rank", 6], ["--negatives_to_rank", "6", "7"]),
        (["--window", 5, "--stride", 6], ["--stride", "--window"]),
        (["--max_passages", 0], ["--max_passages"]),
        (["--min_relevance", 4], ["--qrels", "relevance 4"]),
    ],
)
def test_impossible_settings(tmp_path: Path, more: list[object], says: list[str]) -> None:
    assert_refused(make(tmp_path, SMALL, *more), *says)
    assert os.listdir(tmp_path) == ["files"]


def test_unusable_inputs(tmp_path: Path) -> None:
    elsewhere = SMALL._replace(qrels={"7": {"E1": 1}}, run={"7": ["E2"]})
    assert_refused(make(tmp_path, elsewhere), "--qrels and --candidates", "'E1'")
    no_relevant = SMALL._replace(qrels={"7": {"E1": 1, "D3": 1}})
    assert_refused(make(tmp_path, no_relevant), "--qrels", "E1")
    other_queries = SMALL._replace(qrels={"70": {"D1": 1}})
    assert_refused(make(tmp_path, other_queries), "--qrels", "text")
    paths = write_collection(tmp_path / "files", SMALL)
    for name in ("qrels", "candidates"):
        some = {other: path for other, path in paths.items() if other != name}
        done = run_main(SCRIPT, *flags(some), "--output_pairs_file", tmp_path / "pairs.tsv")
        assert_refused(done, f"--{name}", "name a file")
    with open(paths["qrels"], "a") as file:
        file.write("7 0 D1 high\n")
    done = run_main(SCRIPT, *flags(paths), "--output_pairs_file", tmp_path / "pairs.tsv")
    assert_refused(done, f"{paths['qrels']} line 9", "'high'")
    assert os.listdir(tmp_path) == ["files"]
