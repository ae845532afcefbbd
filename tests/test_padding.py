"""Padded batches that the model's device builds, against those of formats.features; their scores on a GPU."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TOKENS, write_tiny_features

from formats.features import FeatureBlock, Features, pad_examples
from modeling.bert import BertConfig, BertRanker
from modeling.frozen import FrozenRanker
from modeling.losses import hard_label_loss
from modeling.padding import pad, to_device
from modeling.scoring import batches, relevance_scores
from runtime.device import copy_to_cpu
from runtime.progress import ProgressBar
from training.inputs import load_batch
from training.optimizer import BertAdam
from training.precision import Precision


def random_block(seed: int, count: int, dtype: str, vocab_size: int, longest: int = 40) -> FeatureBlock:
    """Examples of 3 to `longest` tokens; the first segments have 2 tokens to all of them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest + 1, count)
    first = rng.integers(2, lengths + 1).astype("<u2")
    input_ids = rng.integers(0, vocab_size, lengths.sum()).astype(dtype)
    input_ids[0] = vocab_size - 1
    input_ids.flags.writeable = False
    return FeatureBlock([""] * count, input_ids, np.concatenate([[0], lengths.cumsum()]), first, np.zeros(count, "i1"))


@pytest.mark.parametrize(("dtype", "vocab_size"), [("<u2", 1 << 16), ("<u4", 1 << 31), ("<u2", 40_000)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_batches_are_those_of_the_features(dtype: str, vocab_size: int, device: str) -> None:
    """200 blocks of 1 to 30 examples."""
    rng = np.random.default_rng(5)
    for seed in range(200):
        block = random_block(seed, int(rng.integers(1, 31)), dtype, vocab_size)
        lengths = block.lengths()
        chosen = rng.permutation(len(lengths))[: rng.integers(1, len(lengths) + 1)]
        pad_to = int(lengths[chosen].max() + rng.integers(0, 5))
        ids = np.concatenate([block.input_ids[block.offsets[i] : block.offsets[i + 1]] for i in chosen])
        firsts, labels = block.first_segment_lengths[chosen], block.labels[chosen]
        expected = pad_examples(ids, lengths[chosen], firsts, labels, pad_to)
        columns = block.offsets[:-1], lengths, block.first_segment_lengths
        tensors = (to_device(array, torch.device(device)) for array in (block.input_ids, *(c[chosen] for c in columns)))
        found = pad(*tensors, pad_to)
        assert list(found) == ["input_ids", "attention_mask", "token_type_ids"]
        for name, tensor in found.items():
            assert (tensor.dtype, tensor.device.type) == (torch.int64, device)
            np.testing.assert_array_equal(tensor.cpu().numpy(), expected[name], name)


def test_special_lengths() -> None:
    def padded(lengths: list[int], first: list[int], width: int) -> dict[str, list]:
        starts = np.cumsum([0, *lengths[:-1]])
        arrays = np.arange(10, 10 + sum(lengths), dtype="<u2"), starts, np.array(lengths), np.array(first)
        found = pad(*(to_device(array, torch.device("cpu")) for array in arrays), width)
        return {name: tensor.tolist() for name, tensor in found.items()}

    one = {"input_ids": [[10]], "attention_mask": [[1]], "token_type_ids": [[0]]}  # one pair alone, of one token
    assert padded([1], [1], 1) == one
    assert padded([1, 3], [1, 1], 4) == {
        "input_ids": [[10, 0, 0, 0], [11, 12, 13, 0]],
        "attention_mask": [[1, 0, 0, 0], [1, 1, 1, 0]],
        "token_type_ids": [[0, 0, 0, 0], [0, 1, 1, 0]],  # segments of one token each
    }
    assert padded([3, 2], [3, 1], 3)["token_type_ids"] == [[0, 0, 0], [0, 1, 0]]  # no second segment; the longest first


def test_batches_hold_each_example_once() -> None:
    for tokens in (1, 40, 100, 10_000):
        lengths = np.sort(np.random.default_rng(tokens).integers(3, 41, 57))[::-1]
        found = list(batches(lengths, tokens))
        assert [i for chosen in found for i in range(chosen.start, chosen.stop)] == list(range(57))
        for chosen in found:
            size = chosen.stop - chosen.start
            assert size == 1 or size * lengths[chosen.start] <= tokens


CONFIG = BertConfig(
    vocab_size=97, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, pad_token_id=0
)


def scores_of(device: str, block: FeatureBlock, batch_tokens: int) -> np.ndarray:
    torch.manual_seed(3)
    ranker = BertRanker(CONFIG)
    for parameter in ranker.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with ProgressBar(total=len(block.labels)) as bar:
        arrays = block.input_ids, block.offsets, block.first_segment_lengths
        scores, count = relevance_scores(FrozenRanker(ranker.to(device)), *arrays, batch_tokens, bar)
    assert count == len(block.labels)
    return scores()


def test_scores_have_the_order_of_the_examples() -> None:
    block = random_block(1, 30, "<u2", 97)
    alone = []
    for start, stop, first in zip(block.offsets, block.offsets[1:], block.first_segment_lengths, strict=False):
        offsets = np.array([0, stop - start])
        one = FeatureBlock([""], block.input_ids[start:stop], offsets, np.array([first]), np.zeros(1, "i1"))
        alone.append(scores_of("cpu", one, 1)[0])
    assert len(set(alone)) == 30 and np.ptp(alone) > 0.01
    for batch_tokens in (1, 100, 10_000):
        np.testing.assert_allclose(scores_of("cpu", block, batch_tokens), alone, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("longest", [40, 3])  # with padding, and without
def test_a_gpu_gives_the_scores_of_a_cpu(longest: int) -> None:
    block = random_block(2, 700, "<u2", 97, longest)
    expected = scores_of("cpu", block, 400)
    for batch_tokens in (400, 100_000):
        np.testing.assert_allclose(scores_of("cuda", block, batch_tokens), expected, rtol=1e-3)


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[], None]]:
    """Returns a function after which torch raises an error if the CPU waits for a GPU."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_scoring_does_not_wait_for_a_gpu(waiting_is_an_error: Callable[[], None]) -> None:
    block = random_block(2, 300, "<u2", 97)
    model = FrozenRanker(BertRanker(CONFIG).to("cuda"))
    waiting_is_an_error()
    with ProgressBar(total=300) as bar:
        arrays = block.input_ids, block.offsets, block.first_segment_lengths
        scores, _ = relevance_scores(model, *arrays, 1000, bar)
    assert np.isfinite(scores()).all()


@pytest.mark.gpu
def test_a_training_step_does_not_wait_for_a_gpu(tmp_path: Path, waiting_is_an_error: Callable[[], None]) -> None:
    device = torch.device("cuda")
    features = Features(write_tiny_features(tmp_path / "features", count=9))
    student = BertRanker(replace(CONFIG, vocab_size=len(TOKENS))).to(device).train()
    optimizer, precision = BertAdam(student.parameters(), lr=0.1, total_steps=9), Precision("fp32", device)
    precision.initialize(torch.nn.ModuleDict(), optimizer)
    waiting_is_an_error()
    for _ in range(2):
        batch = load_batch(features, np.arange(9), None, device)
        labels = batch.pop("labels")
        loss = hard_label_loss(student(**batch).logits, labels)
        precision.backward(loss, is_last=True)
        skipped = precision.step(optimizer, loss.detach()[None])
    torch.cuda.set_sync_debug_mode("default")
    assert skipped.item() == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_copy_waits_for_what_it_copies(device: str) -> None:
    tensor = torch.ones(1 << 20, device=device)
    for _ in range(50):
        tensor = tensor + 1
    wait = copy_to_cpu(tensor)
    tensor = tensor * 0
    copy = wait()
    assert copy.device.type == "cpu" and (copy == 51).all()
