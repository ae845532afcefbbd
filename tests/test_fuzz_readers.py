"""The checks of the fuzz target, with seeded inputs and with inputs of hypothesis, without atheris."""

import random
from pathlib import Path

import fuzz_readers
import pytest
from fuzz_readers import check_features, check_pairs, seeds
from hypothesis import example, given, settings
from hypothesis import strategies as st

from formats.pairs import COLUMNS, read_pairs
from runtime.errors import InputError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def test_seeded_inputs_are_refused_or_stay_the_same(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_readers, "DIRECTORY", directory)
    chance = random.Random(3)
    contents = seeds()
    assert check_features(contents["features"], directory)
    assert check_pairs(contents["pairs"], directory) and check_pairs(contents["labelled"], directory)
    accepted = 0
    for i in range(900):
        damaged = bytearray(chance.choice(list(contents.values())))
        for _ in range(i % 4):
            at = chance.randrange(len(damaged))
            piece = chance.choice([b"\t", b"\n", b"\r", b"#", b"\0", b"\xef\xbb\xbf", b"1", b" ", chance.randbytes(2)])
            damaged[at : at + chance.randrange(3)] = piece
        accepted += check_features(bytes(damaged), directory) + check_pairs(bytes(damaged), directory)
    assert 200 < accepted < 700


some_field = st.text(st.characters(codec="utf-8"), max_size=4) | st.sampled_from(
    ["q#d_1", "0", "1", "a b", "\ufeff", ""]
)
some_line = st.lists(some_field, max_size=5).map("\t".join)
some_pairs_file = st.binary(max_size=40) | st.lists(some_line, max_size=4).map(lambda lines: "\n".join(lines).encode())


@settings(deadline=None, max_examples=300)
@given(content=some_pairs_file)
@example(content=b"\xef\xbb\xbf\xef\xbb\xbfq#d\ta\tb\n")
@example(content="q#d_1\tthe\u2028cat\tsat\x85\x1c\n".encode())
def test_any_bytes_are_pairs_or_refused_with_their_line(directory: Path, content: bytes) -> None:
    check_pairs(content, directory)
    path = directory / "pairs"
    for labelled in (True, False):
        good = []
        try:
            for pair in read_pairs(path, labelled):
                good.append(pair)
        except InputError as error:
            if content:
                assert str(error).startswith(f"{path} line {len(good) + 1}: ")
        for pair in good:
            assert all(field.strip() and "\t" not in field and "\n" not in field for field in pair[:3])
            assert pair.label in ((0, 1) if labelled else (-1,))
            assert len(pair) == len(COLUMNS)


@settings(deadline=None, max_examples=150)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_no_features(directory: Path, content: bytes) -> None:
    assert not check_features(content, directory)
