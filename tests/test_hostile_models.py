"""Model directories from strangers: code in weights, huge declared sizes, malformed configs and vocabularies.

One child process reads all of them, so that its memory can be measured.
"""

import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import (
    ONE_THREAD,
    ROOT,
    STUDENT,
    TOKENS,
    Finished,
    assert_refused,
    bert_config,
    random_weights,
    run_main,
    student_weights,
    write_published,
    write_tiny_features,
    write_transformers,
)

from modeling.model_files import ModelFileError, load_ranker
from tokenization.vocabulary import load_vocabulary

MOST_MEMORY = 256 << 20  # above the memory that torch itself needs
MOST_SECONDS = 2

CHILD = r"""
import json, sys, time
import torch
from modeling.general_student import initial_ranker
from modeling.model_files import ModelFileError, load_ranker
from tokenization.vocabulary import VocabularyError, load_vocabulary, saved_lower_case

def measure(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0]) << 10

called = []
wanted = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")
sys.addaudithook(lambda event, arguments: called.append(event) if event in wanted else None)
load_ranker(sys.argv[1], initialise_missing_with_seed=7)
for directory in map(str.rstrip, sys.stdin):
    found = []
    open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    before, start = measure("VmRSS"), time.monotonic()
    for read in (
        lambda: load_ranker(directory, initialise_missing_with_seed=7),
        lambda: initial_ranker(directory, 2, 8, 2, 16, seed=1),
        lambda: load_vocabulary(directory),
        lambda: saved_lower_case(directory),
    ):
        try:
            read()
            found.append(None)
        except (ModelFileError, VocabularyError) as error:
            found.append(str(error))
    print(json.dumps([directory, found, time.monotonic() - start, measure("VmHWM") - before, called]), flush=True)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")


class Calls:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


class Evaluates(Calls):
    def __reduce__(self):
        return eval, (f"open({str(self.mark)!r}, 'w')",)


class Subclass(torch.Tensor):
    pass


def bin_file(content: object, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def compressed_bin() -> bytes:
    """A weights file with 40 MB of zeros, compressed."""
    original = io.BytesIO(bin_file({"classifier.bias": torch.zeros(10_000_000)}))
    compressed = io.BytesIO()
    with (
        zipfile.ZipFile(original) as source,
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    return compressed.getvalue()


def with_code(mark: Path) -> dict[str, bytes]:
    """Weights with code that an unrestricted unpickler executes."""
    files = {}
    for zipped in (True, False):
        for code in (Calls(mark), Evaluates(mark)):
            where = f"{type(code).__name__} {'zip' if zipped else 'legacy'}"
            weights = student_weights()
            hooked = torch.zeros(2).as_subclass(Subclass)
            hooked.code = code
            files |= {
                f"{where} alone": bin_file(code, zipped),
                f"{where} entry": bin_file(weights | {"classifier.bias": code}, zipped),
                f"{where} name": bin_file({"classifier.bias": torch.zeros(2), "more": [{"k": (code,)}]}, zipped),
                f"{where} subclass": bin_file(weights | {"classifier.bias": hooked}, zipped),
            }
    files["pickle protocol 2"] = pickle.dumps(Calls(mark), 2)
    files["pickle protocol 0"] = pickle.dumps({"classifier.bias": Calls(mark)}, 0)
    # code first, then a complete legacy file
    files["pickle before a valid file"] = pickle.dumps(Calls(mark), 2) + bin_file(student_weights(), False)
    return files


def safetensors_file(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def bad_safetensors() -> dict[str, bytes]:
    whole = safetensors.torch.save(student_weights())
    header_size = 8 + struct.unpack("<Q", whole[:8])[0]
    cuts = [0, 1, 7, 8, 9, header_size // 2, header_size - 1, header_size, header_size + 1, len(whole) // 2]
    cuts += [len(whole) - 4, len(whole) - 1]
    files = {f"cut at {cut}": whole[:cut] for cut in cuts}
    files |= {
        f"header of {size}": struct.pack("<Q", size) + whole[8:] for size in (0, 1, 10**8, 2**32, 2**63, 2**64 - 1)
    }
    bias = "classifier.bias"
    return files | {
        "more bytes": whole + b"\0",
        "overlapping": safetensors_file({bias: entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
        "with a gap": safetensors_file({bias: entry(0, 8, [2]), "b": entry(12, 20, [2])}, bytes(20)),
        "twice": safetensors_file(b'{"a": %b, "a": %b}' % ((json.dumps(entry(0, 8, [2])).encode(),) * 2), bytes(8)),
        "beyond the file": safetensors_file({bias: entry(0, 1 << 40, [1 << 38])}, bytes(8)),
        "shape and bytes": safetensors_file({bias: entry(0, 8, [3])}, bytes(8)),
        "shape that overflows": safetensors_file({bias: entry(0, 0, [1 << 32, 1 << 32])}),
        "no bytes of many rows": safetensors_file({bias: entry(0, 0, [1 << 40, 0])}),
        "negative shape": safetensors_file({bias: entry(0, 8, [-2])}, bytes(8)),
        "backwards": safetensors_file({bias: entry(8, 0, [2])}, bytes(8)),
        "unknown dtype": safetensors_file({bias: entry(0, 8, [2], "O")}, bytes(8)),
        "nested": safetensors_file(b'{"a":' * 50_000),
        "control codes": safetensors_file({"\x1b[31m\n": entry(0, 4, [1])}, b"\0\0\xc0\x7f"),
        "a layer of 5000 digits": safetensors_file({f"bert.encoder.layer.{'9' * 5000}.a": entry(0, 4, [1])}, bytes(4)),
        "layer 999,999,999": safetensors_file({"bert.encoder.layer.999999999.a": entry(0, 4, [1])}, bytes(4)),
        "text": b"text\n" * 99,
    }


def bad_bins() -> dict[str, bytes]:
    one = torch.zeros(1)
    return {
        "one number, repeated 10^12 times": bin_file({"classifier.bias": one.expand(10**6, 10**6)}),
        "one number, repeated 10^18 times": bin_file({"classifier.bias": one.expand(10**9, 10**9)}),
        "many names of one number": bin_file({f"bert.{i}": one.expand(100) for i in range(5_000)}),
        "compressed": compressed_bin(),
        "on no device": bin_file({"classifier.bias": torch.zeros(10**9, 10**6, device="meta")}),
        "sparse": bin_file({"classifier.bias": torch.sparse_coo_tensor(torch.tensor([[5]]), [1.0], (10**15,))}),
        "quantized": bin_file({"classifier.bias": torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)}),
        "complex": bin_file({"classifier.bias": torch.zeros(2, dtype=torch.complex64)}),
        "float8": bin_file({"classifier.bias": torch.zeros(2, dtype=torch.float8_e4m3fn)}),
        "huge bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 1 << 50) + b"\x85R.",
        "huge storage": b"\x80\x02ctorch\nFloatStorage\n\x8a\x08" + struct.pack("<q", 1 << 50) + b"\x85R.",
        "huge tensor": b"\x80\x02ctorch\nFloatTensor\n\x8a\x08" + struct.pack("<q", 1 << 50) + b"\x85R.",
        "nested lists": b"\x80\x02" + b"](" * 50_000,
    }


BAD_SETTINGS: list[dict] = [
    {name: value}
    for name in (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "type_vocab_size",
    )
    for value in (
        10**9,
        10**12,
        10**4000,
        2**63,
        0,
        -1,
        12.0,
        1e300,
        float("nan"),
        float("inf"),
        "12",
        True,
        None,
        [12],
        {},
    )
]
BAD_SETTINGS += [
    {name: value}
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "initializer_range")
    for value in (float("nan"), float("inf"), -float("inf"), -0.1, 10**12, "0.1", True, None, [0.1])
]
BAD_SETTINGS += [{"hidden_act": value} for value in ("os.system", "", 5, None, ["gelu"], {"gelu": 1}, "x" * 99_999)]
BAD_SETTINGS += [{"pad_token_id": value} for value in (-1, 10**12, 0.5, "0", True, [0])]
BAD_SETTINGS += [
    {"num_hidden_layers": 128, "hidden_size": 1 << 14, "intermediate_size": 1 << 16, "vocab_size": 1 << 21}
]
BAD_SETTINGS += [{"model_type": value} for value in ("gpt2", 5, None, ["bert"], "\x1b[2J")]
BAD_SETTINGS += [{"pooled_activation": value} for value in ("os.system", 5, None, ["relu"], "\x1b[2J")]


def bad_configs() -> dict[str, bytes]:
    files = {
        f"{str(settings)[:60]}": json.dumps(bert_config(STUDENT) | settings).encode()
        if "1" * 3000 not in str(settings) and 10**4000 not in settings.values()
        else json.dumps(bert_config(STUDENT, marked=0))
        .replace(f'"{next(iter(settings))}": ', f'"{next(iter(settings))}": 1{"0" * 4000}')
        .encode()
        for settings in BAD_SETTINGS
    }
    return files | {
        "nested": b"[" * 900_000,
        "nested in a setting": b'{"hidden_size": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "many digits": b'{"hidden_size": ' + b"9" * 500_000 + b"}",
        "1e999": b'{"hidden_size": 1e999}',
        "utf-16": json.dumps(bert_config(STUDENT)).encode("utf-16"),
        "long": b" " * (2 << 20) + json.dumps(bert_config(STUDENT)).encode(),
        "empty": b"",
    }


def bad_vocabularies() -> dict[str, bytes]:
    good = "".join(f"{token}\n" for token in TOKENS).encode()
    return {
        "the same token twice": good + b"dog\n",
        "an empty line": good + b"\n",
        "empty lines": good.replace(b"cat\n", b"\n\n\n"),
        "only empty lines": b"\n" * 10_000_000,
        "a huge line": good + b"x" * (20 << 20),
        "a huge line without end": b"x" * (16 << 20),
        "huge lines at fault": good + (b"\x1b" * 999_999 + b"\n") * 2,
        "first a huge line": b"\x1b" * 999_999 + b"\n" + good,
        "not utf-8": good + b"\xff\n",
        "a carriage return in a line": good + b"a\rb\n",
        "a missing special token": good.replace(b"[SEP]\n", b""),
    }


def ids_of(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def bad_tokenizers() -> dict[str, bytes]:
    return {
        "nested": b"[" * 9_000_000,
        "nested vocabulary": b'{"model": {"vocab": ' + b'{"a":' * 50_000,
        "many digits": b'{"model": {"vocab": {"[PAD]": ' + b"9" * 5000 + b"}}}",
        "long": b" " * (17 << 20) + b"{}",
        "a list": b"[1, 2]",
        "a type of another kind": b'{"model": {"type": ["WordPiece"], "vocab": {}}}',
        "ids of other kinds": b'{"model": {"vocab": {"[PAD]": 0, "[UNK]": [1], "[CLS]": {"a": 1}, "[SEP]": null}}}',
        "ids that are no numbers": b'{"model": {"vocab": {"[PAD]": NaN, "[UNK]": NaN}}}',
        "huge ids": b'{"model": {"vocab": {"[PAD]": 0, "[UNK]": 1e308, "[CLS]": 999999999999}}}',
        "a surrogate": json.dumps({"model": {"vocab": ids_of([*TOKENS, "a\ud800"])}}).encode(),
        "a line end": json.dumps({"model": {"vocab": ids_of([*TOKENS[:9], "a\nb", *TOKENS[9:]])}}).encode(),
        "a carriage return": json.dumps({"model": {"vocab": ids_of([*TOKENS, "a\r"])}}).encode(),
        "tokens of a terminal": b'{"model": {"type": "\\u001b[2J", "vocab": {}}}',
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # some of these tensors are deprecated in torch
def test_model_files_of_strangers_are_refused_in_little_memory_and_time(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    good = write_transformers(tmp_path / "good", STUDENT, student_weights())
    directories: list[tuple[Path, int]] = []

    def add(kind: str, files: dict[str, bytes], file_name: str, reader: int, write: Callable) -> None:
        for i, content in enumerate(files.values()):
            directory = write(tmp_path / f"{kind}{i}", STUDENT, student_weights())
            if file_name == "tokenizer.json":
                (directory / "vocab.txt").unlink()
            (directory / file_name).write_bytes(content)
            if kind == "configs" and i % 2:
                (directory / "tokenizer_config.json").write_bytes(content)
            directories.append((directory, reader))

    add("code", with_code(mark), "pytorch_model.bin", 0, write_published)
    add("bins", bad_bins(), "pytorch_model.bin", 0, write_published)
    add("safetensors", bad_safetensors(), "model.safetensors", 0, write_transformers)
    add("configs", bad_configs(), "config.json", 0, write_transformers)
    add("vocabularies", bad_vocabularies(), "vocab.txt", 2, write_transformers)
    add("tokenizers", bad_tokenizers(), "tokenizer.json", 2, write_transformers)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(good)],
        input="".join(f"{directory}\n" for directory, _ in directories),
        cwd=ROOT,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (directories[len(lines)], done.stderr[-2000:])
    assert not mark.exists()
    assert len(lines) == len(directories) > 150
    for (directory, reader), line in zip(directories, lines, strict=True):
        _, found, seconds, memory, called = json.loads(line)
        assert found[reader] is not None and str(directory) in found[reader], (directory, found)
        assert called == [], directory
        assert memory < MOST_MEMORY, (directory, memory >> 20, found)
        assert seconds < MOST_SECONDS, (directory, seconds, found)


def rerank(model: Path, directory: Path) -> Finished:
    """Re-ranks with a model, in 20 seconds at most."""

    def too_long(*_: object) -> None:
        raise AssertionError("the script waits")

    if not (directory / "features").exists():
        write_tiny_features(directory / "features", 5, "test")
    flags = ["--model_dir", model, "--features_file", directory / "features", "--device", "cpu", "--overwrite"]
    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(20)
    try:
        return run_main("rerank.py", *flags, "--output_scores_file", directory / "scores")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def test_a_named_pipe_in_a_model_directory_is_an_error_in_one_line(tmp_path: Path) -> None:
    for number, name in enumerate(
        ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    ):
        model = write_transformers(tmp_path / f"model{number}", STUDENT, student_weights())
        if name == "tokenizer.json":
            (model / "vocab.txt").unlink()
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)
        assert_refused(rerank(model, tmp_path), f"{model / name}", "is not a regular file")
        if not name.startswith("tokenizer"):
            (model / name).unlink()
            (model / name).mkdir()
            assert_refused(rerank(model, tmp_path), f"{model / name}")
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b" " * (2 << 20)])
def test_a_damaged_tokenizer_config_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Its `do_lower_case` cannot be compared with that of the features."""
    model = write_transformers(tmp_path / "model", STUDENT, student_weights())
    (model / "tokenizer_config.json").write_bytes(content)
    assert_refused(rerank(model, tmp_path), f"{model / 'tokenizer_config.json'}: not a tokenizer's config")
    for content in (b"{}", b"[]", b'{"do_lower_case": null}', b'{"do_lower_case": true}'):
        (model / "tokenizer_config.json").write_bytes(content)
        assert rerank(model, tmp_path).status == 0


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda lines: [*lines[:7], b"", *lines[7:]], "line 8: the token is empty"),
        (lambda lines: [*lines, b"dog"], f"line {len(TOKENS) + 1}: 'dog' is already the token of "),
        (lambda lines: [*lines[:7], b"a\xff", *lines[8:]], "line 8: byte 2 is not UTF-8"),
        (lambda lines: [*lines[:7], b"a\rb", *lines[8:]], "line 8: 'a\\rb' holds a line end"),
        (lambda lines: lines[1:], "[PAD] missing, so it is not a BERT vocabulary"),
        (lambda lines: lines[:3], "[SEP] missing, so it is not a BERT vocabulary"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1: the first token is '[UNK]'"),
    ],
)
def test_a_damaged_vocabulary_is_an_error_that_names_the_line(tmp_path: Path, damage: Callable, says: str) -> None:
    """It was a warning of the scripts that load a model."""
    model = write_transformers(tmp_path / "model", STUDENT, student_weights())
    lines = damage((model / "vocab.txt").read_bytes().removesuffix(b"\n").split(b"\n"))
    (model / "vocab.txt").write_bytes(b"\n".join(lines) + b"\n")
    assert_refused(rerank(model, tmp_path), f"{model / 'vocab.txt'}", says)
    write_tiny_features(tmp_path / "train", 8)
    flags = ["--features_file", tmp_path / "train", "--general_student_model", model, "--train_batch_size", 4]
    flags += ["--distill_model", "hard", "--output_student_dir", tmp_path / "out", "--device", "cpu"]
    assert_refused(run_main("distill.py", *flags), f"{model / 'vocab.txt'}", says)


def test_a_vocabulary_without_its_last_lines_is_an_error_but_padded_embeddings_are_not(tmp_path: Path) -> None:
    """Embeddings are padded to a multiple of 8, 64, 128 or 1,024 rows at most."""
    for rows, missing in ((2, False), (18, False), (1023, False), (1024, True), (30_000, True)):
        sizes = STUDENT._replace(vocabulary=len(TOKENS) + rows)
        model = write_transformers(tmp_path / f"model{rows}", sizes, random_weights(sizes, 1))
        done = rerank(model, tmp_path)
        if missing:
            lines = f"lines {len(TOKENS) + 1} to {sizes.vocabulary} are missing"
            assert_refused(done, str(model), f"{len(TOKENS)} tokens, its config says {sizes.vocabulary}", lines)
        else:
            assert (done.status, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("a\ud800b", "'a\\ud800b' holds a surrogate"),
        ("a\nb", "'a\\nb' holds a line end"),
        ("a\r", "'a\\r' holds a line end"),
        ("\n", "'\\n' holds a line end"),
    ],
)
def test_a_token_that_a_vocab_txt_cannot_hold_is_an_error(tmp_path: Path, token: str, says: str) -> None:
    """Written as a line, it would shift the ids after it."""
    model = write_transformers(tmp_path / "model", STUDENT, student_weights())
    (model / "vocab.txt").unlink()
    for place in (9, len(TOKENS) - 1):
        tokens = [*TOKENS[:place], token, *TOKENS[place + 1 :]]
        (model / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": ids_of(tokens)}}))
        where = f"{model / 'tokenizer.json'} token {place}: "
        assert_refused(rerank(model, tmp_path), where, says)
        (tmp_path / "pairs").write_text("q#d_0\tthe\tcat\n")
        flags = ["--set_name", "test", "--raw_data_file", tmp_path / "pairs", "--bert_model_dir", model]
        done = run_main("tokenize_to_features.py", *flags, "--output_features_file", tmp_path / "out")
        assert_refused(done, where, says)
        flags = ["--model_dir", model, "--layers", "1", "--output_dir", tmp_path / "student"]
        assert_refused(run_main("model_tools/make_general_student.py", *flags), where, says)
    good = {"model": {"type": "WordPiece", "vocab": ids_of([*TOKENS[:-1], "a\u2028\u0085b\U0001f600"])}}
    (model / "tokenizer.json").write_text(json.dumps(good))
    assert run_main("model_tools/make_general_student.py", *flags).status == 0
    (tmp_path / "student" / "tokenizer.json").unlink()
    assert load_vocabulary(tmp_path / "student") == load_vocabulary(model)


def test_a_config_of_a_billion_layers_is_refused_by_name(tmp_path: Path) -> None:
    directory = write_transformers(tmp_path / "m", STUDENT, student_weights(), num_hidden_layers=10**9)
    with pytest.raises(ModelFileError, match=r"config\.json: num_hidden_layers 1000000000 is not from 1 to 128"):
        load_ranker(directory)
