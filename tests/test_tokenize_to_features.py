"""Pairs to pickled features."""

import gzip
import hashlib
import os
import pickle
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import TOKENS, assert_refused, run_main, run_script

from benchmarks.reference_tokenization import tokenize
from formats.features import Features, FeaturesHeader, read_blocks, read_header
from tokenization.pair_encoding import encode_pairs, truncated_lengths
from tokenization.vocabulary import save_tokenizer, vocabulary_sha256
from tokenization.wordpiece import WordPiece

ID = {token: i for i, token in enumerate(TOKENS)}


def arguments(tmp_path: Path, model_dir: Path, content: bytes | None, set_name: str = "test", *more: object) -> list:
    pairs = tmp_path / "pairs"
    if content is not None:
        pairs.write_bytes(content)
    flags = ["--set_name", set_name, "--raw_data_file", pairs, "--output_features_file", tmp_path / "out"]
    return [*flags, "--bert_model_dir", model_dir, *more]


def tokenized(tmp_path: Path, model_dir: Path, content: bytes, *more: object) -> list[str]:
    """The tokens of every pair of a file without labels."""
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, content, "test", *more))
    assert done.status == 0, done
    return [
        " ".join(TOKENS[i] for i in block.input_ids[block.offsets[n] : block.offsets[n + 1]])
        for block in read_blocks(tmp_path / "out")
        for n in range(len(block.example_ids))
    ]


def test_labelled_pairs_by_hand(tmp_path: Path, model_dir: Path) -> None:
    content = b"a\tThe cat?\tunable Dogs, caf\xc3\xa9\t1\nb c\tran\tzebra\t0\n"
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, content, "train"))
    assert (done.status, done.stderr) == (0, "")
    assert "2 train examples" in done.stdout
    features = Features(tmp_path / "out")
    assert features.header == FeaturesHeader(
        256, len(TOKENS), True, "train", vocabulary_sha256(TOKENS), "pairs", hashlib.sha256(content).hexdigest()
    )
    batch = features.batch([0, 1])
    first, second = "[CLS] the cat ? [SEP] un ##able dog ##s , cafe [SEP]", "[CLS] ran [SEP] [UNK] [SEP]"
    assert batch["input_ids"].tolist() == [[ID[t] for t in first.split()], [ID[t] for t in second.split()] + [0] * 7]
    assert batch["token_type_ids"].tolist() == [[0] * 5 + [1] * 7, [0] * 3 + [1] * 2 + [0] * 7]
    assert batch["attention_mask"].tolist() == [[1] * 12, [1] * 5 + [0] * 7]
    assert batch["labels"].tolist() == [1, 0]
    assert [block.example_ids for block in read_blocks(tmp_path / "out")] == [["a", "b c"]]
    assert sorted(os.listdir(tmp_path)) == ["model", "out", "out.log", "pairs"]


def test_greedy_longest_match_first(tmp_path: Path, model_dir: Path) -> None:
    assert tokenized(tmp_path, model_dir, b"q#d_0\trunning\tneural ranker 19 unun\n") == [
        "[CLS] run ##ning [SEP] ne ##ural rank ##er 1 ##9 [UNK] [SEP]"
    ]


def test_text_never_becomes_a_control_token(tmp_path: Path, model_dir: Path) -> None:
    assert tokenized(tmp_path, model_dir, b"q#d_0\t[CLS]\tthe [SEP] cat [PAD][SEP]\n") == [
        "[CLS] [ cls ] [SEP] the [ sep ] cat [ pad ] [ sep ] [SEP]"
    ]


def test_without_do_lower_case_the_case_is_kept(tmp_path: Path, model_dir: Path) -> None:
    pairs = b"q#d_0\tthe The\tcafe caf\xc3\xa9\n"
    assert tokenized(tmp_path, model_dir, pairs) == ["[CLS] the the [SEP] cafe cafe [SEP]"]
    (tmp_path / "out").unlink()
    assert tokenized(tmp_path, model_dir, pairs, "--no-do_lower_case") == ["[CLS] the [UNK] [SEP] cafe [UNK] [SEP]"]
    assert read_header(tmp_path / "out").do_lower_case is False


def test_carriage_returns_and_a_missing_last_line_end_change_nothing(tmp_path: Path, model_dir: Path) -> None:
    expected = ["[CLS] the [SEP] cat [SEP]", "[CLS] dog [SEP] ran [SEP]"]
    for content in (
        b"q#d_0\tthe\tcat\nq#d_1\tdog\tran\n",
        b"q#d_0\tthe\tcat\r\nq#d_1\tdog\tran\r\n",
        b"q#d_0\tthe\tcat\nq#d_1\tdog\tran",
        b"\xef\xbb\xbfq#d_0\tthe\tcat\nq#d_1\tdog\tran\n",
    ):
        assert tokenized(tmp_path, model_dir, content, "--overwrite") == expected
        assert next(read_blocks(tmp_path / "out")).example_ids == ["q#d_0", "q#d_1"]


def test_packed_pairs_give_the_same_examples(tmp_path: Path, model_dir: Path) -> None:
    """The file is the same, except for the name and the hash of the input in its header."""
    content = b"q#d_0\tthe\tcat\nq#d_1\tdog\tran\n"

    def parts() -> tuple[dict, bytes]:
        with open(tmp_path / "out", "rb") as file:
            return pickle.load(file), file.read()

    tokenized(tmp_path, model_dir, content)
    header, expected = parts()
    packed = gzip.compress(content)
    (tmp_path / "pairs.gz").write_bytes(packed)
    flags = arguments(tmp_path, model_dir, None, "test", "--overwrite", "--raw_data_file", tmp_path / "pairs.gz")
    assert run_main("tokenize_to_features.py", *flags).status == 0
    origin = {"raw_data_name": "pairs.gz", "raw_data_sha256": hashlib.sha256(packed).hexdigest()}
    assert parts() == (header | origin, expected)


def test_a_text_without_any_token_is_kept(tmp_path: Path, model_dir: Path) -> None:
    pairs = "q#d_0\t\u200b\t\u200b\nq#d_1\tthe\t\ufffd\n".encode()
    assert tokenized(tmp_path, model_dir, pairs) == ["[CLS] [SEP] [SEP]", "[CLS] the [SEP] [SEP]"]


def test_the_vocabulary_of_a_tokenizer_json_is_the_same(tmp_path: Path, model_dir: Path) -> None:
    tokenized(tmp_path, model_dir, b"q#d_0\tthe\tcat\n")
    other = tmp_path / "other"
    other.mkdir()
    save_tokenizer(other, TOKENS, True, 256)
    (other / "vocab.txt").unlink()
    expected = (tmp_path / "out").read_bytes()
    assert run_main("tokenize_to_features.py", *arguments(tmp_path, other, None, "test", "--overwrite")).status == 0
    assert (tmp_path / "out").read_bytes() == expected


# Truncation.


def truncated(query: list, passage: list, limit: int) -> tuple[list, list]:
    """The loop of BERT's `_truncate_seq_pair`."""
    query, passage = query[:], passage[:]
    while len(query) + len(passage) > limit:
        (query if len(query) > len(passage) else passage).pop()
    return query, passage


def test_truncation_agrees_with_the_loop_for_all_small_lengths() -> None:
    for limit in range(2, 12):
        for query in range(15):
            for passage in range(15):
                kept = truncated(list(range(query)), list(range(passage)), limit)
                assert truncated_lengths(query, passage, limit) == (len(kept[0]), len(kept[1]))


def test_examples_are_truncated_to_the_limit(tmp_path: Path, model_dir: Path) -> None:
    pairs = b"q#d_0\tthe cat sat\tdog ran fast . ,\nq#d_1\tthe cat sat on a mat\tdog\nq#d_2\tthe\tcat\n"
    assert tokenized(tmp_path, model_dir, pairs, "--max_seq_length", "7") == [
        "[CLS] the cat [SEP] dog ran [SEP]",
        "[CLS] the cat sat [SEP] dog [SEP]",
        "[CLS] the [SEP] cat [SEP]",
    ]
    # an odd limit, and both sides are equally long: the passage is shortened
    assert tokenized(tmp_path, model_dir, pairs, "--max_seq_length", "8", "--overwrite")[0] == (
        "[CLS] the cat sat [SEP] dog ran [SEP]"
    )


# WordPiece against the reference implementation.

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789ßøæłđδжи")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
PIECES += ["the", "##ing", "##in", "cat", "ca", "##at", "e", "cls", *"中国[]().,!?'-$+<=>^`|~@#%&*/\\:;{}\"_。、«»…—"]
PIECES = list(dict.fromkeys(PIECES))
PIECE_IDS = {piece: i for i, piece in enumerate(PIECES)}
# Common scripts, and characters with rules of their own. test_wordpiece.py covers all of Unicode.
some_text = st.text(
    st.one_of(
        st.sampled_from(
            "abcdefgh THE CATing 0123 éÉüñçÅßØÆŁđ中国漢字、。δΔжЖ…—«»[](),.!?'$+<=>^`|~-#@\t\u00a0\u3000\u2003"
        ),
        st.characters(min_codepoint=0x20, max_codepoint=0x17F, exclude_characters="İ"),
        st.characters(min_codepoint=0x300, max_codepoint=0x34E),
        st.characters(min_codepoint=0x2010, max_codepoint=0x205F, exclude_characters="\u2028\u2029"),
        st.sampled_from("\u200b\u200d\ufeff\u00ad\x01\x7f\ufffd\ue000\U0001f600한글あア"),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=600)
@given(text=some_text, lower=st.booleans())
@example(text="ca[SEP]t's thecating 中国thé", lower=True)
@example(text="a" * 100 + " " + "b" * 101, lower=True)
@example(text="e\u0301\u0301 \u0301 x\u200by", lower=True)
def test_tokens_agree_with_the_reference(text: str, lower: bool) -> None:
    assert [PIECES[i] for i in WordPiece(PIECES, lower).encode(text)] == tokenize(text, PIECE_IDS, lower)


@settings(deadline=None, max_examples=100)
@given(pairs=st.lists(st.tuples(some_text, some_text), max_size=5), limit=st.integers(5, 40))
def test_encoded_pairs_agree_with_the_reference(pairs: list[tuple[str, str]], limit: int) -> None:
    expected = []
    for pair in pairs:
        query, passage = truncated(*(tokenize(text, PIECE_IDS, True) for text in pair), limit - 3)
        expected.append((["[CLS]", *query, "[SEP]", *passage, "[SEP]"], len(query) + 2))
    encoded = encode_pairs(WordPiece(PIECES, True), pairs, limit)
    assert [([PIECES[i] for i in ids], first) for ids, first in encoded] == expected


def test_memory_does_not_grow_with_the_input(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("formats.features.BLOCK_EXAMPLES", 4096)
    monkeypatch.setattr("tokenization.pair_encoding.CACHE_CHARACTERS", 1 << 20)
    monkeypatch.setattr("tokenization.wordpiece.CACHE_SIZE", 1000)

    def peak(lines: int) -> int:
        content = b"".join(b"q%d#d_0\tthe cat %d\tdog ran %d\n" % (i, i, i) for i in range(lines))
        flags = arguments(tmp_path, model_dir, content, "test", "--overwrite")
        del content
        tracemalloc.start()
        try:
            assert run_main("tokenize_to_features.py", *flags).status == 0
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # no more than one block is in memory
    assert peak(4 * 4096) < 1.2 * peak(2 * 4096)


# Refusals.

GOOD = b"q#d_0\tthe\tcat\n"


@pytest.mark.parametrize(
    ("set_name", "line", "what"),
    [
        ("test", b"q#d_1", "1 columns where 3 are needed"),
        ("test", b"q#d_1\tthe", "2 columns where 3 are needed"),
        ("test", b"q#d_1\tthe\tcat\t1", "4 columns where 3 are needed"),
        ("dev", b"q#d_1\tthe\tcat\t1\t1", "5 columns where 3 are needed"),
        ("test", b"", "1 columns where 3 are needed"),
        ("train", b"q", "1 columns where 4 are needed"),
        ("train", b"q\tthe\tcat", "3 columns where 4 are needed"),
        ("train", b"q\tthe\tcat\t1\t", "5 columns where 4 are needed"),
        ("train", b"q\tthe\tcat\t2", "label '2' is neither 0 nor 1"),
        ("train", b"q\tthe\tcat\t1x", "label '1x' is neither 0 nor 1"),
        ("train", b"q\tthe\tcat\t 1", "label ' 1' is neither 0 nor 1"),
        ("train", b"q\tthe\tcat\t-1", "label '-1' is neither 0 nor 1"),
        ("train", b"q\tthe\tcat\t", "the label is empty"),
        ("train", b"\tthe\tcat\t1", "the example_id is empty"),
        ("train", b"q\t \tcat\t1", "the query is empty"),
        ("train", b"q\tthe\t\t1", "the passage is empty"),
        ("test", b"\tthe\tcat", "the example_id is empty"),
        ("test", b"q#d_1\t\tcat", "the query is empty"),
        ("test", b"q#d_1\tthe\t\xc2\xa0", "the passage is empty"),
        ("test", b"qd_1\tthe\tcat", "example id 'qd_1' has no '#'"),
        ("test", b"#d_1\tthe\tcat", "needs a query id that is not empty"),
        ("dev", b"q#\tthe\tcat", "needs a passage id that is not empty"),
        ("test", b"q#d 1\tthe\tcat", "no white space"),
        ("test", b"q#d_1\tthe\tc\xe9t", "byte 12 is not UTF-8"),
        ("test", b"q#d_1\tthe\t\xed\xa0\x80", "is not UTF-8"),
        ("test", b"q#d_1\tthe\tc\0t", "holds a NUL byte"),
        ("test", b"q#d_1\tthe\tc\rt", "carriage return inside the line"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(
    tmp_path: Path, model_dir: Path, set_name: str, line: bytes, what: str
) -> None:
    good = b"".join(b"q#d_%d0\tthe\tcat%s\n" % (i, b"\t1" if set_name == "train" else b"") for i in range(5))
    content = good.replace(b"q#d_40", line + b"\nq#d_40")
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, content, set_name))
    assert_refused(done, f"{tmp_path / 'pairs'} line 5: ", what)
    assert done.stdout == ""
    assert sorted(os.listdir(tmp_path)) == ["model", "pairs"]


def test_a_malformed_line_far_down_leaves_no_output(tmp_path: Path, model_dir: Path) -> None:
    content = b"".join(b"q#d_%d\tthe\tcat\n" % i for i in range(70_000)) + b"broken\n"
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, content))
    assert_refused(done, f"{tmp_path / 'pairs'} line 70001: ")
    assert sorted(os.listdir(tmp_path)) == ["model", "pairs"]


def test_a_missing_empty_or_damaged_file_is_refused(tmp_path: Path, model_dir: Path) -> None:
    def refused(content: bytes | None, what: str, *more: object) -> None:
        done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, content, "test", *more))
        assert_refused(done, what)
        assert not [name for name in os.listdir(tmp_path) if "out" in name]

    refused(None, str(tmp_path / "pairs"))
    refused(b"", f"{tmp_path / 'pairs'} is empty")
    refused(GOOD, f"{tmp_path} is a directory", "--raw_data_file", tmp_path)
    packed = gzip.compress(GOOD * 99)
    for name, content in (("cut.gz", packed[:-9]), ("text.gz", GOOD), ("bits.gz", packed[:20] + b"\xff" * 20)):
        (tmp_path / name).write_bytes(content)
        refused(GOOD, f"{tmp_path / name}: damaged", "--raw_data_file", tmp_path / name)


def test_flags_that_cannot_work_are_refused(tmp_path: Path, model_dir: Path) -> None:
    def refused(what: str, *more: object) -> None:
        assert_refused(run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, GOOD, "test", *more)), what)

    for value in ("4", "0", "-1", "1048577", "x"):
        refused("--max_seq_length", "--max_seq_length", value)
    refused("--set_name", "--set_name", "eval")
    refused("--output_features_file", "--output_features_file", tmp_path)
    refused("--output_features_file", "--output_features_file", tmp_path / "missing" / "out")
    refused(str(tmp_path / "none"), "--bert_model_dir", tmp_path / "none")
    refused("--no_such_flag", "--no_such_flag")
    assert sorted(os.listdir(tmp_path)) == ["model", "pairs"]


@pytest.mark.parametrize(
    ("vocabulary", "what"),
    [
        (b"", "missing"),
        (b"the\ncat\n", "[PAD], [UNK], [CLS], [SEP] missing"),
        (b"[PAD]\n[UNK]\n[CLS]\nthe\n", "[SEP] missing"),
        (b"[UNK]\n[PAD]\n[CLS]\n[SEP]\n", "the first token is '[UNK]'"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n\xff\n", "is not UTF-8"),
    ],
)
def test_a_vocabulary_that_is_not_of_bert_is_refused(
    tmp_path: Path, model_dir: Path, vocabulary: bytes, what: str
) -> None:
    (model_dir / "vocab.txt").write_bytes(vocabulary)
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, GOOD))
    assert_refused(done, str(model_dir / "vocab.txt"), what)
    assert sorted(os.listdir(tmp_path)) == ["model", "pairs"]


def test_an_existing_output_is_kept_without_overwrite(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "out").write_text("mine")
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, GOOD))
    assert_refused(done, "--output_features_file", str(tmp_path / "out"), "--overwrite")
    assert (tmp_path / "out").read_text() == "mine"
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, GOOD + b"x\n", "test", "--overwrite"))
    assert_refused(done, "line 2")
    assert (tmp_path / "out").read_text() == "mine"
    done = run_main("tokenize_to_features.py", *arguments(tmp_path, model_dir, GOOD, "test", "--overwrite"))
    assert done.status == 0
    assert read_header(tmp_path / "out").set_name == "test"


def test_pairs_are_not_overwritten_by_features(tmp_path: Path, model_dir: Path) -> None:
    given = arguments(tmp_path, model_dir, b"q#D_0\tthe cat\tsat\n")
    pairs = tmp_path / "pairs"
    pairs.write_bytes(b"q#D_0\tthe cat\tsat\n")
    done = run_main(
        "tokenize_to_features.py", *given, "--raw_data_file", pairs, "--output_features_file", pairs, "--overwrite"
    )
    assert_refused(done, "--output_features_file", "is also an input")
    assert pairs.read_bytes() == b"q#D_0\tthe cat\tsat\n"


def test_the_script_runs_as_a_program(tmp_path: Path, model_dir: Path) -> None:
    done = run_script("tokenize_to_features.py", *arguments(tmp_path, model_dir, b"q#d_0\tthe\n"))
    assert_refused(done, "tokenize_to_features.py: error: ", f"{tmp_path / 'pairs'} line 1: ")
    done = run_script("tokenize_to_features.py", *arguments(tmp_path, model_dir, GOOD))
    assert (done.status, done.stderr) == (0, "")
    assert "1 test examples" in done.stdout
