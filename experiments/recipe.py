"""A recipe of a table: which rows, with which variables of distill.sh and reranker.sh, measured on which queries."""

import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.measures import canonical_name, is_mean
from runtime.errors import InputError

Variable = str | int | float | bool

KINDS = ("candidates", "teacher", "student")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)
_REQUIRED = object()


class QuerySet(NamedTuple):
    """Queries to test with: their pairs, the candidates' run, the judgements, and what is measured on them."""

    name: str
    pairs: str
    candidates: str
    qrels: str
    measures: list[str]


class Row(NamedTuple):
    """A row of the table. A student is trained once for each of `seeds`; candidates and teacher have none.

    `standard_kd` names the row that the student is compared with besides the teacher. `paper` has published figures:
    `{query set: {measure: figure}}`; `paper_speed_up` one too.
    """

    name: str
    label: str
    kind: str
    seeds: list[int]
    variables: dict[str, Variable]
    standard_kd: str | None
    paper: dict[str, dict[str, float]]
    paper_speed_up: float | None


class Recipe(NamedTuple):
    """`orders` are lists of rows, best first, as the paper has them. `prepare` is a shell command."""

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

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def row_of(self, kind: str) -> Row | None:
        """The candidates' or the teacher's row."""
        return next((row for row in self.rows if row.kind == kind), None)


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Reads a recipe's TOML. Raises InputError where it is none."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def parse_recipe(data: Mapping[str, Any], path: str | Path, known: Collection[str] | None = None) -> Recipe:
    """Checks what `load_recipe` read from `path`. `known` are the variables that the shell scripts have.

    Raises InputError, naming the file and the key, for one that is unknown, missing or of the wrong type.
    """
    recipe = _Keys(data, str(path), "")
    variables = _variables(recipe.take("variables", dict), recipe, "variables", known)
    if not isinstance(variables.get("max_seq_length"), int):
        raise InputError(f"{path}: variables.max_seq_length: needed, a whole number")
    seeds = _seeds(recipe.take("seeds", list), recipe, "seeds")
    standard_kd = recipe.take("standard_kd", str, None)
    query_sets = [_query_set(name, recipe.below("test_sets", name)) for name in recipe.take("test_sets", dict)]
    measures = {queries.name: queries.measures for queries in query_sets}
    rows = [
        _row(name, recipe.below("rows", name), seeds, standard_kd, measures, known)
        for name in recipe.take("rows", dict)
    ]
    found = Recipe(
        name=recipe.take("name", str),
        title=recipe.take("title", str),
        prepare=recipe.take("prepare", str, ""),
        variables=variables,
        query_sets=query_sets,
        rows=rows,
        orders=recipe.take("orders", list, []),
        timing_pairs=recipe.take("timing_pairs", int),
        timing_rounds=recipe.take("timing_rounds", int),
        notes=recipe.take("notes", list, []),
    )
    recipe.check_all_taken()
    if not _NAME.fullmatch(found.name):
        recipe.refuse("name", f"'{found.name}' is no name of a folder")
    for key in ("timing_pairs", "timing_rounds"):
        if getattr(found, key) < 1:
            recipe.refuse(key, "needs to be 1 or more")
    for key in ("test_sets", "rows"):
        if not data[key]:
            recipe.refuse(key, "is empty")
    if not all(isinstance(note, str) for note in found.notes):
        recipe.refuse("notes", "needs to be a list of texts")
    _check_rows(found, recipe)
    return found


def _check_rows(recipe: Recipe, keys: "_Keys") -> None:
    students = [row.name for row in recipe.rows if row.kind == "student"]
    for kind in KINDS[:2]:
        if sum(row.kind == kind for row in recipe.rows) > 1:
            keys.refuse("rows", f"more than one row of kind {kind}")
    labels = [row.label for row in recipe.rows]
    for row in recipe.rows:
        if labels.count(row.label) > 1:
            keys.refuse(f"rows.{row.name}.label", f"'{row.label}' names two rows")
        if row.standard_kd not in (None, *students):
            keys.refuse(f"rows.{row.name}.standard_kd", f"there is no row {row.standard_kd} of a student")
    for order in recipe.orders:
        if not isinstance(order, list) or len(order) < 2 or any(name not in students for name in order):
            keys.refuse("orders", "needs to be lists of two or more names of students' rows")


class _Keys:
    """A table of a recipe, of which keys are taken one by one; refusals name the file and the key."""

    def __init__(self, data: Mapping[str, Any], path: str, prefix: str) -> None:
        self._left, self._data, self._path, self._prefix = dict(data), data, path, prefix

    def refuse(self, key: str, reason: str) -> None:
        raise InputError(f"{self._path}: {self._prefix}{key}: {reason}")

    def take(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        if key not in self._left:
            if default is _REQUIRED:
                self.refuse(key, "is missing")
            return default
        value = self._left.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = {str: "text", int: "a whole number", list: "a list [...]", dict: "a table"}
            self.refuse(key, f"{value!r} where {names[kind]} is needed")
        return value

    def below(self, key: str, name: str) -> "_Keys":
        if not _NAME.fullmatch(name):
            self.refuse(f"{key}.{name}", "names a file, so it needs to be of letters, digits, - and _")
        table = self._data[key][name]
        if not isinstance(table, dict):
            self.refuse(f"{key}.{name}", f"{table!r} where a table is needed")
        return _Keys(table, self._path, f"{self._prefix}{key}.{name}.")

    def check_all_taken(self) -> None:
        for key in self._left:
            self.refuse(key, "is unknown")


def _query_set(name: str, keys: _Keys) -> QuerySet:
    queries = QuerySet(name, *(keys.take(key, str) for key in QuerySet._fields[1:4]), keys.take("measures", list))
    keys.check_all_taken()
    if not queries.measures or len(set(map(str, queries.measures))) < len(queries.measures):
        keys.refuse("measures", "needs to be a list of measures, each once")
    for measure in queries.measures:
        try:
            canonical_name(str(measure))
        except ValueError as error:
            keys.refuse("measures", str(error))
        if not is_mean(str(measure)):
            keys.refuse("measures", f"'{measure}' is no mean over queries, which a table needs")
    return queries


def _row(
    name: str,
    keys: _Keys,
    seeds: list[int],
    standard_kd: str | None,
    measures: Mapping[str, list[str]],
    known: Collection[str] | None,
) -> Row:
    kind = keys.take("kind", str, "student")
    if kind not in KINDS:
        keys.refuse("kind", f"'{kind}' is none of {', '.join(KINDS)}")
    own = keys.take("seeds", list, None)
    variables = _variables(keys.take("variables", dict, {}), keys, "variables", known)
    if kind != "student" and (own is not None or variables):
        keys.refuse("seeds" if own is not None else "variables", f"has no use in a row of kind {kind}")
    paper = dict(keys.take("paper", dict, {}))
    speed_up = paper.pop("speed_up", None)
    figures = [] if speed_up is None else [speed_up]
    for queries, of_queries in paper.items():
        if queries not in measures or not isinstance(of_queries, dict) or set(of_queries) - set(measures[queries]):
            keys.refuse(f"paper.{queries}", "needs to be {MEASURE = figure} of a test set, with measures that it has")
        figures += of_queries.values()
    if not all(isinstance(figure, int | float) and not isinstance(figure, bool) for figure in figures):
        keys.refuse("paper", "needs numbers")
    row = Row(
        name=name,
        label=keys.take("label", str),
        kind=kind,
        seeds=[] if kind != "student" else seeds if own is None else _seeds(own, keys, "seeds"),
        variables=variables,
        standard_kd=keys.take("standard_kd", str, standard_kd),
        paper=paper,
        paper_speed_up=speed_up,
    )
    keys.check_all_taken()
    return row


def _seeds(seeds: list, keys: _Keys, key: str) -> list[int]:
    is_seed = (isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not all(is_seed) or len(set(seeds)) < len(seeds):
        keys.refuse(key, f"{seeds} where a list of different whole numbers is needed")
    return seeds


def _variables(variables: dict, keys: _Keys, key: str, known: Collection[str] | None) -> dict[str, Variable]:
    for name, value in variables.items():
        if known is not None and name not in known:
            keys.refuse(f"{key}.{name}", "is no variable of distill.sh or reranker.sh that a row may set")
        if not isinstance(value, str | int | float):
            keys.refuse(f"{key}.{name}", f"{value!r} where text, a number, true or false is needed")
    return variables
