"""What the benchmarks measure with: made-up models and data, child processes, and the machine's name."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers

from benchmarks.machine import describe_machine
from formats.features import Example, FeaturesHeader, write_features
from modeling.bert import BertRanker
from modeling.model_files import save_ranker
from runtime.errors import InputError
from tokenization.vocabulary import vocabulary_sha256

ROOT = Path(__file__).resolve().parents[1]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENS = [*SPECIAL, "##x", *(f"w{i}" for i in range(30_000))]  # about as many as BERT's
HEADS = 12


class Shape(NamedTuple):
    """LAYERS/HIDDEN of a model, such as 12/768."""

    layers: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.layers}/{self.hidden}"


def shape(text: str) -> Shape:
    """Raises ValueError where it is no LAYERS/HIDDEN, or the hidden size no multiple of the 12 heads."""
    layers, hidden = map(int, text.split("/"))
    if layers < 1 or hidden < HEADS or hidden % HEADS:
        raise ValueError(text)
    return Shape(layers, hidden)


def machine() -> str:
    """What a measurement with torch was taken on."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{describe_machine('torch', 'transformers')}, {torch.get_num_threads()} threads"


def make_model(directory: Path, shape: Shape, seed: int, dropout: float = 0.0, fit_to: int | None = None) -> Path:
    """A ranker with initial values; a student with a `fit_dense` where it is to learn from such a hidden size."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(TOKENS),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * shape.hidden,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    directory.mkdir()
    ranker = BertRanker(config)
    fit_dense = None if fit_to is None else torch.nn.Linear(shape.hidden, fit_to)
    save_ranker(ranker, TOKENS, True, directory, fit_dense=fit_dense)
    return directory


def make_features(path: Path, set_name: str, count: int, max_seq_length: int) -> Path:
    """Examples of random tokens, of a quarter to all of the length."""
    draw = np.random.default_rng(1)

    def examples() -> Iterator[Example]:
        for i in range(count):
            ids = draw.integers(len(SPECIAL), len(TOKENS), draw.integers(max_seq_length // 4, max_seq_length + 1))
            ids[[0, 9, -1]] = TOKENS.index("[CLS]"), TOKENS.index("[SEP]"), TOKENS.index("[SEP]")
            yield Example(f"q{i}#D{i}_0", ids.tolist(), 10, i % 2 if set_name == "train" else -1)

    header = FeaturesHeader(max_seq_length, len(TOKENS), True, set_name, vocabulary_sha256(TOKENS))
    write_features(path, header, examples())
    return path


def make_pairs(count: int, words: tuple[int, int], seed: int = 1) -> list[tuple[str, str]]:
    """Queries of 8 words and passages of so many, drawn between the two; a third of the words are two tokens."""
    draw = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(f"w{draw.randrange(30_000)}{draw.choice(('', '', 'x'))}" for _ in range(length))

    return [(text(8), text(draw.randint(*words))) for _ in range(count)]


class Finished(NamedTuple):
    """A child process: what it printed, and the most memory that it held, in bytes."""

    printed: str
    peak_bytes: int


def run(command: list, threads: int | None = None) -> Finished:
    """Runs Python on `command` to its end, from the project's directory. Raises InputError where it fails."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, command)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise InputError(f"{' '.join(map(str, command[:2]))} ended with status {process.returncode}: {printed}")
    return Finished(printed, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def last_json(printed: str) -> dict:
    """What a child said in its last line."""
    return json.loads(printed.strip().splitlines()[-1])
