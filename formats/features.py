"""Pickled features: a header, blocks of at most 65,536 examples, and an empty block that marks the end.

Each part is a pickle of a dict of `str`, `int`, `bool`, `None` and `bytes`; arrays are raw little-endian bytes whose
dtype the header names. Any program reads a part with a plain `pickle.load`. The reader here uses none: it walks the
few opcodes that such a dict needs, so that a hostile file can neither name nor call anything, and reads an array when
its size is known to be right, so that none makes it allocate more than a block may hold. The file is not mapped:
where another process cuts a mapped file, reading it kills.
"""

import hashlib
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from formats.atomic import atomic_write
from formats.pairs import split_example_id
from runtime.errors import InputError, naming_errors

FORMAT = "simplified-tinybert-features"
VERSION = 1
BLOCK_EXAMPLES = 65_536
# Of a block; 512 tokens and ids of 63 bytes for each of its examples. Whoever reads it holds two at most.
BLOCK_TOKEN_BYTES = 1 << 26
BLOCK_ID_BYTES = 1 << 22
SET_NAMES = ("train", "dev", "test", "general")

# Far above what a part needs (about 60), far below what could keep a reader busy.
_MAX_OPCODES = 1_000
_MAX_DEPTH = 4
_MAX_TEXT_BYTES = BLOCK_ID_BYTES + 4096  # a part's ids and keys
# A block costs some 100 microseconds, whatever it holds, so that many small ones would keep a reader busy.
_MAX_SMALL_BLOCKS = 5_000
_SMALL_BLOCK = 1_000


class FeaturesHeader(NamedTuple):
    """What produced a features file."""

    max_seq_length: int
    vocab_size: int
    do_lower_case: bool
    set_name: str
    vocab_sha256: str

    def dtypes(self) -> dict[str, str]:
        """The smallest dtypes that hold a token id and a length."""
        return {
            "input_ids": "<u2" if self.vocab_size <= 1 << 16 else "<u4",
            "lengths": "<u2" if self.max_seq_length < 1 << 16 else "<u4",
            "first_segment_lengths": "<u2" if self.max_seq_length < 1 << 16 else "<u4",
            "labels": "|i1",
        }


class Example(NamedTuple):
    """One tokenized pair: `[CLS] query [SEP] passage [SEP]`, of which the first segment ends with the first `[SEP]`.

    In a general set both segments are plain text.
    """

    example_id: str
    input_ids: Sequence[int]
    first_segment_length: int
    label: int


class FeatureBlock(NamedTuple):
    """The examples of one block. `offsets[i]:offsets[i + 1]` of `input_ids` are example i's tokens."""

    example_ids: list[str]
    input_ids: np.ndarray  # (tokens of all examples,) unsigned
    offsets: np.ndarray  # (n + 1,) int64
    first_segment_lengths: np.ndarray  # (n,) unsigned
    labels: np.ndarray  # (n,) int8, -1 where there is none

    def lengths(self) -> np.ndarray:
        """Tokens of each example, (n,) int64."""
        return np.diff(self.offsets)

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Examples of the block, padded to the longest of them. See `Features.batch` for what comes back."""
        return pad_batch([(self, int(i)) for i in indices])


def write_features(path: str | Path, header: FeaturesHeader, examples: Iterable[Example]) -> int:
    """Streams examples into a features file, which appears under its name when complete; returns how many.

    Raises InputError for an example that is larger than a block may be.
    """
    dtypes = header.dtypes()
    total = 0
    with atomic_write(path, binary=True) as file:
        pickle.dump(
            {"format": FORMAT, "version": VERSION, **header._asdict(), "dtypes": dtypes},
            file,
            protocol=4,
        )
        ids: list[str] = []
        token_chunks: list[np.ndarray] = []
        first_segment_lengths: list[int] = []
        labels: list[int] = []
        id_bytes = token_bytes = 0

        def write_block() -> None:
            lengths = [len(chunk) for chunk in token_chunks]
            tokens = np.concatenate([np.empty(0, dtypes["input_ids"]), *token_chunks])
            block = {
                "num_examples": len(ids),
                "example_ids": "\n".join(ids),
                "input_ids": tokens.astype(dtypes["input_ids"]).tobytes(),
                "lengths": np.array(lengths, dtypes["lengths"]).tobytes(),
                "first_segment_lengths": np.array(first_segment_lengths, dtypes["first_segment_lengths"]).tobytes(),
                "labels": np.array(labels, dtypes["labels"]).tobytes(),
            }
            pickle.dump(block, file, protocol=4)
            for column in (ids, token_chunks, first_segment_lengths, labels):
                column.clear()

        for example in examples:
            tokens = np.asarray(example.input_ids, dtypes["input_ids"])
            own_id_bytes = len(example.example_id.encode()) + 1
            if own_id_bytes > BLOCK_ID_BYTES or tokens.nbytes > BLOCK_TOKEN_BYTES:
                raise InputError(f"example {_shown(example.example_id)} is too large for features; shorten it")
            id_bytes += own_id_bytes
            token_bytes += tokens.nbytes
            if len(ids) == BLOCK_EXAMPLES or id_bytes > BLOCK_ID_BYTES or token_bytes > BLOCK_TOKEN_BYTES:
                write_block()
                id_bytes, token_bytes = own_id_bytes, tokens.nbytes
            ids.append(example.example_id)
            token_chunks.append(tokens)
            first_segment_lengths.append(example.first_segment_length)
            labels.append(example.label)
            total += 1
        if ids:
            write_block()
        write_block()  # empty: a file without it was cut off
    return total


def read_header(path: str | Path) -> FeaturesHeader:
    """Reads who made a features file, and how.

    Raises InputError for a file that is none of ours or was written by another version.
    """
    with _open_file(path) as file:
        return _read_header(path, file)[0]


def read_blocks(path: str | Path) -> Iterator[FeatureBlock]:
    """Streams the blocks of a features file, each checked before it is handed over.

    Raises InputError, naming file, block and example, for anything that the format does not allow.
    """
    with _open_file(path) as file:
        for block, _ in _read_blocks(path, file):
            yield block


def _read_blocks(path: str | Path, file: IO[bytes]) -> Iterator[tuple[FeatureBlock, int]]:
    """The blocks, each with the place of its token ids, in bytes from the file's beginning."""
    header, dtypes = _read_header(path, file)
    file_size = os.fstat(file.fileno()).st_size
    number = examples = 0
    while True:
        where = f"{path} block {number}"
        if number > _MAX_SMALL_BLOCKS + examples // _SMALL_BLOCK:
            raise InputError(f"{where}: more than {_MAX_SMALL_BLOCKS} blocks of few examples; write the file again")
        if file.tell() >= file_size:
            raise InputError(f"{where}: the file ends without its end mark, so it was cut; write it again")
        with naming_errors(path, "reading"):
            part = _read_part(where, file)
            position = file.tell()
            block = _checked_block(where, header, dtypes, part, file)
        if not block.example_ids:
            if position != file_size:
                raise InputError(f"{where}: {file_size - position} bytes follow the end mark; write the file again")
            return
        yield block, part["input_ids"].start
        number += 1
        examples += len(block.example_ids)
        file.seek(position)


class Features:
    """All examples of a file for reading in any order.

    In memory are 13 bytes of an example: its place in the file, lengths and label. Its tokens are read when they are
    asked for, from the system's cache, which holds the file once for all processes.

    Raises InputError as `read_blocks` does.
    """

    def __init__(self, path: str | Path):
        self.path = path
        self._file = _open_file(path)
        self.header, dtypes = _read_header(path, self._file)
        self._dtype = np.dtype(dtypes["input_ids"])
        columns = {"starts": bytearray(), **{name: bytearray() for name in dtypes if name != "input_ids"}}
        for block, block_begins in _read_blocks(path, self._file):
            columns["starts"] += (block_begins + block.offsets[:-1] * self._dtype.itemsize).tobytes()
            columns["lengths"] += np.diff(block.offsets).astype(dtypes["lengths"]).tobytes()
            columns["first_segment_lengths"] += block.first_segment_lengths.tobytes()
            columns["labels"] += block.labels.tobytes()
        self._starts = np.frombuffer(columns["starts"], np.int64)  # (n,), bytes from the file's beginning
        self.lengths, self.first_segment_lengths, self.labels = (  # (n,) unsigned, unsigned, int8
            np.frombuffer(columns[name], dtypes[name]) for name in ("lengths", "first_segment_lengths", "labels")
        )

    def __len__(self) -> int:
        return len(self.labels)

    def example_ids(self, indices: Sequence[int]) -> list[str]:
        """The ids of examples, which are read from the file: up to seconds, for messages."""
        found, first = {}, 0
        for block, _ in _read_blocks(self.path, self._file):
            after = first + len(block.example_ids)
            found |= {i: block.example_ids[i - first] for i in map(int, indices) if first <= i < after}
            first = after
        return [found[int(i)] for i in indices]

    def sha256(self) -> str:
        """Of the whole file, as it was when it was opened."""
        digest, position = hashlib.sha256(), 0
        while chunk := os.pread(self._file.fileno(), 1 << 20, position):
            digest.update(chunk)
            position += len(chunk)
        return digest.hexdigest()

    def batch(self, indices: Sequence[int], pad_to: int | None = None) -> dict[str, np.ndarray]:
        """Examples `indices`, padded with id 0 to `pad_to` tokens or, where None, to the longest of them.

        Returns `input_ids`, `attention_mask`, `token_type_ids`: (batch, T) int64; `labels`: (batch,) int64.

        Raises InputError where the file was cut short since it was opened.
        """
        indices = np.asarray(indices)
        starts, lengths = self._starts[indices], self.lengths[indices].astype(np.int64)
        sizes = lengths * self._dtype.itemsize
        places = zip(sizes.tolist(), starts.tolist(), strict=True)
        with naming_errors(self.path, "reading"):
            tokens = b"".join([os.pread(self._file.fileno(), size, start) for size, start in places])
        if len(tokens) != sizes.sum():
            raise InputError(f"{self.path} was cut short while it was read; write it again")
        return _padded(
            np.frombuffer(tokens, self._dtype),
            lengths,
            self.first_segment_lengths[indices],
            self.labels[indices],
            pad_to,
        )


def check_pairs(path: str | Path, flag: str) -> tuple[FeaturesHeader, int]:
    """Reads the features of pairs to re-rank once, so that a fault is found before any work.

    Returns the header and the number of examples. Raises InputError for a fault, for plain text, naming `flag`, and for
    an id that is not query_id#passage_id, naming block and example.
    """
    header = read_header(path)
    if header.set_name == "general":
        raise InputError(f"{flag}: {path} is plain text without queries; tokenize pairs with --set_name test")
    count = 0
    for number, block in enumerate(read_blocks(path)):
        for i, example_id in enumerate(block.example_ids):
            try:
                split_example_id(example_id)
            except ValueError as error:
                raise InputError(f"{path} block {number} example {i}: {error}; tokenize with --set_name test") from None
        count += len(block.example_ids)
    return header, count


def pad_batch(rows: Sequence[tuple[FeatureBlock, int]], pad_to: int | None = None) -> dict[str, np.ndarray]:
    """Pads examples, each given as its block and its place there. See `Features.batch` for what comes back."""
    tokens = [block.input_ids[block.offsets[i] : block.offsets[i + 1]] for block, i in rows]
    return _padded(
        np.concatenate(tokens),
        np.array([len(ids) for ids in tokens]),
        np.array([block.first_segment_lengths[i] for block, i in rows]),
        np.array([block.labels[i] for block, i in rows]),
        pad_to,
    )


def _padded(
    tokens: np.ndarray, lengths: np.ndarray, first_segment_lengths: np.ndarray, labels: np.ndarray, pad_to: int | None
) -> dict[str, np.ndarray]:
    """A batch of what its examples hold; `tokens` are those of all, one after another."""
    places = np.arange(pad_to or lengths.max())
    is_token = places < lengths[:, None]  # (batch, T)
    input_ids = np.zeros(is_token.shape, np.int64)
    input_ids[is_token] = tokens
    return {
        "input_ids": input_ids,
        "attention_mask": is_token.astype(np.int64),
        "token_type_ids": (is_token & (places >= first_segment_lengths[:, None])).astype(np.int64),
        "labels": labels.astype(np.int64),
    }


def _open_file(path: str | Path) -> IO[bytes]:
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory, a features file is needed")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} is empty; write it with tokenize_to_features.py")
    return open(path, "rb")


def _shown(value: object) -> str:
    """What a file holds, for a message: on one line, and not longer than one reads.

    Not the `repr` of a dict, which may hold another ten times, and that a third, to no end.
    """
    if type(value) is dict:
        return "a dict"
    return repr(value[:60]) if type(value) is str else repr(value)[:60]


def _read_header(path: str | Path, file: IO[bytes]) -> tuple[FeaturesHeader, dict[str, str]]:
    try:
        with naming_errors(path, "reading"):
            file.seek(0)
            part = _read_part(f"{path} header", file)
    except InputError as error:
        raise InputError(f"{error}; is it a file that tokenize_to_features.py wrote?") from None
    if part.get("format") != FORMAT:
        raise InputError(f"{path} is not a features file; write it with tokenize_to_features.py")
    version = part.get("version")
    if type(version) is not int or version != VERSION:
        raise InputError(f"{path} header: version {_shown(version)} where {VERSION} is read; tokenize again")
    kinds = FeaturesHeader.__annotations__
    values = {}
    for key, kind in kinds.items():
        values[key] = part.get(key)
        if type(values[key]) is not kind:
            raise InputError(f"{path} header: {key} is missing or no {kind.__name__}; tokenize again")
    header = FeaturesHeader(**values)
    if not 3 < header.max_seq_length < 1 << 31 or not 0 < header.vocab_size < 1 << 31:
        raise InputError(f"{path} header: max_seq_length or vocab_size is out of range; tokenize again")
    if header.set_name not in SET_NAMES:
        raise InputError(f"{path} header: set_name {_shown(header.set_name)} is none of {', '.join(SET_NAMES)}")
    if part.get("dtypes") != header.dtypes():
        raise InputError(f"{path} header: dtypes are not {header.dtypes()}; tokenize again")
    return header, part["dtypes"]


def _checked_block(
    where: str, header: FeaturesHeader, dtypes: dict[str, str], part: dict, file: IO[bytes]
) -> FeatureBlock:
    """Everything a block promises, checked for all its examples at once; an error names the first example at fault."""
    n, ids = part.get("num_examples"), part.get("example_ids")
    if type(n) is not int or not 0 <= n <= BLOCK_EXAMPLES:
        raise InputError(f"{where}: num_examples is no number from 0 to {BLOCK_EXAMPLES}")
    if type(ids) is not str or (ids.count("\n") + 1 if ids else 0) != n:
        raise InputError(f"{where}: example_ids are not {n} lines")
    example_ids = ids.split("\n") if ids else []
    for key, dtype in dtypes.items():
        place, itemsize = part.get(key), np.dtype(dtype).itemsize
        if type(place) is not range or len(place) % itemsize:
            raise InputError(f"{where}: {key} is missing or no array of {dtype}")
        if key != "input_ids" and len(place) != n * itemsize:
            raise InputError(f"{where}: {key} has {len(place) // itemsize} values for {n} examples")
    if set(part) != {"num_examples", "example_ids", *dtypes}:
        unknown = min(set(part) - {"num_examples", "example_ids", *dtypes})
        raise InputError(f"{where}: unknown key {_shown(unknown)}")
    if len(part["input_ids"]) > BLOCK_TOKEN_BYTES:
        raise InputError(f"{where}: its token ids are more than {BLOCK_TOKEN_BYTES} bytes; write the file again")

    def array(key: str) -> np.ndarray:
        file.seek(part[key].start)
        raw = file.read(len(part[key]))
        if len(raw) != len(part[key]):
            raise InputError(f"{where}: the file was cut short while it was read; write it again")
        return np.frombuffer(raw, dtypes[key])

    lengths, first, labels = array("lengths").astype(np.int64), array("first_segment_lengths"), array("labels")
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])

    def refuse(at_fault: np.ndarray, what: str) -> None:
        if at_fault.any():
            i = int(np.argmax(at_fault))
            raise InputError(f"{where} example {i} ({_shown(example_ids[i])}): {what}; tokenize again")

    refuse(np.array([not example_id for example_id in example_ids], bool), "its id is empty")
    refuse((lengths < 3) | (lengths > header.max_seq_length), f"its length is not from 3 to {header.max_seq_length}")
    refuse((first < 2) | (first > lengths), "its first segment is shorter than 2 tokens or longer than the example")
    refuse((labels < -1) | (labels > 1), "its label is none of -1, 0, 1")
    input_ids = array("input_ids")
    if offsets[-1] != len(input_ids):
        raise InputError(f"{where}: lengths add up to {offsets[-1]}, but there are {len(input_ids)} token ids")
    if n and input_ids.max() >= header.vocab_size:
        largest = np.maximum.reduceat(input_ids, offsets[:-1])
        token = largest[np.argmax(largest >= header.vocab_size)]
        refuse(largest >= header.vocab_size, f"token id {token} is beyond the vocabulary of {header.vocab_size}")
    return FeatureBlock(example_ids, input_ids, offsets, first, labels)


# Opcodes of pickle protocol 4 that carry data, and how many bytes their size field takes.
_TEXT = {pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE: 4, pickle.BINUNICODE8: 8}
_BYTES = {pickle.SHORT_BINBYTES: 1, pickle.BINBYTES: 4, pickle.BINBYTES8: 8}
_INTS = {pickle.BININT1: 1, pickle.BININT2: 2, pickle.BININT: 4}
_CONSTANTS = {pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.NONE: None}
_MARK = object()


def _read_part(where: str, file: IO[bytes]) -> dict:
    """Reads one pickled dict by walking its opcodes; `bytes` come back as the `range` of their places in the file.

    The opcodes below build text, bytes, numbers and dicts. None of those that name or call something is among them.
    """
    position, file_size = file.tell(), os.fstat(file.fileno()).st_size
    text_bytes = 0
    stack: list = []
    memo: list = []

    def skip(count: int) -> range:
        nonlocal position
        if count > file_size - position:
            raise InputError(f"{where}: cut off at byte {file_size}")
        position += count
        return range(position - count, position)

    def take(count: int) -> bytes:
        skip(count)
        taken = file.read(count)
        if len(taken) != count:
            raise InputError(f"{where}: the file was cut short while it was read; write it again")
        return taken

    def take_size(width: int) -> int:
        return int.from_bytes(take(width), "little")

    def take_text(size: int) -> str:
        nonlocal text_bytes
        text_bytes += size
        if text_bytes > _MAX_TEXT_BYTES and size <= file_size - position:
            raise InputError(f"{where}: its ids are more than {BLOCK_ID_BYTES} bytes; write the file again")
        return str(take(size), "utf-8")

    def skip_bytes(size: int) -> range:
        place = skip(size)
        file.seek(position)
        return place

    def set_items(target: object, pairs: list) -> None:
        if type(target) is not dict or len(pairs) % 2:
            raise InputError(f"{where}: is no dict of the kind that features are made of")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str or (type(value) is dict and len(stack) >= _MAX_DEPTH):
                raise InputError(f"{where}: is no dict of the kind that features are made of")
            target[key] = value

    try:
        for _ in range(_MAX_OPCODES):
            opcode = take(1)
            if opcode in _TEXT:
                stack.append(take_text(take_size(_TEXT[opcode])))
            elif opcode in _BYTES:
                stack.append(skip_bytes(take_size(_BYTES[opcode])))
            elif opcode in _INTS:
                stack.append(int.from_bytes(take(_INTS[opcode]), "little", signed=opcode == pickle.BININT))
            elif opcode in _CONSTANTS:
                stack.append(_CONSTANTS[opcode])
            elif opcode == pickle.EMPTY_DICT:
                stack.append({})
            elif opcode == pickle.MARK:
                stack.append(_MARK)
            elif opcode == pickle.SETITEM:
                value, key = stack.pop(), stack.pop()
                set_items(stack[-1], [key, value])
            elif opcode == pickle.SETITEMS:
                mark = len(stack) - 1 - stack[::-1].index(_MARK)
                pairs = stack[mark + 1 :]
                del stack[mark:]
                set_items(stack[-1], pairs)
            elif opcode == pickle.MEMOIZE:
                memo.append(stack[-1])
            elif opcode == pickle.BINGET:
                stack.append(memo[take_size(1)])
            elif opcode == pickle.PROTO:
                if take_size(1) > 4:
                    raise InputError(f"{where}: pickle protocol above 4")
            elif opcode == pickle.FRAME:
                take_size(8)  # a hint for readers that buffer
            elif opcode == pickle.STOP:
                if len(stack) == 1 and type(stack[0]) is dict:
                    return stack[0]
                break
            else:
                raise InputError(f"{where}: pickle opcode {opcode!r} at byte {position - 1} is not allowed in features")
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: damaged before byte {position}") from None
    raise InputError(f"{where}: damaged before byte {position}")
