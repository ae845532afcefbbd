"""TREC runs (`query_id Q0 doc_id rank score run_name`) and judgements (`query_id 0 doc_id relevance`, or BEIR's)."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from formats.atomic import atomic_write
from formats.lines import FirstLines, OnMalformed, read_lines, read_rows, refuse_line
from formats.scores import parse_score
from runtime.errors import InputError

# What trec_eval takes as white space (isspace of the C locale); str.split would also part an id at a no-break space.
_COLUMN = re.compile(r"[^ \t\v\f]+")
# The line with which BEIR's judgements begin; theirs have these columns.
_BEIR_HEADER = ["query-id", "corpus-id", "score"]
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


class ScoredDoc(NamedTuple):
    """One line of a run."""

    query_id: str
    doc_id: str
    score: float


class RankedDoc(NamedTuple):
    """One line of a run of which the rank column counts."""

    query_id: str
    doc_id: str
    rank_and_score: tuple[int, float]


class Qrel(NamedTuple):
    """One judgement: a relevance above 0 is relevant."""

    query_id: str
    doc_id: str
    relevance: int


def rank_documents(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """One query's `(doc_id, score)` in the order that trec_eval gives them: score, then document id, both descending.

    trec_eval 9.0.8 holds a score as a 32-bit float (`form_res_rels.c`, `comp_sim_docno`), so scores that differ only
    beyond that tie here. It compares ids byte by byte, which for UTF-8 is the order of Python's strings.
    """
    keys = zip(_as_float32(list(scores.values())).tolist(), scores, strict=True)
    return [(doc_id, scores[doc_id]) for _, doc_id in sorted(keys, reverse=True)]


def read_run(path: str | Path, on_malformed: OnMalformed | None = None) -> dict[str, dict[str, float]]:
    """Reads `{query_id: {doc_id: score}}`, queries in order of appearance. The rank column is not looked at.

    Raises InputError, naming file and line, for a wrong number of columns, a score that is not a finite number, or a
    document that its query has already. With `on_malformed` such lines are left out, as in `read_rows`.
    """
    return _read_run(path, _scored_doc, on_malformed)


def read_ranked_run(
    path: str | Path, on_malformed: OnMalformed | None = None
) -> dict[str, dict[str, tuple[int, float]]]:
    """Reads `{query_id: {doc_id: (rank, score)}}` as `read_run` does; a rank that is not an integer is a fault too."""
    return _read_run(path, _ranked_doc, on_malformed)


def _read_run(
    path: str | Path, parse: Callable[[str], ScoredDoc | RankedDoc], on_malformed: OnMalformed | None
) -> dict[str, dict]:
    """Reads `{query_id: {doc_id: value}}` of a run, of which `parse` makes `(query_id, doc_id, value)` of each line."""
    run: dict[str, dict] = {}
    documents = FirstLines(path, parse, key=lambda row: row[:2])
    for number, row in read_rows(path, parse, on_malformed):
        query_id, doc_id, value = row
        values = run.setdefault(query_id, {})
        if doc_id in values:
            first = documents.of_repeated(row)
            reason = f"document {doc_id} of query {query_id} stands in line {first} already"
            refuse_line(path, number, reason, on_malformed)
            continue
        # The queries of a run share documents: one string for each id, not one for each line.
        values[sys.intern(doc_id)] = value
    return run


def read_qrels(
    path: str | Path, on_conflict: Callable[[str], None] | None = None, on_malformed: OnMalformed | None = None
) -> dict[str, dict[str, int]]:
    """Reads `{query_id: {doc_id: relevance}}`. A judgement that is repeated with the same relevance is taken once.

    A file whose first line is `query-id corpus-id score` is BEIR's and has these three columns.

    Where a document has two relevances the file contradicts itself. With `on_conflict` that is called with a message
    naming both lines and the higher relevance holds; without, it is an error.

    Raises InputError, naming file and line, for a wrong number of columns, a relevance that is not an integer, or such
    a conflict. With `on_malformed` lines of other columns or relevances are left out, as in `read_rows`.
    """
    qrels: dict[str, dict[str, int]] = {}
    line_of: dict[tuple[str, str], int] = {}
    for number, row in _qrel_rows(path, on_malformed):
        grades = qrels.setdefault(row.query_id, {})
        known = grades.setdefault(row.doc_id, row.relevance)
        first = line_of.setdefault(row[:2], number)
        if known != row.relevance:
            conflict = (
                f"{path} line {number}: document {row.doc_id} of query {row.query_id} has relevance {row.relevance}, "
                f"but {known} in line {first}"
            )
            if on_conflict is None:
                raise InputError(conflict)
            on_conflict(conflict)
            if row.relevance > known:
                grades[row.doc_id] = row.relevance
                line_of[row[:2]] = number
    if not qrels:
        raise InputError(f"{path} has no usable line")
    return qrels


def read_qrels_with_note(path: str | Path, on_malformed: OnMalformed | None = None) -> dict[str, dict[str, int]]:
    """As `read_qrels`; where judgements contradict each other the higher holds, and a note on stderr counts them."""
    conflicts: list[str] = []
    qrels = read_qrels(path, conflicts.append, on_malformed)
    if conflicts:
        print(
            f"note: {len(conflicts)} contradictory judgements, of which the higher relevance holds: {conflicts[0]}",
            file=sys.stderr,
        )
    return qrels


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], run_name: str) -> int:
    """Writes a run, ranked by score and then document id, both descending; returns how many lines.

    Raises InputError for a score that is beyond the 32-bit floats of trec_eval.
    """
    count = 0
    with atomic_write(path) as file:
        for query_id, scores in run.items():
            try:
                written = written_scores(scores)
            except ValueError as error:
                raise InputError(f"{path}: query {query_id}: {error}") from None
            for rank, (doc_id, score) in enumerate(written.items(), start=1):
                file.write(f"{query_id}\tQ0\t{doc_id}\t{rank}\t{score!r}\t{run_name}\n")
                count += 1
    return count


def written_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """One query's `{doc_id: score}` as a run holds them: by score, then document id, both descending.

    Raises ValueError as `keep_order_in_float32` does.
    """
    ranking = sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
    written = keep_order_in_float32([score for _, score in ranking])
    return {doc_id: score for (doc_id, _), score in zip(ranking, written, strict=True)}


def write_qrels(path: str | Path, qrels: Mapping[str, Mapping[str, int]]) -> int:
    """Writes judgements in TREC's layout; returns how many."""
    rows = [(query_id, doc_id, grade) for query_id, grades in qrels.items() for doc_id, grade in grades.items()]
    with atomic_write(path) as file:
        file.writelines(f"{query_id}\t0\t{doc_id}\t{grade}\n" for query_id, doc_id, grade in rows)
    return len(rows)


def keep_order_in_float32(scores: list[float]) -> list[float]:
    """Descending scores as they have to be written for trec_eval to see their order.

    Near 1, where a ranker saturates, float64 tells documents apart that are one number in trec_eval's 32 bits; it would
    rank them by their ids. So a score that is lower than the one above it, but would not be so in 32 bits, becomes the
    next 32-bit float below what was written above it. Equal scores stay equal, and all others stay as they are.

    Raises ValueError where a score is not finite in 32 bits.
    """
    written: list[float] = []
    narrow = _as_float32(scores)
    for i, score in enumerate(scores):
        if i and score == scores[i - 1]:
            narrow[i], score = narrow[i - 1], written[-1]
        elif i and narrow[i] >= narrow[i - 1]:
            with np.errstate(over="ignore"):
                narrow[i] = np.nextafter(narrow[i - 1], np.float32(-np.inf))
            score = float(narrow[i])
        if not np.isfinite(narrow[i]):
            raise ValueError(f"score {scores[i]!r} is beyond the 32-bit floats in which trec_eval holds scores")
        written.append(float(score))
    return written


def _as_float32(scores: list[float]) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.array(scores, dtype=np.float64).astype(np.float32)


def _scored_doc(line: str) -> ScoredDoc:
    query_id, _, doc_id, _, score, _ = _columns(line, ("query_id", "Q0", "doc_id", "rank", "score", "run_name"))
    return ScoredDoc(query_id, doc_id, parse_score(score))


def _ranked_doc(line: str) -> RankedDoc:
    scored = _scored_doc(line)
    rank = _COLUMN.findall(line)[3]
    if not _INTEGER.fullmatch(rank):
        raise ValueError(f"rank '{rank}' is not an integer")
    return RankedDoc(scored.query_id, scored.doc_id, (int(rank), scored.score))


def _qrel_rows(path: str | Path, on_malformed: OnMalformed | None) -> Iterator[tuple[int, Qrel]]:
    names = ("query_id", "0", "doc_id", "relevance")
    for number, line in read_lines(path, on_malformed=on_malformed):
        if number == 1 and _COLUMN.findall(line) == _BEIR_HEADER:
            names = ("query-id", "corpus-id", "score")
            continue
        try:
            row = _qrel(line, names)
        except ValueError as error:
            refuse_line(path, number, str(error), on_malformed)
            continue
        yield number, row


def _qrel(line: str, names: tuple[str, ...]) -> Qrel:
    query_id, *_, doc_id, relevance = _columns(line, names)
    if not _INTEGER.fullmatch(relevance):
        raise ValueError(f"relevance '{relevance}' is not an integer")
    return Qrel(query_id, doc_id, int(relevance))


def _columns(line: str, names: tuple[str, ...]) -> list[str]:
    fields = _COLUMN.findall(line)
    if len(fields) != len(names):
        raise ValueError(f"{len(fields)} columns where {len(names)} are needed ({', '.join(names)})")
    return fields
