"""TREC runs (`query_id Q0 doc_id rank score run_name`) and qrels (`query_id 0 doc_id relevance`, or those of BEIR)."""

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

# The white space of trec_eval (isspace in the C locale). str.split would also split an id at a no-break space.
_COLUMN = re.compile(r"[^ \t\v\f]+")
# The first line of the qrels of BEIR. They have these columns.
_BEIR_HEADER = ["query-id", "corpus-id", "score"]
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


class ScoredDoc(NamedTuple):
    """One line of a run."""

    query_id: str
    doc_id: str
    score: float


class RankedDoc(NamedTuple):
    """One line of a run, with its rank column."""

    query_id: str
    doc_id: str
    rank_and_score: tuple[int, float]


class Qrel(NamedTuple):
    """One relevance judgment. A relevance above 0 is relevant."""

    query_id: str
    doc_id: str
    relevance: int


def rank_documents(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """The `(doc_id, score)` of one query in the order of trec_eval: by score, then by document id, both descending.

    trec_eval 9.0.8 stores a score as a 32-bit float (`form_res_rels.c`, `comp_sim_docno`), so scores that are equal in
    32 bits are ties here. It compares ids byte by byte. For UTF-8 this is the order of Python strings.
    """
    keys = zip(_as_float32(list(scores.values())).tolist(), scores, strict=True)
    return [(doc_id, scores[doc_id]) for _, doc_id in sorted(keys, reverse=True)]


def read_run(path: str | Path, on_malformed: OnMalformed | None = None) -> dict[str, dict[str, float]]:
    """Reads `{query_id: {doc_id: score}}`, with the queries in the order of the file. The rank column is ignored.

    Raises InputError, which names file and line, for a wrong number of columns, a score that is not a finite number,
    and a document that an earlier line has for the same query. With `on_malformed`, such lines are skipped, as in
    `read_rows`.
    """
    return _read_run(path, _scored_doc, on_malformed)


def read_ranked_run(
    path: str | Path, on_malformed: OnMalformed | None = None
) -> dict[str, dict[str, tuple[int, float]]]:
    """Reads `{query_id: {doc_id: (rank, score)}}` as `read_run` does. It also refuses a rank that is not an integer."""
    return _read_run(path, _ranked_doc, on_malformed)


def _read_run(
    path: str | Path, parse: Callable[[str], ScoredDoc | RankedDoc], on_malformed: OnMalformed | None
) -> dict[str, dict]:
    """Reads `{query_id: {doc_id: value}}` of a run. `parse` returns `(query_id, doc_id, value)` of a line."""
    run: dict[str, dict] = {}
    documents = FirstLines(path, parse, key=lambda row: row[:2])
    for number, row in read_rows(path, parse, on_malformed):
        query_id, doc_id, value = row
        values = run.setdefault(query_id, {})
        if doc_id in values:
            first = documents.of_repeated(row)
            reason = f"document {doc_id} of query {query_id} is already in line {first}"
            refuse_line(path, number, reason, on_malformed)
            continue
        # Queries of a run share documents: one string per id instead of one per line.
        values[sys.intern(doc_id)] = value
    return run


def read_qrels(
    path: str | Path, on_conflict: Callable[[str], None] | None = None, on_malformed: OnMalformed | None = None
) -> dict[str, dict[str, int]]:
    """Reads `{query_id: {doc_id: relevance}}`. A repeated judgment with the same relevance counts once.

    A file whose first line is `query-id corpus-id score` is from BEIR and has these three columns.

    Two judgments of a document with different relevance are a conflict. With `on_conflict`, the higher relevance is
    used, and `on_conflict` is called with a message that names both lines. Without it, a conflict is an error.

    Raises InputError, which names file and line, for a wrong number of columns, a relevance that is not an integer, and
    such a conflict. With `on_malformed`, lines with wrong columns or relevance are skipped, as in `read_rows`.
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
    """As `read_qrels`. In a conflict the higher relevance is used, and a note on stderr counts the conflicts."""
    conflicts: list[str] = []
    qrels = read_qrels(path, conflicts.append, on_malformed)
    if conflicts:
        print(
            f"note: {len(conflicts)} contradictory judgments, the higher relevance is used: {conflicts[0]}",
            file=sys.stderr,
        )
    return qrels


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], run_name: str) -> int:
    """Writes a run, ranked by score and then by document id, both descending. Returns the number of lines.

    Raises InputError for a score that a 32-bit float of trec_eval cannot hold.
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
    """The `{doc_id: score}` of one query as a run holds them: by score, then by document id, both descending.

    Raises ValueError as `keep_order_in_float32` does.
    """
    ranking = sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
    written = keep_order_in_float32([score for _, score in ranking])
    return {doc_id: score for (doc_id, _), score in zip(ranking, written, strict=True)}


def write_qrels(path: str | Path, qrels: Mapping[str, Mapping[str, int]]) -> int:
    """Writes qrels in the layout of TREC. Returns the number of judgments."""
    rows = [(query_id, doc_id, grade) for query_id, grades in qrels.items() for doc_id, grade in grades.items()]
    with atomic_write(path) as file:
        file.writelines(qrel_line(*row) for row in rows)
    return len(rows)


def qrel_line(query_id: str, doc_id: str, relevance: int) -> str:
    """Returns the line of a relevance judgment in the layout of TREC."""
    return f"{query_id}\t0\t{doc_id}\t{relevance}\n"


def keep_order_in_float32(scores: list[float]) -> list[float]:
    """Returns descending scores such that trec_eval, which stores 32-bit floats, sees the same order.

    Scores of a ranker are often close to 1. There, float64 scores can differ and still be equal in 32 bits, and
    trec_eval would rank them by id. If a score is lower than the score before it, but not in 32 bits, it becomes the
    next 32-bit float below the score before it. Equal scores stay equal. All other scores are unchanged.

    Raises ValueError if a score is not finite in 32 bits.
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
    try:
        query_id, *_, doc_id, relevance = _columns(line, names)
    except ValueError as error:
        if len(names) == 4 and len(_COLUMN.findall(line)) == 3:
            raise ValueError(f"{error}; BEIR's three columns need the first line '{' '.join(_BEIR_HEADER)}'") from None
        raise
    if not _INTEGER.fullmatch(relevance):
        raise ValueError(f"relevance '{relevance}' is not an integer")
    return Qrel(query_id, doc_id, int(relevance))


def _columns(line: str, names: tuple[str, ...]) -> list[str]:
    fields = _COLUMN.findall(line)
    if len(fields) != len(names):
        raise ValueError(f"{len(fields)} columns where {len(names)} are needed ({', '.join(names)})")
    return fields
