"""One score for a document, from the scores of its passages."""

import re
from collections.abc import Callable
from functools import partial


def max_p(scores: list[float]) -> float:
    """Returns the score of the best passage (MaxP of Dai and Callan, SIGIR 2019)."""
    return max(scores)


def sum_p(scores: list[float]) -> float:
    """Returns the sum of all scores, added from first to last (SumP of Dai and Callan).

    The built-in `sum` compensates rounding since Python 3.12, so its last digit depends on the version.
    """
    total = 0.0
    for score in scores:
        total += score
    return total


def avg_p(scores: list[float]) -> float:
    """Returns the mean score."""
    return sum_p(scores) / len(scores)


def k_max_avg_p(k: int, scores: list[float]) -> float:
    """Returns the mean of the k best scores, or of all scores if there are fewer than k."""
    return avg_p(sorted(scores, reverse=True)[:k])


def first_p(scores: list[float]) -> float:
    """Returns the score of passage 0, the only one in `scores` (FirstP of Dai and Callan)."""
    (score,) = scores
    return score


def aggregation_function(name: str) -> Callable[[list[float]], float]:
    """Returns the function of an aggregation, such as MaxP or 3-Max&AvgP.

    Raises ValueError for an unknown name.
    """
    plain = {"MaxP": max_p, "FirstP": first_p, "SumP": sum_p, "AvgP": avg_p}
    if name in plain:
        return plain[name]
    if match := re.fullmatch(r"([1-9][0-9]{0,8})-Max&AvgP", name):
        return partial(k_max_avg_p, int(match[1]))
    raise ValueError(
        f"'{name}' is not one of {', '.join(plain)} and k-Max&AvgP with a number for k, such as 3-Max&AvgP"
    )
