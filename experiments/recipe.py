"""A recipe: the rows of a table, the variables of distill.sh and reranker.sh for each row, and the test sets."""

import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

from evaluation.measures import canonical_name, is_mean
from runtime.errors import InputError

Variable = str | int | float | bool

KINDS = ("candidates", "teacher", "student")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)
_REQUIRED = object()


class QuerySet(NamedTuple):
    """A test set: its pairs, its candidates (a run), its relevance judgments, and the measures to compute.

    An optional one is left out if its candidates or judgments are missing: see `leave_out_missing`.
    """

    name: str
    pairs: str
    candidates: str
    qrels: str
    measures: list[str]
    optional: bool


class Row(NamedTuple):
    """A row of the table. A student is trained once for each seed; candidates and teacher have no seeds.

    `standard_kd` is the name of the Standard KD row that this row is compared with. `paper` holds published figures,
    `{test set: {measure: figure}}`, and `paper_speed_up` a published speed-up.
    """

    name: str
    label: str
    kind: str
    seeds: list[int]
    variables: dict[str, Variable]
    standard_kd: str | None
    paper: dict[str, dict[str, float]]
    paper_speed_up: float | None

    def jobs(self) -> list["Job"]:
        """Returns one job for each seed, or one job without a seed."""
        return [Job(self, seed) for seed in (self.seeds or [None])]


class Job(NamedTuple):
    """A row with one of its seeds: what is trained, re-ranked and measured at once."""

    row: Row
    seed: int | None

    @property
    def name(self) -> str:
        """The stem of the job's files."""
        return self.row.name if self.seed is None else f"{self.row.name}.{self.seed}"


class Recipe(NamedTuple):
    """A checked recipe. `prepare` is a shell command. `orders` are lists of row names, best first, as in the paper.

    `interpolation_weight`, if not None, adds the runs that are interpolated with the candidates.
    """

    name: str
    title: str
    prepare: str
    variables: dict[str, Variable]
    query_sets: list[QuerySet]
    rows: list[Row]
    orders: list[list[str]]
    timing_pairs: int
    timing_rounds: int
    notes: list[str]
    interpolation_weight: float | None

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def row_of_kind(self, kind: str) -> Row | None:
        """Returns the row of the candidates or of the teacher, None if there is no such row."""
        return next((row for row in self.rows if row.kind == kind), None)

    def jobs(self) -> list[Job]:
        return [job for row in self.rows for job in row.jobs()]


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Reads a TOML file. Raises InputError if it is not TOML."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def leave_out_missing(data: dict[str, Any], recipe: Recipe, kept: Collection[str]) -> Iterator[str]:
    """Removes the optional test sets whose candidates or judgments do not exist from a recipe's data, and yields why.

    Those in `kept` stay.
    """
    for queries in recipe.query_sets:
        missing = [path for path in (queries.candidates, queries.qrels) if not os.path.exists(path)]
        if queries.optional and queries.name not in kept and missing:
            del data["test_sets"][queries.name]
            yield f"test set {queries.name} is left out, because there is no {missing[0]}"


def parse_recipe(data: Mapping[str, Any], path: str | Path, known: Collection[str] | None = None) -> Recipe:
    """Checks the data that `load_recipe` read from `path`. `known` are the variables that a recipe can set.

    Raises InputError, which names the file and the key, for an unknown key, a missing key, or a wrong value.
    """
    table = _Table(data, str(path), "")
    variables = _variables(table.take("variables", dict), table, known)
    if not isinstance(variables.get("max_seq_length"), int):
        table.refuse("variables.max_seq_length", "needs a whole number")
    seeds = _seeds(table.take("seeds", list), table)
    standard_kd = table.take("standard_kd", str, None)
    query_sets = [_query_set(name, table.subtable("test_sets", name)) for name in table.take("test_sets", dict)]
    measures = {queries.name: queries.measures for queries in query_sets}
    rows = [
        _row(name, table.subtable("rows", name), seeds, standard_kd, measures, known)
        for name in table.take("rows", dict)
    ]
    recipe = Recipe(
        name=table.take("name", str),
        title=table.take("title", str),
        prepare=table.take("prepare", str, ""),
        variables=variables,
        query_sets=query_sets,
        rows=rows,
        orders=table.take("orders", list, []),
        timing_pairs=table.take("timing_pairs", int),
        timing_rounds=table.take("timing_rounds", int),
        notes=table.take("notes", list, []),
        interpolation_weight=table.take("interpolation_weight", int | float, None),
    )
    table.refuse_unknown_keys()
    if recipe.interpolation_weight is not None and not 0 <= recipe.interpolation_weight <= 1:
        table.refuse("interpolation_weight", "needs to be from 0 to 1")
    if not _NAME.fullmatch(recipe.name):
        table.refuse("name", f"'{recipe.name}' is not a folder name; use letters, digits, - and _")
    for key in ("timing_pairs", "timing_rounds"):
        if getattr(recipe, key) < 1:
            table.refuse(key, "needs to be 1 or more")
    for key in ("test_sets", "rows"):
        if not data[key]:
            table.refuse(key, "is empty")
    if not all(isinstance(note, str) for note in recipe.notes):
        table.refuse("notes", "needs to be a list of texts")
    _check_rows(recipe, table)
    return recipe


def _check_rows(recipe: Recipe, table: "_Table") -> None:
    students = [row.name for row in recipe.rows if row.kind == "student"]
    for kind in KINDS[:2]:
        if sum(row.kind == kind for row in recipe.rows) > 1:
            table.refuse("rows", f"more than one row of kind {kind}")
    labels = [row.label for row in recipe.rows]
    for row in recipe.rows:
        if labels.count(row.label) > 1:
            table.refuse(f"rows.{row.name}.label", f"'{row.label}' is the label of two rows")
        if row.standard_kd not in (None, *students):
            table.refuse(f"rows.{row.name}.standard_kd", f"there is no student row {row.standard_kd}")
    for order in recipe.orders:
        if not isinstance(order, list) or len(order) < 2 or any(name not in students for name in order):
            table.refuse("orders", "needs to be a list of lists, each with two or more names of student rows")


class _Table:
    """A TOML table. `take` removes one key after the other. Errors name the file and the key."""

    def __init__(self, data: Mapping[str, Any], path: str, prefix: str) -> None:
        self._left, self._data, self._path, self._prefix = dict(data), data, path, prefix

    def refuse(self, key: str, reason: str) -> None:
        raise InputError(f"{self._path}: {self._prefix}{key}: {reason}")

    def take(self, key: str, kind: type | UnionType, default: Any = _REQUIRED) -> Any:
        if key not in self._left:
            if default is _REQUIRED:
                self.refuse(key, "is missing")
            return default
        value = self._left.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = {
                bool: "true or false",
                str: "text",
                int: "a whole number",
                int | float: "a number",
                list: "a list [...]",
                dict: "a table",
            }
            self.refuse(key, f"needs {names[kind]}, not {value!r}")
        return value

    def subtable(self, key: str, name: str) -> "_Table":
        if not _NAME.fullmatch(name):
            self.refuse(f"{key}.{name}", "is part of file names; use letters, digits, - and _")
        table = self._data[key][name]
        if not isinstance(table, dict):
            self.refuse(f"{key}.{name}", f"needs a table, not {table!r}")
        return _Table(table, self._path, f"{self._prefix}{key}.{name}.")

    def refuse_unknown_keys(self) -> None:
        for key in self._left:
            self.refuse(key, "is unknown")


def _query_set(name: str, table: _Table) -> QuerySet:
    files = (table.take(key, str) for key in QuerySet._fields[1:4])
    queries = QuerySet(name, *files, table.take("measures", list), table.take("optional", bool, False))
    table.refuse_unknown_keys()
    if not queries.measures or len(set(map(str, queries.measures))) < len(queries.measures):
        table.refuse("measures", "needs to be a list of different measures")
    for measure in queries.measures:
        try:
            canonical_name(str(measure))
        except ValueError as error:
            table.refuse("measures", str(error))
        if not is_mean(str(measure)):
            table.refuse("measures", f"'{measure}' is not a mean over queries; a table shows only means")
    return queries


def _row(
    name: str,
    table: _Table,
    seeds: list[int],
    standard_kd: str | None,
    measures: Mapping[str, list[str]],
    known: Collection[str] | None,
) -> Row:
    kind = table.take("kind", str, "student")
    if kind not in KINDS:
        table.refuse("kind", f"'{kind}' is not one of {', '.join(KINDS)}")
    own_seeds = table.take("seeds", list, None)
    variables = _variables(table.take("variables", dict, {}), table, known)
    if kind != "student" and (own_seeds is not None or variables):
        table.refuse("seeds" if own_seeds is not None else "variables", f"has no use in a row of kind {kind}")
    paper = dict(table.take("paper", dict, {}))
    speed_up = paper.pop("speed_up", None)
    figures = [] if speed_up is None else [speed_up]
    for queries, of_queries in paper.items():
        if queries not in measures or not isinstance(of_queries, dict) or set(of_queries) - set(measures[queries]):
            table.refuse(f"paper.{queries}", "needs to be {MEASURE = figure}, with the name and measures of a test set")
        figures += of_queries.values()
    if not all(isinstance(figure, int | float) and not isinstance(figure, bool) for figure in figures):
        table.refuse("paper", "needs numbers")
    row = Row(
        name=name,
        label=table.take("label", str),
        kind=kind,
        seeds=[] if kind != "student" else seeds if own_seeds is None else _seeds(own_seeds, table),
        variables=variables,
        standard_kd=table.take("standard_kd", str, standard_kd),
        paper=paper,
        paper_speed_up=speed_up,
    )
    table.refuse_unknown_keys()
    return row


def _seeds(seeds: list, table: _Table) -> list[int]:
    is_seed = (isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not all(is_seed) or len(set(seeds)) < len(seeds):
        table.refuse("seeds", f"needs a list of different whole numbers, not {seeds}")
    return seeds


def _variables(variables: dict, table: _Table, known: Collection[str] | None) -> dict[str, Variable]:
    for name, value in variables.items():
        if known is not None and name not in known:
            table.refuse(f"variables.{name}", "is not a variable of distill.sh or reranker.sh that a recipe can set")
        if not isinstance(value, str | int | float):
            table.refuse(f"variables.{name}", f"needs text, a number, true or false, not {value!r}")
    return variables
