"""Passage scores and passage ids."""

import contextlib
import gzip
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.pairs import split_example_id, split_example_ids
from formats.scores import PassageScore, format_score_line, parse_score, read_scores, split_passage_id, write_scores
from runtime.errors import InputError


@pytest.mark.parametrize(
    ("passage_id", "expected"),
    [
        ("D12_3", ("D12", 3)),
        ("D12_passage-3", ("D12", 3)),
        ("D12_passage-0", ("D12", 0)),
        ("D1_2_17", ("D1_2", 17)),
        ("D-1_passage-2-10", ("D-1", 10)),
        ("D12__007", ("D12_", 7)),
        ("dé#4_p5", ("dé#4", 5)),
    ],
)
def test_split_passage_id(passage_id: str, expected: tuple[str, int]) -> None:
    assert split_passage_id(passage_id) == expected


@pytest.mark.parametrize("passage_id", ["D12", "D12-3", "_3", "D12_", "D12_3x", "D12_passage", "D12_٣", "D12_3\n", ""])
def test_split_passage_id_refuses(passage_id: str) -> None:
    with pytest.raises(ValueError, match="passage id"):
        split_passage_id(passage_id)


@pytest.mark.parametrize(
    ("text", "expected"), [("0.25", 0.25), ("-3", -3.0), ("+1.", 1.0), (".5", 0.5), ("25E-2", 0.25), ("1e-400", 0.0)]
)
def test_parse_score(text: str, expected: float) -> None:
    assert parse_score(text) == expected


NOT_A_SCORE = [
    "nan",
    "inf",
    "-inf",
    "Infinity",
    "1e999",
    "1_0",
    "0x1p-1",
    "",
    " 0.5",
    "0.5 ",
    "0,5",
    "٣",
    ".",
    "1e",
    "--1",
]


@pytest.mark.parametrize("text", NOT_A_SCORE)
def test_parse_score_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a finite number"):
        parse_score(text)


def test_read_scores_takes_crlf_and_gzip(tmp_path) -> None:
    expected = [PassageScore("7", "D1_0", 0.5), PassageScore("8", "D1_0", -1e-3)]
    text, compressed = tmp_path / "scores.tsv", tmp_path / "scores.tsv.gz"
    text.write_bytes(b"7\tD1_0\t0.5\r\n8\tD1_0\t-1e-3")
    compressed.write_bytes(gzip.compress(b"7\tD1_0\t0.5\n8\tD1_0\t-1e-3\n"))
    assert list(read_scores(text)) == expected
    assert list(read_scores(compressed)) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7\tD2_0", "2 columns where 3"),
        ("7\tD2_0\t0.5\t1", "4 columns where 3"),
        ("7 D2_0 0.5", "1 columns where 3"),
        ("", "1 columns where 3"),
        ("\tD2_0\t0.5", "query id '' is empty"),
        ("7\t\t0.5", "passage id '' is empty"),
        ("7 a\tD2_0\t0.5", "query id '7 a'"),
        ("7\tD2 _0\t0.5", "passage id 'D2 _0'"),
        ("7\t D2_0\t0.5", "passage id ' D2_0'"),
        ("7\tD2\u00a0x_0\t0.5", "passage id"),
        ("7\tD1_0\t0.25", "passage D1_0 of query 7 has a score already"),
        *((f"7\tD2_0\t{text}", "is not a finite number") for text in NOT_A_SCORE),
    ],
)
def test_read_scores_names_file_and_line(tmp_path, line: str, message: str) -> None:
    path = tmp_path / "scores.tsv"
    path.write_text(f"7\tD1_0\t0.5\n{line}\n8\tD1_0\t0.5\n", encoding="utf-8", newline="")
    with pytest.raises(InputError) as caught:
        list(read_scores(path))
    assert str(caught.value).startswith(f"{path} line 2: ")
    assert message in str(caught.value)


def test_format_score_line_keeps_every_bit() -> None:
    below_one = math.nextafter(1.0, 0.0)
    assert format_score_line(PassageScore("7", "D1_0", below_one)) == "7\tD1_0\t0.9999999999999999\n"
    assert format_score_line(PassageScore("7", "D1_0", 1)) == "7\tD1_0\t1.0\n"


@settings(deadline=None)
@given(scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_written_scores_read_back(tmp_path_factory, scores: list[float]) -> None:
    path = tmp_path_factory.mktemp("scores") / "scores.tsv"
    rows = [PassageScore("7", f"D1_{i}", score) for i, score in enumerate(scores)]
    assert write_scores(path, rows) == len(rows)
    assert list(read_scores(path)) == rows


def test_many_example_ids_are_split_as_one_is() -> None:
    """3,000 random ids, half of which cannot be split."""
    rng = random.Random(4)
    ids = ["".join(rng.choices("ab#_", k=4)) + rng.choice(["", "", "", " ", "\0", "\u2003"]) for _ in range(3000)]
    expected = {}
    for example_id in ids:
        with contextlib.suppress(ValueError):
            expected[example_id] = split_example_id(example_id)
    good = [example_id for example_id in ids if example_id in expected]
    assert 500 < len(good) < 2500
    assert split_example_ids(good) == [expected[example_id] for example_id in good]
    assert split_example_ids([]) == []
    for example_id in set(ids) - set(good):
        with pytest.raises(ValueError, match=r"^example 1: example id "):
            split_example_ids(["q#d", example_id, "q#e"])
