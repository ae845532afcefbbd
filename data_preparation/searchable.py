"""Which sentences read as something that a person could search for. The rules are for English."""

import re

# The first words of sentences that need the sentence before them.
_FIRST = (
    "it its that those they them their he she his her my you your there such both each one another other others some "
    "however therefore thus hence moreover furthermore then also but and or so nor yet because instead otherwise "
    "meanwhile again indeed see note e.g i.e if when"
)
_NOT_FIRST = frozenset(_FIRST.split())
# Words that speak about the text itself or its author.
_INSIDE = "this these we our us i author authors paper herein here above below however therefore thus"
_NOT_INSIDE = frozenset(_INSIDE.split())
_CONNECTIVE = re.compile(
    r"\w+ly,|(?:in (?:contrast|addition|particular|fact|summary|conclusion|turn)|by contrast|on the other hand|"
    r"as (?:a result|such|expected)|for (?:example|instance)|(?:the )?(?:present )?(?:results?|findings))\b",
    re.IGNORECASE,
)
# The label of a section, as in "BACKGROUND Patients with ..." or "Methods used: The ...".
_LABEL = re.compile(r"[A-Z]{3,}[^a-z]* [A-Z0-9]|(?:[\w-]+ ){0,3}[\w-]+:\s")
# Code, formulas, addresses, items of a list, and two sentences that were not split.
_NOT_PROSE = re.compile(
    r"\w\(|[=<>{}\\|^~`*@#_\u2022]|::|://|\[\]|\s[-\u2013\u2014]\s|--|\.\.|,\.|[^\W\d_]{4,}[.!?]\s[^\W\d_]"
)
_END = re.compile(r"[^\W\d_]['\"\u2019\u201d)]?\s?[.!?]$")
_WORD = re.compile(r"\(?[^\W\d_]+(?:['\u2019/-][^\W\d_]+)*\)?[,;:]?")
_LEAST_SHARE = 0.8  # of words without digits and symbols


def is_searchable(sentence: str) -> bool:
    """Whether a sentence is complete prose that can stand alone. `sentence` has no white space at its ends."""
    words = sentence.split()
    if not words or not words[0][0].isalpha() or not _END.search(sentence):
        return False
    if _NOT_PROSE.search(sentence) or _LABEL.match(sentence) or _CONNECTIVE.match(sentence):
        return False
    lower = [word.strip(",;:.'\"()").lower() for word in words]
    if lower[0] in _NOT_FIRST or not _NOT_INSIDE.isdisjoint(lower):
        return False
    if any(sentence.count(opening) != sentence.count(closing) for opening, closing in ("()", "[]", "\u201c\u201d")):
        return False
    plain = sum(_WORD.fullmatch(word) is not None for word in words[:-1]) + 1  # the last word has a full stop
    return plain >= _LEAST_SHARE * len(words)
