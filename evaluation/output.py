"""The measures of runs, and their comparisons with a baseline, as text, tables, TSV or JSON."""

import json
import math

from evaluation.baseline import Evaluated, Tested, Tests
from evaluation.measures import summarize
from evaluation.tables import escape_latex, format_p_value, latex_table, markdown_table, text_table

FORMATS = ("text", "tsv", "json", "latex", "markdown")


def format_runs(kind: str, evaluated: dict[str, Evaluated], baseline: str | None, tests: Tests) -> str:
    """Returns what msmarco_mrr_eval.py prints. `kind` is one of `FORMATS`; text of one run is as published."""
    if kind == "tsv":
        return as_tsv(evaluated, tests)
    if kind == "json":
        return as_json(evaluated, baseline, tests)
    if kind == "text" and len(evaluated) == 1:
        return as_lines(*evaluated.values())
    return as_tables(kind, evaluated, baseline, tests)


def as_lines(evaluated: Evaluated) -> str:
    """Returns the lines `name: value` of one run, as the published script prints them."""
    lines = [f"query_num: {evaluated.num_queries}"]
    lines += [f"{measure}: {_figure(measure, values)!r}" for measure, values in evaluated.values.items()]
    return "".join(f"{line}\n" for line in lines)


def as_tables(kind: str, evaluated: dict[str, Evaluated], baseline: str | None, tests: Tests) -> str:
    """Returns a table of the measures and, with a baseline, a table of the comparisons."""
    table = {"text": text_table, "markdown": markdown_table, "latex": latex_table}[kind]
    measures = list(next(iter(evaluated.values())).values)
    rows = [["run", "query_num", *measures]]
    for name, results in evaluated.items():
        figures = [_figure(measure, results.values[measure]) for measure in measures]
        rows.append([name, str(results.num_queries), *map(_four_digits, figures)])
    measures_table = table(rows)
    if baseline is None:
        return measures_table
    header = ["run", "measure", "queries", "difference", "t-test p", "Holm", "randomization p", "Holm", "effect size"]
    rows = [[*header, "wins/ties/losses"]]
    for measure in measures:
        for name in tests:
            queries, found, corrected = tests[name][measure]
            p_values = (found.t_test_p, corrected.t_test_p, found.randomization_p, corrected.randomization_p)
            rows.append([name, measure, str(queries), _four_digits(found.difference), *map(format_p_value, p_values)])
            rows[-1] += [f"{found.effect_size:.2f}", f"{found.wins}/{found.ties}/{found.losses}"]
    title = escape_latex(f"Against {baseline}:") if kind == "latex" else f"Against {baseline}:"
    return f"{measures_table}\n{title}\n\n{table(rows)}"


def as_tsv(evaluated: dict[str, Evaluated], tests: Tests) -> str:
    """Returns one line for each run and measure, with all digits. The baseline's comparison columns are empty."""
    columns = list(_comparison_columns(next(iter(next(iter(tests.values())).values())))) if tests else []
    lines = [["run", "measure", "queries", "value", *columns]]
    for name, results in evaluated.items():
        for measure, values in results.values.items():
            tested = tests.get(name, {}).get(measure)
            more = [repr(value) for value in _comparison_columns(tested).values()] if tested else [""] * len(columns)
            lines.append([name, measure, str(len(values)), repr(_figure(measure, values)), *more])
    return "".join("\t".join(line) + "\n" for line in lines)


def as_json(evaluated: dict[str, Evaluated], baseline: str | None, tests: Tests) -> str:
    """Returns the values of the TSV as JSON. An infinite effect size is null."""
    runs = []
    for name, results in evaluated.items():
        run = {"run": name, "query_num": results.num_queries}
        run["measures"] = {measure: _figure(measure, values) for measure, values in results.values.items()}
        if name in tests:
            run["against_baseline"] = {
                measure: {
                    column: value if math.isfinite(value) else None
                    for column, value in _comparison_columns(tested).items()
                }
                for measure, tested in tests[name].items()
            }
        runs.append(run)
    return json.dumps({"baseline": baseline, "runs": runs}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _figure(measure: str, values: dict[str, float]) -> float | int:
    """The measure of a run; a count is an integer, as trec_eval prints it."""
    figure = summarize(measure, values)
    return round(figure) if measure.startswith("num_") else figure


def _four_digits(figure: float | int) -> str:
    return str(figure) if isinstance(figure, int) else f"{figure:.4f}"


def _comparison_columns(tested: Tested) -> dict[str, float]:
    found, corrected = tested.comparison, tested.corrected
    return {
        "compared_queries": tested.queries,
        "difference": found.difference,
        "t_test_p": found.t_test_p,
        "t_test_p_holm": corrected.t_test_p,
        "randomization_p": found.randomization_p,
        "randomization_p_holm": corrected.randomization_p,
        "effect_size": found.effect_size,
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
    }
