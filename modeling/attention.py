"""Exact attention for training on a CPU. It does no work for padded keys and stores no scores.

Letters in shapes: B batch, T tokens, K tokens of an example without its padding, h heads, e head size.
"""

import math
from collections.abc import Sequence

import torch


def dropout_keep_mask(shape: Sequence[int], probability: float) -> torch.Tensor:
    """A bool tensor of `shape`, on the CPU, from torch's default generator: False with `probability`, the rest True.

    The probability is rounded to a multiple of 1/65,536. Each random 64-bit integer gives four values, which is several
    times as fast as `bernoulli_`.
    """
    count = math.prod(shape)
    random_values = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)[:count]
    dropped = min(round(probability * (1 << 16)), (1 << 16) - 1)  # of 65,536 values
    return (random_values >= dropped - (1 << 15)).view(*shape)


def key_lengths(mask: torch.Tensor | None, size: int, tokens: int) -> list[int] | None:
    """The number of keys of each of `size` examples. None if an example has a key after padding.

    `mask`: (B, 1, T or 1, T), True on keys; None if all `tokens` of each example are keys.
    """
    if mask is None:
        return [tokens] * size
    real = mask[:, 0, 0]  # (B, T)
    lengths = real.sum(dim=1)
    is_prefix = torch.equal(real, torch.arange(tokens) < lengths[:, None])
    return lengths.tolist() if is_prefix else None


class _Attention(torch.autograd.Function):
    """Computes one example at a time, so that its scores stay in the cache. The backward pass computes them again."""

    @staticmethod
    def forward(ctx, query, key, value, lengths, scale, dropout):
        context = torch.empty_like(query)
        kept = []
        for b, length in enumerate(lengths):
            q, k, v = query[b], key[b, :, :length], value[b, :, :length]  # (h, T, e), (h, K, e), (h, K, e)
            weights = torch.softmax(torch.bmm(q * scale, k.transpose(1, 2)), dim=-1)  # (h, T, K)
            if dropout:
                kept.append(dropout_keep_mask(weights.shape, dropout))
                weights = weights * kept[-1]
            torch.bmm(weights, v, out=context[b])
        ctx.save_for_backward(query, key, value, *kept)
        ctx.settings = lengths, scale, dropout
        return context.div_(1 - dropout) if dropout else context

    @staticmethod
    def backward(ctx, grad_context):
        query, key, value, *kept = ctx.saved_tensors
        lengths, scale, dropout = ctx.settings
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for b, length in enumerate(lengths):
            q, k, v = query[b] * scale, key[b, :, :length], value[b, :, :length]
            weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)  # (h, T, K)
            grad = grad_context[b] / (1 - dropout)  # (h, T, e)
            grad_weights = torch.bmm(grad, v.transpose(1, 2))  # (h, T, K)
            dropped = weights
            if dropout:
                dropped = weights * kept[b]
                grad_weights = grad_weights * kept[b]
            grad_value[b, :, :length] = torch.bmm(dropped.transpose(1, 2), grad)
            weighted = grad_weights * weights  # (h, T, K)
            grad_scores = weighted - weights * weighted.sum(dim=-1, keepdim=True)  # (h, T, K), through the softmax
            grad_query[b] = torch.bmm(grad_scores, k) * scale
            grad_key[b, :, :length] = torch.bmm(grad_scores.transpose(1, 2), q)
        return grad_query, grad_key, grad_value, None, None, None


def attention_without_padding(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    scale: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(scale Q K^T) V over the first `lengths[b]` keys of example b, with dropout on the softmax.

    `query`, `key`, `value`: (B, h, T, e) on a CPU, of the same dtype. Returns (B, h, T, e); differentiable.
    """
    with torch.autocast("cpu", enabled=False):  # keeps the dtype of the inputs
        return _Attention.apply(query, key, value, list(lengths), scale, dropout)
