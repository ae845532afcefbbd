"""WordPiece and pairs against the reference implementation, over all of Unicode."""

import os
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
from multiprocessing import active_children

import numpy as np
import pytest
from tiny import ROOT

import tokenization.pair_encoding
import tokenization.wordpiece
from benchmarks.reference_tokenization import padded_example, tokenize
from benchmarks.tokenization import make_pairs, make_vocabulary, random_string, with_characters
from runtime.errors import InputError
from tokenization.pair_encoding import encode_pairs
from tokenization.wordpiece import WordPiece

TOKENS = make_vocabulary(random.Random(2))
ID = {token: i for i, token in enumerate(TOKENS)}


def reference_ids(text: str, do_lower_case: bool) -> list[int]:
    return [ID[piece] for piece in tokenize(text, ID, do_lower_case)]


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_random_unicode(do_lower_case: bool) -> None:
    rng = random.Random(3)
    texts = [random_string(rng) for _ in range(4000)]
    tokens = with_characters(TOKENS, texts)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = WordPiece(tokens, do_lower_case)
    seen = Counter()
    for text in texts:
        found = [tokens[i] for i in tokenizer.encode(text)]
        assert found == tokenize(text, vocabulary, do_lower_case), ascii(text)
        seen.update(found)
    assert len(seen) > 10_000
    assert seen["[UNK]"] < 100  # only of long words


def test_a_sample_of_every_plane() -> None:
    codes = [code for first in range(0, sys.maxunicode, 997) for code in range(first, first + 5)]
    texts = ["a".join(map(chr, codes[i : i + 5])) for i in range(0, len(codes), 5) if not 0xD7FF < codes[i] < 0xE000]
    vocabulary = {token: i for i, token in enumerate(with_characters(TOKENS, texts))}
    tokenizer = WordPiece(list(vocabulary), True)
    for text in texts:
        assert tokenizer.encode(text).tolist() == [vocabulary[piece] for piece in tokenize(text, vocabulary, True)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\u0301 \u0301a\u0301",
        "ΟΔΟΣ ΟΔΟΣ. ΣΑΣ\u0301 Σ",  # the lower case of a sigma is different at the end of a word
        "\u0130I\u0307\u0131\u1e9e\u212a\u03d3",
        "a\u2028b\u2029c\x85d\x1ce\x0bf",  # line separators split words, control characters are removed
        "中a国\U00020000b\uf900 \U0002fa1f",
        "e" * 100 + " " + "e" * 101 + " " + "é" * 100,
        "\u0378a\ue000b\U000e0001c",  # unassigned, private, tag
        "x##y [SEP] [UNK] ##",
        "a\u2e43b\u166dc\u1ff0d",
    ],
)
def test_characters_with_rules_of_their_own(text: str) -> None:
    for do_lower_case in (True, False):
        assert WordPiece(TOKENS, do_lower_case).encode(text).tolist() == reference_ids(text, do_lower_case)


def test_the_cache_changes_no_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    texts = [pair.passage for pair in make_pairs(rng, TOKENS, 7)] + [random_string(rng) for _ in range(50)]
    expected = [reference_ids(text, True) for text in texts]
    monkeypatch.setattr(tokenization.wordpiece, "CACHE_SIZE", 5)
    monkeypatch.setattr(tokenization.wordpiece, "CACHED_LENGTH", 6)
    tokenizer = WordPiece(TOKENS, True)
    for _ in range(2):
        assert [tokenizer.encode(text).tolist() for text in texts] == expected
    assert 0 < len(tokenizer._chunks) <= 5 and 0 < len(tokenizer._words) <= 5
    assert max(map(len, tokenizer._words)) <= 6


def test_a_vocabulary_beyond_16_bits() -> None:
    tokens = [*TOKENS, *(f"##{i}x" for i in range(70_000))]
    tokenizer = WordPiece(tokens, True)
    assert tokenizer.dtype == np.uint32
    assert tokenizer.encode("69999x").tolist() != tokenizer.encode("e69999x").tolist()
    assert tokens[tokenizer.encode("e69999x")[1]] == "##69999x"


def test_a_tokenizer_can_be_sent_to_a_process() -> None:
    sent = pickle.loads(pickle.dumps(WordPiece(TOKENS, False)))
    assert sent.encode("The Cat").tolist() == reference_ids("The Cat", False)


# Pairs.


def some_pairs(count: int) -> list[tuple[str, str]]:
    """Each query has several passages, and every passage occurs again with the next query."""
    pairs = [(pair.query, pair.passage) for pair in make_pairs(random.Random(5), TOKENS, count)]
    return pairs + [(query, passage) for (query, _), (_, passage) in zip(pairs[29:], pairs, strict=False)]


@pytest.mark.parametrize("processes", [1, 3])
def test_pairs_agree_with_the_reference(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setattr(tokenization.pair_encoding, "BATCH_PAIRS", 16)
    monkeypatch.setattr(tokenization.pair_encoding, "CACHE_CHARACTERS", 20_000)  # less than all passages
    pairs = [*some_pairs(90), ("the", ""), ("", "")]
    found = list(encode_pairs(WordPiece(TOKENS, True), iter(pairs), 99, processes))
    assert len(found) == len(pairs)
    for (query, passage), (ids, first_segment_length) in zip(pairs, found, strict=True):
        expected = padded_example(query, passage, ID, True, 99)
        assert ids.dtype == np.uint16
        assert ids.tolist() == expected.input_ids[: sum(expected.input_mask)]
        assert first_segment_length == len(ids) - sum(expected.segment_ids)


@pytest.mark.parametrize("batch_pairs", [7, 1000])
def test_each_distinct_text_is_tokenized_once(monkeypatch: pytest.MonkeyPatch, batch_pairs: int) -> None:
    monkeypatch.setattr(tokenization.pair_encoding, "BATCH_PAIRS", batch_pairs)
    tokenizer, pairs = WordPiece(TOKENS, True), some_pairs(90)
    times = Counter()
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: (times.update([text]), encode(text))[1])
    assert len(list(encode_pairs(tokenizer, pairs, 99))) == len(pairs)
    assert times == Counter({text for pair in pairs for text in pair})


def test_pairs_that_cannot_be_read_end_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization.pair_encoding, "BATCH_PAIRS", 4)

    def pairs():
        yield from some_pairs(30)[:50]
        raise ValueError("line 51")

    found = []
    with pytest.raises(ValueError, match="line 51"):
        found.extend(encode_pairs(WordPiece(TOKENS, True), pairs(), 99, processes=2))


def test_a_killed_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization.pair_encoding, "BATCH_PAIRS", 1)
    endless = ((f"q{i}", f"p{i}") for i in range(sys.maxsize))
    found = encode_pairs(WordPiece(TOKENS, True), endless, 99, processes=2)
    next(found)
    os.kill(active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(InputError, match="a process that tokenizes was killed"):
        list(found)


def test_processes_end_when_the_main_process_is_killed() -> None:
    program = """
import time
from tokenization.pair_encoding import encode_pairs
from tokenization.wordpiece import WordPiece
pairs = ((f"q{i}", f"p{i}") for i in range(20_000))
found = encode_pairs(WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]"], True), pairs, 99, processes=3)
if __name__ == "__main__":
    next(found)
    print("started", flush=True)
    time.sleep(600)
"""
    main = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert main.stdout.readline() == "started\n"
    main.kill()
    assert main.communicate(timeout=30)[0] == ""  # it returns when all processes that can write there have ended
