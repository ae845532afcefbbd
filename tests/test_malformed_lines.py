"""Pairs, scores, runs and qrels with malformed lines: refused with file and line, or skipped and listed."""

import gzip
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Finished, assert_refused, run_main

from formats.features import read_blocks
from formats.lines import FirstLines, read_lines
from formats.pairs import Pair, read_pairs
from formats.scores import PassageScore, read_numbered_scores, read_scores
from formats.trec import read_qrels, read_run
from runtime.errors import InputError

# Valid lines of each kind of file.
GOOD = {
    "pairs": [b"7#D1_0\tthe\tcat", b"7#D2_0\tdog\tran", b"8#D1,x#y_0\tthe\tdog"],
    "labelled pairs": [b"a\tthe\tcat\t1", b"b c\tdog\tran\t0", b"a\tthe\tdog\t1"],
    "scores": [b"7\tD1_0\t0.5", b"7\tD2_0\t-1e-3", b"8\tD1,x#y_0\t3"],
    "run": [b"7 Q0 D1 1 0.5 x", b"7 Q0 D2 2 0.25 x", b"8 Q0 D1,x#y 1 3 x"],
    "qrels": [b"7 0 D1 0", b"7 0 D2 2", b"8 0 D1,x#y 1"],
}
KINDS = list(GOOD)
WITH_OUTPUT = KINDS[:3]


class Outcome(NamedTuple):
    done: Finished
    input: Path
    output: object
    rejected: list[str]


def run_kind(
    kind: str, directory: Path, model_dir: Path, content: bytes | Path, *flags: str, overwrite: bool = True
) -> Outcome:
    """Runs the script that reads this kind of file. The rejected lines are `number TAB reason`."""
    path, output = directory / "input", directory / "out"
    if overwrite and kind in WITH_OUTPUT:
        flags = ("--overwrite", *flags)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path = content
    if "pairs" in kind:
        set_name = "train" if kind == "labelled pairs" else "test"
        flags = ("--set_name", set_name, "--bert_model_dir", str(model_dir), *flags)
        done = run_main("tokenize_to_features.py", "--raw_data_file", path, "--output_features_file", output, *flags)
        result = output.exists() and [
            (block.example_ids, block.input_ids.tolist(), block.labels.tolist()) for block in read_blocks(output)
        ]
    elif kind == "scores":
        done = run_main("convert_to_trec_results.py", "--scores_file", path, "--output_results_file", output, *flags)
        result = output.exists() and output.read_bytes()
    else:
        other = directory / "other"
        other.write_bytes(b"\n".join(GOOD["qrels" if kind == "run" else "run"]))
        done = run_main("msmarco_mrr_eval.py", *((other, path) if kind == "run" else (path, other)), *flags)
        prefix = f"{path} line "
        listed = [line.removeprefix(prefix) for line in done.stderr.splitlines() if line.startswith(prefix)]
        return Outcome(done, path, done.stdout, [line.replace(": ", "\t", 1) for line in listed])
    listing = directory / "out.rejected.tsv"
    return Outcome(done, path, result, listing.read_text("utf-8").split("\n")[:-1] if listing.exists() else [])


def lines(rows: list[bytes]) -> bytes:
    return b"".join(row + b"\n" for row in rows)


ANY_KIND = [
    (b"", "columns where"),
    (b" ", "columns where"),
    (b"x", "1 columns where"),
    (b"7#x_0\t7", "2 columns where"),
    (b"1\t2\t3\t4\t5", "5 columns where"),
    (b"7\tD\0\t0", "holds a NUL byte"),
    (b"7\tD\r\t0", "carriage return inside the line"),
    (b"7\tD\xe9\t0", "byte 4 is not UTF-8"),
    (b"7\tD\xed\xa0\x80\t0", "byte 4 is not UTF-8"),
    (b"7\t" + b"D" * 300 + b"\t0", "longer than 256 bytes"),
]
OF_KIND = {
    "pairs": [
        (b"\tthe\tcat", "the example_id is empty"),
        (b"7#D3_0\t\tcat", "the query is empty"),
        (b"7#D3_0\tthe\t\xc2\xa0", "the passage is empty"),
        (b"7#D3_0\tthe\tc\tat", "4 columns where 3"),
        (b"7#D1_0\tthe\tcat", "example id 7#D1_0 is already in line 1"),
        (b"7D3_0\tthe\tcat", "has no '#'"),
        (b"#D3_0\tthe\tcat", "needs a query id"),
        (b"7#\tthe\tcat", "needs a passage id"),
        (b"7#D 3_0\tthe\tcat", "no white space"),
        (b"7#D\xc2\xa03_0\tthe\tcat", "no white space"),
        (b"7#D\xe2\x80\xa83_0\tthe\tcat", "no white space"),
    ],
    "labelled pairs": [
        (b" \tthe\tcat\t1", "the example_id is empty"),
        (b"c\t\tcat\t1", "the query is empty"),
        (b"c\tthe\t\t1", "the passage is empty"),
        (b"c\tthe\tcat\t", "the label is empty"),
        (b"c\tthe\tc\tat\t1", "5 columns where 4"),
        *((b"c\tthe\tcat\t" + label, f"label '{label.decode()}' is neither") for label in (b"1x", b"01", b" 1", b"2")),
    ],
    "scores": [
        (b"\tD3_0\t0.5", "the query id '' is empty"),
        (b"7\t\t0.5", "the passage id '' is empty"),
        (b"7\tD3_0\t", "score '' is not a finite number"),
        *((b"7\tD3_0\t" + score, f"score '{score.decode()}'") for score in (b"nan", b"inf", b"1e999", b"1x", b"1_0")),
        (b"7 8\tD3_0\t0.5", "holds white space"),
        (b"7\tD\xc2\xa03_0\t0.5", "holds white space"),
        (b"7\tD1_0\t0.75", "passage D1_0 of query 7 has a score already, in line 1"),
        (b"7\tD3\t0.5", "passage id 'D3' is not a document id"),
        (b"7\tD3_" + b"1" * 19 + b"\t0.5", "is not a document id"),
    ],
    "run": [
        (b"7 Q0 D 3 1 0.5 x", "7 columns where 6"),
        *((b"7 Q0 D3 3 " + score + b" x", f"score '{score.decode()}'") for score in (b"nan", b"-inf", b"1e999", b"1x")),
        (b"7 Q0 D1 3 0.75 x", "document D1 of query 7 is already in line 1"),
    ],
    "qrels": [
        (b"7 0 D 3 1", "5 columns where 4"),
        *(
            (b"7 0 D3 " + grade, f"relevance '{grade.decode()}'")
            for grade in (b"1x", b"1.0", b"nan", b"1_0", b"1" * 10)
        ),
        (b"query-id\tcorpus-id\tscore", "3 columns where 4"),
    ],
}
FAULTS = [(kind, *fault) for kind in KINDS for fault in [*ANY_KIND, *OF_KIND[kind]]]


@pytest.mark.parametrize(("kind", "line", "reason"), FAULTS)
def test_a_fault_is_refused_or_left_out_and_listed(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str, line: bytes, reason: str
) -> None:
    """By default nothing is written. With --skip_malformed, the output is that of the valid lines."""
    monkeypatch.setattr("formats.lines.MAX_LINE_BYTES", 256)
    content = lines([*GOOD[kind][:2], line, GOOD[kind][2]])
    refused = run_kind(kind, tmp_path, model_dir, content)
    assert_refused(refused.done, f"{refused.input} line 3: ", reason)
    assert refused.done.stdout == "" and not refused.output and not refused.rejected
    skipped = run_kind(kind, tmp_path, model_dir, content, "--skip_malformed")
    assert skipped.done.status == 0, skipped.done
    (rejected,) = skipped.rejected
    number, _, given = rejected.partition("\t")
    assert number == "3" and reason in given and refused.done.stderr.endswith(f" line 3: {given}\n")
    if kind in WITH_OUTPUT:
        assert f"4 lines: 3 taken, 1 rejected (listed in {tmp_path / 'out.rejected.tsv'})" in skipped.done.stdout
    else:
        assert f"note: 1 lines of {skipped.input} are malformed and were skipped\n" in skipped.done.stderr
    good = tmp_path / "good"
    good.mkdir()
    assert run_kind(kind, good, model_dir, lines(GOOD[kind])).output == skipped.output


@pytest.mark.parametrize("kind", KINDS)
def test_all_faults_at_once(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Input = output + rejected, also if the last line has no line end. Nothing is written if no line is valid."""
    monkeypatch.setattr("formats.lines.MAX_LINE_BYTES", 256)
    bad = [line for line, _ in [*ANY_KIND, *OF_KIND[kind]]]
    rows = [*GOOD[kind], *bad]
    mixed = run_kind(kind, tmp_path, model_dir, lines(rows)[:-1], "--skip_malformed")
    assert mixed.done.status == 0, mixed.done
    numbers = [int(row.split("\t")[0]) for row in mixed.rejected]
    assert numbers == list(range(4, len(rows) + 1))
    if kind in WITH_OUTPUT:
        assert f"{len(rows)} lines: 3 taken, {len(bad)} rejected" in mixed.done.stdout
    else:
        assert f"note: {len(bad)} lines of " in mixed.done.stderr
    assert run_kind(kind, tmp_path, model_dir, lines(GOOD[kind]))[2:] == (mixed.output, [])  # the earlier list is gone
    (tmp_path / "out").unlink(missing_ok=True)
    none_left = run_kind(kind, tmp_path, model_dir, lines(bad[:10]), "--skip_malformed")
    assert none_left.done.status == 2
    assert none_left.done.stderr.splitlines()[-1].endswith(f"{none_left.input} has no usable line")
    assert not none_left.output
    assert not [name for name in os.listdir(tmp_path) if "out" in name and name != "out.log"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken(tmp_path: Path, model_dir: Path, kind: str) -> None:
    """CRLF, a byte-order mark, a last line without line end, `.gz`."""
    expected = run_kind(kind, tmp_path, model_dir, lines(GOOD[kind])).output
    assert expected
    for content in (
        b"\r\n".join([*GOOD[kind], b""]),
        b"\xef\xbb\xbf" + lines(GOOD[kind]),
        b"\n".join(GOOD[kind]),
        b"\r\n".join(GOOD[kind]),
    ):
        assert run_kind(kind, tmp_path, model_dir, content).output == expected
    compressed = tmp_path / "input.gz"
    compressed.write_bytes(gzip.compress(lines(GOOD[kind])))
    assert run_kind(kind, tmp_path, model_dir, compressed).output == expected


def test_separators_of_unicode_end_no_line(tmp_path: Path, model_dir: Path) -> None:
    """In a text they are white space. In an id of a run they are part of the id, as for trec_eval."""
    for separator in "\u2028\u2029\x85\x1c\x1d\x1e\v\f":
        text = lines(GOOD["pairs"])
        same = text.replace(b"cat", f"cat{separator}".encode())
        assert (
            run_kind("pairs", tmp_path, model_dir, same).output == run_kind("pairs", tmp_path, model_dir, text).output
        )
    path = tmp_path / "ids"
    for separator in "\u2028\u2029\x85\u00a0\u3000":
        path.write_text(f"7 0 D{separator}1 1\n", "utf-8")
        assert read_qrels(path) == {"7": {f"D{separator}1": 1}}
        path.write_text(f"7 Q0 D{separator}1 1 0.5 x\n", "utf-8")
        assert read_run(path) == {"7": {f"D{separator}1": 0.5}}


def test_ids_with_two_hash_signs_split_at_the_first(tmp_path: Path, model_dir: Path) -> None:
    assert run_kind("pairs", tmp_path, model_dir, b"7#D#1_0\tthe\tcat\n").output[0][0] == ["7#D#1_0"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_of_lines_stays_an_error(tmp_path: Path, model_dir: Path, kind: str) -> None:
    def refused(content: bytes | Path, what: str) -> None:
        outcome = run_kind(kind, tmp_path, model_dir, content, "--skip_malformed")
        assert_refused(outcome.done, str(outcome.input), what)
        assert not outcome.output and not [name for name in os.listdir(tmp_path) if "out" in name]

    refused(b"", "is empty")
    refused(tmp_path, "is a directory")
    compressed = tmp_path / "cut.gz"
    compressed.write_bytes(gzip.compress(lines(GOOD[kind]))[:-9])
    refused(compressed, "damaged after line")


@pytest.mark.parametrize("kind", WITH_OUTPUT)
def test_a_list_of_rejected_lines_is_replaced_only_with_overwrite(tmp_path: Path, model_dir: Path, kind: str) -> None:
    listing = tmp_path / "out.rejected.tsv"
    listing.write_text("mine")
    content = lines([*GOOD[kind], b"x"])
    refused = run_kind(kind, tmp_path, model_dir, content, "--skip_malformed", overwrite=False)
    assert_refused(refused.done, str(listing), "--overwrite")
    assert listing.read_text() == "mine" and not refused.output
    broken = run_kind(kind, tmp_path, model_dir, content)
    assert_refused(broken.done, "line 4")
    assert listing.read_text() == "mine"
    assert len(run_kind(kind, tmp_path, model_dir, content, "--skip_malformed").rejected) == 1
    assert not run_kind(kind, tmp_path, model_dir, lines(GOOD[kind]), "--skip_malformed").rejected
    assert not listing.exists()


def test_plain_text_is_not_skipped(tmp_path: Path, model_dir: Path) -> None:
    done = run_kind("pairs", tmp_path, model_dir, b"the\n", "--skip_malformed", "--set_name", "general").done
    assert_refused(done, "--skip_malformed", "general")


def test_first_p_takes_the_first_passage_0(tmp_path: Path, model_dir: Path) -> None:
    content = b"7\tD1_0\t0.5\n7\tD1_p-0\t0.75\n7\tD1_1\t0.25\n"
    flags = ("--skip_malformed", "--aggregation", "FirstP")
    outcome = run_kind("scores", tmp_path, model_dir, content, *flags)
    assert outcome.rejected == ["2\tdocument D1 has a passage 0 already"]
    assert outcome.output == b"7\tQ0\tD1\t1\t0.5\tbert_FirstP\n"
    none = run_kind("scores", tmp_path, model_dir, content[len(b"7\tD1_0\t0.5\n7\tD1_p-0\t0.75\n") :], *flags)
    assert_refused(none.done, "document D1 of query 7 has no passage 0")


@pytest.mark.slow
def test_a_line_of_a_gigabyte(tmp_path: Path, model_dir: Path) -> None:
    """A sparse file, which needs no space on the disk."""
    path = tmp_path / "long"
    with open(path, "wb") as file:
        file.write(GOOD["pairs"][0] + b"\n")
        file.seek(1 << 30, os.SEEK_CUR)
        file.write(b"\n" + GOOD["pairs"][1])
    reason = "longer than 67108864 bytes"
    assert_refused(run_kind("pairs", tmp_path, model_dir, path).done, f"{path} line 2: {reason}")
    outcome = run_kind("pairs", tmp_path, model_dir, path, "--skip_malformed")
    assert outcome.rejected == [f"2\t{reason}"]
    assert outcome.output[0][0] == ["7#D1_0", "7#D2_0"]


def test_a_long_field_makes_a_short_message(tmp_path: Path, model_dir: Path) -> None:
    digits = b"1" * 100_000
    for kind, line in (
        ("labelled pairs", b"c\tthe\tcat\t" + digits),
        ("scores", b"7\tD3_" + digits + b"x" + digits + b"\t0.5"),
        ("scores", b"7\tD3_0\t" + digits + b"x"),
        ("run", b"7 Q0 D3 3 " + digits + b" x"),
        ("qrels", b"7 0 D3 " + digits),
    ):
        refused = run_kind(kind, tmp_path, model_dir, lines([*GOOD[kind], line]))
        assert_refused(refused.done, "line 4: ", "1 ... ")
        assert len(refused.done.stderr) < 1000


def test_first_lines_of_keys_whose_hashes_agree(tmp_path: Path) -> None:
    """In Python -1 and -2 have the same hash."""
    path = tmp_path / "numbers"
    path.write_text("-1\n-2\n5\n-2\n5\n-1\n-2\n")
    first_lines = FirstLines(path, int, key=lambda value: value)
    earlier = [first_lines.earlier(number, int(text)) for number, text in read_lines(path)]
    assert earlier == [None, None, None, 2, 3, 1, 2]


def test_a_repeated_id_of_a_pipe_is_an_error(tmp_path: Path) -> None:
    source, sink = os.pipe()
    os.write(sink, b"7\tD1_0\t0.5\n7\tD1_0\t0.5\n")
    os.close(sink)
    with pytest.raises(InputError, match="cannot be read again"):
        list(read_scores(f"/dev/fd/{source}"))
    os.close(source)


# Random lines, compared with reference implementations of the readers.


def reference_lines(content: bytes) -> list[str | None]:
    """The lines, with None for a line that is not text."""
    ends = content.split(b"\n")
    if not ends[-1]:
        ends.pop()
    texts = []
    for i, raw in enumerate(ends):
        raw = raw[:-1] if raw.endswith(b"\r") else raw
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = "\0"
        if i == 0 and text.startswith("\ufeff"):
            text = text[1:]
        texts.append(None if "\0" in text or "\r" in text else text)
    return texts


def is_id(text: str) -> bool:
    return bool(text) and not any(char.isspace() for char in text)


def reference_score(text: str) -> float | None:
    try:
        score = float(text)
    except ValueError:
        return None
    return score if set(text) <= set("+-.0123456789eE") and math.isfinite(score) else None


def reference_columns(line: str) -> list[str]:
    return [field for field in line.translate(str.maketrans("\t\v\f", "   ")).split(" ") if field]


def reference_pair(line: str) -> Pair | None:
    fields = line.split("\t")
    if len(fields) != 3 or not all(any(not char.isspace() for char in field) for field in fields):
        return None
    place = fields[0].find("#")
    return Pair(*fields) if place > 0 and is_id(fields[0][:place]) and is_id(fields[0][place + 1 :]) else None


def reference_labelled_pair(line: str) -> Pair | None:
    fields = line.split("\t")
    if len(fields) != 4 or not all(any(not char.isspace() for char in field) for field in fields):
        return None
    return Pair(*fields[:3], int(fields[3])) if fields[3] in ["0", "1"] else None


def reference_passage_score(line: str) -> PassageScore | None:
    fields = line.split("\t")
    if len(fields) != 3 or not is_id(fields[0]) or not is_id(fields[1]) or reference_score(fields[2]) is None:
        return None
    return PassageScore(fields[0], fields[1], float(fields[2]))


def reference_scored_doc(line: str) -> tuple[str, str, float] | None:
    fields = reference_columns(line)
    if len(fields) != 6 or reference_score(fields[4]) is None:
        return None
    return fields[0], fields[2], float(fields[4])


def reference_qrel(line: str) -> tuple[str, str, int] | None:
    fields = reference_columns(line)
    digits = fields[3][fields[3][:1] in ("+", "-") :] if len(fields) == 4 else ""
    if not 1 <= len(digits) <= 9 or not set(digits) <= set("0123456789"):
        return None
    return fields[0], fields[2], int(fields[3])


def rows_of(nested: dict) -> list[tuple]:
    return sorted((query_id, doc_id, value) for query_id, of in nested.items() for doc_id, value in of.items())


# A reader that returns a list of rows, the reference parser of one line, and the key that rows must not share.
READERS: dict[str, tuple[Callable, Callable, Callable | None]] = {
    "pairs": (lambda path, reject: list(read_pairs(path, False, reject)), reference_pair, lambda row: row[0]),
    "labelled pairs": (lambda path, reject: list(read_pairs(path, True, reject)), reference_labelled_pair, None),
    "scores": (
        lambda path, reject: [row for _, row in read_numbered_scores(path, reject)],
        reference_passage_score,
        lambda row: row[:2],
    ),
    "run": (lambda path, reject: rows_of(read_run(path, reject)), reference_scored_doc, lambda row: row[:2]),
    "qrels": (lambda path, reject: rows_of(read_qrels(path, lambda _: None, reject)), reference_qrel, None),
}
_FIELDS = "7 8 D1 D2_0 7#D1_0 #D1 7# a#b#c 0 1 01 -1 +2 1x Q0 0.5 -1e-3 .5 1. nan inf 1e999 1_0 [SEP]"
some_field = st.one_of(
    st.sampled_from(_FIELDS.split()),
    st.sampled_from(
        ["", " ", "a b", "\u00a0", "D\u2028", "\x85", "\ufeff", "\0", "\r", "\udce9", "1" * 30, "\x0b", "٣"]
    ),
    st.text(max_size=4),
)
# Mostly lines that are almost valid.
some_line = st.one_of(
    *(st.sampled_from([row.decode() for row in rows]) for rows in GOOD.values()),
    st.lists(some_field, max_size=7).map("\t".join),
    st.lists(some_field, max_size=7).map(" ".join),
    st.tuples(st.sampled_from(["7#D1_0", "7#D3_0", "8#a"]), some_field, some_field).map("\t".join),
    st.tuples(some_field, some_field, some_field, st.sampled_from("01x")).map("\t".join),
    st.tuples(st.sampled_from("78"), st.sampled_from(["D1_0", "D2"]), some_field).map("\t".join),
    st.tuples(st.sampled_from("78"), st.just("Q0"), some_field, st.just("1"), some_field, st.just("x")).map(" ".join),
    st.tuples(st.sampled_from("78"), st.just("0"), st.sampled_from(["D1", "D2"]), some_field).map(" ".join),
)
some_content = st.builds(
    lambda mark, rows, last: (
        mark + b"".join(f"{row}{end}".encode("utf-8", "surrogateescape") for row, end in rows) + last
    ),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(some_line, st.sampled_from(["\n", "\n", "\r\n"])), min_size=1, max_size=12),
    st.one_of(st.just(b""), st.binary(max_size=6)),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=300)
@given(content=some_content)
def test_readers_agree_with_the_reference_implementation(tmp_path_factory, kind: str, content: bytes) -> None:
    """The rows are those of the valid lines, and all other lines are rejected.

    By default the first of these is an error with the same reason.
    """
    path = tmp_path_factory.mktemp("lines") / "input"
    path.write_bytes(content)
    read, parse, key = READERS[kind]
    expected, at_fault, keys = [], [], set()
    for number, line in enumerate(reference_lines(content), start=1):
        row = None if line is None else parse(line)
        if row is None or (key and key(row) in keys):
            at_fault.append(number)
        else:
            expected.append(row)
            if key:
                keys.add(key(row))
    if kind == "run":
        expected.sort()
    if kind == "qrels":  # the highest of several is used
        expected = sorted({row[:2]: row for row in sorted(expected)}.values())

    rejected: list[tuple[int, str]] = []
    if expected:
        assert read(path, lambda *fault: rejected.append(fault)) == expected
    else:
        with pytest.raises(InputError, match="has no usable line"):
            read(path, lambda *fault: rejected.append(fault))
    assert [number for number, _ in rejected] == at_fault
    if rejected:
        with pytest.raises(InputError) as caught:
            read(path, None)
        assert str(caught.value) == f"{path} line {rejected[0][0]}: {rejected[0][1]}"
    else:
        assert read(path, None) == expected
