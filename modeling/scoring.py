"""Scores of many pairs: length-bucketed batches, split among the ranks, and a softmax in float64."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from tqdm import tqdm

from modeling.frozen import FrozenRanker
from runtime.distributed import all_reduce, rank, world_size


def pairs_at_a_time(device: torch.device) -> int:
    """The default batch size, in pairs of full length."""
    return 16 if device.type == "cpu" else 512


def batches(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Length-bucketed batches, longest examples first. A batch has at most `tokens` tokens, or one example.

    Padding counts as tokens. Examples of similar length have little padding, so there is less work; scores do not
    change. `lengths`: (n,). Yields the indices of each batch.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(lengths):
        count = max(1, tokens // int(lengths[longest_first[first]]))
        yield longest_first[first : first + count]
        first += count


def relevance_scores(
    model: FrozenRanker,
    lengths: np.ndarray,
    batch_of: Callable[[np.ndarray], dict[str, np.ndarray]],
    batch_tokens: int,
    bar: tqdm,
) -> tuple[np.ndarray, int]:
    """Returns P(class 1) of n examples, (n,) float64, equal on all ranks, and the number of examples of this rank.

    `lengths`: (n,), the tokens of each example. `batch_of` returns the padded arrays of the examples at some indices.
    `bar` advances with each batch. The softmax is in float64: in float32 it is exactly 1 from a logit gap of 17 on.
    """
    logits = torch.zeros((len(lengths), 2), device=model.device)
    scored = 0
    for number, chosen in enumerate(batches(lengths, batch_tokens)):
        bar.update(len(chosen))
        if number % world_size() != rank():
            continue
        batch = {name: torch.from_numpy(array) for name, array in batch_of(chosen).items() if name != "labels"}
        logits[torch.from_numpy(chosen).to(model.device)] = model(**batch).logits
        scored += len(chosen)
    logits = all_reduce(logits)  # a sum: each pair has its logits on one rank, and 0 on the others
    return torch.softmax(logits.double(), dim=-1)[:, 1].cpu().numpy(), scored
