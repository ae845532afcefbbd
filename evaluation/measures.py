"""Measures of a run. Each has the usual name, ir_measures' name and trec_eval's: `nDCG@10` is `ndcg_cut.10`."""

import math
import re
from collections.abc import Mapping
from types import ModuleType

from formats.trec import rank_documents
from runtime.errors import InputError

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]

# Usual names (also those of ir_measures) and trec_eval's names, without and with a cut-off.
_NAMES = {"MAP": "map", "AP": "map", "NDCG": "ndcg", "BPREF": "bpref", "RPREC": "Rprec"}
_NAMES_WITH_CUTOFF = {
    "NDCG": "ndcg_cut",
    "MAP": "map_cut",
    "AP": "map_cut",
    "P": "P",
    "R": "recall",
    "RECALL": "recall",
    "SUCCESS": "success",
}
_CUTOFF = r"[1-9][0-9]{0,8}"
# The parameter that some of trec_eval's measures take after "." or "_". All others take none.
_PARAMETER = dict.fromkeys(("P", "recall", "ndcg_cut", "map_cut", "relative_P", "success"), _CUTOFF) | {
    "iprec_at_recall": r"0\.[0-9]{1,2}|1\.0{1,2}",
    "Rprec_mult": r"[0-9]\.[0-9]{1,2}",
}
_NOT_NUMBERS = {"runid", "relstring"}
# trec_eval needs memory (and time for ndcg) in proportion to the highest relevance. Without it, the measures become 0.
_MAX_RELEVANCE = 10_000


def first_relevant_rank(scores: Mapping[str, float], grades: Mapping[str, int]) -> int | None:
    """Returns the rank, from 1, of the first document with a relevance above 0; None without such a document."""
    for rank, (doc_id, _) in enumerate(rank_documents(scores), start=1):
        if grades.get(doc_id, 0) > 0:
            return rank
    return None


def reciprocal_rank(rank: int | None, cutoff: int | None = None) -> float:
    """Returns 1 / rank; 0 for None, and for a rank beyond the cut-off."""
    return 0.0 if rank is None or (cutoff is not None and rank > cutoff) else 1 / rank


def retrieves_relevant(qrels: Qrels, run: Run) -> bool:
    """Returns whether a document of the run has a relevance above 0 for its query."""
    judged = ((scores, qrels.get(query_id, {})) for query_id, scores in run.items())
    return any(grades.get(doc_id, 0) > 0 for scores, grades in judged for doc_id in scores)


def judged_share(scores: Mapping[str, float], grades: Mapping[str, int], cutoff: int) -> float:
    """Returns the share of the first `cutoff` documents that have a relevance judgment, of any grade.

    A shorter ranking is used as it is. This is Judged@k of ir_measures, with ties in trec_eval's order.
    """
    first = rank_documents(scores)[:cutoff]
    return sum(doc_id in grades for doc_id, _ in first) / len(first)


def official_msmarco(qrels: Qrels, ranks: Mapping[str, Mapping[str, int]], cutoff: int = 100) -> dict[str, float]:
    """Returns each judged query's reciprocal rank in the MS MARCO document ranking task; 0 for a missing query.

    `ranks` is `{query_id: {doc_id: rank column}}`. The order is by rank column, then by document id, both ascending.
    Scores have no effect. The rank of a document is its place in this order, from 1.
    """
    values = {}
    for query_id, grades in qrels.items():
        ranks_of = ranks.get(query_id, {})
        ranking = sorted(ranks_of, key=lambda doc_id: (ranks_of[doc_id], doc_id))
        relevant = (place for place, doc_id in enumerate(ranking, start=1) if grades.get(doc_id, 0) > 0)
        values[query_id] = reciprocal_rank(next(relevant, None), cutoff)
    return values


def published_mrr(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """Returns `{"MRR": {query_id: value}, "MRR@10": ...}` as the published script counts.

    It counts every query of the run, with 0 for a query without relevance judgments.
    """
    ranks = {query_id: first_relevant_rank(scores, qrels.get(query_id, {})) for query_id, scores in run.items()}
    return {
        "MRR": {query_id: reciprocal_rank(rank) for query_id, rank in ranks.items()},
        "MRR@10": {query_id: reciprocal_rank(rank, cutoff=10) for query_id, rank in ranks.items()},
    }


def measure_per_query(name: str, qrels: Qrels, run: Run) -> dict[str, float]:
    """Returns a measure of each query in both `qrels` and `run`, in the run's order, as trec_eval 9.0.8 computes it.

    `MRR` and `MRR@k` are the reciprocal rank of the first relevant document, 0 beyond the cut-off. `Judged@k` is
    `judged_share`. For `gm_map` and `gm_bpref` the value is a logarithm, as in trec_eval. A relevance below 0 means
    "in the pool, but not judged", as in trec_eval (`form_res_rels.c`).

    Raises ValueError for an unknown name, and for a relevance above 10,000.
    """
    base, _, cutoff = canonical_name(name).partition("@")
    judged = [query_id for query_id in run if run[query_id] and qrels.get(query_id)]
    if base == "MRR":
        ranks = {query_id: first_relevant_rank(run[query_id], qrels[query_id]) for query_id in judged}
        return {query_id: reciprocal_rank(rank, int(cutoff) if cutoff else None) for query_id, rank in ranks.items()}
    if base == "Judged":
        return {query_id: judged_share(run[query_id], qrels[query_id], int(cutoff)) for query_id in judged}
    highest_of = {query_id: max(qrels[query_id].values()) for query_id in judged}
    highest = max(highest_of.values(), default=0)
    if highest > _MAX_RELEVANCE:
        raise ValueError(f"a relevance of {highest} is above {_MAX_RELEVANCE}, the highest for trec_eval's measures")
    # trec_eval reserves memory for relevances 0 to the highest one, and crashes if all of a query are below 0. One more
    # document of relevance 0 changes no measure of such a query, if no run retrieves it. The id of none is empty.
    grades_of = {
        query_id: qrels[query_id] if highest_of[query_id] >= 0 else {**qrels[query_id], "": 0} for query_id in judged
    }
    evaluator = _pytrec_eval().RelevanceEvaluator(grades_of, {base})
    found = evaluator.evaluate({query_id: run[query_id] for query_id in judged})
    return {query_id: next(iter(found[query_id].values())) for query_id in judged}


def mean_measure(name: str, qrels: Qrels, run: Run) -> float:
    """Returns `summarize` of `measure_per_query`; 0 if no query is in both."""
    return summarize(name, measure_per_query(name, qrels, run))


def summarize(name: str, values: Mapping[str, float]) -> float:
    """Returns one figure for the values of all queries, as trec_eval computes it; 0 without queries.

    It is the sum for `num_ret` and other counts, the geometric mean for `gm_map` and `gm_bpref`, else the mean.
    """
    total = 0.0  # a loop, because `sum` rounds differently since Python 3.12
    for value in values.values():
        total += value
    if not values or name.startswith("num_"):
        return total
    return math.exp(total / len(values)) if name.startswith("gm_") else total / len(values)


def is_mean(name: str) -> bool:
    """Returns whether the measure of a run is the mean over its queries."""
    return not name.startswith(("num_", "gm_"))


def canonical_name(name: str) -> str:
    """Returns `MRR`, `MRR@k`, `Judged@k`, or trec_eval's name: the same for all spellings of a measure.

    Raises ValueError for an unknown name.
    """
    if match := re.fullmatch(rf"M?RR(@{_CUTOFF})?", name, re.IGNORECASE):
        return f"MRR{match[1] or ''}"
    if match := re.fullmatch(rf"Judged(@{_CUTOFF})", name, re.IGNORECASE):
        return f"Judged{match[1]}"
    return trec_eval_name(name)


def trec_eval_name(name: str) -> str:
    """Returns trec_eval's name of a measure, with the cut-off after a dot. Raises ValueError for an unknown name."""
    base, at, parameter = name.partition("@")
    if at:
        base = _NAMES_WITH_CUTOFF.get(base.upper(), "")
    elif match := re.fullmatch(rf"({'|'.join(_PARAMETER)})[._]([0-9.]+)", name):
        base, parameter = match.groups()
    else:
        base = _NAMES.get(name.upper(), name)
    supported = _pytrec_eval().supported_measures
    if base in supported and base not in _NOT_NUMBERS:
        if re.fullmatch(_PARAMETER.get(base, ""), parameter):
            return f"{base}.{parameter}" if parameter else base
        if not parameter:
            example = "0.1" if "." in _PARAMETER[base] else "10"
            raise ValueError(f"'{name}' needs a number, as in {base}.{example}")
    others = sorted(supported - _PARAMETER.keys() - _NOT_NUMBERS)
    raise ValueError(
        f"'{name}' is not a known measure. Known are MRR, MAP, NDCG; with a number for k, MRR@k, Judged@k, NDCG@k, "
        f"MAP@k, P@k, Recall@k, R@k, Success@k, relative_P.k; AP and RR for MAP and MRR; iprec_at_recall.0.1, "
        f"Rprec_mult.0.2 and the like; {', '.join(others)}"
    )


def _pytrec_eval() -> ModuleType:
    """Returns the module. Training, re-ranking and MRR need none. Raises InputError if it is not installed."""
    try:
        import pytrec_eval
    except ImportError:
        raise InputError(
            "pytrec_eval is not installed; pip install pytrec-eval-terrier, or use MRR, MRR@k or Judged@k"
        ) from None
    return pytrec_eval
