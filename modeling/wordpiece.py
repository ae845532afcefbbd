"""BERT's WordPiece (`tokenization.py` of Devlin et al. 2019), each distinct word of a collection worked out once.

Blanks part a text into chunks, which share no token and nothing that decides a token. A collection is made of few
distinct chunks, so that a text costs little more than a look-up for each of its own. Loads no torch.
"""

import functools
import re
import unicodedata
from array import array
from collections.abc import Callable, Sequence

import numpy as np

LONGEST_WORD = 100  # characters; a longer one is [UNK]

# How many chunks are kept, about 60 MB, and of what length at most: no sentences of a script without blanks.
CHUNKS, CHUNK_LENGTH = 1 << 18, 64

_ASCII_WORDS = re.compile("[A-Za-z0-9]+|[^A-Za-z0-9]")
# The blocks that `_is_chinese_char` names.
_CJK = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf"
    "\uf900-\ufaff\U0002f800-\U0002fa1f]"
)


class _Chunks(dict):
    """The token ids of chunks, as bytes, each worked out when it is first asked for. Full, it starts anew."""

    def __init__(self, encode: Callable[[str], bytes]):
        super().__init__()
        self.encode = encode

    def __missing__(self, chunk: str) -> bytes:
        ids = self.encode(chunk)
        if len(chunk) <= CHUNK_LENGTH:
            if len(self) >= CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids


class WordPiece:
    """Turns text into token ids. Text never becomes a control token: `[SEP]` yields ordinary pieces.

    What counts as white space, control character, accent or punctuation is what Python's `unicodedata` says, as it was
    for the published models; the tables of other tokenizers are older or newer.
    """

    def __init__(self, tokens: Sequence[str], do_lower_case: bool):
        self.tokens, self.do_lower_case = tokens, do_lower_case
        self._typecode = "H" if len(tokens) <= 1 << 16 else "I"
        self.dtype = np.dtype(self._typecode)
        self._first_pieces = {token: i for i, token in enumerate(tokens)}
        self._later_pieces = {token[2:]: i for token, i in self._first_pieces.items() if token.startswith("##")}
        self._longest_piece = max(map(len, tokens))
        self._unknown = [self._first_pieces["[UNK]"]]
        self._chunks = _Chunks(self._encode_chunk)

    def __reduce__(self):
        return WordPiece, (self.tokens, self.do_lower_case)

    def token_to_id(self, token: str) -> int:
        return self._first_pieces[token]

    def encode(self, text: str) -> np.ndarray:
        """The token ids of a text, (tokens,) of the unsigned `dtype`, read-only; no control tokens among them."""
        return np.frombuffer(b"".join(map(self._chunks.__getitem__, text.split(" "))), self.dtype)

    def _encode_chunk(self, chunk: str) -> bytes:
        if chunk.isascii() and chunk.isprintable():
            words = _ASCII_WORDS.findall(chunk.lower() if self.do_lower_case else chunk)
        else:
            parts = "".join(map(_cleaned, chunk)).split()
            if parts != [chunk]:  # a part is a chunk of its own, such as a Chinese character
                return b"".join(map(self._chunks.__getitem__, parts))
            if self.do_lower_case:
                chunk = "".join(map(_without_accent, unicodedata.normalize("NFD", chunk.lower())))
            words = "".join(map(_set_apart, chunk)).split()
        ids = array(self._typecode)
        for word in words:
            ids.extend(self._pieces(word))
        return ids.tobytes()

    def _pieces(self, word: str) -> list[int]:
        """Greedy longest match first; the whole word is [UNK] where a part of it has no piece."""
        if len(word) > LONGEST_WORD:
            return self._unknown
        ids, start, pieces = [], 0, self._first_pieces
        while start < len(word):
            for end in range(min(len(word), start + self._longest_piece), start, -1):
                found = pieces.get(word[start:end])
                if found is not None:
                    break
            else:
                return self._unknown
            ids.append(found)
            start, pieces = end, self._later_pieces
        return ids


@functools.lru_cache(1 << 16)
def _cleaned(char: str) -> str:
    """A character of the text: control characters vanish, white space is a blank, a CJK character stands alone."""
    category = unicodedata.category(char)
    if char in "\t\n\r" or category == "Zs":
        return " "
    if char == "\ufffd" or category.startswith("C"):
        return ""
    return f" {char} " if _CJK.match(char) else char


@functools.lru_cache(1 << 16)
def _without_accent(char: str) -> str:
    return "" if unicodedata.category(char) == "Mn" else char


@functools.lru_cache(1 << 16)
def _set_apart(char: str) -> str:
    """Punctuation, and every ASCII character that is no letter or digit, stands alone."""
    is_ascii_sign = "!" <= char <= "~" and not char.isalnum()
    return f" {char} " if is_ascii_sign or unicodedata.category(char).startswith("P") else char
