"""Significance tests between the rows of a recipe, paired by query, on each query's mean over the seeds."""

from functools import cache
from itertools import combinations
from typing import NamedTuple

from evaluation.significance import Comparison, compare, holm_corrected
from experiments.recipe import Row
from experiments.results import Column, Results
from runtime.errors import InputError

SIGNIFICANT = 0.05
AGAINST_TEACHER, AGAINST_STANDARD_KD, AGAINST_CANDIDATES = "†", "‡", "§"


class RowComparison(NamedTuple):
    """A row against a baseline; with § the row's interpolated runs. p-values are Holm-corrected over that mark."""

    row: Row
    baseline: Row
    mark: str
    comparison: Comparison


def compare_with_baselines(results: Results, column: Column) -> list[RowComparison]:
    """Compares the rows with the teacher, then with their Standard KD row, then interpolated with the candidates.

    Rows without data are left out.
    """
    recipe = results.recipe
    teacher, candidates = recipe.row_of_kind("teacher"), recipe.row_of_kind("candidates")
    compared: list[RowComparison] = []
    for mark in (AGAINST_TEACHER, AGAINST_STANDARD_KD, AGAINST_CANDIDATES):
        part = "interpolated" if mark == AGAINST_CANDIDATES else "test_sets"
        pairs: list[tuple[Row, Row]] = []
        for row in recipe.rows:
            standard_kd = recipe.row(row.standard_kd) if row.standard_kd else None
            baselines = {AGAINST_TEACHER: teacher, AGAINST_STANDARD_KD: standard_kd, AGAINST_CANDIDATES: candidates}
            baseline = baselines[mark]
            if baseline and baseline != row and results.means(row, column, part) and results.means(baseline, column):
                pairs.append((row, baseline))
        found = holm_corrected([_compare_rows(results, *pair, column, part) for pair in pairs])
        compared += [RowComparison(*pair, mark, comparison) for pair, comparison in zip(pairs, found, strict=True)]
    return compared


def compare_all_pairs(results: Results, rows: list[Row], column: Column) -> dict[tuple[int, int], Comparison]:
    """Compares each of the rows with each row after it: `{(i, j): comparison}`, Holm-corrected over all pairs."""
    pairs = list(combinations(range(len(rows)), 2))
    found = holm_corrected([_compare_rows(results, rows[i], rows[j], column) for i, j in pairs])
    return dict(zip(pairs, found, strict=True))


def _compare_rows(results: Results, row: Row, baseline: Row, column: Column, part: str = "test_sets") -> Comparison:
    values = tuple(results.per_query(row, column, part)), tuple(results.per_query(baseline, column))
    try:
        return _compare(*values)
    except ValueError as error:
        raise InputError(f"{row.name} and {baseline.name} cannot be compared on {column[1]}: {error}") from None


_compare = cache(compare)  # one comparison can be in several tables
