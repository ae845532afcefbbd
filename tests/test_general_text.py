"""From plain text to full-length examples without labels."""

import gzip
import os
import pickle
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import TOKENS, assert_refused, run_main

from formats.features import Features, read_blocks, read_header
from formats.text import TextLine, read_text
from tokenization import packing
from tokenization.packing import Edge, pack, pack_text, tokenize_lines
from tokenization.wordpiece import WordPiece


def arguments(tmp_path: Path, model_dir: Path, content: bytes | None, *more: object) -> list:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    flags = ["--set_name", "general", "--raw_data_file", tmp_path / "text", "--output_features_file", tmp_path / "out"]
    return [*flags, "--bert_model_dir", model_dir, *more]


def packed(tmp_path: Path, model_dir: Path, content: bytes | None, *more: object) -> list[str]:
    """The tokens of every example, with ` | ` before the second segment."""
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, content, "--overwrite", *more))
    assert (done.status, done.stderr) == (0, ""), done
    features = Features(tmp_path / "out")
    assert features.header.set_name == "general"
    assert (features.labels == -1).all()
    examples = []
    for block in read_blocks(tmp_path / "out"):
        for n, middle in enumerate(block.first_segment_lengths.tolist()):
            tokens = [TOKENS[i] for i in block.input_ids[block.offsets[n] : block.offsets[n + 1]]]
            examples.append(" ".join([*tokens[:middle], "|", *tokens[middle:]]))
    return examples


def test_a_small_text_by_hand(tmp_path: Path, model_dir: Path) -> None:
    text = b"""The cat sat.
Dogs ran.

Run fast!
What is
a mat?

a
deep neural ranker 19 cafe
the the the
"""
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, text, "--max_seq_length", 8))
    assert (done.status, done.stderr) == (0, "")
    found = packed(tmp_path, model_dir, None, "--max_seq_length", 8)
    assert len(found) == 6
    # inside the example begins: a line; a document; two lines
    assert found[0] == "[CLS] the cat sat . [SEP] | dog [SEP]"
    assert found[1] == "[CLS] ##s ran . [SEP] | run fast [SEP]"
    assert found[2] in ("[CLS] ! [SEP] | what is a mat [SEP]", "[CLS] ! what is [SEP] | a mat [SEP]")
    # a document and a line; nothing; the rest of the text
    assert found[3] == "[CLS] ? [SEP] | a deep ne ##ural [SEP]"
    line = ["rank", "##er", "1", "##9", "cafe"]
    assert found[4] in [f"[CLS] {' '.join(line[:i])} [SEP] | {' '.join(line[i:])} [SEP]" for i in range(1, 5)]
    assert found[5] in ("[CLS] the [SEP] | the the [SEP]", "[CLS] the the [SEP] | the [SEP]")
    ids = [example_id for block in read_blocks(tmp_path / "out") for example_id in block.example_ids]
    assert ids == [f"general_{i}" for i in range(6)]
    assert read_header(tmp_path / "out").max_seq_length == 8
    assert "6 general examples of at most 8 tokens" in done.stdout
    assert "(3 documents, 8 lines, 28 tokens)" in done.stdout
    assert done.stdout.rstrip().endswith("tokens/s")
    assert (tmp_path / "out.log").read_text().count("\n") == 2
    assert sorted(os.listdir(tmp_path)) == ["model", "out", "out.log", "text"]


def test_the_shortest_examples_hold_two_tokens(tmp_path: Path, model_dir: Path) -> None:
    assert packed(tmp_path, model_dir, b"the cat sat\n\non\na mat\n", "--max_seq_length", 5) == [
        "[CLS] the [SEP] | cat [SEP]",
        "[CLS] sat [SEP] | on [SEP]",
        "[CLS] a [SEP] | mat [SEP]",
    ]


def test_a_single_remaining_token_is_dropped(tmp_path: Path, model_dir: Path) -> None:
    assert packed(tmp_path, model_dir, b"the cat sat\n", "--max_seq_length", 5) == ["[CLS] the [SEP] | cat [SEP]"]
    assert len(packed(tmp_path, model_dir, b"the cat sat on a\n", "--max_seq_length", 6)) == 2


def test_documents_shorter_than_a_window_share_it(tmp_path: Path, model_dir: Path) -> None:
    examples = packed(tmp_path, model_dir, b"the cat\nsat\n\ndog\n\nran fast\n", "--max_seq_length", 20)
    assert examples in (
        ["[CLS] the cat sat [SEP] | dog ran fast [SEP]"],
        ["[CLS] the cat sat dog [SEP] | ran fast [SEP]"],
    )


def examples_of(path: Path) -> bytes:
    """What follows the header, which names the input."""
    with open(path, "rb") as file:
        pickle.load(file)
        return file.read()


def test_line_ends_blank_lines_and_packing_change_nothing(tmp_path: Path, model_dir: Path) -> None:
    text = b"the cat\nsat\n\ndog\n\nran fast\na mat\n"
    expected = packed(tmp_path, model_dir, text, "--max_seq_length", 7)
    assert [example.count("[SEP]") for example in expected] == [2, 2]
    for content in (
        text.removesuffix(b"\n"),
        text.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + text,
        b"\n \t\n" + text + b"\n\xe3\x80\x80\n\n",
        text.replace(b"\n\n", b"\n\n \n\n"),
        text.replace(b" ", b" \t  "),
    ):
        assert packed(tmp_path, model_dir, content, "--max_seq_length", 7) == expected
    written = examples_of(tmp_path / "out")
    (tmp_path / "text.gz").write_bytes(gzip.compress(text))
    assert packed(tmp_path, model_dir, None, "--max_seq_length", 7, "--raw_data_file", tmp_path / "text.gz") == expected
    assert examples_of(tmp_path / "out") == written


def test_text_never_becomes_a_control_token(tmp_path: Path, model_dir: Path) -> None:
    assert packed(tmp_path, model_dir, b"the [SEP] cat\n[CLS] [PAD]\n") == [
        "[CLS] the [ sep ] cat [SEP] | [ cls ] [ pad ] [SEP]"
    ]


def test_without_do_lower_case_the_case_is_kept(tmp_path: Path, model_dir: Path) -> None:
    assert packed(tmp_path, model_dir, b"the\nCat\n", "--no-do_lower_case") == ["[CLS] the [SEP] | [UNK] [SEP]"]
    assert packed(tmp_path, model_dir, b"the\nCat\n") == ["[CLS] the [SEP] | cat [SEP]"]


def test_one_very_long_line(tmp_path: Path, model_dir: Path) -> None:
    words = [TOKENS[5 + i * i % 9] for i in range(30_000)]
    examples = packed(tmp_path, model_dir, " ".join(words).encode() + b"\n", "--max_seq_length", 40)
    control = ("[CLS]", "[SEP]", "|")
    assert [word for example in examples for word in example.split() if word not in control] == words
    assert {len(example.split()) for example in examples[:-1]} == {41}
    assert len({example.split().index("|") for example in examples}) > 30  # the second segment begins at any token


def test_the_seed_decides_where_second_segments_begin(tmp_path: Path, model_dir: Path) -> None:
    content = b"the cat\nsat\non a\nmat .\n" * 99
    default = packed(tmp_path, model_dir, content, "--max_seq_length", 20)
    assert packed(tmp_path, model_dir, content, "--max_seq_length", 20, "--seed", 42) == default
    other = packed(tmp_path, model_dir, content, "--max_seq_length", 20, "--seed", 0)
    assert other != default
    assert [example.replace("[SEP] | ", "") for example in other] == [
        example.replace("[SEP] | ", "") for example in default
    ]


# The parts.


def test_the_first_line_of_a_document_is_marked(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\n \na b\nc\n\t\n\nd \n")
    assert list(read_text(tmp_path / "text")) == [TextLine("a b", True), TextLine("c", False), TextLine("d ", True)]


def test_a_document_edge_is_preferred_to_a_line_edge_and_that_to_any_token() -> None:
    def middles(*pieces: tuple[int, Edge]) -> set[int]:
        lines = [([7] * count, edge) for count, edge in pieces]
        return {len(first) for seed in range(200) for first, _ in pack(lines, 10, seed)}

    assert middles((2, Edge.DOCUMENT), (3, Edge.LINE), (4, Edge.DOCUMENT), (1, Edge.LINE)) == {5}
    assert middles((2, Edge.DOCUMENT), (3, Edge.DOCUMENT), (5, Edge.DOCUMENT)) == {2, 5}
    assert middles((2, Edge.DOCUMENT), (3, Edge.LINE), (2, Edge.NONE), (2, Edge.LINE), (1, Edge.LINE)) == {2, 7, 9}
    assert middles((6, Edge.DOCUMENT), (4, Edge.NONE)) == set(range(1, 10))


def reference_pack(pieces: list[tuple[list[int], Edge]], size: int, seed: int) -> list[tuple[list[int], list[int]]]:
    stream, edge = [], Edge.NONE
    for ids, begins in pieces:
        edge = max(edge, begins)
        for token in ids:
            stream.append((token, edge))
            edge = Edge.NONE
    examples = []
    for start in range(0, len(stream), size):
        window = stream[start : start + size]
        if len(window) == 1:
            break
        best = max(edge for _, edge in window[1:])
        places = [i for i in range(1, len(window)) if window[i][1] == best]
        drawn = np.random.default_rng([seed, len(examples)]).integers(len(places))
        tokens = [token for token, _ in window]
        examples.append((tokens[: places[drawn]], tokens[places[drawn] :]))
    return examples


some_pieces = st.lists(st.tuples(st.lists(st.integers(0, 999), max_size=25), st.sampled_from(Edge)), max_size=30)


@settings(deadline=None, max_examples=500)
@given(pieces=some_pieces, size=st.integers(2, 40), seed=st.integers(0, 1 << 70))
@example(pieces=[([1, 2, 3], Edge.DOCUMENT), ([], Edge.DOCUMENT), ([4], Edge.LINE), ([5], Edge.LINE)], size=5, seed=0)
@example(pieces=[(list(range(90)), Edge.NONE), ([1] * 3, Edge.LINE)], size=7, seed=1)
def test_packing_agrees_with_the_reference(pieces: list[tuple[list[int], Edge]], size: int, seed: int) -> None:
    examples = list(pack(pieces, size, seed))
    assert examples == reference_pack(pieces, size, seed)
    tokens = [token for ids, _ in pieces for token in ids]
    used = len(tokens) - (len(tokens) % size == 1)
    assert [token for first, second in examples for token in first + second] == tokens[:used]
    assert all(first and second for first, second in examples)
    assert all(len(first) + len(second) == size for first, second in examples[:-1])


some_lines = st.lists(
    st.tuples(
        st.text(
            st.sampled_from("the cat SAT running 19 [SEP]. éé\u0301\u0308中国ΔΣ \t\u00a0\u3000\u200b\x1c"), min_size=1
        ),
        st.booleans(),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=300)
@given(lines=some_lines, piece=st.integers(1, 9), length=st.integers(5, 30))
@example(lines=[("the \u0301cat Σ\u0301 Σ the  ", True)], piece=1, length=5)
def test_examples_do_not_depend_on_how_the_text_is_tokenized(
    lines: list[tuple[str, bool]], piece: int, length: int
) -> None:
    tokenizer = WordPiece(TOKENS, True)
    expected = list(pack_text(tokenizer, lines, length, 3))
    ids = [i for text, _ in lines for i in tokenizer.encode(text)]
    used = len(ids) - (len(ids) % (length - 3) == 1)
    found = [i for tokens, middle in expected for i in tokens[1 : middle - 1] + tokens[middle:-1]]
    assert found == ids[:used]
    short = packing._PIECE.pattern.replace("1000", str(piece))
    with mock.patch.object(packing, "_PIECE", packing.re.compile(short, packing.re.DOTALL)):
        assert list(pack_text(tokenizer, lines, length, 3)) == expected


def test_a_long_line_is_tokenized_in_pieces() -> None:
    tokenizer = WordPiece(TOKENS, True)
    pieces = list(tokenize_lines(tokenizer, [("cat " * 5000, True), ("the dog", False), ("x" * 3000 + " cat", False)]))
    assert [len(ids) for ids, _ in pieces] == [251, *[250] * 18, 249, 2, 1, 1]
    kinds = [Edge.DOCUMENT] + [Edge.NONE] * 19 + [Edge.LINE, Edge.LINE, Edge.NONE]
    assert [edge for _, edge in pieces] == kinds


def test_memory_does_not_grow_with_the_input(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("formats.features.BLOCK_EXAMPLES", 4096)

    def peak(examples: int) -> int:
        flags = arguments(tmp_path, model_dir, b"the cat sat on a mat dog ran\n\n" * (examples // 4), "--overwrite")
        tracemalloc.start()
        try:
            assert run_main("tokenize_to_features.py", *flags, "--max_seq_length", 5).status == 0
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # no more than one block is in memory
    assert peak(4 * 4096) < 1.2 * peak(4096)


# Refusals.


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"\n \n\t\n", "has no words"),
        ("\u200b\n\ufeff\n".encode(), "has no words"),
        (b"cat\n", "or a single one"),
        (b"the cat\nsat \0\n", "line 2: holds a NUL byte"),
        (b"the cat\n\nc\xe9t\n", "line 3: byte 2 is not UTF-8"),
        (b"the\rcat\n", "line 1: holds a carriage return"),
    ],
)
def test_a_text_that_makes_no_examples_is_refused(tmp_path: Path, model_dir: Path, content: bytes, what: str) -> None:
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, content))
    assert_refused(done, str(tmp_path / "text"), what)
    assert done.stdout == ""
    assert sorted(os.listdir(tmp_path)) == ["model", "text"]


def test_a_seed_that_cannot_be_used_is_refused(tmp_path: Path, model_dir: Path) -> None:
    flags = arguments(tmp_path, model_dir, b"q#d_0\tthe\tcat\n")
    for set_name in ("train", "dev", "test"):
        done = run_main("tokenize_to_features.py", *flags, "--set_name", set_name, "--seed", 42)
        assert_refused(done, f"--seed: has no effect with --set_name {set_name}")
    assert_refused(run_main("tokenize_to_features.py", *flags, "--seed", -1), "--seed: needs to be 0 or more")
    assert sorted(os.listdir(tmp_path)) == ["model", "text"]
