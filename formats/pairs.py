"""Pairs: `example_id, query, passage` and, for training, `label`, tab-separated, one pair a line, `.gz` by suffix."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from formats.files import InputError, read_lines, write_whole

NO_LABEL = -1
COLUMNS = ("example_id", "query", "passage", "label")


class Pair(NamedTuple):
    """A query and a passage. `label` is 1 (relevant), 0 (not) or -1 (none)."""

    example_id: str
    query: str
    passage: str
    label: int = NO_LABEL


def make_example_id(query_id: str, doc_id: str, passage_number: int) -> str:
    """The id of a document's passage for a query, `query_id#doc_id_passage-N`, N from 0.

    Raises InputError where it would be split into other ids: for a `#` in the query's, or white space in either.
    """
    example_id = f"{query_id}#{doc_id}_passage-{passage_number}"
    if not query_id or not doc_id or "#" in query_id or example_id.split() != [example_id]:
        raise InputError(
            f"query id '{query_id}' and document id '{doc_id}': neither may be empty or hold white space, "
            "nor the first a '#', at which the ids of pairs are split; rename it in the files"
        )
    return example_id


def split_example_id(example_id: str) -> tuple[str, str]:
    """Splits `query_id#passage_id` at the first `#`.

    Raises ValueError where there is no `#`, or where either id is empty or holds white space, which no run could carry.
    """
    query_id, hash_sign, passage_id = example_id.partition("#")
    if not hash_sign:
        raise ValueError(f"example id '{example_id}' has no '#' between its query id and its passage id")
    for name, value in (("query", query_id), ("passage", passage_id)):
        if value.split() != [value]:
            raise ValueError(f"example id '{example_id}' needs a {name} id that is not empty and has no white space")
    return query_id, passage_id


def read_pairs(path: str | Path, labelled: bool) -> Iterator[Pair]:
    """Streams the pairs of a file: four columns where `labelled`, else three with ids `query_id#passage_id`.

    Raises InputError, naming file and line, for a wrong number of columns, an empty field, a label other than 0 or 1,
    or an id without `#`.
    """
    columns = 4 if labelled else 3
    for number, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) != columns:
            names = ", ".join(COLUMNS[:columns])
            raise InputError(f"{path} line {number}: {len(fields)} columns where {columns} are needed ({names})")
        if not all(map(str.strip, fields)):
            name = next(name for name, field in zip(COLUMNS, fields, strict=False) if not field.strip())
            raise InputError(f"{path} line {number}: the {name} is empty")
        if not labelled:
            try:
                split_example_id(fields[0])
            except ValueError as error:
                raise InputError(f"{path} line {number}: {error}") from None
            yield Pair(*fields)
        elif fields[3] in ("0", "1"):
            yield Pair(*fields[:3], int(fields[3]))
        else:
            raise InputError(f"{path} line {number}: label '{fields[3]}' is neither 0 nor 1")


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> int:
    """Writes pairs, with the label column where a pair has a label; returns how many.

    Every run of white space in a text, tabs and line ends included, becomes one blank.
    """
    count = 0
    with write_whole(path) as file:
        for pair in pairs:
            fields = [pair.example_id, " ".join(pair.query.split()), " ".join(pair.passage.split())]
            if pair.label != NO_LABEL:
                fields.append(str(pair.label))
            file.write("\t".join(fields) + "\n")
            count += 1
    return count
