"""The first-stage ranker: BM25 on whole documents. A cross-encoder re-ranks its candidates."""

import re
import sys
from array import array
from collections.abc import Iterable, Mapping

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from formats.trec import rank_documents
from runtime.progress import ProgressBar

K1 = 1.5
B = 0.75

_WORD = re.compile(r"[^\W_]{2,}")
_STOP_WORDS = frozenset(STOPWORDS_EN)


class _TermNumbers(dict[str, int]):
    """`{word: number of its stem}`, and -1 for a stop word. An entry is computed at its first look-up.

    A collection has few distinct words, so most look-ups need no stemming.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stemmer.Stemmer("english").stemWord
        self.vocabulary: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        is_term = word not in _STOP_WORDS
        self[word] = self.vocabulary.setdefault(self.stem(word), len(self.vocabulary)) if is_term else -1
        return self[word]

    def of(self, text: str) -> array:
        """The numbers of a text's terms, in order: an array of C ints."""
        return array("i", [number for word in _words(text) if (number := self[word]) >= 0])


def bm25_candidates(
    documents: Iterable[tuple[str, str]], queries: Mapping[str, str], depth: int, k1: float = K1, b: float = B
) -> dict[str, dict[str, float]]:
    """Returns a run `{query_id: {doc_id: score}}`: the `depth` best documents that share a term with the query.

    `documents` are (id, text), read once. `queries` maps ids to texts. The best document comes first, in trec_eval's
    order. A higher `k1` (0 or more) gives repeated terms more weight; a higher `b` (0 to 1) gives long documents lower
    scores. Memory: the id of every document, 4 bytes per word of it, and about 40 bytes per distinct term of it while
    the index is built.
    """
    term_numbers = _TermNumbers()
    doc_ids: list[str] = []
    terms_of: list[array] = []
    for doc_id, text in documents:
        doc_ids.append(doc_id)
        terms_of.append(term_numbers.of(text))
    if not term_numbers.vocabulary:
        return {query_id: {} for query_id in queries}
    index = bm25s.BM25(k1=k1, b=b)
    index.index((terms_of, term_numbers.vocabulary), show_progress=sys.stderr.isatty())
    del terms_of, term_numbers
    run = {}
    for query_id, text in ProgressBar(queries.items(), desc="ranking", unit=" queries"):
        terms = index.get_tokens_ids(_terms(text))
        best = _best(index.get_scores_from_ids(terms), depth) if terms else {}
        run[query_id] = dict(rank_documents({doc_ids[i]: score for i, score in best.items()})[:depth])
    return run


def _best(scores: np.ndarray, depth: int) -> dict[int, float]:
    """`{document number: score}` of the `depth` best of `scores` (documents,), and of all that tie with the last. No
    score is 0."""
    found = np.flatnonzero(scores > 0)
    if len(found) > depth:
        last = np.partition(scores[found], -depth)[-depth]
        found = found[scores[found] >= last]
    return dict(zip(found.tolist(), scores[found].tolist(), strict=True))


def _words(text: str) -> list[str]:
    """Lower-case words of two letters or more. `max_line_length` is three words, as in BERT."""
    return _WORD.findall(text.lower())


def _terms(text: str) -> list[str]:
    """The stems of a text's words without stop words."""
    return Stemmer.Stemmer("english").stemWords([word for word in _words(text) if word not in _STOP_WORDS])
