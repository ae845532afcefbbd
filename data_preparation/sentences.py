"""English text split into sentences."""

import re
from collections.abc import Iterator

# A sentence ends at white space after ., ! or ? (and perhaps a closing quote or bracket), and before a capital letter
# or a digit (and perhaps an opening quote or bracket). It does not end after an initial ("J. Doe") or an abbreviation.
# The pattern starts with the white space, which the regex engine finds fast. Look-behinds check the text before it.
_ABBREVIATIONS = ("Dr", "Mr", "Mrs", "Ms", "St", "Prof", "Gen", "Sen", "Lt", "No", "Nos", "Vol", "Ch", "Sec", "al")
_IN_ANY_CASE = ("fig", "figs", "eq", "eqs", "ref", "refs", "vs", "cf", "e.g", "i.e", "approx", "ca", "spp", "viz")
_END = (
    r"\s(?:(?<=[.!?]\s)|(?<=[.!?][\"')\]\u201d\u2019]\s))(?<!\b[A-Z]\.\s)"
    + "".join(rf"(?<!\b{re.escape(word)}\.\s)" for word in _ABBREVIATIONS)
    + "".join(rf"(?<!\b(?i:{re.escape(word)})\.\s)" for word in _IN_ANY_CASE)
    + r"\s*(?=[\"'(\[\u201c\u2018]?[A-Z0-9])"
)
# It also ends after a mark that stands alone between words ("of the wing . the results"), at a blank line, and before a
# line that starts an item of a list.
_MARK_ALONE = r"\s(?<=[\w)]\s[.!?]\s)\s*(?=[\w(])"
_LINES = r"\n\s*(?=\n)\s*|\n\s*(?=[-*\u2022]\s|[0-9]{1,2}[.)]\s)"
_SENTENCE_END = re.compile(f"{_END}|{_MARK_ALONE}|{_LINES}")


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of each sentence in a text, without the white space between sentences. Some can be empty."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        yield start, end.start()
        start = end.end()
    yield start, len(text)
