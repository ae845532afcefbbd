"""A picture of measured rows: effectiveness against speed."""

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from evaluation.table import Results
from formats.files import write_whole

# Told apart also by those who see fewer colours (Okabe and Ito 2008).
COLOURS = {"teacher": "#d55e00", "student": "#0072b2"}
_STEPS = 40  # how far, in halves of its height, a label may be moved up or down


def write_picture(path: Path, results: Results) -> None:
    """Draws, for the first measure of each test set, a point a row against pairs/s, as PNG.

    A bar is the standard deviation over seeds. The candidates, which cost nothing, are a line.
    """
    query_sets = results.recipe.query_sets
    figure = Figure(figsize=(8 * len(query_sets), 5), dpi=120, layout="constrained")
    for axes, queries in zip(figure.subplots(1, len(query_sets), squeeze=False)[0], query_sets, strict=True):
        draw_points(axes, results, (queries.name, queries.measures[0]))
        axes.set(title=results.recipe.title if len(query_sets) == 1 else queries.name)
    with write_whole(path, binary=True) as file:
        figure.savefig(file, format="png")


def draw_points(axes: Axes, results: Results, measured: tuple[str, str]) -> list:
    """Draws the rows into `axes` and returns their labels (matplotlib's Annotation)."""
    points: list[tuple[float, float, str]] = []
    for row in results.recipe.rows:
        values = results.means(row, measured)
        if not values:
            continue
        mean = statistics.fmean(values)
        if row.kind == "candidates":
            axes.axhline(mean, color="gray", linestyle="--", linewidth=1, label=row.label)
            axes.legend(loc="lower left", frameon=False)
        elif (speed := results.pairs_per_second(row)) is not None:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(speed, mean, yerr=spread or None, fmt="o", color=COLOURS[row.kind], capsize=3, elinewidth=1)
            points.append((speed, mean, row.label))
    axes.set(xlabel="pairs/s", ylabel=measured[1])
    axes.margins(x=0.35, y=0.2)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.draw_without_rendering()  # fixes the scales, in which labels are placed
    return _place_labels(axes, points)


def _place_labels(axes: Axes, points: list[tuple[float, float, str]]) -> list:
    """Puts each label beside its point, as near as it gets without covering another label or a point."""
    figure = axes.figure
    centres = [axes.transData.transform(point[:2]) for point in points]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in centres]
    offsets = [(side, step * sign) for step in range(_STEPS) for sign in (1, -1) for side in (1, -1)]
    labels = []
    for speed, mean, text in sorted(points, key=lambda point: -point[1]):
        label = axes.annotate(
            text,
            (speed, mean),
            textcoords="offset points",
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "gray", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
        inside = axes.get_window_extent()
        best = None
        for side, step in offsets:
            label.set(position=(12 * side, 6 * step), ha="left" if side > 0 else "right")
            # of the text, without the line to its point
            box = super(type(label), label).get_window_extent(figure.canvas.get_renderer()).padded(1)
            is_inside = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if is_inside and not any(box.overlaps(other) for other in taken):
                best = box
                break
        taken.append(best or box)
        labels.append(label)
    return labels
