"""Pairs: `example_id, query, passage` and, for training, `label`, tab-separated, one pair per line; `.gz` by suffix."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from formats.atomic import atomic_write
from formats.lines import FirstLines, OnMalformed, read_rows, refuse_line
from runtime.errors import InputError

NO_LABEL = -1
COLUMNS = ("example_id", "query", "passage", "label")


class Pair(NamedTuple):
    """A query and a passage. The label is 1 (relevant), 0 (not relevant) or -1 (no label)."""

    example_id: str
    query: str
    passage: str
    label: int = NO_LABEL


def make_example_id(query_id: str, doc_id: str, passage_number: int) -> str:
    """The example id of a query and a passage of a document: `query_id#doc_id_passage-N`, N from 0.

    Raises InputError if it would be split into other ids: for a `#` in the query id, an empty id, or white space.
    """
    example_id = f"{query_id}#{doc_id}_passage-{passage_number}"
    if not query_id or not doc_id or "#" in query_id or example_id.split() != [example_id]:
        raise InputError(
            f"query id '{query_id}' and document id '{doc_id}': an id is not empty and has no white space, and a query "
            "id has no '#', because pair ids are split at the first '#'; rename it in the files"
        )
    return example_id


def split_example_id(example_id: str) -> tuple[str, str]:
    """Splits `query_id#passage_id` at the first `#`.

    Raises ValueError if there is no `#`, or if an id is empty or holds white space or a NUL, which a run cannot hold.
    """
    query_id, hash_sign, passage_id = example_id.partition("#")
    if not hash_sign:
        raise ValueError(f"example id '{example_id}' has no '#' between its query id and its passage id")
    for name, value in (("query", query_id), ("passage", passage_id)):
        if value.split() != [value] or "\0" in value:
            raise ValueError(f"example id '{example_id}' needs a {name} id that is not empty and has no white space")
    return query_id, passage_id


def split_example_ids(example_ids: list[str]) -> list[tuple[str, str]]:
    """Splits many example ids, several times as fast as one after another.

    Raises ValueError, which begins with the number of the example, for the first id that cannot be split.
    """
    joined = "\n".join(example_ids)
    if joined.split() == example_ids and "\0" not in joined:
        parts = [example_id.partition("#") for example_id in example_ids]
        if all(query_id and passage_id for query_id, _, passage_id in parts):
            return [(query_id, passage_id) for query_id, _, passage_id in parts]
    pairs = []
    for i, example_id in enumerate(example_ids):
        try:
            pairs.append(split_example_id(example_id))
        except ValueError as error:
            raise ValueError(f"example {i}: {error}") from None
    return pairs


def read_pairs(path: str | Path, labelled: bool, on_malformed: OnMalformed | None = None) -> Iterator[Pair]:
    """Streams the pairs of a file: four columns if `labelled`, else three columns with ids `query_id#passage_id`.

    Raises InputError, which names file and line, for a wrong number of columns, an empty field, and a label other than
    0 or 1. If not `labelled`, also for an id without `#`, with white space, or that an earlier line has. With
    `on_malformed`, such lines are skipped, as in `read_rows`.
    """
    if labelled:
        for _, pair in read_rows(path, _labelled_pair, on_malformed):
            yield pair
        return
    ids = FirstLines(path, _unlabelled_pair, key=lambda pair: pair.example_id)
    for number, pair in read_rows(path, _unlabelled_pair, on_malformed):
        if first := ids.earlier(number, pair):
            refuse_line(path, number, f"example id {pair.example_id} is already in line {first}", on_malformed)
        else:
            yield pair


def _labelled_pair(line: str) -> Pair:
    example_id, query, passage, label = _fields(line, COLUMNS)
    if label not in ("0", "1"):
        raise ValueError(f"label '{label}' is neither 0 nor 1")
    return Pair(example_id, query, passage, int(label))


def _unlabelled_pair(line: str) -> Pair:
    fields = _fields(line, COLUMNS[:3])
    split_example_id(fields[0])
    return Pair(*fields)


def _fields(line: str, names: tuple[str, ...]) -> list[str]:
    fields = line.split("\t")
    if len(fields) != len(names):
        raise ValueError(f"{len(fields)} columns where {len(names)} are needed ({', '.join(names)})")
    if not all(map(str.strip, fields)):
        name = next(name for name, field in zip(names, fields, strict=True) if not field.strip())
        raise ValueError(f"the {name} is empty")
    return fields


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> int:
    """Writes pairs and returns their number. A pair without a label has no label column.

    Consecutive white space in a text, also tabs and line ends, becomes one blank.
    """
    count = 0
    with atomic_write(path) as file:
        for pair in pairs:
            fields = [pair.example_id, " ".join(pair.query.split()), " ".join(pair.passage.split())]
            if pair.label != NO_LABEL:
                fields.append(str(pair.label))
            file.write("\t".join(fields) + "\n")
            count += 1
    return count
