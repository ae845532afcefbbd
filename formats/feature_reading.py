"""Reads the header and the blocks of a features file, and checks all that they hold."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from formats.feature_layout import (
    BLOCK_EXAMPLES,
    BLOCK_TEXT_BYTES,
    BLOCK_TOKEN_BYTES,
    FORMAT,
    SET_NAMES,
    VERSION,
    FeatureBlock,
    FeaturesHeader,
)
from formats.pickled import read_dict
from runtime.errors import InputError, naming_errors

# A block takes about 100 microseconds even if it is small, so that many small blocks would keep a reader busy.
_MAX_SMALL_BLOCKS = 5_000
_SMALL_BLOCK = 1_000

_ORIGIN = ("raw_data_name", "raw_data_sha256")  # keys of version 2


def read_header(path: str | Path) -> FeaturesHeader:
    """Reads how a features file was made.

    Raises InputError for a file that is not a features file, or that another version wrote.
    """
    with open_features(path) as file:
        return read_header_from(path, file)


def read_blocks(path: str | Path) -> Iterator[FeatureBlock]:
    """Streams the blocks of a features file. Each block is checked first.

    Raises InputError, which names file, block and example, for anything that the format does not allow.
    """
    with open_features(path) as file:
        for block, _ in read_blocks_from(path, file):
            yield block


def open_features(path: str | Path) -> IO[bytes]:
    """Opens a features file. It is not mapped: where another process cuts a mapped file, reading it kills.

    Raises InputError for a directory and for an empty file.
    """
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory, a features file is needed")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} is empty; write it with tokenize_to_features.py")
    return open(path, "rb")


def read_header_from(path: str | Path, file: IO[bytes]) -> FeaturesHeader:
    """As `read_header`, from an open file. `path` is for messages. Leaves the file at the first block."""
    try:
        with naming_errors(path, "reading"):
            file.seek(0)
            part = read_dict(f"{path} header", file, BLOCK_TEXT_BYTES)
    except InputError as error:
        raise InputError(f"{error}; is it a file that tokenize_to_features.py wrote?") from None
    if part.get("format") != FORMAT:
        raise InputError(f"{path} is not a features file; write it with tokenize_to_features.py")
    version = part.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise InputError(
            f"{path} header: version {shown(version)}, but this program reads versions 1 to {VERSION}; tokenize again"
        )
    for key in _ORIGIN:
        if version == 1:
            part[key] = None
        elif key not in part or type(part[key]) not in (str, type(None)):
            raise InputError(f"{path} header: {key} is missing or neither str nor None; tokenize again")
    for key, kind in FeaturesHeader.__annotations__.items():
        if key not in _ORIGIN and type(part.get(key)) is not kind:
            raise InputError(f"{path} header: {key} is missing or not {kind.__name__}; tokenize again")
    header = FeaturesHeader(*(part[key] for key in FeaturesHeader._fields))
    if (header.raw_data_name is None) != (header.raw_data_sha256 is None):
        raise InputError(f"{path} header: has only one of raw_data_name and raw_data_sha256; tokenize again")
    if header.raw_data_sha256 is not None and not re.fullmatch("[0-9a-f]{64}", header.raw_data_sha256):
        raise InputError(f"{path} header: raw_data_sha256 is not 64 hexadecimal digits; tokenize again")
    if not 3 < header.max_seq_length < 1 << 31 or not 0 < header.vocab_size < 1 << 31:
        raise InputError(f"{path} header: max_seq_length or vocab_size is out of range; tokenize again")
    if header.set_name not in SET_NAMES:
        raise InputError(f"{path} header: set_name {shown(header.set_name)} is none of {', '.join(SET_NAMES)}")
    if part.get("dtypes") != header.dtypes():
        raise InputError(f"{path} header: dtypes are not {header.dtypes()}; tokenize again")
    return header


def read_blocks_from(path: str | Path, file: IO[bytes]) -> Iterator[tuple[FeatureBlock, int]]:
    """As `read_blocks`, from an open file. Yields each block and the position (in bytes) of its token ids."""
    header = read_header_from(path, file)
    file_size = os.fstat(file.fileno()).st_size
    number = examples = 0
    while True:
        where = f"{path} block {number}"
        if number > _MAX_SMALL_BLOCKS + examples // _SMALL_BLOCK:
            raise InputError(f"{where}: more than {_MAX_SMALL_BLOCKS} blocks of few examples; write the file again")
        if file.tell() >= file_size:
            raise InputError(f"{where}: the file ends without its end mark, so it was cut; write it again")
        with naming_errors(path, "reading"):
            part = read_dict(where, file, BLOCK_TEXT_BYTES)
            position = file.tell()
            _check_sizes(where, header, part)
            block = _read_arrays(where, header, part, file)
        if not block.example_ids:
            if position != file_size:
                raise InputError(f"{where}: {file_size - position} bytes follow the end mark; write the file again")
            return
        yield block, part["input_ids"].start
        number += 1
        examples += len(block.example_ids)
        file.seek(position)


def _check_sizes(where: str, header: FeaturesHeader, part: dict) -> None:
    """Checks the keys of a block and the sizes of their values, before any array is read."""
    n, ids = part.get("num_examples"), part.get("example_ids")
    if type(n) is not int or not 0 <= n <= BLOCK_EXAMPLES:
        raise InputError(f"{where}: num_examples is not a number from 0 to {BLOCK_EXAMPLES}")
    if type(ids) is not str or (ids.count("\n") + 1 if ids else 0) != n:
        raise InputError(f"{where}: example_ids are not {n} lines")
    dtypes = header.dtypes()
    for key, dtype in dtypes.items():
        place, itemsize = part.get(key), np.dtype(dtype).itemsize
        if type(place) is not range or len(place) % itemsize:
            raise InputError(f"{where}: {key} is missing or not an array of {dtype}")
        if key != "input_ids" and len(place) != n * itemsize:
            raise InputError(f"{where}: {key} has {len(place) // itemsize} values for {n} examples")
    if unknown := set(part) - {"num_examples", "example_ids", *dtypes}:
        raise InputError(f"{where}: unknown key {shown(min(unknown))}")
    if len(part["input_ids"]) > BLOCK_TOKEN_BYTES:
        raise InputError(f"{where}: its token ids are more than {BLOCK_TOKEN_BYTES} bytes; write the file again")


def _read_arrays(where: str, header: FeaturesHeader, part: dict, file: IO[bytes]) -> FeatureBlock:
    """Reads the arrays of a block and checks all its examples at once. An error names the first example at fault."""
    dtypes = header.dtypes()
    example_ids = part["example_ids"].split("\n") if part["example_ids"] else []

    def array(key: str) -> np.ndarray:
        file.seek(part[key].start)
        raw = bytearray(len(part[key]))  # not bytes: torch takes no array that is read-only without a copy
        if file.readinto(raw) != len(raw):
            raise InputError(f"{where}: the file was cut short while it was read; write it again")
        return np.frombuffer(raw, dtypes[key])

    def refuse(at_fault: np.ndarray, what: str) -> None:
        if at_fault.any():
            i = int(np.argmax(at_fault))
            raise InputError(f"{where} example {i} ({shown(example_ids[i])}): {what}; tokenize again")

    lengths, first, labels = array("lengths").astype(np.int64), array("first_segment_lengths"), array("labels")
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    refuse(np.array([not example_id for example_id in example_ids], bool), "its id is empty")
    refuse((lengths < 3) | (lengths > header.max_seq_length), f"its length is not from 3 to {header.max_seq_length}")
    refuse((first < 2) | (first > lengths), "its first segment is shorter than 2 tokens or longer than the example")
    refuse((labels < -1) | (labels > 1), "its label is none of -1, 0, 1")
    input_ids = array("input_ids")
    if offsets[-1] != len(input_ids):
        raise InputError(f"{where}: lengths add up to {offsets[-1]}, but there are {len(input_ids)} token ids")
    if example_ids and input_ids.max() >= header.vocab_size:
        largest = np.maximum.reduceat(input_ids, offsets[:-1])  # (n,)
        is_beyond = largest >= header.vocab_size
        token = largest[np.argmax(is_beyond)]
        refuse(is_beyond, f"token id {token} is beyond the vocabulary of {header.vocab_size}")
    return FeatureBlock(example_ids, input_ids, offsets, first, labels)


def shown(value: object) -> str:
    """A value for a message, on one line and not too long.

    Not the `repr` of a dict: it can hold another dict ten times, and that dict a third one ten times, and so on.
    """
    if type(value) is dict:
        return "a dict"
    return repr(value[:60]) if type(value) is str else repr(value)[:60]
