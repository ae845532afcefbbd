"""A plot of the rows: effectiveness against speed."""

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from experiments.results import Column, Results
from formats.atomic import atomic_write

# Distinct for color-blind readers too (Okabe and Ito 2008).
COLORS = {"teacher": "#d55e00", "student": "#0072b2"}
_STEPS = 40  # how far a label can move up or down, in halves of its height


def write_picture(path: Path, results: Results) -> None:
    """Draws a PNG: for each test set, the first measure of each row against its pairs/s.

    Error bars are standard deviations over the seeds. The candidates have no speed, so they are a line.
    """
    query_sets = results.recipe.query_sets
    figure = Figure(figsize=(8 * len(query_sets), 5), dpi=120, layout="constrained")
    for axes, queries in zip(figure.subplots(1, len(query_sets), squeeze=False)[0], query_sets, strict=True):
        draw_points(axes, results, (queries.name, queries.measures[0]))
        axes.set(title=results.recipe.title if len(query_sets) == 1 else queries.name)
    with atomic_write(path, binary=True) as file:
        figure.savefig(file, format="png")


def draw_points(axes: Axes, results: Results, column: Column) -> list[Annotation]:
    """Draws the rows into `axes` and returns their labels."""
    points: list[tuple[float, float, str]] = []
    lines: list[Text] = []
    for row in results.recipe.rows:
        values = results.means(row, column)
        if not values:
            continue
        mean = statistics.fmean(values)
        if row.kind == "candidates":
            axes.axhline(mean, color="gray", linestyle="--", linewidth=1)
            left_edge = axes.get_yaxis_transform()  # x from 0 to 1, y in data
            lines.append(axes.text(0.01, mean, row.label, transform=left_edge, color="gray", fontsize=9, va="bottom"))
        elif (speed := results.pairs_per_second(row)) is not None:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(speed, mean, yerr=spread or None, fmt="o", color=COLORS[row.kind], capsize=3, elinewidth=1)
            points.append((speed, mean, row.label))
    axes.set(xlabel="pairs/s", ylabel=column[1])
    axes.margins(x=0.35, y=0.2)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.draw_without_rendering()  # fixes the scales, which the labels depend on
    return _place_labels(axes, points, [line.get_window_extent() for line in lines])


def _place_labels(axes: Axes, points: list[tuple[float, float, str]], taken: list[Bbox]) -> list[Annotation]:
    """Puts each label beside its point, as near as possible without covering a label, a point or a box in `taken`."""
    pixels = axes.figure.dpi / 72  # per typographic point
    centres = {point: axes.transData.transform(point[:2]) for point in points}
    taken = taken + [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in centres.values()]
    inside = axes.get_window_extent()
    offsets = [(side * 12, sign * 6 * step) for step in range(_STEPS) for sign in (1, -1) for side in (1, -1)]
    labels = []
    for point in sorted(points, key=lambda point: -point[1]):
        label = axes.annotate(
            point[2],
            point[:2],
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "gray", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
        size = Text.get_window_extent(label)  # of the text, without the line to the point
        boxes = {}
        for right, up in offsets:
            x, y = centres[point] + (right * pixels, up * pixels)
            left = x if right > 0 else x - size.width
            boxes[right, up] = Bbox.from_bounds(left - 1, y - size.height / 2 - 1, size.width + 2, size.height + 2)
        free = (offset for offset, box in boxes.items() if not any(box.overlaps(other) for other in taken))
        chosen = next((offset for offset in free if _contains(inside, boxes[offset])), offsets[0])
        taken.append(boxes[chosen])
        label.set(position=chosen, ha="left" if chosen[0] > 0 else "right")
        labels.append(label)
    return labels


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1
