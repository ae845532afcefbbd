"""Hostile features: no file makes its reader run code, use much memory or take long. It is refused with one error.

A separate process reads the files, so that its time and memory can be measured. It loads NumPy, but no torch.
"""

import json
import os
import pickletools
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features import (
    EXAMPLES,
    HEADER,
    block_dict,
    dumped,
    examples_of,
    header_dict,
    header_dict_of_version_1,
    hostile_payloads,
    read_all,
    some_example,
    valid_parts,
)
from tiny import ROOT

from formats.features import (
    BLOCK_EXAMPLES,
    BLOCK_ID_BYTES,
    BLOCK_TOKEN_BYTES,
    FORMAT,
    Example,
    Features,
    read_blocks,
    write_features,
)
from runtime.errors import InputError
from runtime.script import run_script

MOST_MEMORY = 256 << 20
MOST_SECONDS = 2

# Reads the files whose names come on stdin, one per line, with all readers, and prints the outcome. The audit hook sees
# every import, system call and opened file. An address space of 1 GB turns a huge allocation into an error.
CHILD = r"""
import json, os, resource, sys, time
import encodings.unicode_escape
from formats.features import Features, InputError, read_blocks, read_header

resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
events = []
sys.addaudithook(lambda event, arguments: events.append([event, str(arguments[:1])]))
for path in map(str.rstrip, sys.stdin):
    found = []
    events.clear()
    start = time.monotonic()
    for read in (lambda: read_header(path), lambda: [None for _ in read_blocks(path)], lambda: Features(path)):
        try:
            read()
            found.append(None)
        except InputError as error:
            found.append(str(error))
    seconds = time.monotonic() - start
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    seen = [event for event in events if event != ["open", str((path,))]][:-1]
    print(json.dumps([path, found, seconds, int(status["VmHWM"].split()[0]) << 10, seen, "torch" in sys.modules]))
"""

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured as Linux counts it")


def read_apart(paths: Iterable[Path]) -> list[list[str | None]]:
    """For each file, what `read_header`, `read_blocks` and `Features` raised: the message of an InputError, or None.

    Asserts that there was no other error, that only the file was opened, and that time and memory were small.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="".join(f"{path}\n" for path in paths),
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2000:]
    outcomes = []
    for line in done.stdout.splitlines():
        path, found, seconds, memory, events, has_torch = json.loads(line)
        assert events == [], path
        assert not has_torch
        assert memory < MOST_MEMORY, path
        assert seconds / len(found) < MOST_SECONDS, path
        for message in found:
            assert message is None or (message.startswith(path) and len(message) < 500 + len(path)), path
            assert message is None or message.isprintable(), path
        outcomes.append(found)
    assert len(outcomes) == len(list(paths))
    return outcomes


def number(size: int, code: bytes, width: str = "<Q") -> bytes:
    return code + struct.pack(width, size)


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return number(len(raw), b"X", "<I") + raw


def block_of(**values: bytes) -> bytes:
    """A block, pickled by hand. The values are opcodes with their operands."""
    return b"\x80\x04}(" + b"".join(text(key) + value for key, value in values.items()) + b"u."


def raw(array: np.ndarray) -> bytes:
    return number(array.nbytes, b"B", "<I") + array.tobytes()


def whole_block(count: int, ids: bytes, tokens: bytes, length: int) -> bytes:
    return block_of(
        num_examples=number(count, b"J", "<i"),
        example_ids=ids,
        lengths=raw(np.full(count, length, "<u2")),
        first_segment_lengths=raw(np.full(count, 2, "<u2")),
        labels=raw(np.zeros(count, "|i1")),
        input_ids=tokens,
    )


HEAD = dumped(header_dict())[0]
LONG_HEAD = dumped(header_dict(max_seq_length=512))[0]
END = dumped(block_dict([]))[0]
ONE = dumped(block_dict(EXAMPLES[:1]))[0]
FULL_IDS = text("\n".join("e" for _ in range(BLOCK_EXAMPLES)))
WIDE_IDS = text("\n".join("\U0001f600" * 15 for _ in range(BLOCK_EXAMPLES)))


def sparse(*parts: bytes | int) -> Callable[[BinaryIO], None]:
    """Writes parts. A number is a hole of so many bytes, which needs no space on the disk."""

    def write(file: BinaryIO) -> None:
        for part in parts:
            if isinstance(part, int):
                file.seek(part, os.SEEK_CUR)
            else:
                file.write(part)
        file.truncate()

    return write


HUGE = 1 << 36
FULL_TOKENS = number(BLOCK_TOKEN_BYTES, b"B", "<I")
BIG_FILES: dict[str, tuple[Callable[[BinaryIO], None], str]] = {
    "text of 64 GB": (sparse(HEAD, b"\x80\x04}(" + number(HUGE, b"\x8d"), HUGE), "more than"),
    "text in the header": (sparse(b"\x80\x04}(" + number(HUGE, b"\x8d"), HUGE), "more than"),
    "bytes of 64 GB": (
        sparse(HEAD, b"\x80\x04}(" + text("labels") + number(HUGE, b"\x8e"), HUGE, b"u.", END),
        "num_examples",
    ),
    "64 GB of tokens": (
        sparse(HEAD, whole_block(3, text("a\nb\nc"), number(HUGE, b"\x8e"), 5)[:-2], HUGE, b"u.", END),
        "more than",
    ),
    "64 GB of lengths": (
        sparse(
            HEAD,
            b"\x80\x04}(" + text("num_examples") + b"K\x01" + text("example_ids") + text("a"),
            text("input_ids") + number(HUGE, b"\x8e"),
            HUGE,
            text("lengths") + number(HUGE, b"\x8e"),
            HUGE,
            b"u.",
        ),
        "lengths has 34359738368 values for 1 examples",
    ),
    "64 GB after the end": (sparse(HEAD, END, HUGE, b"\0"), "follow the end mark"),
    "64 GB of zeros": (sparse(HUGE, b"\0"), "opcode"),
    "many long texts": (
        sparse(HEAD, b"\x80\x04}(" + b"".join(text(f"{i}" + "k" * 99_999) + b"N" for i in range(300)) + b"u."),
        "more than",
    ),
    "a long unknown key": (sparse(HEAD, ONE[:-2] + text("\x1b\n" * 999_999) + b"Nu.", END), "unknown key '\\x1b\\n"),
    "a long set_name": (
        sparse(*dumped(header_dict(set_name="\x1b]0;\u202e" * 99_999))),
        "set_name '\\x1b]0;\\u202e",
    ),
    "a long version": (sparse(*dumped(header_dict(version="\x07" * 999_999))), "version '\\x07"),
    "a long name of the input": (
        sparse(*dumped(header_dict(raw_data_name="\x1b]0;\u202e" * 99_999, raw_data_sha256="\x07" * 999_999))),
        "raw_data_sha256 is not 64 hexadecimal digits",
    ),
    "a version of another kind": (sparse(*dumped(header_dict(version={"a" * 999: 1}))), "version a dict"),
    "a long id at fault": (
        sparse(HEAD, *dumped(block_dict([Example("\x9b\U0001f600" * 99_999, [2, 3], 2, 0)])), END),
        "'\\x9b",
    ),
    "ids only": (sparse(HEAD, block_of(num_examples=b"K\x01", example_ids=text("i" * BLOCK_ID_BYTES)), END), "missing"),
    "too many ids": (
        sparse(HEAD, block_of(num_examples=b"K\x01", example_ids=text("\n" * (BLOCK_ID_BYTES - 1))), END),
        "example_ids are not 1 lines",
    ),
    "two full blocks, then a wrong token": (
        sparse(
            LONG_HEAD,
            whole_block(BLOCK_EXAMPLES, WIDE_IDS, FULL_TOKENS, 512)[:-2],
            BLOCK_TOKEN_BYTES,
            b"u.",
            whole_block(BLOCK_EXAMPLES, WIDE_IDS, FULL_TOKENS, 512)[:-2],
            BLOCK_TOKEN_BYTES - 2,
            b"\xff\xffu.",
            END,
        ),
        "block 1 example 65535 ('" + "\U0001f600" * 15 + "'): token id 65535 is beyond the vocabulary of 40",
    ),
    "a full block of lengths that do not add up": (
        sparse(LONG_HEAD, whole_block(BLOCK_EXAMPLES, FULL_IDS, FULL_TOKENS, 511)[:-2], BLOCK_TOKEN_BYTES, b"u.", END),
        "lengths add up to 33488896, but there are 33554432 token ids",
    ),
    "blocks of one example": (sparse(HEAD, *[ONE] * 100_000, END), "blocks of few examples"),
}  # fmt: skip


def test_a_big_hostile_file_is_refused_in_little_memory_and_time(tmp_path: Path) -> None:
    """Sparse files of up to 128 GB, and files whose values a message quotes."""
    paths = []
    for i, (write, _) in enumerate(BIG_FILES.values()):
        paths.append(tmp_path / str(i))
        with open(paths[-1], "wb") as file:
            write(file)
    for (name, (_, expected)), (_, of_blocks, of_features) in zip(BIG_FILES.items(), read_apart(paths), strict=True):
        assert of_blocks is not None and expected in of_blocks, (name, of_blocks)
        assert of_features == of_blocks


def everything_that_names_or_calls(mark: Path) -> list[bytes]:
    """Files with every payload in every place: as a part before, between and after valid parts, or as a value in one.

    The payloads include every opcode, with operands that a reader could follow.
    """
    parts = valid_parts()
    payloads = list(hostile_payloads(f"touch {mark}").values())
    os_system = b"cposix\nsystem\n"
    command = text(f"touch {mark}")
    payloads += [
        b"\x80\x02" + os_system + command + b"\x85R.",
        b"\x80\x04" + os_system + b"\x94" + command + b"\x85\x94h\x00h\x01R.",
        b"\x80\x04" + os_system + b"q\x00" + command + b"\x85r\x01\0\0\0h\x00j\x01\0\0\0R.",
        b"\x80\x04" + os_system + b"p0\n" + command + b"\x85p1\ng0\ng1\nR.",
        b"(" + os_system + command + b"o.",
        b"\x80\x02cbuiltins\neval\n" + text(f"open({str(mark)!r}, 'w')") + b"\x85R.",
        b"\x80\x02c__main__\nInputError\n)\x81}" + text("args") + command + b"sb.",
        b"\x80\x03c_codecs\nencode\n" + text("x") + text("latin1") + b"\x86R.",
        b"\x80\x04ccopyreg\nadd_extension\n("
        + text("posix")
        + text("system")
        + b"K\x07tR0\x82\x07"
        + command
        + b"\x85R.",
        b"\x80\x05\x97.",
        b"\x80\x05\x96" + struct.pack("<Q", 3) + b"abc\x98.",
    ]
    for opcode in pickletools.opcodes:
        payloads.append(b"\x80\x04" + opcode.code.encode("latin-1") + b"posix\nsystem\n" + b"\x85R.")
    files = []
    for payload in payloads:
        body = payload.removeprefix(b"\x80\x04").removesuffix(b".")
        for place in range(len(parts) + 1):
            files.append(b"".join([*parts[:place], payload, *parts[place:]]))
            files.append(b"".join([*parts[:place], payload]))
        for place in (0, 1):
            inside = parts[place][:-2] + text("k") + body + parts[place][-2:]
            files.append(b"".join([*parts[:place], inside, *parts[place + 1 :]]))
            files.append(b"".join([*parts[:place], body + parts[place], *parts[place + 1 :]]))
    return files


BOMBS = [
    b"\x80\x04" + b"}" * 900 + b"(" * 90 + b"u.",
    b"\x80\x04" + b"(" * 499 + b"u" * 499 + b".",
    b"\x80\x04}" + b"(u" * 490 + b".",
    b"\x80\x04}\x94" + b"h\x00" * 990 + b".",
    b"\x80\x04}" + b"\x94" * 996 + b".",
    b"\x80\x04]\x94" + b"h\x00h\x00\x86\x94" * 60 + b".",  # a billion laughs
    b"\x80\x04" + text("ha" * 99) + b"\x94" + b"h\x00" * 900 + b".",
    # the same of dicts, in a value that a message quotes
    b"\x80\x04}\x94"
    + b"".join(
        text("version") + b"}\x94" + b"".join(text(f"{i}") + b"h" + bytes([level]) + b"s" for i in range(9)) + b"s"
        for level in range(20)
    )
    + text("format")
    + text(FORMAT)
    + b"s.",
    b"\x80\x04}\x94" + (text("k") + b"h\x00s") * 300 + b".",
    b"\x80\x04}\x94" + b"".join(text("k") + b"}\x94" for _ in range(300)) + b"s" * 300 + b".",
    b"\x80\x04L" + b"9" * 999_999 + b"L\n.",
    b"\x80\x04\x8b" + struct.pack("<i", 1 << 30) + b"\xff" * 999_999 + b".",
    b"\x80\x04I" + b"9" * 999_999 + b"\n.",
    b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
    b"\x80\x04" + b"\x95" + b"\xff" * 8 * 999,
    b"\x80\x04" + b"\x80\x04" * 999_999,
]


def test_whatever_names_calls_nests_or_repeats_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    parts = valid_parts()
    files = everything_that_names_or_calls(tmp_path / "ran")
    files += [b"".join([*parts[:place], bomb, *parts[place:]]) for bomb in BOMBS for place in range(4)]
    paths = [tmp_path / str(i) for i in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    outcomes = read_apart(paths)
    assert not (tmp_path / "ran").exists()
    accepted = [path for path, (_, of_blocks, _) in zip(paths, outcomes, strict=True) if of_blocks is None]
    for path in accepted:  # with an opcode that has no effect, such as FRAME
        assert examples_of(read_all(path)[1]) == EXAMPLES
    assert len(accepted) < 10 < 800 < len(files)
    assert all(of_blocks == of_features for _, of_blocks, of_features in outcomes)


def mutated(chance: random.Random, content: bytes, pieces: list[bytes]) -> bytes:
    """Makes 1 to 4 changes: replaces bytes and bits, removes, inserts and copies pieces, inserts hostile pickles."""
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at, to = chance.randrange(len(damaged)), chance.randrange(len(damaged))
        size = chance.randint(1, 12)
        match chance.randrange(7):
            case 0:
                damaged[at] = chance.randrange(256)
            case 1:
                damaged[at] ^= 1 << chance.randrange(8)
            case 2:
                del damaged[at : at + size]
            case 3:
                damaged[at:at] = chance.randbytes(size)
            case 4:
                damaged[to:to] = damaged[at : at + chance.randint(1, 200)]
            case 5:
                damaged[at:at] = chance.choice(pieces)
            case 6:
                damaged[at : at + 4] = struct.pack("<I", chance.choice([0, 1, 2**16, 2**31, 2**32 - 1]))
        if not damaged:
            return content[:1]
    return bytes(damaged)


@pytest.mark.parametrize("version", [1, 2])
def test_two_thousand_mutated_files_are_refused_or_valid(tmp_path: Path, version: int) -> None:
    chance = random.Random(11)
    content = b"".join(valid_parts(header_dict_of_version_1() if version == 1 else header_dict()))
    pieces = [payload.removeprefix(b"\x80\x04") for payload in hostile_payloads(f"touch {tmp_path}/ran").values()]
    pieces += [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    paths = [tmp_path / str(i) for i in range(2000)]
    for path in paths:
        path.write_bytes(mutated(chance, content, pieces))
    outcomes = read_apart(paths)
    assert not (tmp_path / "ran").exists()
    refused = [of_blocks is not None for _, of_blocks, _ in outcomes]
    assert sum(refused) > 1500
    for path, (_, of_blocks, of_features) in zip(paths, outcomes, strict=True):
        assert of_blocks == of_features
        if of_blocks is None:
            assert_valid(path)


def assert_valid(path: Path) -> None:
    """An accepted file is as the format requires, and reads the same after it is written again."""
    header, blocks = read_all(path)
    examples = examples_of(blocks)
    for example in examples:
        assert example.example_id and "\n" not in example.example_id
        assert 3 <= len(example.input_ids) <= header.max_seq_length
        assert min(example.input_ids) >= 0 and max(example.input_ids) < header.vocab_size
        assert 2 <= example.first_segment_length <= len(example.input_ids)
        assert example.label in (-1, 0, 1)
    again = path.with_name("again")
    write_features(again, header, examples)
    assert read_header_and_examples(again) == (header, examples)


def read_header_and_examples(path: Path) -> tuple[object, list[Example]]:
    header, blocks = read_all(path)
    return header, examples_of(blocks)


@settings(deadline=None, max_examples=150)
@given(examples=st.lists(some_example(), max_size=4), data=st.data())
def test_a_mutated_file_is_refused_or_valid(
    tmp_path_factory: pytest.TempPathFactory, examples: list[Example], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("features") / "f"
    write_features(path, HEADER, examples)
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(start + 30, len(content))))
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=20)) + content[stop:] or b"\0")
    try:
        Features(path)
    except InputError as error:
        assert str(path) in str(error)
        return
    assert_valid(path)


# The writer closes blocks before they are too large for the reader.


def test_blocks_are_closed_before_ids_or_tokens_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(f"e{i}" + "é" * (i % 4), [2, 5, 3, 7, 3][: 3 + i % 3], 2, 0) for i in range(40)]
    with monkeypatch.context() as small_blocks:
        small_blocks.setattr("formats.features.BLOCK_ID_BYTES", 30)
        assert write_features(tmp_path / "ids", HEADER, examples) == 40
        small_blocks.setattr("formats.features.BLOCK_TOKEN_BYTES", 24)
        assert write_features(tmp_path / "tokens", HEADER, examples) == 40
        for too_large in (Example("é" * 15, [2, 3, 3], 2, 0), Example("e", [2] * 13, 2, 0)):
            with pytest.raises(InputError, match="is too large for features"):
                write_features(tmp_path / "none", HEADER, [too_large])
    for name in ("ids", "tokens"):
        header, blocks = read_all(tmp_path / name)
        assert (header, examples_of(blocks)) == (HEADER, examples)
        assert max(len("\n".join(block.example_ids).encode()) for block in blocks) in range(20, 31)
    assert max(block.input_ids.nbytes for block in blocks) in range(16, 25)
    assert sorted(os.listdir(tmp_path)) == ["ids", "tokens"]


def test_a_file_cut_by_another_process_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """If the file were mapped, reading beyond its new end would kill the process."""
    with pytest.MonkeyPatch.context() as small_blocks:
        small_blocks.setattr("formats.features.BLOCK_EXAMPLES", 500)
        write_features(tmp_path / "f", HEADER, (Example(f"e{i}", [2, 5, 7, 8, 3], 2, 0) for i in range(20_000)))
    blocks = read_blocks(tmp_path / "f")
    first = next(blocks)
    os.truncate(tmp_path / "f", 9_000)
    assert first.input_ids.sum() == 500 * 25
    with pytest.raises(InputError, match="f block 1: cut off at byte 9000"):
        list(blocks)


def test_an_error_of_the_disk_names_the_features(tmp_path: Path, monkeypatch, capsys) -> None:
    write_features(tmp_path / "f", HEADER, EXAMPLES)
    features = Features(tmp_path / "f")

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(SystemExit) as done:
        run_script(lambda: features.batch([0]))
    assert done.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {tmp_path / 'f'}: while reading: Input/output error\n")
