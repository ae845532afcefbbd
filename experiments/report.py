"""A table of measured rows, in markdown and LaTeX, out of the data files in a folder of results."""

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.significance import Comparison, compare, holm
from evaluation.tables import escape_latex, latex_table, markdown_table
from experiments.recipe import Recipe, Row, parse_recipe
from runtime.errors import InputError

SIGNIFICANT = 0.05
AGAINST_TEACHER, AGAINST_STANDARD_KD = "†", "‡"

Values = list[float]
# A measure of a query set.
Measured = tuple[str, str]


class Results(NamedTuple):
    """What a folder of results holds. `data` is by `file_name`; `speed` None where speeds were not measured."""

    recipe: Recipe
    recipe_data: dict[str, Any]
    data: dict[str, dict[str, Any]]
    speed: dict[str, Any] | None

    def of(self, row: Row) -> list[dict[str, Any]]:
        """The data of a row, for each of its seeds that is there."""
        names = [file_name(row.name, seed) for seed in (row.seeds or [None])]
        return [self.data[name] for name in names if name in self.data]

    def measured(self) -> list[Measured]:
        return [(queries.name, measure) for queries in self.recipe.query_sets for measure in queries.measures]

    def means(self, row: Row, measured: Measured) -> Values:
        """The mean over queries, for each seed that is there."""
        queries, measure = measured
        found = (data["test_sets"].get(queries, {}).get(measure) for data in self.of(row))
        return [of_measure["mean"] for of_measure in found if of_measure]

    def per_query(self, row: Row, measured: Measured) -> Values:
        """Each query's mean over the seeds, in the order of their ids; none where nothing is there."""
        queries, measure = measured
        found = (data["test_sets"].get(queries, {}).get(measure) for data in self.of(row))
        of_seeds = [of_measure["per_query"] for of_measure in found if of_measure]
        if not of_seeds:
            return []
        return [statistics.fmean(of_seed[query_id] for of_seed in of_seeds) for query_id in sorted(of_seeds[0])]

    def pairs_per_second(self, row: Row) -> float | None:
        """The median over the rounds in which all models re-ranked the same pairs."""
        if self.speed is None or row.kind == "candidates" or not self.of(row):
            return None
        key = "teacher" if row.kind == "teacher" else shape_of(self.of(row)[0]["model"])
        speeds = [of_round[key] for of_round in self.speed["rounds"] if key in of_round]
        return statistics.median(speeds) if speeds else None

    def speed_up(self, row: Row) -> float | None:
        """Over the teacher."""
        teacher = self.recipe.row_of("teacher")
        own, of_teacher = self.pairs_per_second(row), teacher and self.pairs_per_second(teacher)
        return own / of_teacher if own and of_teacher and row.kind == "student" else None


def file_name(row: str, seed: int | None) -> str:
    """Of a row's data, without its suffix."""
    return row if seed is None else f"{row}.{seed}"


def shape_of(config: Mapping[str, int]) -> str:
    """What of a student makes its speed."""
    return "/".join(str(config[name]) for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))


def read_results(directory: Path) -> Results:
    """Reads settings.json, rows/ROW.SEED.json and rows/speed.json.

    Raises InputError where one of them is damaged, and OSError without settings.json.
    """

    def read(path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from None

    settings_file = directory / "settings.json"
    recipe_data = read(settings_file)["recipe"]
    recipe = parse_recipe(recipe_data, settings_file)
    names = [file_name(row.name, seed) for row in recipe.rows for seed in (row.seeds or [None])]
    files = {name: directory / "rows" / f"{name}.json" for name in names}
    speed_file = directory / "rows" / "speed.json"
    return Results(
        recipe,
        recipe_data,
        {name: read(path) for name, path in files.items() if path.exists()},
        read(speed_file) if speed_file.exists() else None,
    )


class Tested(NamedTuple):
    """A row against a baseline; the p-values of `comparison` are Holm's, over the rows against that baseline."""

    row: Row
    baseline: Row
    mark: str
    comparison: Comparison


def tests_of(results: Results, measured: Measured) -> list[Tested]:
    """All rows against the teacher, then against Standard KD."""
    recipe = results.recipe
    teacher = recipe.row_of("teacher")
    tested: list[Tested] = []
    for mark in (AGAINST_TEACHER, AGAINST_STANDARD_KD):
        pairs: list[tuple[Row, Row]] = []
        for row in recipe.rows:
            standard_kd = recipe.row(row.standard_kd) if row.standard_kd else None
            baseline = teacher if mark == AGAINST_TEACHER else standard_kd
            if baseline and baseline != row and results.means(row, measured) and results.means(baseline, measured):
                pairs.append((row, baseline))
        comparisons = _corrected([_compared(results, *pair, measured) for pair in pairs])
        tested += [Tested(*pair, mark, comparison) for pair, comparison in zip(pairs, comparisons, strict=True)]
    return tested


def _compared(results: Results, row: Row, baseline: Row, measured: Measured) -> Comparison:
    values = (tuple(results.per_query(one, measured)) for one in (row, baseline))
    try:
        return _compare(*values)
    except ValueError as error:
        raise InputError(f"{row.name} and {baseline.name} cannot be compared on {measured[1]}: {error}") from None


_compare = cache(compare)


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
    """The comparisons as one family of tests."""
    t_test_ps = holm([comparison.t_test_p for comparison in comparisons])
    randomization_ps = holm([comparison.randomization_p for comparison in comparisons])
    return [
        comparison._replace(t_test_p=t_test_p, randomization_p=randomization_p)
        for comparison, t_test_p, randomization_p in zip(comparisons, t_test_ps, randomization_ps, strict=True)
    ]


def main_table(results: Results) -> list[list[str]]:
    """A head, and a line a row: effectiveness, cost, speed."""
    recipe = results.recipe
    tokens = recipe.variables["max_seq_length"]
    header = ["row", "seeds", *(_title(results, measured) for measured in results.measured())]
    header += ["parameters", f"GFLOPs per pair of {tokens} tokens", "pairs/s", "speed-up", "training"]
    marks: dict[tuple[Measured, str], str] = {}
    for measured in results.measured():
        for test in tests_of(results, measured):
            if test.comparison.randomization_p < SIGNIFICANT:
                key = measured, test.row.name
                marks[key] = marks.get(key, "") + test.mark
    rows = []
    for row in recipe.rows:
        found = results.of(row)
        model = found[0] if found and row.kind != "candidates" else {}
        seconds = [data["training_seconds"] for data in found if data.get("training_seconds")]
        cells = [row.label, str(len(found)) if row.seeds else ""]
        for measured in results.measured():
            paper = row.paper.get(measured[0], {}).get(measured[1])
            cell = _mean_and_spread(results.means(row, measured)) + marks.get((measured, row.name), "")
            cells.append(_with_paper(cell, "" if paper is None else f"{paper:g}"))
        pairs_per_second, speed_up = results.pairs_per_second(row), results.speed_up(row)
        paper_speed_up = "" if row.paper_speed_up is None else f"{row.paper_speed_up:g}x"
        cells += [
            f"{model['parameters'] / 1e6:.1f} M" if model else "",
            f"{model['flops_per_pair'] / 1e9:.3g}" if model else "",
            "" if pairs_per_second is None else f"{pairs_per_second:.1f}",
            _with_paper("" if speed_up is None else f"{speed_up:.2f}x", paper_speed_up),
            f"{statistics.fmean(seconds):,.0f} s" if seconds else "",
        ]
        rows.append(cells)
    return [header, *rows]


def test_table(results: Results) -> list[list[str]]:
    """A head, and a line a test."""
    header = ["measure", "row", "against", "difference", "p (t-test)", "p (randomization)", "effect size"]
    header.append("wins/ties/losses")
    rows = [
        [
            _title(results, measured),
            test.row.label,
            f"{test.baseline.label} {test.mark}",
            f"{test.comparison.difference:+.4f}",
            _p(test.comparison.t_test_p),
            _p(test.comparison.randomization_p),
            f"{test.comparison.effect_size:+.2f}",
            f"{test.comparison.wins}/{test.comparison.ties}/{test.comparison.losses}",
        ]
        for measured in results.measured()
        for test in tests_of(results, measured)
    ]
    return [header, *rows]


def order_lines(results: Results) -> list[str]:
    """Whether the paper's order of methods holds, a line a measure, with the p-values of all its pairs."""
    lines = []
    for order in results.recipe.orders:
        rows = [results.recipe.row(name) for name in order]
        for measured in results.measured():
            missing = [row.label for row in rows if not results.means(row, measured)]
            title = f"{_title(results, measured)}, {' over '.join(row.label for row in rows)}"
            if missing:
                lines.append(f"{title}: cannot be told, as {' and '.join(missing)} has not been run.")
                continue
            lines.append(f"{title}: {_verdict(results, rows, measured)}")
    return lines


def _verdict(results: Results, rows: Sequence[Row], measured: Measured) -> str:
    pairs = [(i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
    found = _corrected([_compared(results, rows[i], rows[j], measured) for i, j in pairs])
    comparisons = dict(zip(pairs, found, strict=True))
    steps = [comparisons[i, i + 1] for i in range(len(rows) - 1)]
    figures = ", ".join(f"{row.label} {statistics.fmean(results.means(row, measured)):.4f}" for row in rows)
    if not all(step.difference > 0 for step in steps):
        verdict = "the order does NOT hold"
    elif all(step.randomization_p < SIGNIFICANT for step in steps):
        verdict = "the order holds, and each step of it is significant"
    else:
        verdict = "the order holds in the means, but not each step of it is significant"
    details = "; ".join(
        f"{rows[i].label} over {rows[j].label} {comparison.difference:+.4f}, p {_p_of_sentence(comparison)} "
        f"({'significant' if comparison.randomization_p < SIGNIFICANT else 'not significant'})"
        for (i, j), comparison in comparisons.items()
    )
    return f"{verdict} ({figures}). {details}."


def missing_runs(results: Results) -> list[str]:
    """The runs of the recipe that are not there."""
    return [
        row.label if seed is None else f"{row.label} with seed {seed}"
        for row in results.recipe.rows
        for seed in (row.seeds or [None])
        if file_name(row.name, seed) not in results.data
    ]


def _legend(results: Results) -> list[str]:
    """What the columns are, in sentences."""
    recipe, speed = results.recipe, results.speed
    tokens = recipe.variables["max_seq_length"]
    against = [f"{AGAINST_TEACHER} differs from the teacher"] if recipe.row_of("teacher") else []
    if any(row.standard_kd for row in recipe.rows):
        against.append(f"{AGAINST_STANDARD_KD} from Standard KD")
    lines = ["Measures are means ± standard deviations over the seeds."]
    if against:
        lines.append(
            f"{', '.join(against)} with p < {SIGNIFICANT}: two-sided randomization test, paired by query, on each "
            "query's mean over the seeds, Holm-corrected over the rows."
        )
    if any(row.paper or row.paper_speed_up for row in recipe.rows):
        lines.append("In brackets: the paper's figure.")
    lines.append(
        f"GFLOPs: matrix products of one pair at the full length of {tokens} tokens, a multiply-add being two."
    )
    if speed is None:
        lines.append("Speeds have not been measured.")
    else:
        lines.append(
            f"pairs/s: median of {len(speed['rounds'])} rounds, in each of which every model re-ranked the same "
            f"{speed['pairs']:,} pairs, one after another ({speed['where']}; {speed['machine']}; {speed['date']})."
        )
    lines.append("Training: mean of the seconds of training alone.")
    dates = sorted({data["date"] for data in results.data.values()})
    machines = sorted({data["machine"] for data in results.data.values()})
    if dates:
        lines.append(f"Run {' to '.join(dict.fromkeys((dates[0], dates[-1])))} on {'; '.join(machines)}.")
    if missing := missing_runs(results):
        lines.append(f"Not run yet: {', '.join(missing)}.")
    return lines


_CORRECTED = (
    "p-values are two-sided and Holm-corrected over the rows with one baseline and measure. The tests are over "
    "queries: they say nothing of other seeds, and a row of one seed is one training."
)
_ORDER_CORRECTED = "p: randomization test, Holm-corrected over the pairs of a line."


def markdown(results: Results) -> str:
    """table.md."""
    parts = [
        f"# {results.recipe.title}",
        "Made by `experiments/make_table.py` of the data in this folder.",
        markdown_table(main_table(results)).rstrip(),
        " ".join(_legend(results)),
        *results.recipe.notes,
    ]
    if lines := order_lines(results):
        parts += ["## The paper's order", "\n".join(f"- {line}" for line in lines), _ORDER_CORRECTED]
    if len(tests := test_table(results)) > 1:
        parts += ["## Tests of significance", markdown_table(tests, num_left=3).rstrip(), _CORRECTED]
    return "\n\n".join(parts) + "\n"


def latex(results: Results) -> str:
    """table.tex: two tables to be included, with the sentences between them."""
    parts = [
        "% Made by experiments/make_table.py of the data in this folder.",
        _captioned(latex_table(main_table(results), num_left=2), results.recipe.title),
        escape_latex(" ".join([*_legend(results), *results.recipe.notes])),
    ]
    if lines := order_lines(results):
        items = "\n".join(f"\\item {escape_latex(line)}" for line in lines)
        parts += [f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}", escape_latex(_ORDER_CORRECTED)]
    if len(tests := test_table(results)) > 1:
        caption = f"{results.recipe.title}: tests of significance. {_CORRECTED}"
        parts += [_captioned(latex_table(tests, num_left=3), caption)]
    return "\n\n".join(parts) + "\n"


def _captioned(table: str, caption: str) -> str:
    return f"\\begin{{table}}\n\\centering\n\\caption{{{escape_latex(caption)}}}\n{table}\\end{{table}}"


def _title(results: Results, measured: Measured) -> str:
    return measured[1] if len(results.recipe.query_sets) == 1 else f"{measured[0]} {measured[1]}"


def _mean_and_spread(values: Values) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _with_paper(cell: str, paper: str) -> str:
    return f"{cell} [{paper}]".lstrip() if paper else cell


def _p(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _p_of_sentence(comparison: Comparison) -> str:
    p = _p(comparison.randomization_p)
    return p if p.startswith("<") else f"= {p}"
