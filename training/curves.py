"""The files with the losses, dev measures and speeds of a training run, and the plot of their curves."""

import json
from pathlib import Path

from formats.atomic import atomic_write
from runtime.paths import printable
from training.terms import TERMS

LOSS_FILE = "train_loss.jsonl"
DEV_FILE = "dev_eval.jsonl"
SPEED_FILE = "speed.jsonl"  # differs between two equal runs, so it has a file of its own
PICTURE = "training_curves.png"

# Key in train_loss.jsonl: legend and color. The curves show the terms without their weights.
_LOSSES = {"loss": ("total", "black")} | {f"{term.name}_loss": (term.meaning, term.color) for term in TERMS}
_COLOR = TERMS[0].color  # of the other curves


def read_lines_until(path: Path, last_step: float = float("inf")) -> list[dict]:
    """Returns the lines of one of the files up to a step. Stops at a damaged line; a missing file has no lines."""
    lines: list[dict] = []
    try:
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            if row["global_step"] > last_step:
                break
            lines.append(row)
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        pass
    return lines


def used_losses(rows: list[dict]) -> list[str]:
    """The names of the losses that are not 0: the terms in use, and the total unless it equals the only term.

    Lines hold None if float16 skipped all of their steps.
    """
    terms = [name for name in _LOSSES if name != "loss" and any(row.get(name) for row in rows)]
    is_total = len(terms) == 1 and all(row[terms[0]] == row["loss"] for row in rows)
    return terms if is_total else ["loss", *terms]


def write_training_curves(directory: Path) -> bool:
    """Plots losses, learning rate, dev measure and throughput over the steps into `PICTURE`. Reads only the files.

    Returns False if there are fewer than two lines of losses. Raises ImportError without matplotlib.
    """
    losses, dev, speed = (read_lines_until(directory / name) for name in (LOSS_FILE, DEV_FILE, SPEED_FILE))
    if len(losses) < 2:
        return False
    from matplotlib.figure import Figure  # late, because the import is slow

    height_ratios = [2, 1] + [1.4] * bool(dev) + [1] * bool(speed)
    figure = Figure(figsize=(8, 1.7 * sum(height_ratios)), dpi=110, layout="constrained")
    all_axes = list(figure.subplots(len(height_ratios), sharex=True, height_ratios=height_ratios))
    remaining = iter(all_axes)

    steps = [row["global_step"] for row in losses]
    axes = next(remaining)
    names = used_losses(losses)
    columns = 3  # of the legend, so that long meanings fit
    rows = -(-len(names) // columns)
    for name in names:
        label, color = _LOSSES[name]
        values = [row.get(name) or float("nan") for row in losses]  # a logarithm has no 0
        axes.plot(steps, values, label=label, color=color, linewidth=1.8 if name == "loss" else 1.2)
    title = printable(f"{directory.resolve().name}: training")
    axes.set_title(title, pad=12 + 14 * rows, parse_math=False)  # above the legend
    axes.set(ylabel="loss", yscale="log")
    axes.legend(frameon=False, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    axes = next(remaining)
    axes.plot(steps, [row["learning_rate"] for row in losses], color=_COLOR)
    axes.set(ylabel="learning rate", ylim=(0, None))
    axes.yaxis.set_major_formatter("{x:g}")

    if dev:
        axes = next(remaining)
        color = _COLOR
        axes.plot([row["global_step"] for row in dev], [row["value"] for row in dev], "o-", markersize=3, color=color)
        best = next(row for row in dev if row["global_step"] == dev[-1]["best_step"])
        label = f"best: {best['value']:.4f} after step {best['global_step']:,}"
        mark = {"marker": "o", "markersize": 9, "fillstyle": "none", "linestyle": "none", "color": "#d55e00"}
        axes.plot([best["global_step"]], [best["value"]], **mark, markeredgewidth=1.6, label=label)
        axes.set(ylabel=f"dev {dev[-1]['measure']}")
        axes.margins(y=0.15)
        axes.legend(frameon=False, loc="best")

    if speed:
        axes = next(remaining)
        rates = [row["examples_per_second"] for row in speed]
        axes.plot([row["global_step"] for row in speed], rates, color=_COLOR)
        axes.set(ylabel="examples/s", ylim=(0, None))

    for axes in all_axes:
        if dev:
            axes.axvline(best["global_step"], color="#d55e00", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set(xlabel="steps", xlim=(0, None))
    all_axes[-1].xaxis.set_major_formatter("{x:,.0f}")
    all_axes[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels(all_axes)
    with atomic_write(directory / PICTURE, binary=True) as file:
        figure.savefig(file, format="png")
    return True
