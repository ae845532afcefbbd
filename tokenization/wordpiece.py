"""BERT's WordPiece (`tokenization.py` of Devlin et al. 2019) with a cache of words. Loads no torch.

A text is split at spaces into chunks, such as `word,`. No token crosses a space, and the tokens of a chunk do not
depend on other chunks. A collection has few distinct chunks, so a text costs little more than one look-up per chunk.
"""

import functools
import re
import unicodedata
from array import array
from collections.abc import Callable, Sequence

import numpy as np

LONGEST_WORD = 100  # characters; a longer word is [UNK]

# The number of cached chunks, and of cached words: about 60 MB for each cache. A longer chunk is not cached, for
# example a sentence in a script without spaces.
CACHE_SIZE, CACHED_LENGTH = 1 << 18, 64

_ASCII_WORDS = re.compile("[A-Za-z0-9]+|[^A-Za-z0-9]")
# The same blocks as in BERT's `_is_chinese_char`.
_CJK = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf"
    "\uf900-\ufaff\U0002f800-\U0002fa1f]"
)


class _Cache(dict):
    """`{text: its token ids as bytes}`. An entry is computed at its first look-up. A full cache is cleared."""

    def __init__(self, encode: Callable[[str], bytes]):
        super().__init__()
        self.encode = encode

    def __missing__(self, text: str) -> bytes:
        ids = self.encode(text)
        if len(text) <= CACHED_LENGTH:
            if len(self) >= CACHE_SIZE:
                self.clear()
            self[text] = ids
        return ids


class WordPiece:
    """Turns text into token ids. Text never becomes a control token: `[SEP]` in a text gives ordinary pieces.

    Python's `unicodedata` defines white space, control characters, accents and punctuation, as for the published
    models. Other tokenizers have older or newer Unicode tables.
    """

    def __init__(self, tokens: Sequence[str], do_lower_case: bool):
        self.tokens, self.do_lower_case = tokens, do_lower_case
        self._typecode = "H" if len(tokens) <= 1 << 16 else "I"
        self.dtype = np.dtype(self._typecode)
        self._first_pieces = {token: i for i, token in enumerate(tokens)}
        self._later_pieces = {token[2:]: i for token, i in self._first_pieces.items() if token.startswith("##")}
        self._longest_piece = max(map(len, tokens))
        self._chunks, self._words = _Cache(self._encode_chunk), _Cache(self._encode_word)

    def __reduce__(self):
        return WordPiece, (self.tokens, self.do_lower_case)

    def token_to_id(self, token: str) -> int:
        return self._first_pieces[token]

    def encode(self, text: str) -> np.ndarray:
        """The token ids of a text, without control tokens: (tokens,) of the unsigned `dtype`, read-only."""
        return np.frombuffer(b"".join(map(self._chunks.__getitem__, text.split(" "))), self.dtype)

    def _encode_chunk(self, chunk: str) -> bytes:
        if chunk.isascii() and chunk.isprintable():
            words = _ASCII_WORDS.findall(chunk.lower() if self.do_lower_case else chunk)
        else:
            text = "".join(map(_cleaned, chunk))
            if self.do_lower_case:
                spaced = map(_spaced_without_accent, unicodedata.normalize("NFD", text.lower()))
            else:
                spaced = map(_spaced, text)
            words = "".join(spaced).split()
        return b"".join(map(self._words.__getitem__, words))

    def _encode_word(self, word: str) -> bytes:
        """Greedy longest-match-first. The whole word is [UNK] if a part of it has no piece, or if it is too long."""
        ids, start, pieces = array(self._typecode), 0, self._first_pieces
        while start < len(word) <= LONGEST_WORD:
            for end in range(min(len(word), start + self._longest_piece), start, -1):
                found = pieces.get(word[start:end])
                if found is not None:
                    break
            else:
                break
            ids.append(found)
            start, pieces = end, self._later_pieces
        if start < len(word):
            ids = array(self._typecode, [self._first_pieces["[UNK]"]])
        return ids.tobytes()


@functools.lru_cache(1 << 16)
def _cleaned(char: str) -> str:
    """A character of the text. Control characters are removed, white space becomes a space, CJK characters get spaces
    around them."""
    category = unicodedata.category(char)
    if char in "\t\n\r" or category == "Zs":
        return " "
    if char == "\ufffd" or category.startswith("C"):
        return ""
    return f" {char} " if _CJK.match(char) else char


@functools.lru_cache(1 << 16)
def _spaced(char: str) -> str:
    """Punctuation, and every ASCII character that is neither letter nor digit, gets spaces around it."""
    is_ascii_sign = "!" <= char <= "~" and not char.isalnum()
    return f" {char} " if is_ascii_sign or unicodedata.category(char).startswith("P") else char


@functools.lru_cache(1 << 16)
def _spaced_without_accent(char: str) -> str:
    return "" if unicodedata.category(char) == "Mn" else _spaced(char)
