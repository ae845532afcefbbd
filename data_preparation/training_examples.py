"""Which documents, and which of their passages, a ranker is trained with. A draw is seeded by the ids it is for."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from formats.pairs import Pair, make_example_id
from formats.scores import split_passage_id


class Drawn(NamedTuple):
    """The documents of one query to train with, by their ids."""

    relevant: list[str]
    negative: list[str]


def draw_documents(
    qrels: Mapping[str, Mapping[str, int]],
    candidates: Mapping[str, Iterable[str]],
    *,
    min_relevance: int,
    ranks: tuple[int, int],
    num_negatives: int,
    num_random_negatives: int,
    seed: int,
) -> dict[str, Drawn]:
    """Draws documents for each query of `qrels` that has a relevant one (`min_relevance` or more), in their order.

    `num_negatives` are of the query's `candidates`, best first, from rank `ranks[0]` to `ranks[1]` (ranks from 1), and
    `num_random_negatives` of all documents that are relevant to, or drawn for, some query. No document is drawn twice
    for a query, and none that is judged relevant to it, to whatever degree. Where there are too few, all are taken.

    A query's draws hang on the seed, its id, its candidates and its relevant documents; the random ones also on the set
    of documents they are drawn from. The order of queries, or of a query's judgements, changes none.
    """
    drawn: dict[str, Drawn] = {}
    first, last = ranks
    for query_id, grades in qrels.items():
        relevant = [doc_id for doc_id, relevance in grades.items() if relevance >= min_relevance]
        if relevant:
            ranked = list(candidates.get(query_id, ()))[first - 1 : last]
            generator = random.Random(f"{seed} {query_id}")
            drawn[query_id] = Drawn(relevant, draw_others(generator, ranked, judged_relevant(grades), num_negatives))
    if num_random_negatives:
        pool = sorted(needed_by(drawn))
        for query_id, (relevant, negative) in drawn.items():
            generator = random.Random(f"{seed} {query_id} random")
            taken = judged_relevant(qrels[query_id]) | set(relevant) | set(negative)
            drawn[query_id] = Drawn(relevant, negative + draw_others(generator, pool, taken, num_random_negatives))
    return drawn


def judged_relevant(grades: Mapping[str, int]) -> set[str]:
    """The documents that may not be negatives: any relevance above 0 says that there is something in them."""
    return {doc_id for doc_id, relevance in grades.items() if relevance > 0}


def draw_others(generator: random.Random, doc_ids: Sequence[str], taken: Set[str], count: int) -> list[str]:
    """`count` distinct ones of `doc_ids` that are not in `taken`; all of them, shuffled, where there are fewer.

    The work grows with `count` and `taken`, not with `doc_ids`: so many drawn, `count` remain when all others go.
    """
    drawn = generator.sample(doc_ids, min(len(doc_ids), count + len(taken)))
    return [doc_id for doc_id in drawn if doc_id not in taken][:count]


def needed_by(drawn: Mapping[str, Drawn]) -> set[str]:
    """The ids of all documents drawn."""
    return {doc_id for documents in drawn.values() for doc_ids in documents for doc_id in doc_ids}


def relevant_pairs(
    query_id: str, query: str, drawn: Drawn, split: Callable[[str], list[str]], max_passages: int | None = None
) -> Iterator[Pair]:
    """The query with every passage of its relevant documents, or the first `max_passages` of each; label 1.

    `split` gives the passages of a document by its id: none where it has no text.
    """
    for doc_id in drawn.relevant:
        for number, passage in enumerate(split(doc_id)[:max_passages]):
            yield Pair(make_example_id(query_id, doc_id, number), query, passage, 1)


def negative_pairs(
    query_id: str, query: str, drawn: Drawn, split: Callable[[str], list[str]], seed: int
) -> Iterator[Pair]:
    """The query with one passage of each of its negative documents that has any; label 0.

    The draw of a passage hangs on the seed and the two ids alone. `split` is as for `relevant_pairs`.
    """
    for doc_id in drawn.negative:
        if passages := split(doc_id):
            number = random.Random(f"{seed} {query_id} {doc_id}").randrange(len(passages))
            yield Pair(make_example_id(query_id, doc_id, number), query, passages[number], 0)


def choose_positives(
    scores: Mapping[str, float], threshold: float, best: int | None = None, keep_best: bool = False
) -> list[str]:
    """Of the passages of one relevant document, `{passage_id: teacher's score}`, those that may stay positives.

    They are among the `best` ones and score `threshold` or more; with `keep_best` the best one stays in any case. The
    best comes first; of equal scores the lower passage number.
    """
    ranked = sorted(scores, key=lambda passage_id: (-scores[passage_id], split_passage_id(passage_id)[1]))
    return [
        passage_id
        for rank, passage_id in enumerate(ranked[:best])
        if scores[passage_id] >= threshold or (keep_best and rank == 0)
    ]
