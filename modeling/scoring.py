"""Scores of many pairs: length-bucketed batches, split among the ranks, and a softmax in float64."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from tqdm import tqdm

from modeling.frozen import FrozenRanker
from modeling.padding import pad, to_device
from runtime.device import copy_to_cpu
from runtime.distributed import all_reduce, rank, world_size


def pairs_at_a_time(device: torch.device) -> int:
    """The default batch size, in pairs of full length."""
    return 16 if device.type == "cpu" else 512


def batches(lengths: np.ndarray, tokens: int) -> Iterator[slice]:
    """Length-bucketed batches. A batch has at most `tokens` tokens, or one example.

    Padding counts as tokens. Examples of similar length have little padding, so there is less work; scores do not
    change. `lengths`: (n,), the longest first. Yields the places of each batch.
    """
    first = 0
    while first < len(lengths):
        count = max(1, tokens // int(lengths[first]))
        yield slice(first, min(first + count, len(lengths)))
        first += count


def relevance_scores(
    model: FrozenRanker,
    input_ids: np.ndarray,
    offsets: np.ndarray,
    first_segment_lengths: np.ndarray,
    batch_tokens: int,
    bar: tqdm,
) -> tuple[Callable[[], np.ndarray], int]:
    """Computes P(class 1) of n examples. `bar` advances with each batch.

    The token ids of example i are `input_ids[offsets[i] : offsets[i + 1]]`. All of them are sent to the model's device
    at once, and the batches are built there. The softmax is in float64: in float32 it is exactly 1 from a logit gap of
    17 on.

    Returns a function and the number of examples of this rank. The function returns the scores, (n,) float64, equal on
    all ranks. A GPU can still compute them when this function returns; the returned one waits.
    """
    lengths = np.diff(offsets)
    longest_first = np.argsort(-lengths, kind="stable")
    lengths = lengths[longest_first]
    columns = np.stack([offsets[:-1][longest_first], lengths, first_segment_lengths[longest_first]])
    tokens, columns = to_device(input_ids, model.device), to_device(columns, model.device)  # (all tokens,), (3, n)
    logits = torch.zeros((len(lengths), 2), device=model.device)  # the longest example first
    scored = 0
    for number, chosen in enumerate(batches(lengths, batch_tokens)):
        bar.update(chosen.stop - chosen.start)
        if number % world_size() != rank():
            continue
        longest, shortest = int(lengths[chosen.start]), int(lengths[chosen.stop - 1])
        batch = pad(tokens, *columns[:, chosen], longest)
        if longest == shortest:
            batch["attention_mask"] = None
        logits[chosen] = model(**batch).logits
        scored += chosen.stop - chosen.start
    logits = all_reduce(logits)  # a sum: each pair has its logits on one rank, and 0 on the others
    on_cpu = copy_to_cpu(torch.softmax(logits.double(), dim=-1)[:, 1])

    def scores() -> np.ndarray:
        in_order = np.empty(len(lengths))
        in_order[longest_first] = on_cpu().numpy()
        return in_order

    return scores, scored
