"""One score per document out of its passages' scores."""

import re
from collections.abc import Callable
from functools import partial


def max_p(scores: list[float]) -> float:
    """The best passage (MaxP of Dai and Callan, SIGIR 2019)."""
    return max(scores)


def sum_p(scores: list[float]) -> float:
    """All passages added up, first to last (SumP of Dai and Callan).

    Not by `sum`, which from Python 3.12 on compensates its rounding: the last digit would depend on the version.
    """
    total = 0.0
    for score in scores:
        total += score
    return total


def avg_p(scores: list[float]) -> float:
    """The mean passage."""
    return sum_p(scores) / len(scores)


def k_max_avg_p(k: int, scores: list[float]) -> float:
    """The mean of the k best passages, or of all where there are fewer."""
    return avg_p(sorted(scores, reverse=True)[:k])


def first_p(scores: list[float]) -> float:
    """Passage number 0 (FirstP of Dai and Callan), the only one that it is given."""
    (score,) = scores
    return score


def aggregation_function(name: str) -> Callable[[list[float]], float]:
    """The function that makes one document score of its passage scores.

    Raises ValueError for an unknown name.
    """
    plain = {"MaxP": max_p, "FirstP": first_p, "SumP": sum_p, "AvgP": avg_p}
    if name in plain:
        return plain[name]
    if match := re.fullmatch(r"([1-9][0-9]{0,8})-Max&AvgP", name):
        return partial(k_max_avg_p, int(match[1]))
    raise ValueError(f"'{name}' is none of {', '.join(plain)} and k-Max&AvgP with a number for k, such as 3-Max&AvgP")
