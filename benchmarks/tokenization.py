"""Tokenization of pairs and size of features, against the reference implementation of the published tokenizer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import itertools
import os
import random
import subprocess
import tempfile
import time
import unicodedata
from collections.abc import Iterator

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.reference_tokenization import PaddedExample, tokenize, write_csv
from formats.features import Features
from formats.lines import read_lines
from formats.pairs import Pair, read_pairs, write_pairs
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.hub import model_directory
from runtime.script import run_script
from tokenization.vocabulary import load_vocabulary
from tokenization.wordpiece import WordPiece

ROOT = Path(__file__).resolve().parents[1]
PASSAGES_PER_QUERY = 30
PASSAGE_WORDS = 150
LETTERS = "etaoinshrdlucmfwypvbgkjqxz0123456789"
SIGNS = ".,;:!?()[]'\"-/%&$"
SPACES = " \t\n\r\x0b\x0c\x1c\x85\u00a0\u2003\u2028\u2029\u3000\u200b\ufeff\ufffd\0"


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Runs tokenize_to_features.py on pairs, and the reference implementation of the published
tokenizer (benchmarks/reference_tokenization.py) on some of them. Prints pairs/s and bytes per pair of both. Compares
the token ids of these pairs, and of random Unicode strings, with and without lower case.

  python benchmarks/tokenization.py                                            synthetic pairs, under a minute
  python benchmarks/tokenization.py --pairs train.tsv --bert_model_dir teacher/

The time of tokenize_to_features.py is that of the whole script. The time of the reference is tokenization and writing
alone. The exit status is 1 if ids differ.""",
    )
    parser.add_argument("--pairs", type=Path, help="pairs with or without labels (default: synthetic pairs)")
    parser.add_argument("--bert_model_dir", help="a model with the vocabulary (default: a synthetic vocabulary)")
    parser.add_argument("--num_pairs", type=int, default=100_000, help="number of synthetic pairs (default 100000)")
    parser.add_argument("--num_plain_pairs", type=int, default=2000, help="pairs of the reference (default 2000)")
    parser.add_argument("--num_strings", type=int, default=100_000, help="random Unicode strings (default 100000)")
    parser.add_argument("--max_seq_length", type=int, default=256, help="(default 256)")
    args = parser.parse_args()
    if min(args.num_pairs, args.num_plain_pairs, args.num_strings) < 1 or args.max_seq_length < 5:
        raise InputError("--num_pairs, --num_plain_pairs, --num_strings, --max_seq_length: need at least 1, 1, 1, 5")
    return args


def make_vocabulary(rng: random.Random) -> list[str]:
    """A vocabulary of BERT's size: characters at the start of words and inside, random words, and ends of words."""
    characters = [*LETTERS, *SIGNS, *map(chr, range(0xA1, 0x250)), *map(chr, range(0x4E00, 0x5200))]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{char}" for char in characters)]
    words = ("".join(rng.choices(LETTERS[:26], k=rng.randint(2, 9))) for _ in range(30_000))
    tokens += [word if rng.random() < 0.8 else f"##{word[:4]}" for word in words]
    return list(dict.fromkeys(tokens))


def make_pairs(rng: random.Random, tokens: list[str], count: int) -> Iterator[Pair]:
    """Yields pairs with word frequencies of natural language (Zipf-Mandelbrot). One word in ten has several tokens."""
    known = [token for token in tokens if len(token) > 1 and token.isalpha()]
    words = [word if rng.random() < 0.9 else word + rng.choice(known) for word in known * 3]
    rng.shuffle(words)
    words = [word + rng.choice(SIGNS) if rng.random() < 0.15 else word for word in words]
    chance = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(1, len(words) + 1)))
    for number in range(count):
        if number % PASSAGES_PER_QUERY == 0:
            query = " ".join(rng.choices(words, cum_weights=chance, k=rng.randint(3, 12)))
        passage = " ".join(rng.choices(words, cum_weights=chance, k=PASSAGE_WORDS))
        yield Pair(f"{number // PASSAGES_PER_QUERY}#D{number}_passage-0", query, passage)


def random_string(rng: random.Random) -> str:
    """Up to 40 characters of all planes, with many accents, Chinese, white space and controls; rarely a long word."""

    def character() -> str:
        kind = rng.randrange(10)
        if kind < 3:
            return rng.choice(LETTERS + LETTERS.upper() + SIGNS)
        if kind == 3:
            return rng.choice(SPACES)
        if kind == 4:
            return chr(rng.randint(0x300, 0x36F))
        if kind == 5:
            return chr(rng.randint(0x4E00, 0x9FFF))
        code = rng.randint(0, 0x2FFF) if kind < 8 else rng.randint(0, 0x10FFFF)
        return chr(code) if not 0xD800 <= code < 0xE000 else " "

    text = "".join(character() for _ in range(rng.randint(0, 40)))
    return text + rng.choice(LETTERS) * rng.randint(90, 110) if rng.random() < 0.01 else text


def with_characters(tokens: list[str], texts: list[str]) -> list[str]:
    """Adds every character of the texts to a vocabulary. Else [UNK] would hide differences."""
    characters = {
        char for text in texts for form in (text, text.lower()) for char in form + unicodedata.normalize("NFD", form)
    }
    pieces = (piece for char in sorted(characters) for piece in (char, f"##{char}"))
    return list(dict.fromkeys([*tokens, *pieces]))


def differing_strings(rng: random.Random, tokens: list[str], count: int) -> int:
    """Prints the speed of both sides on random strings; returns how many strings have different ids."""
    texts = [random_string(rng) for _ in range(count)]
    tokens = with_characters(tokens, texts)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    differing = 0
    for do_lower_case in (True, False):
        tokenizer = WordPiece(tokens, do_lower_case)
        start = time.perf_counter()
        ours = [tokenizer.encode(text).tolist() for text in texts]
        ours_end = time.perf_counter()
        expected = [[vocabulary[piece] for piece in tokenize(text, vocabulary, do_lower_case)] for text in texts]
        reference_end = time.perf_counter()
        differing += sum(a != b for a, b in zip(ours, expected, strict=True))
        print(
            f"random strings, {'lower case' if do_lower_case else 'case kept'}: {count / (ours_end - start):,.0f} per "
            f"second, reference {count / (reference_end - ours_end):,.0f}, on one core"
        )
    return differing


def run_script_measured(pairs_file: Path, set_name: str, features_file: Path, model_dir: Path, length: int) -> float:
    """Runs tokenize_to_features.py, and returns the seconds that it took."""
    command = [sys.executable, "tokenize_to_features.py", "--set_name", set_name, "--raw_data_file", pairs_file]
    command += ["--output_features_file", features_file, "--bert_model_dir", model_dir, "--max_seq_length", length]
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)
    return time.perf_counter() - start


def same_examples(features: Features, indices: np.ndarray, expected: list[PaddedExample], labels: list[int]) -> bool:
    """Whether the features at `indices` are those of the reference tokenizer."""
    batch = features.batch(indices, features.header.max_seq_length)
    columns = zip(*expected, strict=True)  # ids, mask, segments: each (n, max_seq_length)
    names = ("input_ids", "attention_mask", "token_type_ids")
    return batch["labels"].tolist() == labels and all(
        np.array_equal(batch[name], column) for name, column in zip(names, columns, strict=True)
    )


def same_pairs(directory: Path, pairs_file: Path, model_dir: Path, tokens: list[str], length: int, count: int) -> bool:
    """Prints speed and size of both sides. Returns whether the `count` pairs of the reference are the same in both."""
    labelled = next(read_lines(pairs_file))[1].count("\t") == 3
    pairs = list(read_pairs(pairs_file, labelled))
    queries, passages = ({getattr(pair, side) for pair in pairs} for side in ("query", "passage"))
    print(f"{len(pairs):,} pairs of {len(queries):,} distinct queries and {len(passages):,} distinct passages")

    set_name = "train" if labelled else "test"
    seconds = run_script_measured(pairs_file, set_name, directory / "features", model_dir, length)
    features = Features(directory / "features")

    sample = np.linspace(0, len(pairs) - 1, min(count, len(pairs)), dtype=int)
    sampled = [pairs[i] for i in sample]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    with open(directory / "reference.csv", "w", encoding="utf-8") as file:
        start = time.perf_counter()
        expected = list(write_csv(file, sampled, vocabulary, True, length))
        reference_seconds = time.perf_counter() - start

    speeds = len(pairs) / seconds, len(sampled) / reference_seconds
    sizes = os.path.getsize(directory / "features") / len(pairs), os.path.getsize(file.name) / len(sampled)
    print(f"{'':34} {'here':>10} {'reference':>10} {'ratio':>8}")
    print(f"{'pairs/s':34} {speeds[0]:10,.0f} {speeds[1]:10,.0f} {speeds[0] / speeds[1]:8.1f}")
    name = f"bytes per pair, {features.lengths.mean():.0f} tokens"
    print(f"{name:34} {sizes[0]:10,.0f} {sizes[1]:10,.0f} {sizes[1] / sizes[0]:8.1f}")
    same = same_examples(features, sample, expected, [pair.label for pair in sampled])
    print(f"ids, masks, segments and labels of {len(sample):,} pairs: {'the same' if same else 'NOT the same'}")
    return same


def main() -> None:
    args = parse_args()
    rng = random.Random(1)
    print(f"{describe_machine('numpy')}, Unicode {unicodedata.unidata_version}")
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        if args.bert_model_dir:
            model_dir = model_directory(args.bert_model_dir, weights=False).resolve()
            tokens = load_vocabulary(model_dir)
        else:
            model_dir, tokens = directory, make_vocabulary(rng)
            directory.joinpath("vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
        if args.pairs:
            pairs_file = args.pairs.resolve()
        else:
            pairs_file = directory / "pairs.tsv"
            write_pairs(pairs_file, make_pairs(rng, tokens, args.num_pairs))
        same = same_pairs(directory, pairs_file, model_dir, tokens, args.max_seq_length, args.num_plain_pairs)
    differing = differing_strings(rng, tokens, args.num_strings)
    print(f"ids of {args.num_strings:,} random strings, in both cases: {differing} differ")
    sys.exit(0 if same and not differing else 1)


if __name__ == "__main__":
    run_script(main)
