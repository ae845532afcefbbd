"""Plain text packed into examples of full length, for general distillation (Jiao et al. 2020, section 3)."""

import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from enum import IntEnum

import numpy as np

from tokenization.wordpiece import WordPiece

# A long line is tokenized in pieces, because the tokenizer makes an object of every word of a piece. A piece ends
# before a space, which no token crosses.
_PIECE = re.compile(r".{1,1000}[^ ]*", re.DOTALL)


class Edge(IntEnum):
    """What begins with a piece of text. The second segment of an example begins at the highest edge in the example."""

    NONE = 0
    LINE = 1
    DOCUMENT = 2


def pack_text(
    tokenizer: WordPiece, lines: Iterable[tuple[str, bool]], max_seq_length: int, seed: int
) -> Iterator[tuple[list[int], int]]:
    """Packs lines into examples `[CLS] A [SEP] B [SEP]`. A line is its text, and whether a document begins with it.

    Yields for each example its token ids and the length of its first segment, `[CLS] A [SEP]`. An example has
    `max_seq_length` tokens; the last one may have fewer. `pack` says what A and B are.
    """
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    for first, second in pack(tokenize_lines(tokenizer, lines), max_seq_length - 3, seed):
        yield [cls, *first, sep, *second, sep], len(first) + 2


def tokenize_lines(tokenizer: WordPiece, lines: Iterable[tuple[str, bool]]) -> Iterator[tuple[list[int], Edge]]:
    """The token ids of each line, in order, with what begins there. A long line comes in several pieces."""
    for text, begins_document in lines:
        edge = Edge.DOCUMENT if begins_document else Edge.LINE
        for piece in _PIECE.findall(text):
            yield tokenizer.encode(piece).tolist(), edge
            edge = Edge.NONE


def pack(
    pieces: Iterable[tuple[list[int], Edge]], tokens_per_example: int, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Cuts a stream of tokens into windows of `tokens_per_example`, at least 2, and each window into two segments.

    `pieces` are token ids, each with what begins there. All tokens are used once and in order. A window may cross the
    edges of lines and documents. The last window may be shorter; a single token that remains is dropped.

    The second segment begins with a document. If no document begins inside the window, it begins with a line; if no
    line begins there, it begins at any token. Of several such places one is sampled, by `seed` and the window's number.
    """
    tokens: list[int] = []
    edges: dict[Edge, list[int]] = {Edge.DOCUMENT: [], Edge.LINE: []}  # positions in `tokens`, ascending
    numbers = itertools.count()

    def window(start: int, end: int) -> tuple[list[int], list[int]]:
        number = next(numbers)
        document_edges, line_edges = (
            places[bisect_right(places, start) : bisect_left(places, end)] for places in edges.values()
        )
        places = document_edges or line_edges or range(start + 1, end)
        middle = places[np.random.default_rng([seed, number]).integers(len(places)) if len(places) > 1 else 0]
        return tokens[start:middle], tokens[middle:end]

    edge = Edge.NONE
    for ids, begins in pieces:
        edge = max(edge, begins)
        if not ids:  # the edge belongs to the next token
            continue
        if edge:
            edges[edge].append(len(tokens))
            edge = Edge.NONE
        tokens += ids
        start = 0
        while len(tokens) - start >= tokens_per_example:
            yield window(start, start + tokens_per_example)
            start += tokens_per_example
        if start:
            del tokens[:start]
            edges = {kind: [place - start for place in places if place > start] for kind, places in edges.items()}
    if len(tokens) >= 2:
        yield window(0, len(tokens))
