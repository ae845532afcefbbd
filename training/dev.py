"""The dev measure: the student re-ranks pairs that are not in its training set."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluation.aggregation import max_p
from evaluation.measures import Qrels, mean_measure, retrieves_relevant
from formats.features import FeaturesHeader, check_pairs, read_blocks
from formats.pairs import split_example_id, split_example_ids
from formats.scores import PassageScore, split_passage_id
from formats.trec import read_qrels, written_scores
from modeling.bert import BertRanker
from modeling.frozen import FrozenRanker
from modeling.scoring import pairs_at_a_time, relevance_scores
from runtime.errors import InputError
from runtime.progress import ProgressBar

PAIRS_AT_A_TIME = 128  # at most, because a GPU's memory also holds the training


class DevPairs(NamedTuple):
    """Pairs to re-rank, their relevance judgments and the measure."""

    features_file: Path
    count: int
    qrels: Qrels
    measure: str
    notes: list[str]  # warnings for the user


def read_dev_pairs(features_file: Path, qrels_file: Path, measure: str, train: FeaturesHeader) -> DevPairs:
    """Reads `--dev_features_file` and `--dev_qrels` once, to find errors before the training.

    Raises InputError for an error in either file, for features that do not match the training features `train`, for
    judgments of other queries, and for judgments with which every student has the same measure or none.
    """
    header, count = check_pairs(features_file, "--dev_features_file")
    for name in ("max_seq_length", "do_lower_case", "vocab_size", "vocab_sha256"):
        ours, theirs = getattr(header, name), getattr(train, name)
        if ours != theirs:
            made = f"{name} {ours} where --features_file has {theirs}" if name[0] != "v" else "another vocabulary"
            raise InputError(f"--dev_features_file: {features_file} was made with {made}; tokenize again")
    unranked: dict[str, dict[str, float]] = {}  # a run in which all documents have the same score
    for number, block in enumerate(read_blocks(features_file)):
        for i, example_id in enumerate(block.example_ids):
            query_id, passage_id = split_example_id(example_id)
            try:
                doc_id, _ = split_passage_id(passage_id)
            except ValueError as error:
                raise InputError(f"{features_file} block {number} example {i}: {error}") from None
            unranked.setdefault(query_id, {})[doc_id] = 0.0
    notes: list[str] = []
    qrels = read_qrels(qrels_file, notes.append)
    if len(notes) > 1:
        notes = [f"{len(notes)} contradictory judgments, the higher relevance is used: {notes[0]}"]
    unjudged = sum(query_id not in qrels for query_id in unranked)
    if unjudged == len(unranked):
        raise InputError(
            f"--dev_qrels: {qrels_file} and {features_file} share no query; use files of the same collection"
        )
    if not retrieves_relevant(qrels, unranked):
        raise InputError(
            f"--dev_qrels: no document in {features_file} is relevant in {qrels_file} (relevance above 0), so all "
            f"students have the same {measure}; use judgments with relevant documents among the dev pairs"
        )
    try:
        mean_measure(measure, qrels, unranked)  # finds now what would stop the first evaluation
    except ValueError as error:
        raise InputError(f"--dev_qrels: {qrels_file}: {error}") from None
    if unjudged:
        notes.append(f"{features_file}: {unjudged} of {len(unranked)} queries have no judgments in {qrels_file}")
    return DevPairs(features_file, count, qrels, measure, notes)


def measure_of(dev: DevPairs, passages: Iterable[PassageScore]) -> float:
    """Returns the mean measure over queries. Documents are ranked by MaxP, with the scores as a run file has them."""
    run: dict[str, dict[str, list[float]]] = {}
    for query_id, passage_id, score in passages:
        doc_id, _ = split_passage_id(passage_id)
        run.setdefault(query_id, {}).setdefault(doc_id, []).append(score)
    best = {query_id: {doc_id: max_p(s) for doc_id, s in documents.items()} for query_id, documents in run.items()}
    return mean_measure(dev.measure, dev.qrels, {query_id: written_scores(scores) for query_id, scores in best.items()})


def dev_measure(dev: DevPairs, student: BertRanker, precision: str, max_seq_length: int) -> float:
    """Returns the measure of a student in training. Scores are those of rerank.py, in the precision of training.

    Does not change the student or the RNG states. Raises InputError for a score that is not finite.
    """
    model = FrozenRanker(student, precision)
    batch_tokens = min(pairs_at_a_time(model.device), PAIRS_AT_A_TIME) * max_seq_length

    def passages() -> Iterator[PassageScore]:
        with ProgressBar(total=dev.count, desc="dev pairs", unit=" passages", leave=False) as bar:
            for block in read_blocks(dev.features_file):
                arrays = block.input_ids, block.offsets, block.first_segment_lengths
                scores, _ = relevance_scores(model, *arrays, batch_tokens, bar)
                values = scores()
                if not np.isfinite(values).all():
                    raise InputError(
                        f"the student gives a dev pair a score that is not finite in {precision}; use "
                        "--precision fp32, or lower --learning_rate"
                    )
                for ids, score in zip(split_example_ids(block.example_ids), values.tolist(), strict=True):
                    yield PassageScore(*ids, score)

    return measure_of(dev, passages())
