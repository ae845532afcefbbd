"""Models and features that are small enough to check by hand, and functions that run scripts. All sizes differ."""

import contextlib
import io
import json
import logging
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import safetensors.torch
import torch

from formats.features import Example, FeaturesHeader, write_features
from tokenization.pair_encoding import encode_pairs
from tokenization.vocabulary import vocabulary_sha256
from tokenization.wordpiece import WordPiece

# The models are so small that more threads would be slower.
torch.set_num_threads(1)
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).resolve().parent.parent
MAX_SEQ_LENGTH = 17

_TOKENS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] "
    "the cat sat on a mat dog ran fast un ##able ##s ##ing ##ning run what is deep ne ##ural rank ##er 1 ##9 "
    "cafe x ##x , . ? ! [ ] sep cls pad - 中 国 ' s"
)
TOKENS = _TOKENS.split()

_WORDS = "the cat sat on a mat dog ran fast run runs what is deep neural ranker 19 cafe , . ? unrunning"
WORDS = _WORDS.split()


class Sizes(NamedTuple):
    layers: int
    hidden: int
    heads: int
    intermediate: int
    positions: int
    vocabulary: int = len(TOKENS)


TEACHER = Sizes(layers=6, hidden=24, heads=4, intermediate=40, positions=31)
STUDENT = Sizes(layers=3, hidden=12, heads=4, intermediate=28, positions=19)


def parameter_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ranker's parameters, as transformers names them."""
    d, inner = sizes.hidden, sizes.intermediate
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (sizes.vocabulary, d),
        "bert.embeddings.position_embeddings.weight": (sizes.positions, d),
        "bert.embeddings.token_type_embeddings.weight": (2, d),
        "bert.embeddings.LayerNorm.weight": (d,),
        "bert.embeddings.LayerNorm.bias": (d,),
    }
    for number in range(sizes.layers):
        layer = f"bert.encoder.layer.{number}"
        for name, rows, columns in (
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", inner, d),
            ("output.dense", d, inner),
        ):
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (d,), f"{layer}.{name}.bias": (d,)}
    shapes |= {"bert.pooler.dense.weight": (d, d), "bert.pooler.dense.bias": (d,)}
    return shapes | {"classifier.weight": (2, d), "classifier.bias": (2,)}


def random_weights(sizes: Sizes, seed: int, std: float = 0.3) -> dict[str, torch.Tensor]:
    """Random weights from a seed. They are so large that every loss is well above 0."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * std + (1.0 if name.endswith("LayerNorm.weight") else 0.0)
        for name, shape in parameter_shapes(sizes).items()
    }


def teacher_weights() -> dict[str, torch.Tensor]:
    return random_weights(TEACHER, seed=1)


def student_weights() -> dict[str, torch.Tensor]:
    """Weights of the student, with the `fit_dense` of TinyBERT's general students."""
    generator = torch.Generator().manual_seed(3)
    return random_weights(STUDENT, seed=2) | {
        "fit_dense.weight": torch.randn(TEACHER.hidden, STUDENT.hidden, generator=generator) * 0.3,
        "fit_dense.bias": torch.randn(TEACHER.hidden, generator=generator) * 0.3,
    }


def bert_config(sizes: Sizes, **settings) -> dict:
    """A config as published with BERT, without dropout. `settings` replace its values."""
    return {
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": sizes.positions,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "type_vocab_size": 2,
        "vocab_size": sizes.vocabulary,
    } | settings


def write_published(
    directory: Path, sizes: Sizes, weights: dict[str, torch.Tensor], tokens: Iterable[str] = TOKENS, **settings
) -> Path:
    """Writes a model directory in the layout of the published models, with their names of LayerNorm's parameters."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.joinpath("bert_config.json").write_text(json.dumps(bert_config(sizes, **settings)))
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    torch.save(renamed, directory / "pytorch_model.bin")
    directory.joinpath("vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return directory


def write_transformers(
    directory: Path, sizes: Sizes, weights: dict[str, torch.Tensor], tokens: Iterable[str] = TOKENS, **settings
) -> Path:
    """Writes a model directory in the layout of transformers."""
    directory.mkdir(parents=True, exist_ok=True)
    config = bert_config(sizes, model_type="bert", architectures=["BertForSequenceClassification"], **settings)
    directory.joinpath("config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    directory.joinpath("vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return directory


def some_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Returns pairs: queries of 1 to 3 words, and passages of 1 to 20 words. Some need truncation."""
    generator = torch.Generator().manual_seed(seed)

    def words(most: int) -> str:
        length = int(torch.randint(1, most + 1, (1,), generator=generator))
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=generator))

    return [(words(3), words(20)) for _ in range(count)]


def write_tiny_features(
    path: Path,
    count: int,
    set_name: str = "train",
    tokens: list[str] = TOKENS,
    max_seq_length: int = MAX_SEQ_LENGTH,
    seed: int = 0,
    do_lower_case: bool = True,
    pairs_per_query: int | None = None,
) -> Path:
    """Writes features of `some_pairs`. For train: labels 1, 0, 1, 0... and ids e0, e1...; else ids such as q1#D4_4.

    With `pairs_per_query`, ids for train such as q1#e4.
    """
    encoded = encode_pairs(WordPiece(tokens, do_lower_case), some_pairs(count, seed), max_seq_length)
    examples = (
        Example(f"q{i // pairs_per_query}#e{i}" if pairs_per_query else f"e{i}", ids, first, (i + 1) % 2)
        if set_name == "train"
        else Example(f"q{i % 3}#D{i % 7}_{i}", ids, first, -1)
        for i, (ids, first) in enumerate(encoded)
    )
    header = FeaturesHeader(max_seq_length, len(tokens), do_lower_case, set_name, vocabulary_sha256(tokens))
    write_features(path, header, examples)
    return path


class Finished(NamedTuple):
    status: int
    stdout: str
    stderr: str


def copy_project(directory: Path) -> Path:
    """Copies the sources of the project, for scripts that write into its folders."""
    directory.mkdir()
    for folder in (path.parent for path in ROOT.glob("*/__init__.py")):
        shutil.copytree(folder, directory / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "benchmarks", directory / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.sh")]:
        shutil.copy(path, directory)
    return directory


def run_script(*args: object) -> Finished:
    """Runs a script as a user does."""
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=300, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


def run_main(script: str, *args: object) -> Finished:
    """Runs a script as `python script args` does, but in this process, where torch is already imported."""
    root_logger = logging.getLogger()
    handlers, level = root_logger.handlers[:], root_logger.level
    interrupt = signal.getsignal(signal.SIGINT)  # a script changes it at its first line
    root_logger.handlers[:] = []
    stdout, stderr = io.StringIO(), io.StringIO()
    status = 0
    try:
        with (
            mock.patch.object(sys, "argv", [script, *map(str, args)]),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as done:
                status = done.code or 0
    finally:
        signal.signal(signal.SIGINT, interrupt)
        for handler in root_logger.handlers:
            handler.close()
        root_logger.handlers[:] = handlers
        root_logger.setLevel(level)
    return Finished(status, stdout.getvalue(), stderr.getvalue())


def run_forked(
    directory: Path, script: str, *args: object, prepare: Callable[[], object] = lambda: None, threads: int = 1
) -> Finished:
    """As `run_main`, in a child process. `prepare` runs in it first: it can set signals, limits, or failing functions.

    A child that was killed has the status -SIGNAL. Its output goes through files in `directory`.
    """
    paths = directory / ".stdout", directory / ".stderr"
    child = os.fork()
    if child == 0:
        status = 70
        try:
            for number, path in enumerate(paths, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.__stderr__ = io.TextIOWrapper(io.FileIO(2, "w", closefd=False))
            torch.set_num_threads(threads)
            prepare()
            done = run_main(script, *args)
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # `prepare` can have lowered it
            os.write(1, done.stdout.encode())
            os.write(2, done.stderr.encode())
            status = done.status
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    stdout, stderr = (path.read_text() for path in paths)
    for path in paths:
        path.unlink()
    return Finished(os.waitstatus_to_exitcode(ended), stdout, stderr)


def assert_refused(done: Finished, *parts: str) -> None:
    """Checks for exit status 2 and one line on stderr that contains `parts`."""
    assert done.status == 2, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert ": error: " in lines[0]
    for part in parts:
        assert str(part) in lines[0]
