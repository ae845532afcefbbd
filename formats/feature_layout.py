"""What a features file holds: a header and blocks of examples. Other packages import it from formats.features."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FORMAT = "simplified-tinybert-features"
VERSION = 2
SET_NAMES = ("train", "dev", "test", "general")

# The limits of a block: 512 tokens and an id of 63 bytes for each example. A reader holds two blocks at most.
BLOCK_EXAMPLES = 65_536
BLOCK_TOKEN_BYTES = 1 << 26
BLOCK_ID_BYTES = 1 << 22
BLOCK_TEXT_BYTES = BLOCK_ID_BYTES + 4096  # the ids and the keys


class FeaturesHeader(NamedTuple):
    """How a features file was made."""

    max_seq_length: int
    vocab_size: int
    do_lower_case: bool
    set_name: str
    vocab_sha256: str
    # What the examples were made from: the base name, and the SHA-256 of the bytes on disk. None for a pipe, and in a
    # file of version 1.
    raw_data_name: str | None = None
    raw_data_sha256: str | None = None

    def origin(self) -> str:
        """What the examples were made from, in words for a log."""
        if self.raw_data_sha256 is None:
            return "of unknown origin"
        return f"made from {self.raw_data_name!r:.100} (SHA-256 {self.raw_data_sha256})"

    def dtypes(self) -> dict[str, str]:
        """The dtype of each array of a block. A token id and a length have the smallest dtype that holds them."""
        length = "<u2" if self.max_seq_length < 1 << 16 else "<u4"
        return {
            "input_ids": "<u2" if self.vocab_size <= 1 << 16 else "<u4",
            "lengths": length,
            "first_segment_lengths": length,
            "labels": "|i1",
        }


class Example(NamedTuple):
    """One tokenized pair, `[CLS] query [SEP] passage [SEP]`. The first segment ends with the first `[SEP]`.

    In a general set both segments are plain text.
    """

    example_id: str
    input_ids: Sequence[int]
    first_segment_length: int
    label: int


class FeatureBlock(NamedTuple):
    """The n examples of one block. The tokens of example i are `input_ids[offsets[i] : offsets[i + 1]]`."""

    example_ids: list[str]
    input_ids: np.ndarray  # (tokens of all examples,) unsigned
    offsets: np.ndarray  # (n + 1,) int64
    first_segment_lengths: np.ndarray  # (n,) unsigned
    labels: np.ndarray  # (n,) int8, -1: no label

    def lengths(self) -> np.ndarray:
        """The number of tokens of each example, (n,) int64."""
        return np.diff(self.offsets)


def pad_examples(
    tokens: np.ndarray, lengths: np.ndarray, first_segment_lengths: np.ndarray, labels: np.ndarray, pad_to: int | None
) -> dict[str, np.ndarray]:
    """Pads a batch with id 0 to T tokens: `pad_to` or, where that is None, the length of the longest example.

    `tokens` holds the token ids of all examples, one example after another; the other arrays are (batch,).

    Returns `input_ids`, `attention_mask`, `token_type_ids`: (batch, T) int64; `labels`: (batch,) int64.
    """
    places = np.arange(pad_to or lengths.max())
    is_token = places < lengths[:, None]  # (batch, T)
    input_ids = np.zeros(is_token.shape, np.int64)
    input_ids[is_token] = tokens
    return {
        "input_ids": input_ids,
        "attention_mask": is_token.astype(np.int64),
        "token_type_ids": (is_token & (places >= first_segment_lengths[:, None])).astype(np.int64),
        "labels": labels.astype(np.int64),
    }
