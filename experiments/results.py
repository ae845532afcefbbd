"""A folder of results: the data of each row, and the means and speeds in it."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.recipe import Recipe, Row, parse_recipe
from formats.atomic import atomic_write
from runtime.errors import InputError

SETTINGS_FILE = "settings.json"
# A test set and one of its measures.
Column = tuple[str, str]


class Results(NamedTuple):
    """A folder of results. `data` is by `Job.name`; `speed` is None if the speeds were not measured."""

    recipe: Recipe
    data: dict[str, dict[str, Any]]
    speed: dict[str, Any] | None

    def of(self, row: Row) -> list[dict[str, Any]]:
        """Returns the data of a row, for each seed that has data."""
        return [self.data[job.name] for job in row.jobs() if job.name in self.data]

    def columns(self) -> list[Column]:
        return [(queries.name, measure) for queries in self.recipe.query_sets for measure in queries.measures]

    def means(self, row: Row, column: Column, part: str = "test_sets") -> list[float]:
        """Returns the mean over queries, for each seed that has data.

        `part`: test_sets, or interpolated, which is empty if it was made with another weight than the recipe's.
        """
        return [measured["mean"] for measured in self._measured(row, column, part)]

    def per_query(self, row: Row, column: Column, part: str = "test_sets") -> list[float]:
        """Returns the mean over seeds of each query, ordered by query id; an empty list without data."""
        of_seeds = [measured["per_query"] for measured in self._measured(row, column, part)]
        if not of_seeds:
            return []
        return [statistics.fmean(of_seed[query_id] for of_seed in of_seeds) for query_id in sorted(of_seeds[0])]

    def _measured(self, row: Row, column: Column, part: str) -> list[dict[str, Any]]:
        queries, measure = column
        weight, of_row = self.recipe.interpolation_weight, self.of(row)
        if part == "interpolated":
            of_row = [data for data in of_row if weight is not None and data.get("interpolation_weight") == weight]
        found = (data.get(part, {}).get(queries, {}).get(measure) for data in of_row)
        return [measured for measured in found if measured]

    def pairs_per_second(self, row: Row) -> float | None:
        """Returns the median over the rounds of timing; None if the row was not timed."""
        if self.speed is None or row.kind == "candidates" or not self.of(row):
            return None
        key = "teacher" if row.kind == "teacher" else shape_of(self.of(row)[0]["model"])
        speeds = [of_round[key] for of_round in self.speed["rounds"] if key in of_round]
        return statistics.median(speeds) if speeds else None

    def speed_up(self, row: Row) -> float | None:
        """Returns how many times faster a student is than the teacher."""
        teacher = self.recipe.row_of_kind("teacher")
        own, of_teacher = self.pairs_per_second(row), teacher and self.pairs_per_second(teacher)
        return own / of_teacher if own and of_teacher and row.kind == "student" else None


def read_results(directory: Path) -> Results:
    """Reads settings.json, rows/ROW.SEED.json and rows/speed.json.

    Raises InputError if one of them is damaged, and OSError without settings.json.
    """
    settings_file = directory / SETTINGS_FILE
    recipe = parse_recipe(read_json(settings_file)["recipe"], settings_file)
    files = {job.name: directory / "rows" / f"{job.name}.json" for job in recipe.jobs()}
    speed_file = directory / "rows" / "speed.json"
    data = {name: read_json(path) for name, path in files.items() if path.exists()}
    _check_same_queries(files, data)
    return Results(
        recipe,
        data,
        read_json(speed_file) if speed_file.exists() else None,
    )


def _check_same_queries(files: Mapping[str, Path], data: Mapping[str, dict[str, Any]]) -> None:
    """Raises InputError if two rows were measured on different queries: their values are compared query by query."""
    first: dict[Column, tuple[str, set[str]]] = {}
    for name, of_row in data.items():
        parts = of_row["test_sets"], of_row.get("interpolated", {})
        for queries, measures in ((queries, part[queries]) for part in parts for queries in part):
            for measure, measured in measures.items():
                other, ids = first.setdefault((queries, measure), (name, measured["per_query"].keys()))
                if measured["per_query"].keys() != ids:
                    raise InputError(
                        f"{files[name]} and {files[other]} have {measure} of different queries in {queries}; remove "
                        "one of them, and make it again"
                    )


def shape_of(config: Mapping[str, int]) -> str:
    """Returns `layers/hidden/inner`. Students of one shape have one speed."""
    return "/".join(str(config[name]) for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError if the file is damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a file, and the directory it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        json.dump(data, file, indent=1, ensure_ascii=False)
        file.write("\n")
