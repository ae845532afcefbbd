"""Is a run better than a baseline by more than chance? Paired tests over the queries, and Holm's correction."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Differences closer than this, relative to the largest value, are rounding: 0.3 - 0.2 and 0.2 - 0.1 are one difference.
_ROUNDING = 1e-12
# Signs that are held at once, which bounds memory: 8 MiB as float64.
_BLOCK = 1 << 20


class Comparison(NamedTuple):
    """A run against a baseline on the same queries; a positive difference is in favour of the run.

    `t_test_p` and `randomization_p` are two-sided; `effect_size` is Cohen's d of the paired differences, their mean
    over their standard deviation (n - 1), infinite where all queries differ by the same. A query of equal values ties.
    """

    difference: float
    t_test_p: float
    randomization_p: float
    effect_size: float
    wins: int
    ties: int
    losses: int


def compare(values: Sequence[float], baseline: Sequence[float], seed: int = 42, draws: int = 100_000) -> Comparison:
    """Compares a run's values with a baseline's, both in the same order of queries.

    The randomization test flips the signs of the differences (Fisher's; Smucker, Allan and Carterette, CIKM 2007): all
    ways to do so where these are no more than `draws`, else `draws` random ones, of which p counts the observed one too
    (Davison and Hinkley 1997, (b + 1) / (draws + 1)). The t-test is Student's paired one.

    Raises ValueError where the lengths differ, a value is not finite, or there are fewer than two queries.
    """
    from scipy import stats  # late, since it takes longer to load than most evaluations

    run, base = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if run.ndim != 1 or run.shape != base.shape:
        raise ValueError(f"{run.size} values and {base.size} of the baseline are not pairs")
    if run.size < 2:
        raise ValueError("a paired test needs at least two queries")
    if not (np.isfinite(run).all() and np.isfinite(base).all()):
        raise ValueError("a value is not finite")
    differences = run - base  # (n,)
    rounding = _ROUNDING * max(np.abs(run).max(), np.abs(base).max())
    differences[np.abs(differences) <= rounding] = 0.0
    mean, deviation = differences.mean(), differences.std(ddof=1)
    if not differences.any():
        t_test_p, effect_size = 1.0, 0.0
    elif deviation <= rounding:  # where t is infinite
        t_test_p, effect_size = 0.0, math.copysign(math.inf, mean)
    else:
        t_test_p, effect_size = stats.ttest_rel(run, base).pvalue, mean / deviation
    return Comparison(
        difference=float(mean),
        t_test_p=float(t_test_p),
        randomization_p=_randomization_p(differences[differences != 0], seed, draws),
        effect_size=float(effect_size),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given, of tests that make one family (Holm 1979, step-down); at most 1.

    Raises ValueError for a p that is not between 0 and 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"a p-value is not between 0 and 1: {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for smaller, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, (len(p_values) - smaller) * p_values[index])
        adjusted[index] = min(highest, 1.0)
    return adjusted


def _randomization_p(differences: np.ndarray, seed: int, draws: int) -> float:
    """Two-sided p of the sum of `(n,)` differences that are not 0; those that are would change no sum."""
    is_exact = differences.size < 63 and 1 << differences.size <= draws
    signs = _all_signs(differences.size) if is_exact else _random_signs(differences.size, draws, seed)
    observed = abs(differences.sum()) - _ROUNDING * np.abs(differences).sum()  # equal sums may differ by rounding
    as_extreme = sum(int((np.abs(block @ differences) >= observed).sum()) for block in signs)
    return as_extreme / (1 << differences.size) if is_exact else (as_extreme + 1) / (draws + 1)


def _all_signs(n: int) -> Iterator[np.ndarray]:
    """Yields the 2^n rows of n signs, -1.0 or 1.0, in blocks `(rows, n)`."""
    rows = max(1, _BLOCK // max(n, 1))
    for start in range(0, 1 << n, rows):
        numbers = np.arange(start, min(start + rows, 1 << n))  # (rows,)
        yield (numbers[:, None] >> np.arange(n) & 1) * 2.0 - 1.0


def _random_signs(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yields `draws` random rows of n signs, -1.0 or 1.0, in blocks `(rows, n)`."""
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    for start in range(0, draws, rows):
        shape = (min(rows, draws - start), n)
        bits = np.unpackbits(np.frombuffer(generator.bytes(-(-shape[0] * n // 8)), dtype=np.uint8), count=shape[0] * n)
        yield bits.reshape(shape) * 2.0 - 1.0
