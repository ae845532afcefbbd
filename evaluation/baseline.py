"""Runs compared with a baseline run, measure by measure."""

from collections.abc import Iterable
from typing import NamedTuple

from evaluation.significance import Comparison, compare, holm_corrected
from runtime.progress import ProgressBar


class Evaluated(NamedTuple):
    """The number of queries that count, and the values of a run: `{measure: {query_id: value}}`."""

    num_queries: int
    values: dict[str, dict[str, float]]


class Tested(NamedTuple):
    """A run against the baseline over `queries` queries. `corrected` has p-values Holm-corrected over the runs."""

    queries: int
    comparison: Comparison
    corrected: Comparison


# {run: {measure: result}}, without the baseline
Tests = dict[str, dict[str, Tested]]


def compare_with_baseline(baseline: str, evaluated: dict[str, Evaluated], judged: Iterable[str]) -> Tests:
    """Compares every other run with the baseline, by every measure, over the judged queries in at least one run.

    A query that a run lacks counts 0 for it. Raises ValueError for fewer than two queries.
    """
    others = [name for name in evaluated if name != baseline]
    tests: Tests = {name: {} for name in others}
    with ProgressBar(total=len(others) * len(evaluated[baseline].values), unit=" comparisons") as progress:
        for measure in evaluated[baseline].values:
            values_of = {name: results.values[measure] for name, results in evaluated.items()}
            queries = [query_id for query_id in judged if any(query_id in values for values in values_of.values())]
            paired = {name: [values.get(query_id, 0.0) for query_id in queries] for name, values in values_of.items()}
            compared: list[Comparison] = []
            for name in others:
                compared.append(compare(paired[name], paired[baseline]))
                progress.update()
            for name, *results in zip(others, compared, holm_corrected(compared), strict=True):
                tests[name][measure] = Tested(len(queries), *results)
    return tests
