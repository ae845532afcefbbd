"""Synthetic data for the benchmarks: models with initial values, features, pairs."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from formats.features import Example, FeaturesHeader, write_features
from tokenization.vocabulary import vocabulary_sha256

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENS = [*SPECIAL, "##x", *(f"w{i}" for i in range(30_000))]  # about as many as BERT has
HEADS = 12


class Shape(NamedTuple):
    """LAYERS/HIDDEN of a model, such as 12/768."""

    layers: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.layers}/{self.hidden}"


def shape(text: str) -> Shape:
    """Parses LAYERS/HIDDEN. Raises ValueError for other text, and if the hidden size is not a multiple of 12 heads."""
    layers, hidden = map(int, text.split("/"))
    if layers < 1 or hidden < HEADS or hidden % HEADS:
        raise ValueError(text)
    return Shape(layers, hidden)


def make_model(directory: Path, shape: Shape, seed: int, dropout: float = 0.0, fit_to: int | None = None) -> Path:
    """Writes a ranker with initial values. It has a `fit_dense` to the hidden size `fit_to`, if that is given."""
    import torch  # late: these take seconds, and the flags are parsed first

    from modeling.bert import BertConfig, BertRanker
    from modeling.model_files import save_ranker

    torch.manual_seed(seed)
    config = BertConfig(
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


def make_features(path: Path, set_name: str, count: int, max_seq_length: int, is_full: bool = False) -> Path:
    """Writes examples of random tokens. Their lengths are from a quarter of `max_seq_length` to all of it.

    `is_full`: all have `max_seq_length` tokens.
    """
    rng = np.random.default_rng(1)
    shortest = max_seq_length if is_full else max_seq_length // 4

    def examples() -> Iterator[Example]:
        for i in range(count):
            ids = rng.integers(len(SPECIAL), len(TOKENS), rng.integers(shortest, max_seq_length + 1))
            ids[[0, 9, -1]] = TOKENS.index("[CLS]"), TOKENS.index("[SEP]"), TOKENS.index("[SEP]")
            yield Example(f"q{i}#D{i}_0", ids.tolist(), 10, i % 2 if set_name == "train" else -1)

    header = FeaturesHeader(max_seq_length, len(TOKENS), True, set_name, vocabulary_sha256(TOKENS))
    write_features(path, header, examples())
    return path


def make_pairs(count: int, words: tuple[int, int], seed: int = 1) -> list[tuple[str, str]]:
    """Queries of 8 words, and passages with a number of words between the two of `words`. A third of all words have two
    tokens."""
    rng = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(f"w{rng.randrange(30_000)}{rng.choice(('', '', 'x'))}" for _ in range(length))

    return [(text(8), text(rng.randint(*words))) for _ in range(count)]
