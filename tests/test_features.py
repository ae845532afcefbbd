"""Pickled features: the reader returns what was written, and refuses every other file."""

import hashlib
import os
import pickle
import pickletools
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.features import (
    BLOCK_EXAMPLES,
    Example,
    FeatureBlock,
    Features,
    FeaturesHeader,
    read_blocks,
    read_header,
    write_features,
)
from runtime.errors import InputError

OF_VERSION_1 = FeaturesHeader(
    max_seq_length=11, vocab_size=40, do_lower_case=True, set_name="train", vocab_sha256="ab" * 32
)
HEADER = OF_VERSION_1._replace(raw_data_name="pairs.tsv", raw_data_sha256="cd" * 32)
EXAMPLES = [
    Example("q1", [2, 7, 3, 9, 8, 3], 3, 1),
    Example("é q2", [2, 39, 10, 3, 11, 3], 4, 0),
    Example("q3#D1_2", [2, 5, 3, 3], 3, -1),
]
ALLOWED_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "SETITEM", "SETITEMS", "MEMOIZE", "BINGET",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    "BININT", "BININT1", "BININT2", "NEWTRUE", "NEWFALSE", "NONE",
}  # fmt: skip


def header_dict(header: FeaturesHeader = HEADER, **changes) -> dict:
    return {
        "format": "simplified-tinybert-features",
        "version": 2,
        **header._asdict(),
        "dtypes": header.dtypes(),
    } | changes


def header_dict_of_version_1(**changes) -> dict:
    """A header as the programs before version 2 wrote it."""
    header = header_dict(version=1)
    del header["raw_data_name"], header["raw_data_sha256"]
    return header | changes


def block_dict(examples: list[Example], **changes) -> dict:
    return {
        "num_examples": len(examples),
        "example_ids": "\n".join(example.example_id for example in examples),
        "input_ids": np.array([i for example in examples for i in example.input_ids], "<u2").tobytes(),
        "lengths": np.array([len(example.input_ids) for example in examples], "<u2").tobytes(),
        "first_segment_lengths": np.array([example.first_segment_length for example in examples], "<u2").tobytes(),
        "labels": np.array([example.label for example in examples], "|i1").tobytes(),
    } | changes


def dumped(*parts: dict) -> list[bytes]:
    return [pickle.dumps(part, protocol=4) for part in parts]


def valid_parts(header: dict | None = None) -> list[bytes]:
    return dumped(header or header_dict(), block_dict(EXAMPLES[:2]), block_dict(EXAMPLES[2:]), block_dict([]))


def read_all(path: Path) -> tuple[FeaturesHeader, list[FeatureBlock]]:
    return read_header(path), list(read_blocks(path))


def examples_of(blocks: list[FeatureBlock]) -> list[Example]:
    return [
        Example(
            example_id,
            block.input_ids[block.offsets[i] : block.offsets[i + 1]].tolist(),
            int(block.first_segment_lengths[i]),
            int(block.labels[i]),
        )
        for block in blocks
        for i, example_id in enumerate(block.example_ids)
    ]


def refusal(path: Path, content: bytes) -> str:
    """The message with which a file of this content is refused."""
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_all(path)
    with pytest.raises(InputError):
        Features(path)
    return str(caught.value)


@st.composite
def some_example(draw: st.DrawFn) -> Example:
    ids = draw(st.lists(st.integers(0, HEADER.vocab_size - 1), min_size=3, max_size=HEADER.max_seq_length))
    example_id = draw(st.text(st.characters(exclude_characters="\n", codec="utf-8"), min_size=1, max_size=5))
    return Example(example_id, ids, draw(st.integers(2, len(ids))), draw(st.integers(-1, 1)))


@settings(deadline=None, max_examples=60)
@given(examples=st.lists(some_example(), max_size=6))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    path = tmp_path_factory.mktemp("features") / "f"
    assert write_features(path, HEADER, iter(examples)) == len(examples)
    header, blocks = read_all(path)
    assert header == HEADER
    assert examples_of(blocks) == examples
    features = Features(path)
    assert len(features) == len(examples)
    assert features.labels.tolist() == [example.label for example in examples]
    assert features.lengths.tolist() == [len(example.input_ids) for example in examples]


def test_more_examples_than_a_block_holds(tmp_path: Path) -> None:
    count = BLOCK_EXAMPLES + 3
    examples = (Example(f"e{i}", [2, i % 37, i % 31, 3][: 3 + i % 2], 2, i % 2) for i in range(count))
    assert write_features(tmp_path / "f", HEADER, examples) == count
    assert [len(block.example_ids) for block in read_blocks(tmp_path / "f")] == [65_536, 3]
    features = Features(tmp_path / "f")
    indices = [BLOCK_EXAMPLES, BLOCK_EXAMPLES - 1, 0, count - 1]
    batch = features.batch(indices)
    for row, i in enumerate(indices):
        ids = [2, i % 37, i % 31, 3][: 3 + i % 2]
        assert batch["input_ids"][row].tolist() == ids + [0] * (batch["input_ids"].shape[1] - len(ids))
        assert batch["labels"][row] == i % 2


def test_ids_are_found_in_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as small_blocks:
        small_blocks.setattr("formats.features.BLOCK_EXAMPLES", 5)
        write_features(tmp_path / "f", HEADER, (Example(f"e {i}", [2, i, 3], 2, 1) for i in range(13)))
    features = Features(tmp_path / "f")
    assert features.example_ids([12, 0, 4, 5, 4]) == ["e 12", "e 0", "e 4", "e 5", "e 4"]
    assert features.batch(range(13))["input_ids"][:, 1].tolist() == list(range(13))


@pytest.mark.parametrize("vocab_size", [40, 70_000])
def test_small_dtypes_are_kept(tmp_path: Path, vocab_size: int) -> None:
    write_features(tmp_path / "f", HEADER._replace(vocab_size=vocab_size), EXAMPLES)
    features = Features(tmp_path / "f")
    assert (features.lengths.dtype, features.first_segment_lengths.dtype, features.labels.dtype) == ("u2", "u2", "i1")
    assert features.first_segment_lengths.tolist() == [3, 4, 3]
    assert features.batch([1, 2], 7)["input_ids"].tolist() == [[2, 39, 10, 3, 11, 3, 0], [2, 5, 3, 3, 0, 0, 0]]


def test_features_stay_what_they_were_when_the_file_is_replaced(tmp_path: Path) -> None:
    write_features(tmp_path / "f", HEADER, EXAMPLES)
    features = Features(tmp_path / "f")
    write_features(tmp_path / "f", HEADER, [Example("other", [2, 3, 3], 2, 0)])
    assert features.batch([0])["input_ids"].tolist() == [EXAMPLES[0].input_ids]
    assert features.example_ids([2]) == ["q3#D1_2"]


def test_a_file_that_is_cut_short_while_it_is_read_is_refused(tmp_path: Path) -> None:
    write_features(tmp_path / "f", HEADER, EXAMPLES)
    features = Features(tmp_path / "f")
    os.truncate(tmp_path / "f", 100)
    with pytest.raises(InputError, match="was cut short while it was read"):
        features.batch([0])


def test_exactly_a_block_of_examples(tmp_path: Path) -> None:
    write_features(tmp_path / "f", HEADER, (Example("e", [2, 3, 3], 2, 1) for _ in range(BLOCK_EXAMPLES)))
    assert [len(block.example_ids) for block in read_blocks(tmp_path / "f")] == [65_536]


def test_a_plain_pickle_load_reads_header_and_blocks(tmp_path: Path) -> None:
    write_features(tmp_path / "f", HEADER, EXAMPLES)
    parts = []
    with open(tmp_path / "f", "rb") as file:
        while True:
            try:
                parts.append(pickle.load(file))
            except EOFError:
                break
    assert parts == [header_dict(), block_dict(EXAMPLES), block_dict([])]


def test_header_and_dtypes_are_as_documented(tmp_path: Path) -> None:
    write_features(tmp_path / "f", HEADER, EXAMPLES)
    with open(tmp_path / "f", "rb") as file:
        assert pickle.load(file) == {
            "format": "simplified-tinybert-features",
            "version": 2,
            "max_seq_length": 11,
            "vocab_size": 40,
            "do_lower_case": True,
            "set_name": "train",
            "vocab_sha256": "ab" * 32,
            "raw_data_name": "pairs.tsv",
            "raw_data_sha256": "cd" * 32,
            "dtypes": {"input_ids": "<u2", "lengths": "<u2", "first_segment_lengths": "<u2", "labels": "|i1"},
        }


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_535, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_the_largest_token_id_survives(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    header = HEADER._replace(vocab_size=vocab_size)
    assert header.dtypes()["input_ids"] == dtype
    write_features(tmp_path / "f", header, [Example("e", [2, vocab_size - 1, 3], 2, 0)])
    assert examples_of(list(read_blocks(tmp_path / "f")))[0].input_ids == [2, vocab_size - 1, 3]


@pytest.mark.parametrize(("max_seq_length", "dtype"), [(65_535, "<u2"), (65_536, "<u4")])
def test_the_longest_example_survives(tmp_path: Path, max_seq_length: int, dtype: str) -> None:
    header = HEADER._replace(max_seq_length=max_seq_length)
    assert header.dtypes()["lengths"] == header.dtypes()["first_segment_lengths"] == dtype
    ids = [2] + [5] * (max_seq_length - 2) + [3]
    write_features(tmp_path / "f", header, [Example("e", ids, max_seq_length, 0)])
    assert examples_of(list(read_blocks(tmp_path / "f"))) == [Example("e", ids, max_seq_length, 0)]


def reference_batch(examples: list[Example], pad_to: int | None) -> dict[str, list]:
    """Reference implementation of padding, token by token."""
    width = pad_to or max(len(example.input_ids) for example in examples)
    batch: dict[str, list] = {"input_ids": [], "attention_mask": [], "token_type_ids": [], "labels": []}
    for example in examples:
        rows: tuple[list[int], list[int], list[int]] = ([], [], [])
        for t in range(width):
            real = t < len(example.input_ids)
            rows[0].append(example.input_ids[t] if real else 0)
            rows[1].append(1 if real else 0)
            rows[2].append(1 if real and t >= example.first_segment_length else 0)
        for name, row in zip(("input_ids", "attention_mask", "token_type_ids"), rows, strict=True):
            batch[name].append(row)
        batch["labels"].append(example.label)
    return batch


@settings(deadline=None, max_examples=60)
@given(examples=st.lists(some_example(), min_size=1, max_size=6), data=st.data())
def test_batch_agrees_with_the_reference_implementation(
    tmp_path_factory: pytest.TempPathFactory, examples: list[Example], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("features") / "f"
    write_features(path, HEADER, examples)
    indices = data.draw(st.lists(st.integers(0, len(examples) - 1), min_size=1, max_size=8))
    pad_to = data.draw(st.sampled_from([None, HEADER.max_seq_length]))
    batch = Features(path).batch(np.array(indices), pad_to)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
    expected = reference_batch([examples[i] for i in indices], pad_to)
    assert {name: array.tolist() for name, array in batch.items()} == expected


def test_an_example_that_cannot_be_written_leaves_the_older_file(tmp_path: Path) -> None:
    write_features(tmp_path / "f", HEADER, EXAMPLES)
    before = (tmp_path / "f").read_bytes()

    def examples():
        yield EXAMPLES[0]
        raise InputError("line 2")

    with pytest.raises(InputError):
        write_features(tmp_path / "f", HEADER, examples())
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == before


# Refused: files that name or call something.


class Calls:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def hostile_payloads(command: str) -> dict[str, bytes]:
    """Pickles that run a command, or would run it if the reader resolved the names in them."""
    text = command.encode()
    argument = b"\x8c" + bytes([len(text)]) + text
    named = b"\x8c\x02os\x8c\x06system\x93"
    return {
        **{f"protocol {protocol}": pickle.dumps(Calls(command), protocol) for protocol in range(6)},
        "GLOBAL": b"cos\nsystem\n(V" + text + b"\ntR.",
        "STACK_GLOBAL": b"\x80\x04" + named + argument + b"\x85R.",
        "INST": b"(S'" + text + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + argument + b"o.",
        "NEWOBJ": b"\x80\x04" + named + argument + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + named + argument + b"\x85}\x92.",
        "BUILD": b"\x80\x04}\x8c\x0c__setstate__" + named + b"s" + argument + b"b.",
        "PERSID": b"P" + text + b"\n.",
        "BINPERSID": b"\x80\x04" + argument + b"Q.",
        "EXT1": b"\x80\x04\x82\x01.",
        "EXT2": b"\x80\x04\x83\x01\x00.",
        "EXT4": b"\x80\x04\x84\x01\x00\x00\x00.",
    }


def test_the_hostile_payloads_do_run_where_pickle_reads_them(tmp_path: Path) -> None:
    payloads = hostile_payloads(f"touch {tmp_path}/ran")
    for name in ("protocol 0", "protocol 4", "GLOBAL", "STACK_GLOBAL", "INST", "OBJ"):
        pickle.loads(payloads[name])
        (tmp_path / "ran").unlink()


@pytest.mark.parametrize("name", list(hostile_payloads("")))
def test_nothing_named_or_called_in_a_file_is_executed(tmp_path: Path, name: str) -> None:
    payload = hostile_payloads(f"touch {tmp_path}/ran")[name]
    parts = valid_parts()
    for place in range(len(parts) + 1):
        refusal(tmp_path / "f", b"".join([*parts[:place], payload, *parts[place:]]))
        refusal(tmp_path / "f", b"".join([*parts[:place], payload]))
    # instead of a value
    body = payload.removeprefix(b"\x80\x04").removesuffix(b".")
    for part in (parts[0], parts[1]):
        inside = part[:-2] + b"\x8c\x01k" + body + part[-2:]
        refusal(tmp_path / "f", part[:0] + b"".join([parts[0], inside, parts[-1]] if part is parts[1] else [inside]))
    assert os.listdir(tmp_path) == ["f"]


OTHER_OPCODES = [opcode for opcode in pickletools.opcodes if opcode.name not in ALLOWED_OPCODES]


@pytest.mark.parametrize("opcode", OTHER_OPCODES, ids=lambda opcode: opcode.name)
def test_every_opcode_that_features_do_not_need_is_refused(tmp_path: Path, opcode: pickletools.OpcodeInfo) -> None:
    parts = valid_parts()
    code = opcode.code.encode("latin-1")
    for filler in (b"\0" * 16, b"1\n1\n"):
        for place in range(len(parts)):
            for start in (b"\x80\x04", b"\x80\x04}\x94(\x8c\x01k"):
                message = refusal(tmp_path / "f", b"".join(parts[:place]) + start + code + filler)
                assert "is not allowed in features" in message
                assert repr(code) in message


# Refused: wrong sizes and numbers.


@pytest.mark.parametrize("size", [2**40, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("opcode", [b"\x8e", b"\x8d"], ids=["BINBYTES8", "BINUNICODE8"])
def test_a_size_beyond_the_file_is_refused_without_allocating_it(tmp_path: Path, opcode: bytes, size: int) -> None:
    parts = valid_parts()
    part = b"\x80\x04}\x94(\x8c\x09input_ids" + opcode + struct.pack("<Q", size) + b"abc"
    for place in range(3):
        tracemalloc.start()
        message = refusal(tmp_path / "f", b"".join(parts[:place]) + part)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "cut off" in message
        assert peak < 1 << 20


@pytest.mark.parametrize("value", [2**31 - 1, 65_537, -1, True, None, "3", b"3"])
def test_a_number_of_examples_that_is_not_there_is_refused(tmp_path: Path, value: object) -> None:
    block = block_dict(EXAMPLES, num_examples=value)
    message = refusal(tmp_path / "f", b"".join(dumped(header_dict(), block, block_dict([]))))
    assert "block 0: num_examples is not a number from 0 to 65536" in message


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x04" + b"}" * 100_000 + b".",
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"\x80\x04}\x94" + b"\x8c\x01k}" * 400 + b"s" * 400 + b".",
        b"\x80\x04}\x94" + b"h\x00" * 100_000 + b".",
        b"\x80\x04}\x94" + b"\x8c\x01kh\x00s" * 50_000 + b".",
        b"\x80\x04" + b"\x94" * 10 + b".",
        b"\x80\x04h\x05.",
        b"\x80\x04}\x94\x8c\x01kh\x00s.",
        b"\x80\x04}}s.",
        b"\x80\x04}\x8c\x01k(s.",
        b"\x80\x04(\x8c\x01k}u.",
        b"\x80\x04}(\x8c\x01ku.",
        b"\x80\x04}(}}u.",
        b"\x80\x04u.",
        b"\x80\x04s.",
        b"\x80\x04.",
        b"\x80\x04N.",
        b"\x80\x04}}.",
        b"\x80\x05}.",
        b"\x80\x04}\x8c\x02\xff\xfeNs.",
        b"\x80\x04}\x8c\x03\xed\xa0\x80Ns.",
    ],
)  # fmt: skip
def test_nesting_memo_and_stack_bombs_are_refused(tmp_path: Path, bomb: bytes) -> None:
    parts = valid_parts()
    for place in range(3):
        refusal(tmp_path / "f", b"".join(parts[:place]) + bomb + b"".join(parts[place:]))


def test_a_dict_that_holds_itself_is_refused_as_a_block(tmp_path: Path) -> None:
    parts = valid_parts()
    inside = parts[1][:-2] + b"\x8c\x06labelsh\x00" + parts[1][-2:]
    refusal(tmp_path / "f", b"".join([parts[0], inside, parts[-1]]))


# Refused: damaged files.


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = b"".join(valid_parts())
    (tmp_path / "f").write_bytes(content)
    assert examples_of(read_all(tmp_path / "f")[1]) == EXAMPLES
    for length in range(len(content)):
        message = refusal(tmp_path / "f", content[:length])
        assert message.startswith(f"{tmp_path / 'f'}")


def test_bytes_after_the_end_mark_are_refused(tmp_path: Path) -> None:
    content = b"".join(valid_parts())
    assert "block 2: 1 bytes follow the end mark" in refusal(tmp_path / "f", content + b"\0")
    assert "follow the end mark" in refusal(tmp_path / "f", content + content)


def test_random_damage_is_refused_or_leaves_valid_features(tmp_path: Path) -> None:
    content = b"".join(valid_parts())
    chance = random.Random(5)
    refused = 0
    for _ in range(800):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            at, kind = chance.randrange(len(damaged)), chance.randrange(4)
            if kind == 0:
                damaged[at] = chance.randrange(256)
            elif kind == 1:
                damaged[at] ^= 1 << chance.randrange(8)
            elif kind == 2:
                del damaged[at : at + chance.randint(1, 9)]
            else:
                damaged[at:at] = chance.randbytes(chance.randint(1, 9))
        (tmp_path / "f").write_bytes(damaged)
        try:
            header, blocks = read_all(tmp_path / "f")
        except InputError:
            refused += 1
            continue
        for example in examples_of(blocks):
            assert example.example_id and "\n" not in example.example_id
            assert 3 <= len(example.input_ids) <= header.max_seq_length
            assert max(example.input_ids) < header.vocab_size
            assert 2 <= example.first_segment_length <= len(example.input_ids)
            assert example.label in (-1, 0, 1)
        features = Features(tmp_path / "f")
        if len(features):
            features.batch(range(len(features)), header.max_seq_length if header.max_seq_length < 99 else None)
    assert refused > 400


@pytest.mark.parametrize(
    "content",
    [b"q1#D1_0\tquery\tpassage\n", b"\x1f\x8b\x08\0\0\0\0\0", b"PK\x03\x04", b"\0" * 99, b"{}", b"\x80\x04}."],
)
def test_a_file_of_another_kind_is_refused_with_advice(tmp_path: Path, content: bytes) -> None:
    assert "tokenize_to_features.py" in refusal(tmp_path / "f", content)


def test_an_empty_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert "is empty; write it with tokenize_to_features.py" in refusal(tmp_path / "f", b"")
    with pytest.raises(InputError, match="is a directory"):
        read_header(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "missing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not a features file"),
        ({"format": b"simplified-tinybert-features"}, "is not a features file"),
        ({"version": 3}, "version 3, but this program reads versions 1 to 2"),
        ({"version": 0}, "version 0, but this program reads versions 1 to 2"),
        ({"version": True}, "version True, but this program reads versions 1 to 2"),
        ({"version": None}, "version None, but this program reads versions 1 to 2"),
        ({"raw_data_name": b"pairs.tsv"}, "raw_data_name is missing or neither str nor None"),
        ({"raw_data_sha256": 5}, "raw_data_sha256 is missing or neither str nor None"),
        ({"raw_data_sha256": {}}, "raw_data_sha256 is missing or neither str nor None"),
        ({"raw_data_sha256": "cd" * 31}, "raw_data_sha256 is not 64 hexadecimal digits"),
        ({"raw_data_sha256": "CD" * 32}, "raw_data_sha256 is not 64 hexadecimal digits"),
        ({"raw_data_sha256": "cd" * 32 + "\n"}, "raw_data_sha256 is not 64 hexadecimal digits"),
        ({"raw_data_name": None}, "has only one of raw_data_name and raw_data_sha256"),
        ({"raw_data_sha256": None}, "has only one of raw_data_name and raw_data_sha256"),
        ({"max_seq_length": "11"}, "max_seq_length is missing or not int"),
        ({"max_seq_length": True}, "max_seq_length is missing or not int"),
        ({"vocab_size": None}, "vocab_size is missing or not int"),
        ({"do_lower_case": 1}, "do_lower_case is missing or not bool"),
        ({"set_name": b"train"}, "set_name is missing or not str"),
        ({"vocab_sha256": 5}, "vocab_sha256 is missing or not str"),
        ({"max_seq_length": 3}, "out of range"),
        ({"max_seq_length": -(2**31)}, "out of range"),
        ({"vocab_size": 0}, "out of range"),
        ({"set_name": "eval"}, "set_name 'eval' is none of train, dev, test, general"),
        ({"dtypes": {}}, "dtypes are not"),
        ({"dtypes": None}, "dtypes are not"),
        ({"dtypes": HEADER.dtypes() | {"input_ids": "O"}}, "dtypes are not"),
        ({"dtypes": HEADER.dtypes() | {"input_ids": ">u2"}}, "dtypes are not"),
    ],
)
def test_a_header_that_is_not_as_documented_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    found = refusal(tmp_path / "f", b"".join(dumped(header_dict(**changes), block_dict([]))))
    assert message in found
    assert found.startswith(str(tmp_path / "f"))


@pytest.mark.parametrize("key", ["raw_data_name", "raw_data_sha256"])
def test_a_header_of_version_2_without_its_origin_is_refused(tmp_path: Path, key: str) -> None:
    header = header_dict()
    del header[key]
    assert f"{key} is missing" in refusal(tmp_path / "f", b"".join(dumped(header, block_dict([]))))


@pytest.mark.parametrize("more", [{}, {"raw_data_name": "x", "raw_data_sha256": "cd" * 32}, {"raw_data_name": 7}])
def test_a_file_of_version_1_is_read_and_of_unknown_origin(tmp_path: Path, more: dict) -> None:
    (tmp_path / "f").write_bytes(b"".join(valid_parts(header_dict_of_version_1(**more))))
    header, blocks = read_all(tmp_path / "f")
    assert (header, examples_of(blocks)) == (OF_VERSION_1, EXAMPLES)
    assert header.origin() == "of unknown origin"
    assert len(Features(tmp_path / "f")) == len(EXAMPLES)


def test_features_of_a_pipe_are_of_unknown_origin(tmp_path: Path) -> None:
    write_features(tmp_path / "f", OF_VERSION_1, EXAMPLES)
    with open(tmp_path / "f", "rb") as file:
        assert pickle.load(file) == header_dict(OF_VERSION_1)
    assert read_header(tmp_path / "f") == OF_VERSION_1


def test_the_same_examples_have_the_same_hash_in_both_versions(tmp_path: Path) -> None:
    """So that a run which began with features of version 1 resumes with those of version 2."""
    content = b"".join(dumped(header_dict_of_version_1(), block_dict(EXAMPLES), block_dict([])))
    (tmp_path / "1").write_bytes(content)
    for name, header in (("2", HEADER), ("pipe", OF_VERSION_1), ("moved", HEADER._replace(raw_data_name="x"))):
        write_features(tmp_path / name, header, EXAMPLES)
    found = {path.name: Features(path).sha256() for path in tmp_path.iterdir()}
    assert set(found.values()) == {hashlib.sha256(content).hexdigest()} and len(found) == 4
    write_features(tmp_path / "2", HEADER._replace(max_seq_length=12), EXAMPLES)
    write_features(tmp_path / "pipe", HEADER, EXAMPLES[::-1])
    assert len({Features(path).sha256() for path in tmp_path.iterdir()}) == 3


GOOD = Example("ok", [2, 7, 3, 9, 3], 3, 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Example("", [2, 7, 3, 9, 3], 3, 1), "(''): its id is empty"),
        (Example("bad", [2, 3], 2, 1), "('bad'): its length is not from 3 to 11"),
        (Example("bad", [], 2, 1), "('bad'): its length is not from 3 to 11"),
        (Example("bad", [2] * 12, 3, 1), "('bad'): its length is not from 3 to 11"),
        (Example("bad", [2, 7, 3], 1, 1), "('bad'): its first segment is shorter than 2"),
        (Example("bad", [2, 7, 3], 4, 1), "('bad'): its first segment is shorter than 2 tokens or longer"),
        (Example("bad", [2, 7, 3], 2, 2), "('bad'): its label is none of -1, 0, 1"),
        (Example("bad", [2, 7, 3], 2, -2), "('bad'): its label is none of -1, 0, 1"),
        (Example("bad", [2, 40, 3], 2, 0), "('bad'): token id 40 is beyond the vocabulary of 40"),
        (Example("bad", [2, 7, 65_535], 2, 0), "('bad'): token id 65535 is beyond the vocabulary of 40"),
    ],
)
def test_an_example_at_fault_is_named_with_its_block(tmp_path: Path, bad: Example, message: str) -> None:
    blocks = [block_dict([GOOD]), block_dict([GOOD, GOOD, bad, GOOD, bad]), block_dict([])]
    found = refusal(tmp_path / "f", b"".join(dumped(header_dict(), *blocks)))
    assert found.startswith(f"{tmp_path / 'f'} block 1 example 2 {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"example_ids": "ok"}, "example_ids are not 2 lines"),
        ({"example_ids": "a\nb\nc"}, "example_ids are not 2 lines"),
        ({"example_ids": ""}, "example_ids are not 2 lines"),
        ({"example_ids": b"a\nb"}, "example_ids are not 2 lines"),
        ({"example_ids": None}, "example_ids are not 2 lines"),
        ({"input_ids": b"\0" * 9}, "input_ids is missing or not an array of <u2"),
        ({"input_ids": "text"}, "input_ids is missing or not an array of <u2"),
        ({"labels": None}, "labels is missing or not an array of |i1"),
        ({"lengths": b"\5\0\5"}, "lengths is missing or not an array of <u2"),
        ({"lengths": b"\5\0"}, "lengths has 1 values for 2 examples"),
        ({"first_segment_lengths": b"\3\0" * 3}, "first_segment_lengths has 3 values for 2 examples"),
        ({"labels": b""}, "labels has 0 values for 2 examples"),
        ({"lengths": b"\5\0\6\0"}, "lengths add up to 11, but there are 10 token ids"),
        ({"lengths": b"\5\0\4\0"}, "lengths add up to 9, but there are 10 token ids"),
        ({"weights": b""}, "unknown key 'weights'"),
    ],
)
def test_a_block_that_is_not_as_documented_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    blocks = [block_dict([GOOD]), block_dict([GOOD, GOOD], **changes), block_dict([])]
    found = refusal(tmp_path / "f", b"".join(dumped(header_dict(), *blocks)))
    assert found.startswith(f"{tmp_path / 'f'} block 1: {message}")


@pytest.mark.parametrize("key", list(block_dict([])))
def test_a_block_without_one_of_its_keys_is_refused(tmp_path: Path, key: str) -> None:
    block = block_dict([GOOD])
    del block[key]
    found = refusal(tmp_path / "f", b"".join(dumped(header_dict(), block, block_dict([]))))
    assert "block 0" in found and key in found


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 5])
def test_parts_of_another_pickle_protocol_are_read_or_refused(tmp_path: Path, protocol: int) -> None:
    parts = [header_dict(), block_dict(EXAMPLES), block_dict([])]
    (tmp_path / "f").write_bytes(b"".join(pickle.dumps(part, protocol=protocol) for part in parts))
    try:
        assert examples_of(read_all(tmp_path / "f")[1]) == EXAMPLES
    except InputError as error:
        assert str(tmp_path / "f") in str(error)


def test_blocks_before_a_fault_are_returned_and_the_fault_is_raised(tmp_path: Path) -> None:
    parts = valid_parts()
    (tmp_path / "f").write_bytes(b"".join(parts[:2]))
    blocks = read_blocks(tmp_path / "f")
    assert examples_of([next(blocks)]) == EXAMPLES[:2]
    with pytest.raises(InputError, match="block 1: the file ends without its end mark"):
        next(blocks)
