"""Measures of a run, by trec_eval's names and the field's: `NDCG@10` is `ndcg_cut.10`."""

import re
from collections.abc import Mapping

import pytrec_eval

from formats.trec import rank_documents

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]

# The field's names and trec_eval's, without and with a cut-off.
_NAMES = {"MAP": "map", "NDCG": "ndcg", "BPREF": "bpref", "RPREC": "Rprec"}
_NAMES_WITH_CUTOFF = {
    "NDCG": "ndcg_cut",
    "MAP": "map_cut",
    "P": "P",
    "R": "recall",
    "RECALL": "recall",
    "SUCCESS": "success",
}


def first_relevant_rank(scores: Mapping[str, float], grades: Mapping[str, int]) -> int | None:
    """The rank, from 1, of the first document with a relevance above 0; None where the run has none."""
    for rank, (doc_id, _) in enumerate(rank_documents(scores), start=1):
        if grades.get(doc_id, 0) > 0:
            return rank
    return None


def mean_reciprocal_rank(ranks: list[int | None], cutoff: int | None = None) -> float:
    """The mean of 1 / rank, in which None, and a rank beyond the cut-off, is 0."""
    total = 0.0  # Added one by one: `sum` rounds otherwise from Python 3.12 on.
    for rank in ranks:
        if rank is not None and (cutoff is None or rank <= cutoff):
            total += 1 / rank
    return total / len(ranks)


def measure_per_query(name: str, qrels: Qrels, run: Run) -> dict[str, float]:
    """The measure of each query that is in both, as trec_eval 9.0.8 has it.

    `MRR` and `MRR@k` are the reciprocal rank of the first relevant document, 0 beyond the cut-off. Raises ValueError
    for a name that is neither such nor one of trec_eval's.
    """
    if match := re.fullmatch(r"MRR(?:@([1-9][0-9]{0,8}))?", name, re.IGNORECASE):
        cutoff = int(match[1]) if match[1] else None
        ranks = {query_id: first_relevant_rank(run[query_id], qrels[query_id]) for query_id in run if query_id in qrels}
        return {query_id: mean_reciprocal_rank([rank], cutoff) for query_id, rank in ranks.items()}
    measure = trec_eval_name(name)
    found = pytrec_eval.RelevanceEvaluator(qrels, {measure}).evaluate(run)
    return {query_id: values[measure.replace(".", "_")] for query_id, values in found.items()}


def mean_measure(name: str, qrels: Qrels, run: Run) -> float:
    """The mean of `measure_per_query`, 0 where no query is in both."""
    values = measure_per_query(name, qrels, run).values()
    return sum(values) / len(values) if values else 0.0


def trec_eval_name(name: str) -> str:
    """trec_eval's name of a measure, with the cut-off after a dot. Raises ValueError for an unknown one."""
    base, _, cutoff = name.partition("@")
    if cutoff:
        measure = _NAMES_WITH_CUTOFF.get(base.upper())
    else:
        base, _, cutoff = name.partition(".")
        measure = _NAMES.get(base.upper(), base)
    is_known = measure in pytrec_eval.supported_measures and re.fullmatch(r"([1-9][0-9]{0,8})?", cutoff)
    if not is_known:
        raise ValueError(f"'{name}' is no measure that is known, such as NDCG@10, MAP, P@5, Recall@100, MRR@10, bpref")
    return f"{measure}.{cutoff}" if cutoff else measure
