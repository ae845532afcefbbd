"""Measures of a run, by trec_eval's names and the field's: `NDCG@10` is `ndcg_cut.10`."""

import math
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
_CUTOFF = r"[1-9][0-9]{0,8}"
# What trec_eval's measures take after a dot, or after "_" as trec_eval prints it; all others take nothing.
_PARAMETER = dict.fromkeys(("P", "recall", "ndcg_cut", "map_cut", "relative_P", "success"), _CUTOFF) | {
    "iprec_at_recall": r"0\.[0-9]{1,2}|1\.0{1,2}",
    "Rprec_mult": r"[0-9]\.[0-9]{1,2}",
}
_NOT_NUMBERS = {"runid", "relstring"}
# trec_eval allots memory, and for ndcg time, by the highest relevance; beyond what there is its measures become 0.
_MAX_RELEVANCE = 10_000


def first_relevant_rank(scores: Mapping[str, float], grades: Mapping[str, int]) -> int | None:
    """The rank, from 1, of the first document with a relevance above 0; None where the run has none."""
    for rank, (doc_id, _) in enumerate(rank_documents(scores), start=1):
        if grades.get(doc_id, 0) > 0:
            return rank
    return None


def reciprocal_rank(rank: int | None, cutoff: int | None = None) -> float:
    """1 / rank; 0 for None, and for a rank beyond the cut-off."""
    return 0.0 if rank is None or (cutoff is not None and rank > cutoff) else 1 / rank


def judged_share(scores: Mapping[str, float], grades: Mapping[str, int], cutoff: int) -> float:
    """The share of the first `cutoff` documents, or of all where there are fewer, that have a judgement, of any grade.

    Judged@k of ir_measures, but for ties, which are in trec_eval's order.
    """
    first = rank_documents(scores)[:cutoff]
    return sum(doc_id in grades for doc_id, _ in first) / len(first)


def official_msmarco(qrels: Qrels, ranks: Mapping[str, Mapping[str, int]], cutoff: int = 100) -> dict[str, float]:
    """The reciprocal rank of every judged query as the MS MARCO document ranking task has it: 0 for a missing query.

    `ranks` is `{query_id: {doc_id: rank column}}`. Scores play no part: documents stand in the order of rank, then of
    document id, both ascending, and are counted from 1 in that order.
    """
    values = {}
    for query_id, grades in qrels.items():
        ranks_of = ranks.get(query_id, {})
        ranking = sorted(ranks_of, key=lambda doc_id: (ranks_of[doc_id], doc_id))
        relevant = (place for place, doc_id in enumerate(ranking, start=1) if grades.get(doc_id, 0) > 0)
        values[query_id] = reciprocal_rank(next(relevant, None), cutoff)
    return values


def measure_per_query(name: str, qrels: Qrels, run: Run) -> dict[str, float]:
    """The measure of each query that is in both, as trec_eval 9.0.8 has it, in the run's order.

    `MRR` and `MRR@k` are the reciprocal rank of the first relevant document, 0 beyond the cut-off; `Judged@k` is
    `judged_share`. Of `gm_map` and `gm_bpref` a query has the logarithm, as in trec_eval.

    Raises ValueError for a name that is neither such nor one of trec_eval's, and for a relevance above 10,000.
    """
    base, _, cutoff = canonical_name(name).partition("@")
    judged = [query_id for query_id in run if run[query_id] and qrels.get(query_id)]
    if base == "MRR":
        ranks = {query_id: first_relevant_rank(run[query_id], qrels[query_id]) for query_id in judged}
        return {query_id: reciprocal_rank(rank, int(cutoff) if cutoff else None) for query_id, rank in ranks.items()}
    if base == "Judged":
        return {query_id: judged_share(run[query_id], qrels[query_id], int(cutoff)) for query_id in judged}
    highest = max((max(qrels[query_id].values(), default=0) for query_id in judged), default=0)
    if highest > _MAX_RELEVANCE:
        raise ValueError(f"a relevance of {highest} is more than trec_eval's measures can take, {_MAX_RELEVANCE}")
    found = pytrec_eval.RelevanceEvaluator(qrels, {base}).evaluate({query_id: run[query_id] for query_id in judged})
    return {query_id: next(iter(found[query_id].values())) for query_id in judged}


def mean_measure(name: str, qrels: Qrels, run: Run) -> float:
    """`summarize` of `measure_per_query`, 0 where no query is in both."""
    return summarize(name, measure_per_query(name, qrels, run))


def summarize(name: str, values: Mapping[str, float]) -> float:
    """One figure of a measure's values per query, as trec_eval has it; 0 where there are none.

    Of `num_ret` and the like it is the sum, of `gm_map` and `gm_bpref` the geometric mean, of all others the mean.
    """
    total = 0.0  # Added one by one: `sum` rounds otherwise from Python 3.12 on.
    for value in values.values():
        total += value
    if not values or name.startswith("num_"):
        return total
    return math.exp(total / len(values)) if name.startswith("gm_") else total / len(values)


def is_mean(name: str) -> bool:
    """Whether a measure of a run is the mean of its queries'."""
    return not name.startswith(("num_", "gm_"))


def canonical_name(name: str) -> str:
    """`MRR`, `MRR@k`, `Judged@k`, or trec_eval's name; one for all ways to write a measure.

    Raises ValueError for an unknown name.
    """
    if match := re.fullmatch(rf"MRR(@{_CUTOFF})?", name, re.IGNORECASE):
        return f"MRR{match[1] or ''}"
    if match := re.fullmatch(rf"Judged(@{_CUTOFF})", name, re.IGNORECASE):
        return f"Judged{match[1]}"
    return trec_eval_name(name)


def trec_eval_name(name: str) -> str:
    """trec_eval's name of a measure, with the cut-off after a dot. Raises ValueError for an unknown one."""
    base, at, parameter = name.partition("@")
    if at:
        base = _NAMES_WITH_CUTOFF.get(base.upper(), "")
    elif match := re.fullmatch(rf"({'|'.join(_PARAMETER)})[._]([0-9.]+)", name):
        base, parameter = match.groups()
    else:
        base = _NAMES.get(name.upper(), name)
    if base in pytrec_eval.supported_measures and base not in _NOT_NUMBERS:
        if re.fullmatch(_PARAMETER.get(base, ""), parameter):
            return f"{base}.{parameter}" if parameter else base
        if not parameter:
            example = "0.1" if "." in _PARAMETER[base] else "10"
            raise ValueError(f"'{name}' needs a number, as in {base}.{example}")
    others = sorted(pytrec_eval.supported_measures - _PARAMETER.keys() - _NOT_NUMBERS)
    raise ValueError(
        f"'{name}' is no measure that is known. Known are MRR, MAP, NDCG; MRR@k, Judged@k, NDCG@k, MAP@k, P@k, "
        f"Recall@k, R@k, Success@k, relative_P.k with a number for k; iprec_at_recall.0.1, Rprec_mult.0.2 and "
        f"others of them; {', '.join(others)}"
    )
