"""(query, passage) pairs as token ids, each distinct text tokenized once, on all cores. Loads no torch."""

import itertools
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from runtime.errors import InputError
from tokenization.wordpiece import WordPiece

PAIRS_AT_A_TIME = 1024
# Characters of the texts whose ids are remembered, each with what it costs beside; it makes some 60 MB of passages.
REMEMBERED = 1 << 25
COST_OF_ONE = 400
# To read pairs and write features is work for one process, and no more than these can keep it waiting.
MOST_PROCESSES = 4


def truncated_lengths(query_length: int, passage_length: int, limit: int) -> tuple[int, int]:
    """How many tokens of each side stay when, while both exceed `limit`, the last token of the longer side is
    dropped, of the passage when they are equally long (`_truncate_seq_pair` of BERT, Devlin et al. 2019)."""
    query_kept = min(query_length, max(limit - passage_length, limit - limit // 2))
    return query_kept, min(passage_length, limit - query_kept)


def encode_pairs(
    tokenizer: WordPiece, pairs: Iterable[tuple[str, str]], max_seq_length: int, processes: int = 1
) -> Iterator[tuple[np.ndarray, int]]:
    """Encodes (query, passage) pairs as `[CLS] query [SEP] passage [SEP]`; a text is tokenized once while remembered.

    Yields for each pair its token ids, at most `max_seq_length` of the tokenizer's dtype, and the length of its first
    segment. With several processes a few thousand pairs are read ahead.

    Raises InputError where one of the processes is killed.
    """
    cls, sep = (np.array([tokenizer.token_to_id(token)], tokenizer.dtype) for token in ("[CLS]", "[SEP]"))
    pairs = iter(pairs)
    batches = iter(lambda: list(itertools.islice(pairs, PAIRS_AT_A_TIME)), [])
    first = next(batches, [])
    if len(first) < PAIRS_AT_A_TIME:  # worth no process
        processes = 1
    read_ahead = deque()

    def new_texts() -> Iterator[list[str]]:
        """The texts of each batch that are not remembered. A batch that was read ahead keeps its own memory."""
        remembered, size = {}, 0
        for batch in itertools.chain([first], batches):
            if size > REMEMBERED:
                remembered, size = {}, 0
            new = [text for text in dict.fromkeys(itertools.chain(*batch)) if text not in remembered]
            remembered.update(dict.fromkeys(new))  # so that the next batch does not hand it out again
            size += sum(map(len, new)) + COST_OF_ONE * len(new)
            read_ahead.append((batch, new, remembered))
            yield new

    for encoded in _encode_in_order(tokenizer, new_texts(), processes):
        batch, new, ids = read_ahead.popleft()
        ids.update(zip(new, encoded, strict=True))
        for query, passage in batch:
            query_ids, passage_ids = ids[query], ids[passage]
            query_kept, passage_kept = truncated_lengths(len(query_ids), len(passage_ids), max_seq_length - 3)
            yield np.concatenate((cls, query_ids[:query_kept], sep, passage_ids[:passage_kept], sep)), query_kept + 2


def useful_processes() -> int:
    """How many processes `encode_pairs` can keep busy on the cores that this one may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_PROCESSES)


def _encode_in_order(
    tokenizer: WordPiece, texts: Iterable[list[str]], processes: int
) -> Iterator[Iterable[np.ndarray]]:
    """The token ids of each list of texts, in order. Processes, since threads of Python would wait for each other."""
    if processes == 1:
        yield from (map(tokenizer.encode, some) for some in texts)
        return
    with ProcessPoolExecutor(processes, initializer=_start, initargs=(tokenizer,)) as pool:
        pending = deque()
        try:
            for some in texts:
                pending.append(pool.submit(_encode, some))
                if len(pending) > 2 * processes:
                    yield _parts(*pending.popleft().result())
            while pending:
                yield _parts(*pending.popleft().result())
        except BrokenProcessPool:
            raise InputError("a process that tokenizes was killed, for want of memory perhaps; run it again") from None


def _start(tokenizer: WordPiece) -> None:
    """What a process keeps. An interrupt is for the main process to handle; to be ended is not."""
    global _tokenizer
    _tokenizer = tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    """Where the main process is killed, nobody tells those that wait for its texts."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _encode(texts: list[str]) -> tuple[np.ndarray, list[int]]:
    """All token ids, one text after the other, and how many each has: many small arrays would be slow to send."""
    ids = [np.empty(0, _tokenizer.dtype), *map(_tokenizer.encode, texts)]
    return np.concatenate(ids), list(map(len, ids[1:]))


def _parts(ids: np.ndarray, lengths: list[int]) -> Iterator[np.ndarray]:
    end = 0
    for length in lengths:
        start, end = end, end + length
        yield ids[start:end]
