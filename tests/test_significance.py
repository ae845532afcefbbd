"""Paired tests over queries."""

import math
import random
import warnings
from itertools import product

import numpy as np
import pytest
from scipy import stats

from evaluation.significance import Comparison, compare, holm


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_by_hand() -> None:
    """Differences 3, 1, -1, 0, 2: six of the 16 signed sums of 1, 1, 2, 3 are 5 or more: 7, 5, 5, -7, -5, -5."""
    found = compare([4, 2, 1, 3, 5], [1, 1, 2, 3, 3])
    assert found.difference == 1.0
    assert found.randomization_p == 6 / 16
    assert found.effect_size == pytest.approx(1 / math.sqrt(2.5))  # squares of deviations 4, 0, 4, 1, 1 over 4
    t = 1 / math.sqrt(2.5 / 5)
    assert found.t_test_p == pytest.approx(2 * stats.t(4).sf(t))
    assert (found.wins, found.ties, found.losses) == (3, 1, 1)


def test_equal_runs() -> None:
    assert compare([0.5, 0, 1], [0.5, 0, 1]) == Comparison(0.0, 1.0, 1.0, 0.0, 0, 3, 0)


def test_a_difference_that_is_equal_for_all_queries() -> None:
    """t is infinite; two of the eight signed sums are as extreme. Rounding changes nothing."""
    assert compare([1, 2, 3], [0.5, 1.5, 2.5]) == Comparison(0.5, 0.0, 0.25, math.inf, 3, 0, 0)
    rounded = compare([0.2, 0.1, 0.3], [0.3, 0.2, 0.4])
    assert rounded == Comparison(pytest.approx(-0.1), 0.0, 0.25, -math.inf, 0, 0, 3)


def test_rounding_is_a_tie() -> None:
    found = compare([0.1 + 0.2, 1.0], [0.3, 0.5])
    assert (found.wins, found.ties, found.losses) == (1, 1, 0)


@pytest.mark.parametrize("seed", range(20))
def test_randomization_test_is_exact_for_few_queries(seed: int) -> None:
    """Compared with all signed sums and with scipy; values have few digits, so that sums tie."""
    stream = random.Random(seed)
    n = stream.randint(2, 10)
    values, baseline = ([stream.randint(0, 4) / 4 for _ in range(n)] for _ in range(2))
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    observed = abs(sum(differences))
    sums = [
        abs(math.fsum(map(math.prod, zip(signs, differences, strict=True)))) for signs in product((-1, 1), repeat=n)
    ]
    found = compare(values, baseline)
    assert found.randomization_p == sum(value >= observed for value in sums) / 2**n
    theirs = stats.permutation_test(
        (values, baseline), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True
    )
    assert found.randomization_p == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("seed", range(4))
def test_random_signs_give_the_p_of_scipy(seed: int) -> None:
    """Too many queries for all signs: two Monte Carlo tests agree within their standard errors."""
    generator = np.random.default_rng(seed)
    values, baseline = generator.random(57) + 0.08, generator.random(57)
    found = compare(values, baseline, num_samples=20_000)
    theirs = stats.permutation_test(
        (values, baseline),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(7),
    ).pvalue
    assert abs(found.randomization_p - theirs) < 5 * math.sqrt(2 * theirs * (1 - theirs) / 20_000)
    t_test = stats.ttest_rel(values, baseline)
    assert found.t_test_p == pytest.approx(t_test.pvalue)
    assert found.effect_size == pytest.approx(t_test.statistic / math.sqrt(57))


def test_random_signs_and_all_signs_agree() -> None:
    generator = np.random.default_rng(3)
    values, baseline = generator.random(15) + 0.15, generator.random(15)
    exact = compare(values, baseline, num_samples=1 << 15).randomization_p
    sampled = compare(values, baseline, num_samples=(1 << 15) - 1).randomization_p
    assert sampled * (1 << 15) == round(sampled * (1 << 15))  # (b + 1) / (num_samples + 1)
    assert exact != sampled
    assert abs(exact - sampled) < 5 * math.sqrt(exact * (1 - exact) / (1 << 15))


def test_a_p_of_random_signs_is_never_0() -> None:
    found = compare([1 + i / 100 for i in range(40)], [0] * 40, num_samples=999)
    assert found.randomization_p == 1 / 1000


@pytest.mark.parametrize("n", [5, 40])
def test_swapping_the_runs_changes_only_the_signs(n: int) -> None:
    generator = np.random.default_rng(n)
    values, baseline = generator.random((2, n)).round(1)
    one, other = compare(values, baseline, num_samples=5_000), compare(baseline, values, num_samples=5_000)
    assert other == one._replace(
        difference=-one.difference, effect_size=-one.effect_size, wins=one.losses, losses=one.wins
    )


def test_the_seed_decides_the_random_signs() -> None:
    values, baseline = np.random.default_rng(0).random((2, 40))
    assert compare(values, baseline, 1, 500) == compare(values, baseline, 1, 500)
    assert len({compare(values, baseline, seed, 500).randomization_p for seed in range(10)}) > 1


@pytest.mark.slow
def test_p_is_uniform_without_a_difference() -> None:
    """2,000 pairs of runs from one distribution: p <= x for a share x of them (Kolmogorov-Smirnov test)."""
    generator = np.random.default_rng(5)
    found = [compare(*generator.random((2, 25)), seed=seed, num_samples=399) for seed in range(2_000)]
    for p_values in ([one.t_test_p for one in found], [one.randomization_p for one in found]):
        assert stats.kstest(p_values, "uniform").pvalue > 0.001
        assert 0.035 < sum(p <= 0.05 for p in p_values) / 2_000 < 0.065


def test_blocks_of_signs_change_nothing(monkeypatch) -> None:
    values, baseline = np.random.default_rng(1).random((2, 30))
    exact, sampled = compare(values[:12], baseline[:12]), compare(values, baseline, num_samples=4_000)
    monkeypatch.setattr("evaluation.significance._BLOCK", 32 * 30)  # 32 rows: their bits fill whole words
    assert compare(values[:12], baseline[:12]) == exact
    assert compare(values, baseline, num_samples=4_000) == sampled


@pytest.mark.parametrize(
    ("values", "baseline", "message"),
    [
        ([1, 2], [1, 2, 3], "2 values of the run and 3 of the baseline"),
        ([1], [2], "at least two queries"),
        ([], [], "at least two queries"),
        ([1, math.nan], [1, 2], "not finite"),
        ([1, 2], [1, -math.inf], "not finite"),
    ],
)
def test_refuses(values, baseline, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(values, baseline)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 * .005, 3 * .01, 2 * .03; .04 becomes the same
        ([0.02, 0.02, 0.9], [0.06, 0.06, 0.9]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holm_by_hand(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def test_holm_rejects_as_the_step_down_procedure_does() -> None:
    stream = random.Random(0)
    for _ in range(200):
        p_values = [stream.random() ** 3 for _ in range(stream.randint(1, 8))]
        level = stream.choice([0.01, 0.05, 0.2])
        rejected = set()
        for smaller, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[index] > level / (len(p_values) - smaller):
                break
            rejected.add(index)
        assert {index for index, p in enumerate(holm(p_values)) if p <= level} == rejected


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses(p: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        holm([0.5, p])
