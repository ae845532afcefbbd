"""The queries of the training pairs, for the margin loss, and an epoch order that keeps a query's pairs together."""

import numpy as np

from formats.features import Features
from runtime.errors import InputError


class Queries:
    """The query of each pair: `numbers`, (n,) int64 from 0, equal for pairs of a query. `labels`: (n,), 0 or 1."""

    def __init__(self, numbers: np.ndarray, labels: np.ndarray):
        self.numbers, self.labels = numbers, labels
        self.have_margins = _num_margins(numbers, labels) > 0  # (queries,): those with relevant and not relevant pairs

    def order(self, seed: int, epoch: int, part_size: int) -> np.ndarray:
        """Returns the order of the pairs in an epoch: a permutation keyed by seed and epoch, (n,) int64.

        Each `part_size` pairs are a part of a batch. Queries that fit are put into a part together, the largest first.
        A query is split if it is larger than a part, or if no other query fits into the rest of a part. Its labels
        alternate, so that its parts have both labels where possible.
        """
        rng, count = np.random.default_rng([seed, epoch]), len(self.numbers)
        counts = np.bincount(2 * self.numbers + self.labels)  # of each query and label
        order = rng.permutation(count)
        order = order[np.argsort(2 * self.numbers[order] + self.labels[order], kind="stable")]
        rank = np.arange(count) - np.repeat(np.cumsum(counts) - counts, counts)  # among those of its query and label
        order = order[np.lexsort(((rank + 0.5) / np.repeat(counts, counts), self.numbers[order]))]
        queries = self.numbers[order]
        # A pair without a margin can be anywhere, so it is a group of its own.
        groups = np.split(order, np.flatnonzero(np.diff(queries, prepend=-1) | ~self.have_margins[queries])[1:])
        by_size: dict[int, list[np.ndarray]] = {}
        tail, room = [], count % part_size  # the pairs after the last full part, which can be left out: any query's
        for i in rng.permutation(len(groups)):
            tail.append(groups[i][:room])
            room -= len(tail[-1])
            if len(rest := groups[i][len(tail[-1]) :]):
                by_size.setdefault(len(rest), []).append(rest)
        parts = []
        while by_size:
            part, room = [], part_size
            while room and by_size:
                size = max((size for size in by_size if size <= room), default=min(by_size))
                group = by_size[size].pop()
                if not by_size[size]:
                    del by_size[size]
                if size > room:
                    by_size.setdefault(size - room, []).append(group[room:])
                part.append(group[:room])
                room -= len(part[-1])
            parts.append(np.concatenate(part))
        return np.concatenate([*(parts[i] for i in rng.permutation(len(parts))), *tail])

    def of_part(self, part: np.ndarray, examples: np.ndarray, num_parts: int) -> dict[str, np.ndarray]:
        """Returns `queries`, (part size,) int64, and `num_margins`, float32, for `margin_loss` of a part of a batch.

        `num_margins` is that of the whole batch, divided by `num_parts`. So the mean of the losses of the parts is the
        mean over all margins of the batch.
        """
        total = sum(_num_margins(self.numbers[p], self.labels[p]).sum() for p in np.split(examples, num_parts))
        return {"queries": self.numbers[part], "num_margins": np.array(max(total, 1) / num_parts, np.float32)}

    def few_margins(self) -> bool:
        """Returns whether more than a tenth of the pairs have no margin. With margins alone they teach nothing."""
        return (~self.have_margins[self.numbers]).mean() > 0.1

    def summary(self) -> str:
        others = (~self.have_margins[self.numbers]).sum()
        return (
            f"margins: {self.have_margins.sum()} of {len(self.have_margins)} queries have relevant and not relevant "
            f"pairs; the {others} pairs of the other queries have no margin"
        )


def _num_margins(queries: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The number of combinations of a relevant and a not relevant pair of each query, (queries,) int64."""
    _, query = np.unique(queries, return_inverse=True)
    relevant = np.bincount(query, labels).astype(np.int64)
    return relevant * (np.bincount(query) - relevant)


def read_queries(features: Features) -> Queries:
    """Reads the queries of the training pairs. Raises InputError if an id has none, or if no query has a margin."""
    queries = Queries(features.query_numbers("--margin_weight needs the query of each pair"), features.labels)
    if not queries.have_margins.any():
        raise InputError(f"--margin_weight: no query of {features.path} has both a relevant and a not relevant pair")
    return queries
