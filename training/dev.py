"""The measure of a ranker that is still learning, on pairs that it does not learn from."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from evaluation.aggregation import max_p
from evaluation.measures import Qrels, canonical_name, mean_measure
from formats.features import FeaturesHeader, check_pairs, read_blocks
from formats.pairs import split_example_id
from formats.scores import PassageScore, split_passage_id
from formats.trec import read_qrels, written_scores
from runtime.errors import InputError


class DevPairs(NamedTuple):
    """Pairs to re-rank, and what they are judged by."""

    features_file: Path
    count: int
    qrels: Qrels
    measure: str
    notes: list[str]  # what a user should know of them


def check_measure(name: str) -> None:
    """Raises InputError for a measure that is not known."""
    try:
        canonical_name(name)
    except ValueError as error:
        raise InputError(f"--dev_measure: {error}") from None


def read_dev_pairs(features_file: Path, qrels_file: Path, measure: str, train: FeaturesHeader) -> DevPairs:
    """Reads what `--dev_features_file` and `--dev_qrels` name once, so that a fault is found before any work.

    Raises InputError for a fault of either, naming its place, for features that were made otherwise than those to
    train with, and for judgements of other queries.
    """
    header, count = check_pairs(features_file, "--dev_features_file")
    for name in ("max_seq_length", "do_lower_case", "vocab_size", "vocab_sha256"):
        ours, theirs = getattr(header, name), getattr(train, name)
        if ours != theirs:
            made = f"{name} {ours} where --features_file has {theirs}" if name[0] != "v" else "another vocabulary"
            raise InputError(f"--dev_features_file: {features_file} was made with {made}; tokenize again")
    query_ids = {}
    for number, block in enumerate(read_blocks(features_file)):
        for i, example_id in enumerate(block.example_ids):
            query_id, passage_id = split_example_id(example_id)
            query_ids[query_id] = None
            try:
                split_passage_id(passage_id)
            except ValueError as error:
                raise InputError(f"{features_file} block {number} example {i}: {error}") from None
    notes: list[str] = []
    qrels = read_qrels(qrels_file, notes.append)
    if len(notes) > 1:
        notes = [f"{len(notes)} contradictory judgements, of which the higher relevance holds: {notes[0]}"]
    unjudged = sum(query_id not in qrels for query_id in query_ids)
    if unjudged == len(query_ids):
        raise InputError(f"--dev_qrels: {qrels_file} and {features_file} share no query; are they of one collection?")
    if unjudged:
        notes.append(f"{features_file}: {unjudged} of {len(query_ids)} queries have no judgements in {qrels_file}")
    return DevPairs(features_file, count, qrels, measure, notes)


def measure_of(dev: DevPairs, passages: Iterable[PassageScore]) -> float:
    """The mean measure of documents that are ranked by their best passages, from their scores as a run holds them."""
    run: dict[str, dict[str, list[float]]] = {}
    for query_id, passage_id, score in passages:
        doc_id, _ = split_passage_id(passage_id)
        run.setdefault(query_id, {}).setdefault(doc_id, []).append(score)
    best = {query_id: {doc_id: max_p(s) for doc_id, s in documents.items()} for query_id, documents in run.items()}
    return mean_measure(dev.measure, dev.qrels, {query_id: written_scores(scores) for query_id, scores in best.items()})
