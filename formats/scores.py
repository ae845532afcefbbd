"""Passage scores: `query_id, passage_id, score`, tab-separated, one passage per line; `.gz` by suffix."""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from formats.atomic import atomic_write
from formats.lines import FirstLines, OnMalformed, check_id, read_rows, refuse_line

_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class PassageScore(NamedTuple):
    """How relevant a passage is to a query. Higher is better."""

    query_id: str
    passage_id: str
    score: float


def parse_score(text: str) -> float:
    """Reads a decimal number, with or without exponent.

    Raises ValueError for all else that `float` accepts (`nan`, `inf`, `1_0`, blanks), and for overflow (`1e999`).
    """
    if not _DECIMAL.fullmatch(text) or not math.isfinite(score := float(text)):
        raise ValueError(f"score '{text}' is not a finite number")
    return score


def split_passage_id(passage_id: str) -> tuple[str, int]:
    """Splits `doc_id_PASSAGE` at the last `_` into the document id and the number at the end of PASSAGE.

    `D12_3` and `D12_passage-3` both give `("D12", 3)`. Raises ValueError if there is no `_`, no document id, or no
    number of at most 18 digits.
    """
    doc_id, _, passage = passage_id.rpartition("_")
    number = passage[len(passage.rstrip("0123456789")) :]
    if not doc_id or not 0 < len(number) <= 18:
        raise ValueError(f"passage id '{passage_id}' is not a document id, '_' and a passage number, such as D12_3")
    return doc_id, int(number)


def read_scores(path: str | Path) -> Iterator[PassageScore]:
    """Streams the scores of a file.

    Raises InputError, which names file and line, for a wrong number of columns, an id that is empty or holds white
    space, a score that is not a finite number, and a passage that already has a score for its query.
    """
    return (row for _, row in read_numbered_scores(path))


def read_numbered_scores(
    path: str | Path, on_malformed: OnMalformed | None = None
) -> Iterator[tuple[int, PassageScore]]:
    """As `read_scores`, with line numbers. With `on_malformed`, malformed lines are skipped, as in `read_rows`."""
    passages = FirstLines(path, _score, key=lambda row: row[:2])
    for number, row in read_rows(path, _score, on_malformed):
        if first := passages.earlier(number, row):
            reason = f"passage {row.passage_id} of query {row.query_id} has a score already, in line {first}"
            refuse_line(path, number, reason, on_malformed)
        else:
            yield number, row


def _score(line: str) -> PassageScore:
    fields = line.split("\t")
    if len(fields) != 3:
        raise ValueError(f"{len(fields)} columns where 3 are needed (query_id, passage_id, score)")
    query_id, passage_id, score = fields
    return PassageScore(check_id("query", query_id), check_id("passage", passage_id), parse_score(score))


def format_score_line(row: PassageScore) -> str:
    """One line with its line end. Reading it back gives the same float64."""
    query_id, passage_id, score = row
    return f"{query_id}\t{passage_id}\t{float(score)!r}\n"


def write_scores(path: str | Path, rows: Iterable[PassageScore]) -> int:
    """Writes scores and returns their number."""
    count = 0
    with atomic_write(path) as file:
        for row in rows:
            file.write(format_score_line(row))
            count += 1
    return count
