"""What a ranker thinks of many pairs: batches of like length, shared among processes, and a softmax in float64."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from tqdm import tqdm

from modeling.frozen import FrozenRanker
from runtime.distributed import all_reduce, rank, world_size


def pairs_at_a_time(device: torch.device) -> int:
    """How many pairs of full length are scored at a time, unless somebody says otherwise."""
    return 16 if device.type == "cpu" else 512


def batches(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Examples of like length, longest first, as many at a time as fill `tokens` with their padding, but at least one.

    A score does not depend on padding, and less of it is less work. `lengths`: (n,); yields indices.
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
    """P(class 1) of examples, (n,) float64, the same in every process, and how many of them this process computed.

    `lengths`: (n,) tokens each; `batch_of`: pads the examples of some indices; `bar` moves on by each batch. The
    softmax is taken in float64, since in float32 it reaches exactly 1 at a logit gap of 17.
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
    logits = all_reduce(logits)  # each pair's are computed once, so that their sum is what they are
    return torch.softmax(logits.double(), dim=-1)[:, 1].cpu().numpy(), scored
