"""Pseudo-queries: a document's title, or one of its sentences, removed from the document."""

import random
import re
from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple

from data_preparation.searchable import is_searchable
from data_preparation.sentences import sentence_spans
from formats.documents import Document


class PseudoQuery(NamedTuple):
    """The text of a query, and its relevant document without this text."""

    text: str
    document: Document


class Unsuitable(ValueError):
    """A document gives no pseudo-query. The message is the reason."""


class Wanted(NamedTuple):
    """What a pseudo-query needs: `min_words` to `max_words` words, and a normalised text that is not in `excluded`."""

    min_words: int
    max_words: int
    excluded: Set[str] = frozenset()

    def has_length(self, text: str) -> bool:
        return self.min_words <= len(normalize(text).split()) <= self.max_words


def normalize(text: str) -> str:
    """Returns only the words, in lower case, with one space between them. Texts count as equal if this is equal."""
    return " ".join(re.findall(r"\w+", text.lower()))


def has_phrase(text: str, phrase: str) -> bool:
    """Whether the words of a normalised phrase stand in a normalised text, one after another."""
    return f" {phrase} " in f" {text} "


def take_title(document: Document, wanted: Wanted) -> PseudoQuery:
    """Removes the title from its field, and from the start of the body.

    Raises Unsuitable if the title is not as wanted, if it remains in the body, or if the body has no other words.
    """
    if not wanted.has_length(document.title):
        raise Unsuitable("title too short or too long")
    return _checked(document.title, document._replace(title="", body=_without_title(document)), wanted)


def take_sentence(document: Document, wanted: Wanted, seed: int, first_words: int | None = None) -> PseudoQuery:
    """Removes a sentence from the body. It is sampled by the seed and the document's id.

    It ends within the `first_words` words of the body, and it is a sentence that a person could search for.

    Raises Unsuitable if no sentence is as wanted, if each of them remains in the document, or if the body has no other
    words.
    """
    body = document.body
    spans = [
        (start, end)
        for start, end in _first_spans(body, first_words)
        if wanted.has_length(body[start:end]) and is_searchable(body[start:end].strip())
    ]
    random.Random(f"{seed} {document.doc_id}").shuffle(spans)
    reason = Unsuitable("no sentence that can be a query")
    for start, end in spans:
        try:
            return _checked(body[start:end], document._replace(body=body[:start] + body[end:].lstrip()), wanted)
        except Unsuitable as error:
            reason = error
    raise reason


def _checked(text: str, document: Document, wanted: Wanted) -> PseudoQuery:
    """The pseudo-query `text` of a document without it. Raises Unsuitable."""
    phrase = normalize(text)
    if phrase in wanted.excluded:
        raise Unsuitable("equal to a query of --not_in")
    if not normalize(document.body):
        raise Unsuitable("no other text in the document")
    if has_phrase(normalize(f"{document.title} {document.body}"), phrase):
        raise Unsuitable("remains in its document")
    return PseudoQuery(" ".join(text.split()).rstrip(" ."), document)


def _without_title(document: Document) -> str:
    """The body without the title at its start and the marks after it, whatever the case and the white space."""
    if not f"{normalize(document.body)} ".startswith(f"{normalize(document.title)} "):
        return document.body
    title = r"\W+".join(map(re.escape, re.findall(r"\w+", document.title)))
    found = re.match(rf"\s*{title}(?!\w)[\s.:;,!?\u2013\u2014-]*", document.body, re.IGNORECASE)
    return document.body[found.end() :] if found else document.body


def _first_spans(body: str, first_words: int | None) -> Iterator[tuple[int, int]]:
    """Yields the (start, end) of the sentences that end within the first words of a body."""
    words = 0
    for start, end in sentence_spans(body):
        words += len(body[start:end].split())
        if first_words is not None and words > first_words:
            return
        yield start, end


class PhraseFinder:
    """Finds which of some normalised phrases stand in a text. Each phrase has a word at least."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self._phrases = frozenset(phrases)
        words_of = [phrase.split() for phrase in self._phrases]
        self._width = min([3, *map(len, words_of)])
        # The numbers of words of the phrases with the same first words.
        self._lengths: dict[tuple[str, ...], set[int]] = {}
        for words in words_of:
            self._lengths.setdefault(tuple(words[: self._width]), set()).add(len(words))

    def find(self, text: str) -> set[str]:
        """Returns the phrases that stand in a text. The text is normalised here."""
        words = re.findall(r"\w+", text.lower())
        starts = [words[i:] for i in range(self._width)]
        if self._lengths.keys().isdisjoint(zip(*starts, strict=False)):  # true of most texts, and fast
            return set()
        return {
            phrase
            for i, start in enumerate(zip(*starts, strict=False))
            for length in self._lengths.get(start, ())
            if (phrase := " ".join(words[i : i + length])) in self._phrases
        }
