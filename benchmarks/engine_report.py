"""The table and the picture of the engines. Only reads results."""

from pathlib import Path
from statistics import median

import numpy as np
from scipy.stats import spearmanr

from benchmarks.engine_runs import Key, Run
from evaluation.tables import markdown_table
from formats.atomic import atomic_write

REFERENCE = ("transformers", "fp32")
LABELS = {
    "ours": "this project",
    "crossencoder": "CrossEncoder",
    "transformers": "transformers",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ctranslate2": "CTranslate2",
}
_COLORS = {"fp32": "#0072b2", "bf16": "#e69f00", "int8": "#009e73"}


def largest_difference(runs: dict[Key, list[Run]], key: Key) -> float:
    """The largest absolute difference of a score from that of the reference, over all runs."""
    expected = np.array(runs[REFERENCE][0].scores)
    return max(float(np.abs(np.array(run.scores) - expected).max()) for run in runs[key])


def scoring_speed(runs: list[Run]) -> float:
    """The median of pairs/s, without tokenization."""
    return median(len(run.scores) / run.scoring for run in runs)


def engines_table(runs: dict[Key, list[Run]]) -> str:
    """One row per engine and precision: medians of the runs, and the agreement with the reference."""
    rows = [
        ["engine", "precision", "pairs/s", "with tokenization", "largest difference", "Spearman", "start-up, s",
         "memory, MB"]
    ]  # fmt: skip
    for key, measured in runs.items():
        with_tokenization = median(len(run.scores) / (run.tokenizing + run.scoring) for run in measured)
        correlation = min(spearmanr(run.scores, runs[REFERENCE][0].scores).statistic for run in measured)
        rows.append(
            [
                LABELS[key[0]],
                key[1],
                f"{scoring_speed(measured):.0f}",
                f"{with_tokenization:.0f}",
                f"{largest_difference(runs, key):.1e}",
                f"{correlation:.4f}",
                f"{median(run.start_up for run in measured):.1f}",
                f"{median(run.peak_bytes for run in measured) / 1e6:.0f}",
            ]
        )
    return markdown_table(rows, num_left=2)


def whole_process_table(seconds: dict[tuple[Key, int], list[float]], sizes: list[int]) -> str:
    """One row per engine and precision, one column per number of pairs. A cell that was not run is empty."""
    rows = [["engine", "precision", *(f"{size:,} pairs, s" for size in sizes)]]
    for key in dict.fromkeys(key for key, _ in seconds):
        cells = [seconds.get((key, size)) for size in sizes]
        rows.append([LABELS[key[0]], key[1], *(f"{median(cell):.1f}" if cell else "" for cell in cells)])
    return markdown_table(rows, num_left=2)


def spread_line(runs: dict[Key, list[Run]]) -> str:
    """A sentence on the spread of the reference's scores, to compare the differences with."""
    scores = np.array(runs[REFERENCE][0].scores)
    mean = scores.mean()
    return (
        f"The scores of the reference are from {scores.min():.3g} to {scores.max():.3g}, with a standard deviation of "
        f"{scores.std():.2g}. An engine that gave each pair the mean score would have a largest difference of "
        f"{np.abs(scores - mean).max():.2g}."
    )


def write_picture(path: Path, runs: dict[Key, list[Run]]) -> None:
    """Writes a bar for the pairs/s of each engine and precision, without tokenization, as PNG."""
    from matplotlib.figure import Figure  # late, because the import is slow

    figure = Figure(figsize=(8, 0.9 + 0.32 * len(runs)), dpi=110, layout="constrained")
    axes = figure.subplots()
    names: list[tuple[float, str]] = []
    place = 0.0
    for engine in dict.fromkeys(engine for engine, _ in runs):
        first = place
        for precision in (precision for other, precision in runs if other == engine):
            speed = scoring_speed(runs[engine, precision])
            bar = axes.barh(place, speed, color=_COLORS[precision], height=0.9)
            axes.bar_label(bar, [f"{precision} {speed:.0f}"], padding=3, fontsize=9)
            place += 1
        names.append(((first + place - 1) / 2, LABELS[engine]))
        place += 0.6
    axes.set_yticks([middle for middle, _ in names], [name for _, name in names])
    axes.invert_yaxis()
    axes.set(xlabel="pairs/s, tokenization excluded")
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path, binary=True) as file:
        figure.savefig(file, format="png")
