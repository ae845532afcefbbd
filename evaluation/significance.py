"""Paired significance tests of a run against a baseline, over the queries, with Holm's correction."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Rounding error, relative to the largest value: the differences 0.3 - 0.2 and 0.2 - 0.1 count as equal.
_ROUNDING = 1e-12
# Number of signs in memory at once: 8 MiB as float64.
_BLOCK = 1 << 20


class Comparison(NamedTuple):
    """A run against a baseline on the same queries. A positive difference means that the run is better.

    `t_test_p` and `randomization_p` are two-sided. `effect_size` is Cohen's d of the paired differences: their mean
    divided by their standard deviation (n - 1), infinite if all differences are equal and not 0.
    """

    difference: float
    t_test_p: float
    randomization_p: float
    effect_size: float
    wins: int
    ties: int
    losses: int


def compare(
    values: Sequence[float], baseline: Sequence[float], seed: int = 42, num_samples: int = 100_000
) -> Comparison:
    """Compares the values of a run with those of a baseline, both in the same order of queries.

    The randomization test flips the signs of the differences (Fisher; Smucker, Allan and Carterette, CIKM 2007). It is
    exact if there are at most n = `num_samples` sign vectors. Else it samples n of them and returns (b + 1) / (n + 1),
    where b of them are as extreme as the observed one (Davison and Hinkley 1997). The t-test is Student's paired test.

    Raises ValueError if the lengths differ, if a value is not finite, or for fewer than two queries.
    """
    from scipy import stats  # here, because the import takes longer than most evaluations

    run, base = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if run.ndim != 1 or run.shape != base.shape:
        raise ValueError(f"{run.size} values of the run and {base.size} of the baseline do not pair")
    if run.size < 2:
        raise ValueError(f"a paired test needs at least two queries, not {run.size}")
    if not (np.isfinite(run).all() and np.isfinite(base).all()):
        raise ValueError("a value is not finite")
    differences = run - base  # (n,)
    rounding = _ROUNDING * max(np.abs(run).max(), np.abs(base).max())
    differences[np.abs(differences) <= rounding] = 0.0
    mean, deviation = differences.mean(), differences.std(ddof=1)
    if not differences.any():
        t_test_p, effect_size = 1.0, 0.0
    elif deviation <= rounding:  # t is infinite
        t_test_p, effect_size = 0.0, math.copysign(math.inf, mean)
    else:
        t_test_p, effect_size = stats.ttest_rel(run, base).pvalue, mean / deviation
    return Comparison(
        difference=float(mean),
        t_test_p=float(t_test_p),
        randomization_p=_randomization_p(differences[differences != 0], seed, num_samples),
        effect_size=float(effect_size),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the adjusted p-values of one family of tests, in the same order (Holm 1979, step-down).

    Raises ValueError for a p-value that is not between 0 and 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"a p-value is not between 0 and 1: {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for smaller, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, (len(p_values) - smaller) * p_values[index])
        adjusted[index] = min(highest, 1.0)
    return adjusted


def holm_corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Returns the comparisons of one family of tests, with both p-values adjusted by `holm`."""
    t_test_ps = holm([comparison.t_test_p for comparison in comparisons])
    randomization_ps = holm([comparison.randomization_p for comparison in comparisons])
    return [
        comparison._replace(t_test_p=t_test_p, randomization_p=randomization_p)
        for comparison, t_test_p, randomization_p in zip(comparisons, t_test_ps, randomization_ps, strict=True)
    ]


def _randomization_p(differences: np.ndarray, seed: int, num_samples: int) -> float:
    """Returns the two-sided p of the sum of `(n,)` float64 differences, none of them 0 (a 0 changes no sum)."""
    is_exact = differences.size < 63 and 1 << differences.size <= num_samples
    signs = _all_signs(differences.size) if is_exact else _random_signs(differences.size, num_samples, seed)
    observed = abs(differences.sum()) - _ROUNDING * np.abs(differences).sum()  # equal sums can differ by rounding
    as_extreme = sum(int((np.abs(block @ differences) >= observed).sum()) for block in signs)
    return as_extreme / (1 << differences.size) if is_exact else (as_extreme + 1) / (num_samples + 1)


def _all_signs(n: int) -> Iterator[np.ndarray]:
    """Yields all 2^n sign vectors, -1.0 or 1.0, in float64 blocks `(rows, n)`."""
    rows = max(1, _BLOCK // max(n, 1))
    for start in range(0, 1 << n, rows):
        numbers = np.arange(start, min(start + rows, 1 << n))  # (rows,)
        yield (numbers[:, None] >> np.arange(n) & 1) * 2.0 - 1.0


def _random_signs(n: int, num_samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields `num_samples` random sign vectors, -1.0 or 1.0, in float64 blocks `(rows, n)`."""
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    for start in range(0, num_samples, rows):
        shape = (min(rows, num_samples - start), n)
        bits = np.unpackbits(np.frombuffer(generator.bytes(-(-shape[0] * n // 8)), dtype=np.uint8), count=shape[0] * n)
        yield bits.reshape(shape) * 2.0 - 1.0
