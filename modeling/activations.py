"""Activation functions by the names that a BERT config gives them (`hidden_act`)."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

Activation = Callable[[torch.Tensor], torch.Tensor]


def _gelu_new(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def _gelu_fast(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


# Each computes bit for bit what transformers computes.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_new,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_fast": _gelu_fast,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
}


def activation(name: str) -> Activation:
    """The function that a config calls `name`: one of `ACTIVATIONS`, or a rarer one of transformers.

    Raises ValueError for an unknown name.
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    try:
        from transformers.activations import ACT2FN  # late: the import takes seconds

        return ACT2FN[name]
    except (ImportError, KeyError):
        raise ValueError(f"hidden_act '{name}' is not a known activation; {', '.join(ACTIVATIONS)} are") from None
