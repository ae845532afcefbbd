"""Attention for training on a CPU against softmax(scale Q K^T) V in float64."""

import pytest
import torch
from tiny import STUDENT, TOKENS, student_weights, write_published

from modeling.attention import attention_without_padding, dropout_keep_mask, key_lengths
from modeling.model_files import load_ranker

B, HEADS, T, E = 3, 2, 7, 5
LENGTHS = [7, 1, 4]


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # (B, T, h, e), transposed, as in BERT
    return [
        torch.randn(B, T, HEADS, E, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]


def reference_attention(query, key, value, scale, keep=None, dropout=0.0) -> torch.Tensor:
    real = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~real[:, None, None], float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    return (weights if keep is None else weights * keep / (1 - dropout)) @ value


def assert_same_with_gradients(
    context: torch.Tensor, found: list[torch.Tensor], wanted: torch.Tensor, expected: list[torch.Tensor]
) -> None:
    torch.testing.assert_close(context, wanted, rtol=1e-12, atol=1e-12)
    direction = torch.randn(context.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    context.backward(direction)
    wanted.backward(direction)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_context_and_gradients() -> None:
    found, expected = inputs(), inputs()
    context = attention_without_padding(*found, LENGTHS, 0.3)
    wanted = reference_attention(*expected, 0.3)
    assert_same_with_gradients(context, found, wanted, expected)
    assert found[1].grad[1, :, 1:].abs().max() == 0  # padded keys


def test_dropout_has_the_same_mask_in_the_forward_and_the_backward_pass() -> None:
    found, expected = inputs(2), inputs(2)
    torch.manual_seed(5)
    context = attention_without_padding(*found, LENGTHS, 0.3, dropout=0.25)
    torch.manual_seed(5)
    keep = torch.zeros(B, HEADS, T, T)
    for b, length in enumerate(LENGTHS):
        keep[b, :, :, :length] = dropout_keep_mask((HEADS, T, length), 0.25)
    assert 0 < keep.sum() < HEADS * T * sum(LENGTHS)
    wanted = reference_attention(*expected, 0.3, keep, 0.25)
    assert_same_with_gradients(context, found, wanted, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_and_autocast(dtype: torch.dtype) -> None:
    found = inputs(3, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        context = attention_without_padding(*found, LENGTHS, 0.3, dropout=0.0)
    assert context.dtype == dtype
    torch.testing.assert_close(
        context.double(), reference_attention(*inputs(3), 0.3), rtol=0, atol=1e-5 if dtype == torch.float32 else 3e-2
    )


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9])
def test_the_dropout_mask_is_true_with_its_probability(probability: float) -> None:
    torch.manual_seed(1)
    mask = dropout_keep_mask((3, 1000, 101), probability)
    assert mask.dtype == torch.bool and mask.shape == (3, 1000, 101)
    kept = mask.double().mean().item()
    # 5 standard deviations of the mean of 303,000 values
    assert abs(kept - (1 - probability)) <= 5 * (probability * (1 - probability) / mask.numel()) ** 0.5
    # neighboring values are independent: the four of a 64-bit integer, and those of different integers
    signs = mask.flatten().double() - kept
    for distance in (1, 2, 3, 4, 5):
        assert abs((signs[distance:] * signs[:-distance]).mean().item()) <= 5 / mask.numel() ** 0.5
    torch.manual_seed(1)
    assert torch.equal(mask, dropout_keep_mask((3, 1000, 101), probability))


def test_key_lengths() -> None:
    assert key_lengths(None, 2, 5) == [5, 5]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    assert key_lengths(mask[:, None, None], 2, 3) == [2, 3]
    assert key_lengths(mask[:, None, None].expand(2, 1, 3, 3), 2, 3) == [2, 3]
    assert key_lengths(torch.tensor([[[[False, True, True]]]]), 1, 3) is None


def test_a_student_in_training_computes_what_it_computes_in_evaluation(tmp_path) -> None:
    weights = {name: tensor.double() for name, tensor in student_weights().items()}
    student = load_ranker(write_published(tmp_path / "student", STUDENT, weights))[0].double()
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids = torch.randint(5, len(TOKENS), (3, 9), generator=torch.Generator().manual_seed(1))
    for mask in (
        (torch.arange(9) < torch.tensor([[9], [3], [6]])).long(),
        torch.ones(3, 9).long(),
        torch.tensor([0, 1, 1, 0, 1, 1, 1, 1, 0]).repeat(3, 1),  # padding in other places: scaled_dot_product_attention
    ):
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        student.eval()
        expected = student(**batch).logits
        student.train()
        torch.testing.assert_close(student(**batch).logits, expected, rtol=1e-12, atol=1e-12)
