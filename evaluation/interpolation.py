"""Interpolation of a ranker's scores with those of the first stage.

Akkalyoncu Yilmaz et al., EMNLP 2019; Lin, Nogueira and Yates, Pretrained Transformers for Text Ranking, 2021.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from evaluation.measures import Qrels, Run, mean_measure
from formats.trec import rank_documents, written_scores

WEIGHTS = tuple(tenths / 10 for tenths in range(11))  # those that `tune` tries
_CLIP = 1e-7  # of a probability; its logit is then finite, from -16.1 to 16.1


def interpolate(run: Run, candidates: Run, weight: float) -> dict[str, dict[str, float]]:
    """Returns the scores `weight * z(logit of the ranker's score) + (1 - weight) * z(first-stage score)`.

    `run` has the ranker's probabilities, `candidates` the first-stage scores. `z` is over the re-ranked documents of a
    query: minus the mean, divided by the standard deviation (of n documents) plus 1e-9. Candidates that were not
    re-ranked follow in their order, each 1 below the document before it. A query that is not in `run` is left out.

    Raises ValueError for a score that is not a probability, and for a document that is not a candidate.
    """
    return {query_id: _interpolate_query(query_id, scores, candidates, weight) for query_id, scores in run.items()}


def _interpolate_query(query_id: str, scores: Mapping[str, float], candidates: Run, weight: float) -> dict[str, float]:
    first_stage = candidates.get(query_id, {})
    for doc_id, score in scores.items():
        if doc_id not in first_stage:
            raise ValueError(f"query {query_id} has no candidate {doc_id}, which has a score")
        if not 0 <= score <= 1:
            raise ValueError(f"document {doc_id} of query {query_id} has score {score!r}, which is not a probability")
    probabilities = np.clip(list(scores.values()), _CLIP, 1 - _CLIP)
    logits = np.log(probabilities / (1 - probabilities))
    mixed = weight * _z(logits) + (1 - weight) * _z([first_stage[doc_id] for doc_id in scores])  # (documents,)
    rest = [doc_id for doc_id, _ in rank_documents(first_stage) if doc_id not in scores]
    below = mixed.min() - np.arange(1, len(rest) + 1)
    return dict(zip((*scores, *rest), (*mixed.tolist(), *below.tolist()), strict=True))


def _z(values: Iterable[float]) -> np.ndarray:
    """Returns `(n,)` values as float64 with mean 0 and standard deviation 1, or all 0 if they are equal."""
    array = np.asarray(values, dtype=np.float64)
    return (array - array.mean()) / (array.std() + 1e-9)


def tune(run: Run, candidates: Run, qrels: Qrels, measure: str) -> dict[float, float]:
    """Returns the measure of the interpolated run for each of `WEIGHTS`. Raises ValueError as `interpolate` does."""
    found = {}
    for weight in WEIGHTS:
        mixed = interpolate(run, candidates, weight)
        found[weight] = mean_measure(measure, qrels, {query_id: written_scores(mixed[query_id]) for query_id in mixed})
    return found
