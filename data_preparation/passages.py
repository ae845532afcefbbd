"""Documents cut into overlapping passages, as BERT-MaxP does (Dai and Callan 2019: 150 words, every 75)."""

WINDOW = 150
STRIDE = 75


def passage_spans(
    num_words: int, window: int = WINDOW, stride: int = STRIDE, max_passages: int | None = None
) -> list[tuple[int, int]]:
    """Where the passages of a text of `num_words` words begin and end: `[(first word, one past the last), ...]`.

    A passage begins every `stride` words and has `window` words, the last one perhaps fewer: it reaches the text's end,
    and holds words that no other holds. With `max_passages` only the first so many are kept.

    Raises ValueError where words would fall between two passages (stride > window), or for a number below 1.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"a stride of {stride} needs to be from 1 to the window, {window}")
    if max_passages is not None and max_passages < 1:
        raise ValueError(f"max_passages is {max_passages}, at least 1 is needed")
    if num_words == 0:
        return []
    # One passage, and one more for each stride, or part of it, that lies beyond the first window.
    count = 1 + max(0, -(-(num_words - window) // stride))
    starts = [stride * number for number in range(count)][:max_passages]
    return [(start, min(start + window, num_words)) for start in starts]


def split_into_passages(
    title: str, body: str, window: int = WINDOW, stride: int = STRIDE, max_passages: int | None = None
) -> list[str]:
    """The passages of a document: the spans of its body's white-space words, the title in front of each.

    An empty body gives none, whatever the title. Raises ValueError as `passage_spans` does.
    """
    title_words, body_words = title.split(), body.split()
    spans = passage_spans(len(body_words), window, stride, max_passages)
    return [" ".join(title_words + body_words[start:end]) for start, end in spans]
