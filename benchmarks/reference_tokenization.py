"""The reference implementation of the published tokenizer: BERT's basic tokenizer and WordPiece, one CSV line per pair.

It goes character by character and piece by piece, as `tokenization.py` of Devlin et al. 2019, and pads to a fixed
length. There is one difference: text never becomes a control token.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple


class PaddedExample(NamedTuple):
    """A tokenized pair: three lists of length `max_seq_length`."""

    input_ids: list[int]
    input_mask: list[int]
    segment_ids: list[int]


def is_space(char: str) -> bool:
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def is_control(char: str) -> bool:
    return char not in "\t\n\r" and unicodedata.category(char).startswith("C")


def is_punctuation(char: str) -> bool:
    code = ord(char)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(char).startswith("P")


def is_cjk(char: str) -> bool:
    code = ord(char)
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B820 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


def basic_tokens(text: str, do_lower_case: bool) -> list[str]:
    """Splits a text into words and punctuation. Control characters are removed, and each CJK character is a word. With
    `do_lower_case` words are in lower case without accents."""
    cleaned = []
    for char in text:
        if char in "\0\ufffd" or is_control(char):
            continue
        cleaned.append(" " if is_space(char) else char)
    spaced = []
    for char in "".join(cleaned):
        spaced.extend((" ", char, " ") if is_cjk(char) else char)
    tokens = []
    for word in "".join(spaced).split():
        if do_lower_case:
            word = unicodedata.normalize("NFD", word.lower())
            word = "".join(char for char in word if unicodedata.category(char) != "Mn")
        begins = True
        parts: list[list[str]] = []
        for char in word:
            if is_punctuation(char):
                parts.append([char])
                begins = True
            else:
                if begins:
                    parts.append([])
                begins = False
                parts[-1].append(char)
        tokens += ["".join(part) for part in parts]
    return " ".join(tokens).split()


def wordpieces(word: str, vocabulary: dict[str, int]) -> list[str]:
    """Greedy longest-match-first. A word is [UNK] if a part of it has no piece, or if it is too long."""
    if len(word) > 100:
        return ["[UNK]"]
    pieces, start = [], 0
    while start < len(word):
        end = len(word)
        while start < end:
            piece = ("##" if start else "") + word[start:end]
            if piece in vocabulary:
                break
            end -= 1
        else:
            return ["[UNK]"]
        pieces.append(piece)
        start = end
    return pieces


def tokenize(text: str, vocabulary: dict[str, int], do_lower_case: bool) -> list[str]:
    return [piece for word in basic_tokens(text, do_lower_case) for piece in wordpieces(word, vocabulary)]


def truncate(query: list[str], passage: list[str], limit: int) -> None:
    """Drops the last token of the longer side, of the passage if they are equally long, until both sides fit."""
    while len(query) + len(passage) > limit:
        (query if len(query) > len(passage) else passage).pop()


def padded_example(
    query: str, passage: str, vocabulary: dict[str, int], do_lower_case: bool, max_seq_length: int
) -> PaddedExample:
    first, second = (tokenize(text, vocabulary, do_lower_case) for text in (query, passage))
    truncate(first, second, max_seq_length - 3)
    tokens = ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
    segment_ids = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    padding = [0] * (max_seq_length - len(tokens))
    input_ids = [vocabulary[token] for token in tokens]
    return PaddedExample(input_ids + padding, [1] * len(tokens) + padding, segment_ids + padding)


def write_csv(
    file: IO[str],
    pairs: Iterable[tuple[str, str, str, int]],
    vocabulary: dict[str, int],
    do_lower_case: bool,
    max_seq_length: int,
) -> Iterator[PaddedExample]:
    """Writes one line per pair: its id, token ids, mask, segments and label. Yields each example.

    A pair is its id, query, passage and label.
    """
    for example_id, query, passage, label in pairs:
        example = padded_example(query, passage, vocabulary, do_lower_case, max_seq_length)
        columns = [" ".join(map(str, column)) for column in example]
        file.write(",".join([example_id, *columns, str(label)]) + "\n")
        yield example
