"""(query, passage) pairs as token ids. Each distinct text is tokenized once, on all cores. Loads no torch."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np

from tokenization.wordpiece import WordPiece
from tokenization.workers import map_in_processes

BATCH_PAIRS = 1024
# The size of the cache of token ids, in characters of its texts. A text counts so many characters more for its objects.
# A full cache takes about 60 MB.
CACHE_CHARACTERS = 1 << 25
TEXT_OVERHEAD = 400
# One process reads the pairs and writes the features. It cannot keep more workers than these busy.
MAX_PROCESSES = 4


def truncated_lengths(query_length: int, passage_length: int, limit: int) -> tuple[int, int]:
    """How many tokens of the query and of the passage remain after truncation to `limit` tokens in all.

    While both sides together exceed the limit, the last token of the longer side is dropped, of the passage when they
    are equally long (`_truncate_seq_pair` of BERT, Devlin et al. 2019).
    """
    query_kept = min(query_length, max(limit - passage_length, limit - limit // 2))
    return query_kept, min(passage_length, limit - query_kept)


def encode_pairs(
    tokenizer: WordPiece, pairs: Iterable[tuple[str, str]], max_seq_length: int, processes: int = 1
) -> Iterator[tuple[np.ndarray, int]]:
    """Encodes (query, passage) pairs as `[CLS] query [SEP] passage [SEP]`. A text in the cache is not tokenized again.

    Yields for each pair its token ids, (tokens,) of the tokenizer's dtype with at most `max_seq_length` tokens, and the
    length of its first segment, `[CLS] query [SEP]`. Several processes read a few thousand pairs ahead.

    Raises InputError where one of the processes is killed.
    """
    cls, sep = (np.array([tokenizer.token_to_id(token)], tokenizer.dtype) for token in ("[CLS]", "[SEP]"))
    pairs = iter(pairs)
    batches = iter(lambda: list(itertools.islice(pairs, BATCH_PAIRS)), [])
    first = next(batches, [])
    if len(first) < BATCH_PAIRS:  # too few pairs to start processes for
        processes = 1
    read_ahead = deque()

    def new_texts() -> Iterator[list[str]]:
        """The texts of each batch that are not in the cache. A batch keeps the cache that was in use when it was read,
        because a later batch may replace a full cache before this batch is encoded."""
        cache, size = {}, 0
        for batch in itertools.chain([first], batches):
            if size > CACHE_CHARACTERS:
                cache, size = {}, 0
            new = [text for text in dict.fromkeys(itertools.chain(*batch)) if text not in cache]
            cache.update(dict.fromkeys(new))  # the ids follow; the next batch does not return the texts again
            size += sum(map(len, new)) + TEXT_OVERHEAD * len(new)
            read_ahead.append((batch, new, cache))
            yield new

    for encoded in _encode_in_order(tokenizer, new_texts(), processes):
        batch, new, cache = read_ahead.popleft()
        cache.update(zip(new, encoded, strict=True))
        for query, passage in batch:
            query_ids, passage_ids = cache[query], cache[passage]
            query_kept, passage_kept = truncated_lengths(len(query_ids), len(passage_ids), max_seq_length - 3)
            yield np.concatenate((cls, query_ids[:query_kept], sep, passage_ids[:passage_kept], sep)), query_kept + 2


def useful_processes() -> int:
    """How many processes `encode_pairs` can keep busy on the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MAX_PROCESSES)


def _encode_in_order(
    tokenizer: WordPiece, texts: Iterable[list[str]], processes: int
) -> Iterator[Iterable[np.ndarray]]:
    """The token ids of each list of texts, in order. Python's threads would wait for each other, processes do not."""
    if processes == 1:
        yield from (map(tokenizer.encode, some) for some in texts)
        return
    for ids, lengths in map_in_processes(partial(_encode, tokenizer), texts, processes):
        ends = itertools.accumulate(lengths)
        yield [ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _encode(tokenizer: WordPiece, texts: list[str]) -> tuple[np.ndarray, list[int]]:
    """The token ids of all texts, concatenated, and the number of tokens of each text. Many small arrays would be slow
    to send."""
    ids = [np.empty(0, tokenizer.dtype), *map(tokenizer.encode, texts)]
    return np.concatenate(ids), list(map(len, ids[1:]))
