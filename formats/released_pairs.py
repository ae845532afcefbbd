"""Pairs as the paper's authors released them: `index, query_text, passage_text, label_id`; test pairs have no label.

The separator is a tab or a comma, and the first line can be a header.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from formats.lines import OnMalformed, read_lines, refuse_line
from formats.pairs import NO_LABEL, Pair, split_example_id
from runtime.errors import InputError

COLUMNS = ("index", "query_text", "passage_text", "label_id")
_HEADER_FIELD = re.compile(r"[A-Za-z_]*")  # no blanks, unlike a query
_MOST_CHARACTERS = 1 << 26  # of a field


def read_released_pairs(path: Path, labelled: bool, on_malformed: OnMalformed | None = None) -> Iterator[Pair]:
    """Streams the pairs of a file: with labels (training), or without, and then with ids `query_id#passage_id`.

    Fields that are separated by tabs have no quotes. Fields that are separated by commas can have quotes, as CSV.

    Raises InputError, which names file and line, for a wrong number of columns, an empty field, a label other than 0
    or 1, and an id without `#` of a pair without label. With `on_malformed`, such lines are skipped and passed to it.
    """
    count = 4 if labelled else 3
    found = False
    for place, (number, fields) in enumerate(_rows(path)):
        if place == 0 and _is_header(fields, labelled):
            continue
        try:
            pair = _pair(fields, count)
        except ValueError as error:
            refuse_line(path, number, str(error), on_malformed)
            continue
        found = True
        yield pair
    if not found:
        raise InputError(f"{path} has no usable line")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the fields of each line. The first line decides what the separator is."""
    lines = read_lines(path, web_text=True)
    first_number, first = next(lines)
    if "\t" in first:
        yield first_number, first.split("\t")
        for number, line in lines:
            yield number, line.split("\t")
        return
    csv.field_size_limit(_MOST_CHARACTERS)
    texts = (f"{line}\n" for _, line in read_lines(path, web_text=True))
    reader = csv.reader(texts, skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: no CSV: {error}") from None


def _is_header(fields: list[str], labelled: bool) -> bool:
    if not fields:
        return False
    is_data = fields[-1].strip() in ("0", "1") if labelled else "#" in fields[0]
    return not is_data and all(map(_HEADER_FIELD.fullmatch, fields))


def _pair(fields: list[str], count: int) -> Pair:
    if len(fields) != count:
        raise ValueError(f"{len(fields)} columns where {count} are needed ({', '.join(COLUMNS[:count])})")
    fields = [field.strip() for field in fields]
    if not all(fields):
        raise ValueError(f"the {COLUMNS[fields.index('')]} is empty")
    if count == 3:
        split_example_id(fields[0])
        return Pair(*fields, NO_LABEL)
    if fields[3] not in ("0", "1"):
        raise ValueError(f"label_id '{fields[3]}' is neither 0 nor 1")
    return Pair(*fields[:3], int(fields[3]))
