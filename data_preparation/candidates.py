"""The first ranker: whole documents by BM25. Its candidates are what a cross-encoder re-ranks."""

import re
from collections.abc import Mapping

import bm25s
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from formats.trec import rank_documents

K1 = 1.5
B = 0.75


def bm25_candidates(
    documents: Mapping[str, str], queries: Mapping[str, str], depth: int
) -> dict[str, dict[str, float]]:
    """A run, `{query_id: {doc_id: score}}`: of the documents that share a term with the query the best `depth`.

    `documents` and `queries` map ids to texts. The best document comes first, in trec_eval's order.
    """
    stem = Stemmer.Stemmer("english").stemWords
    doc_ids = list(documents)
    index = bm25s.BM25(k1=K1, b=B)
    index.index([stem(_terms(text)) for text in documents.values()], show_progress=False)
    run = {}
    for query_id, text in queries.items():
        run[query_id] = {}
        if terms := index.get_tokens_ids(stem(_terms(text))):
            scores = zip(doc_ids, index.get_scores_from_ids(terms).tolist(), strict=True)
            run[query_id] |= rank_documents({doc_id: score for doc_id, score in scores if score > 0})[:depth]
    return run


def _terms(text: str) -> list[str]:
    """Lower-case words of two letters or more that are no stop words. `max_line_length` is three, as BERT reads it."""
    words = re.findall(r"[^\W_]{2,}", text.lower())
    return [word for word in words if word not in STOPWORDS_EN]
