"""Documents split into overlapping passages, as in BERT-MaxP (Dai and Callan 2019: 150 words, every 75)."""

import argparse

from runtime.errors import InputError

WINDOW = 150
STRIDE = 75


def passage_spans(
    num_words: int, window: int = WINDOW, stride: int = STRIDE, max_passages: int | None = None
) -> list[tuple[int, int]]:
    """Returns the passages of a text of `num_words` words: `[(first word, one past the last word), ...]`.

    A passage begins every `stride` words and has `window` words. The last passage ends with the text; it can have fewer
    words, but it has words that no other passage has. Of more than `max_passages` passages the last one remains, and
    the first `max_passages - 1`.

    Raises ValueError if words would be between two passages (stride > window), and for a number below 1.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"a stride of {stride} needs to be from 1 to the window, {window}")
    if max_passages is not None and max_passages < 1:
        raise ValueError(f"max_passages is {max_passages}, at least 1 is needed")
    if num_words == 0:
        return []
    # One passage, and one more for each stride, or part of a stride, after the first window.
    count = 1 + max(0, -(-(num_words - window) // stride))
    kept = count if max_passages is None else min(count, max_passages)
    starts = [stride * number for number in (*range(kept - 1), count - 1)]
    return [(start, min(start + window, num_words)) for start in starts]


def split_into_passages(
    title: str, body: str, window: int = WINDOW, stride: int = STRIDE, max_passages: int | None = None
) -> list[str]:
    """Returns the passages of a document: the title, and the words of a span of the body. An empty body has none.

    Raises ValueError as `passage_spans` does.
    """
    title_words, body_words = title.split(), body.split()
    spans = passage_spans(len(body_words), window, stride, max_passages)
    return [" ".join(title_words + body_words[start:end]) for start, end in spans]


def add_passage_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--window`, `--stride` and `--max_passages`."""
    group = parser.add_argument_group("passages")
    group.add_argument("--window", type=int, default=WINDOW, help=f"words per passage (default {WINDOW})")
    group.add_argument(
        "--stride", type=int, default=STRIDE, help=f"words from one start to the next (default {STRIDE})"
    )
    group.add_argument(
        "--max_passages",
        type=int,
        help="most passages of a document: the last one, and the first ones (default: all)",
    )


def check_passage_arguments(args: argparse.Namespace) -> None:
    """Raises InputError for numbers that `passage_spans` refuses."""
    if args.window < 1:
        raise InputError(f"--window: {args.window} is below 1")
    if not 1 <= args.stride <= args.window:
        raise InputError(
            f"--stride: {args.stride} needs to be from 1 to --window, {args.window}, or words would be lost"
        )
    if args.max_passages is not None and args.max_passages < 1:
        raise InputError(f"--max_passages: {args.max_passages} is below 1")
