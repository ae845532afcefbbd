"""The documents and passages of the training pairs. Every sample is seeded by the ids that it is for."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from formats.pairs import Pair, make_example_id
from formats.scores import split_passage_id


class QueryDocuments(NamedTuple):
    """The ids of the documents that one query is trained with."""

    relevant: list[str]
    negative: list[str]


def sample_documents(
    qrels: Mapping[str, Mapping[str, int]],
    candidates: Mapping[str, Iterable[str]],
    *,
    min_relevance: int,
    ranks: tuple[int, int],
    num_negatives: int,
    num_random_negatives: int,
    seed: int,
) -> dict[str, QueryDocuments]:
    """Samples negatives for each query of `qrels` with a relevant document (`min_relevance` or more), in their order.

    `num_negatives` come from the query's `candidates` (best first), from rank `ranks[0]` to `ranks[1]`, counted from 1.
    `num_random_negatives` come from the relevant documents and negatives of all queries. A query gets no document
    twice, and no document with a relevance above 0 for this query. If there are too few, it gets all of them.

    The negatives of a query depend on the seed, its id, its candidates and its relevant documents. The random ones also
    depend on the set of documents that they are sampled from. The order of queries and of judgments has no effect.
    """
    documents: dict[str, QueryDocuments] = {}
    first, last = ranks
    for query_id, grades in qrels.items():
        relevant = [doc_id for doc_id, relevance in grades.items() if relevance >= min_relevance]
        if relevant:
            ranked = list(candidates.get(query_id, ()))[first - 1 : last]
            rng = random.Random(f"{seed} {query_id}")
            negative = sample_negatives(rng, ranked, _relevant(grades), num_negatives)
            documents[query_id] = QueryDocuments(relevant, negative)
    if num_random_negatives:
        pool = sorted(all_ids(documents))
        for query_id, (relevant, negative) in documents.items():
            rng = random.Random(f"{seed} {query_id} random")
            excluded = _relevant(qrels[query_id]) | set(relevant) | set(negative)
            more = sample_negatives(rng, pool, excluded, num_random_negatives)
            documents[query_id] = QueryDocuments(relevant, negative + more)
    return documents


def _relevant(grades: Mapping[str, int]) -> set[str]:
    """The documents that are never negatives. Also a document of low relevance has something about the query."""
    return {doc_id for doc_id, relevance in grades.items() if relevance > 0}


def sample_negatives(rng: random.Random, doc_ids: Sequence[str], excluded: Set[str], count: int) -> list[str]:
    """Samples `count` distinct ids of `doc_ids` without those in `excluded`. If there are fewer, all of them, shuffled.

    It samples `count + len(excluded)` ids first, so `count` ids remain even if all excluded ones are among them. The
    time does not depend on the length of `doc_ids`.
    """
    sampled = rng.sample(doc_ids, min(len(doc_ids), count + len(excluded)))
    return [doc_id for doc_id in sampled if doc_id not in excluded][:count]


def all_ids(documents: Mapping[str, QueryDocuments]) -> set[str]:
    """The ids of the documents of all queries."""
    return {doc_id for of_query in documents.values() for doc_ids in of_query for doc_id in doc_ids}


def relevant_pairs(
    query_id: str,
    query: str,
    documents: QueryDocuments,
    split: Callable[[str], list[str]],
    max_passages: int | None = None,
) -> Iterator[Pair]:
    """Yields the query with every passage of its relevant documents, or the first `max_passages` of each; label 1.

    `split` returns the passages of the document with an id, an empty list if it has no text.
    """
    for doc_id in documents.relevant:
        for number, passage in enumerate(split(doc_id)[:max_passages]):
            yield Pair(make_example_id(query_id, doc_id, number), query, passage, 1)


def negative_pairs(
    query_id: str, query: str, documents: QueryDocuments, split: Callable[[str], list[str]], seed: int
) -> Iterator[Pair]:
    """Yields the query with one passage of each of its negative documents, if it has any; label 0.

    The sampled passage depends only on the seed and the two ids. `split` is as for `relevant_pairs`.
    """
    for doc_id in documents.negative:
        if passages := split(doc_id):
            number = random.Random(f"{seed} {query_id} {doc_id}").randrange(len(passages))
            yield Pair(make_example_id(query_id, doc_id, number), query, passages[number], 0)


def choose_positives(
    scores: Mapping[str, float], threshold: float, best: int | None = None, keep_best: bool = False
) -> list[str]:
    """Returns the positives to keep of one relevant document, `{passage_id: teacher's score}`, the best one first.

    They are among the `best` passages and have a score of `threshold` or more. With `keep_best` the best passage stays
    in any case. Of equal scores the lower passage number is better.
    """
    ranked = sorted(scores, key=lambda passage_id: (-scores[passage_id], split_passage_id(passage_id)[1]))
    return [
        passage_id
        for rank, passage_id in enumerate(ranked[:best])
        if scores[passage_id] >= threshold or (keep_best and rank == 0)
    ]
