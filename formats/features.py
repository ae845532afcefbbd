"""Pickled features: a header, blocks of at most 65,536 examples, and an empty block that marks the end.

The header and each block are a pickle of a dict of `str`, `int`, `bool`, `None` and `bytes`. Arrays are raw
little-endian bytes, whose dtype the header names. Any program reads them with a plain `pickle.load`. The reader here
accepts only the opcodes that such a dict needs (formats.pickled), so that a hostile file runs nothing. It reads an
array only if its size is right, so that a hostile file claims no more memory than a block has.

formats.feature_layout defines what a file holds, and formats.feature_reading reads it. This module writes it and reads
its examples in any order. Other packages import everything from here.
"""

import hashlib
import os
import pickle
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from formats.atomic import atomic_write
from formats.feature_layout import (
    BLOCK_EXAMPLES,
    BLOCK_ID_BYTES,
    BLOCK_TOKEN_BYTES,
    FORMAT,
    SET_NAMES,
    VERSION,
    Example,
    FeatureBlock,
    FeaturesHeader,
    pad_examples,
)
from formats.feature_reading import open_features, read_blocks, read_blocks_from, read_header, read_header_from, shown
from formats.pairs import split_example_ids
from runtime.errors import InputError, naming_errors

__all__ = [
    "BLOCK_EXAMPLES",
    "BLOCK_ID_BYTES",
    "BLOCK_TOKEN_BYTES",
    "FORMAT",
    "SET_NAMES",
    "VERSION",
    "Example",
    "FeatureBlock",
    "Features",
    "FeaturesHeader",
    "check_pairs",
    "features_sha256",
    "pad_examples",
    "read_blocks",
    "read_header",
    "write_features",
]


def write_features(path: str | Path, header: FeaturesHeader, examples: Iterable[Example]) -> int:
    """Streams examples into a features file by an atomic write. Returns their number.

    Raises InputError for an example that is larger than a block.
    """
    dtypes = header.dtypes()
    total = 0
    with atomic_write(path, binary=True) as file:
        pickle.dump(_header_dict(header), file, protocol=4)
        for columns in _blocks(examples, dtypes["input_ids"]):
            pickle.dump(_block_dict(columns, dtypes), file, protocol=4)
            total += len(columns.example_ids)
        end_mark = _block_dict(_Columns([], [], [], []), dtypes)  # a file without it was cut off
        pickle.dump(end_mark, file, protocol=4)
    return total


def _header_dict(header: FeaturesHeader) -> dict[str, object]:
    """A header as the file holds it."""
    return {"format": FORMAT, "version": VERSION, **header._asdict(), "dtypes": header.dtypes()}


class _Columns(NamedTuple):
    """The examples of a block that is written."""

    example_ids: list[str]
    input_ids: list[np.ndarray]
    first_segment_lengths: list[int]
    labels: list[int]


def _blocks(examples: Iterable[Example], ids_dtype: str) -> Iterator[_Columns]:
    """Groups examples into blocks. The columns of a block are valid until the next one."""
    columns = _Columns([], [], [], [])
    id_bytes = token_bytes = 0
    for example in examples:
        tokens = np.asarray(example.input_ids, ids_dtype)
        own_id_bytes = len(example.example_id.encode()) + 1
        if own_id_bytes > BLOCK_ID_BYTES or tokens.nbytes > BLOCK_TOKEN_BYTES:
            raise InputError(f"example {shown(example.example_id)} is too large for features; shorten it")
        id_bytes += own_id_bytes
        token_bytes += tokens.nbytes
        is_full = len(columns.labels) == BLOCK_EXAMPLES
        if is_full or id_bytes > BLOCK_ID_BYTES or token_bytes > BLOCK_TOKEN_BYTES:
            yield columns
            for column in columns:
                column.clear()
            id_bytes, token_bytes = own_id_bytes, tokens.nbytes
        columns.example_ids.append(example.example_id)
        columns.input_ids.append(tokens)
        columns.first_segment_lengths.append(example.first_segment_length)
        columns.labels.append(example.label)
    if columns.labels:
        yield columns


def _block_dict(columns: _Columns, dtypes: dict[str, str]) -> dict[str, object]:
    """A block as the file holds it."""
    arrays = {
        "input_ids": np.concatenate([np.empty(0, dtypes["input_ids"]), *columns.input_ids]),
        "lengths": [len(ids) for ids in columns.input_ids],
        "first_segment_lengths": columns.first_segment_lengths,
        "labels": columns.labels,
    }
    return {
        "num_examples": len(columns.labels),
        "example_ids": "\n".join(columns.example_ids),
        **{key: np.asarray(values, dtypes[key]).tobytes() for key, values in arrays.items()},
    }


class Features:
    """All examples of a file, to be read in any order.

    For each example 13 bytes are in memory: its position in the file, its lengths and its label. Its tokens are read
    when they are needed. The system caches them once for all processes.

    Raises InputError as `read_blocks` does.
    """

    def __init__(self, path: str | Path):
        self.path = path
        self._file = open_features(path)
        self.header = read_header_from(path, self._file)
        dtypes = self.header.dtypes()
        self._dtype = np.dtype(dtypes["input_ids"])
        columns = {name: bytearray() for name in ("starts", "lengths", "first_segment_lengths", "labels")}
        for block, start in read_blocks_from(path, self._file):
            columns["starts"] += (start + block.offsets[:-1] * self._dtype.itemsize).tobytes()
            columns["lengths"] += block.lengths().astype(dtypes["lengths"]).tobytes()
            columns["first_segment_lengths"] += block.first_segment_lengths.tobytes()
            columns["labels"] += block.labels.tobytes()
        self._starts = np.frombuffer(columns["starts"], np.int64)  # (n,), positions in bytes
        self.lengths, self.first_segment_lengths, self.labels = (  # (n,) unsigned, unsigned, int8
            np.frombuffer(columns[name], dtypes[name]) for name in ("lengths", "first_segment_lengths", "labels")
        )

    def __len__(self) -> int:
        return len(self.labels)

    def example_ids(self, indices: Sequence[int]) -> list[str]:
        """The ids of examples. They are read from the file, which can take seconds, so they are for messages only."""
        found, first = {}, 0
        for block, _ in read_blocks_from(self.path, self._file):
            after = first + len(block.example_ids)
            found |= {i: block.example_ids[i - first] for i in map(int, indices) if first <= i < after}
            first = after
        return [found[int(i)] for i in indices]

    def query_numbers(self, why: str) -> np.ndarray:
        """The query of each example whose id is query_id#passage_id: (n,) int64, from 0, equal for equal query ids.

        Raises InputError for another id. The message names block and example, and ends in `why`.
        """
        numbers: dict[str, int] = {}
        blocks = read_blocks_from(self.path, self._file)
        ids = (i for number, (block, _) in enumerate(blocks) for i, _ in _split_ids(self.path, number, block, why))
        return np.fromiter((numbers.setdefault(query_id, len(numbers)) for query_id in ids), np.int64, len(self))

    def sha256(self) -> str:
        """The `features_sha256` of the file that was opened."""
        return _sha256(self.path, self._file)

    def batch(self, indices: Sequence[int], pad_to: int | None = None) -> dict[str, np.ndarray]:
        """The examples `indices`, padded with id 0 to `pad_to` tokens or, where None, to the longest of them.

        Returns `input_ids`, `attention_mask`, `token_type_ids`: (batch, T) int64; `labels`: (batch,) int64.

        Raises InputError as `read` does.
        """
        return pad_examples(*self.read(indices), pad_to)

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The examples `indices` without padding.

        Returns the token ids of all, one example after another, (tokens,) unsigned; and for each example its length,
        int64, the length of its first segment, unsigned, and its label, int8: (batch,).

        Raises InputError where the file was cut short after it was opened.
        """
        indices = np.asarray(indices)
        starts, lengths = self._starts[indices], self.lengths[indices].astype(np.int64)
        sizes = lengths * self._dtype.itemsize
        places = zip(sizes.tolist(), starts.tolist(), strict=True)
        with naming_errors(self.path, "reading"):
            tokens = b"".join([os.pread(self._file.fileno(), size, start) for size, start in places])
        if len(tokens) != sizes.sum():
            raise InputError(f"{self.path} was cut short while it was read; write it again")
        ids = np.frombuffer(tokens, self._dtype)
        return ids, lengths, self.first_segment_lengths[indices], self.labels[indices]


def features_sha256(path: str | Path) -> str:
    """The SHA-256 of the header, without the origin, and of all examples, in hexadecimal digits.

    It is that of the same examples in a file of version 1. So a run that began with such a file can resume.

    Raises InputError as `read_header` does. The examples are not checked.
    """
    with open_features(path) as file:
        return _sha256(path, file)


def _sha256(path: str | Path, file: IO[bytes]) -> str:
    head = _header_dict(read_header_from(path, file)) | {"version": 1}
    del head["raw_data_name"], head["raw_data_sha256"]
    digest = hashlib.sha256(pickle.dumps(head, protocol=4))
    position = file.tell()  # of the first block
    while chunk := os.pread(file.fileno(), 1 << 20, position):
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()


def _split_ids(path: str | Path, number: int, block: FeatureBlock, advice: str) -> list[tuple[str, str]]:
    """The ids of a block as (query_id, passage_id). Raises InputError, with `advice`, for an id without them."""
    try:
        return split_example_ids(block.example_ids)
    except ValueError as error:
        raise InputError(f"{path} block {number} {error}; {advice}") from None


def check_pairs(path: str | Path, flag: str) -> tuple[FeaturesHeader, int]:
    """Reads the features of pairs to re-rank once, so that a fault is found before the work begins.

    Returns the header and the number of examples. Raises InputError for a fault; for plain text, where the message
    names `flag`; for a file without examples; and for an id that is repeated or not query_id#passage_id, where it names
    block and example.
    """
    header = read_header(path)
    if header.set_name == "general":
        raise InputError(f"{flag}: {path} is plain text without queries; tokenize pairs with --set_name test")
    of_blocks = [np.empty(0, np.int64)]  # the hashes of the ids: 8 bytes for each example
    for number, block in enumerate(read_blocks(path)):
        _split_ids(path, number, block, "tokenize with --set_name test")
        of_blocks.append(np.fromiter(map(hash, block.example_ids), np.int64, len(block.example_ids)))
    hashes = np.sort(np.concatenate(of_blocks))
    if not len(hashes):
        raise InputError(f"{flag}: {path} has no examples; tokenize pairs again")
    if repeated := set(hashes[1:][hashes[1:] == hashes[:-1]].tolist()):
        _refuse_repeated_ids(path, repeated)
    return header, len(hashes)


def _refuse_repeated_ids(path: str | Path, hashes: Collection[int]) -> None:
    """Raises InputError if several examples have the same id. `hashes`: those of all such ids, and maybe of others."""
    first: dict[str, str] = {}
    for number, block in enumerate(read_blocks(path)):
        for i, example_id in enumerate(block.example_ids):
            place = f"block {number} example {i}"
            if hash(example_id) in hashes and first.setdefault(example_id, place) != place:
                raise InputError(
                    f"{path} {place}: example id {shown(example_id)} is already that of {first[example_id]}; tokenize "
                    "pairs with an id of their own each"
                )
