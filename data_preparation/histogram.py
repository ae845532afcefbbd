"""A histogram of scores."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from formats.atomic import atomic_write

BINS = 50
# Readers with color blindness can tell them apart (Okabe and Ito 2008).
BLUE, ORANGE = "#0072b2", "#e69f00"


def write_score_histogram(path: Path, kept: Sequence[float], dropped: Sequence[float], threshold: float) -> None:
    """Writes a PNG with the histogram of the teacher's scores of positives. The bars of dropped ones are on top."""
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    total = len(kept) + len(dropped)
    axes.hist(
        [kept, dropped],
        bins=BINS,
        range=(0, 1),
        stacked=True,
        color=[BLUE, ORANGE],
        label=[
            f"kept: {len(kept):,} ({len(kept) / total:.1%})",
            f"dropped: {len(dropped):,} ({len(dropped) / total:.1%})",
        ],
    )
    if threshold > 0:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold: {threshold:g}")
    axes.set(
        title=f"Teacher's scores of the passages of relevant documents ({total:,})",
        xlabel="teacher's score (probability of class relevant)",
        ylabel=f"passages (per {1 / BINS:g} of score)",
        xlim=(0, 1),
    )
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the axes: most scores are near 0 and 1, so the bars fill all corners.
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    with atomic_write(path, binary=True) as file:
        figure.savefig(file, format="png")
