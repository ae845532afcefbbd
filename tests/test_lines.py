"""Lines of text and of JSON, and their positions in a file."""

import gzip
import random

import pytest

from formats.lines import read_json_lines, read_lines
from runtime.errors import InputError


@pytest.mark.parametrize("compressed", [False, True])
def test_position_is_that_in_the_file_on_disk(tmp_path, compressed):
    """For 5,000 lines of random text, the position of every 1,024th line and of the end is reported."""
    stream = random.Random(1)
    lines = [stream.randbytes(100).hex() for _ in range(5000)]
    content = "".join(f"{line}\n" for line in lines).encode()
    path = tmp_path / ("lines.gz" if compressed else "lines")
    path.write_bytes(gzip.compress(content) if compressed else content)
    positions: list[int] = []
    assert list(read_lines(path, positions.append)) == list(enumerate(lines, start=1))
    size = path.stat().st_size
    assert size < 0.6 * len(content) if compressed else size == len(content)
    assert len(positions) == 5 and positions == sorted(positions) and positions[-1] == size
    # The reader reads ahead, at most 256 KiB of decompressed text.
    for i, position in enumerate(positions[:-1], start=1):
        assert 0 <= position - size * 1024 * i / 5000 <= 1.1 * (1 << 18)


def test_position_of_a_short_file(tmp_path):
    path = tmp_path / "lines"
    path.write_text("one\ntwo")
    positions: list[int] = []
    assert list(read_lines(path, positions.append)) == [(1, "one"), (2, "two")]
    assert positions == [7]


@pytest.mark.parametrize("cut", [3, 11, 60])
def test_damaged_gzip(tmp_path, cut):
    path = tmp_path / "lines.gz"
    path.write_bytes(gzip.compress(b"".join(b"line %d\n" % i for i in range(40)))[:cut])
    with pytest.raises(InputError, match=r"lines\.gz: damaged after line \d+"):
        list(read_lines(path))
    path.write_bytes(b"plain text\n")
    with pytest.raises(InputError, match=r"lines\.gz: damaged after line 0"):
        list(read_lines(path))


def test_json_lines(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": "\\u00e9\\ud83d\\ude00"}\r\n{}\n{"b": [1, null]}'))
    assert list(read_json_lines(path)) == [(1, {"a": "é😀"}), (2, {}), (3, {"b": [1, None]})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1,}', "no JSON that can be used"),
        (" ", "the line is empty; remove it"),
        ('{"a": "\\udc00"}', "no JSON that can be used"),
        ('{"\\ud800": "a"}', "no JSON that can be used"),
        ('{"a": ' + "9" * 5000 + "}", "no JSON that can be used"),
        ("3", "int where a JSON object"),
    ],
)
def test_json_lines_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{{}}\n{line}\n")
    with pytest.raises(InputError) as caught:
        list(read_json_lines(path))
    assert str(caught.value).startswith(f"{path} line 2: ") and message in str(caught.value)


def test_text_of_the_web_has_blanks_for_what_no_one_can_mend(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"a\0b\rc\r\n\r\r\n")
    assert list(read_lines(path, web_text=True)) == [(1, "a b c"), (2, " ")]
    with pytest.raises(InputError, match="line 1: holds a NUL"):
        list(read_lines(path))
