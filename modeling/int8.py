"""A linear map in int8, quantized by row: a score does not depend on the other rows of a batch.

Letters in shapes: N rows (tokens), K inputs, M outputs.
"""

import contextlib
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from runtime.device import DeviceError

_ROW_PARAMETERS = 8  # bytes at the end of a quantized row: its scale and its minimum, float32 each


def quantized_linear(weight: torch.Tensor, bias: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a linear map, (N, K) float32 -> (N, M) float32, whose matmul is uint8 x int8 -> int32.

    `weight`: (M, K), rounded to int8 with a scale for each output. `bias`: (M,). At each call every row of the input is
    rounded to uint8 with its own scale and minimum:

        x = scale * q + minimum          =>          W x + b = scale * (W q) + minimum * (W 1) + b

    Sums are exact in int32, and the rest is computed element by element. So a row has the same result, to the bit,
    whatever the other rows are.

    Raises DeviceError if this CPU or this torch has no exact int8 matmul.
    """
    weight = weight.float()
    scales = weight.abs().amax(dim=1).clamp_min(1e-30) / _largest_weight()  # (M,)
    rounded = torch.round(weight / scales[:, None]).to(torch.int8)
    row_sums = rounded.sum(dim=1) * scales  # (M,), W 1
    # The parameters of a row are part of its quantized row. Zero weights leave them out of the matmul without a copy.
    matmul = _matmul(F.pad(rounded, (0, _ROW_PARAMETERS)), scales)
    bias = bias.float().clone()

    def linear(x: torch.Tensor) -> torch.Tensor:
        rows = torch.ops.quantized.embedding_bag_byte_prepack(x)  # (N, K + 8) uint8, in one pass
        scale, minimum = (
            rows[:, -_ROW_PARAMETERS:].clone(memory_format=torch.contiguous_format).view(torch.float32).split(1, dim=1)
        )  # (N, 1) each
        minimum = minimum + 0 * x.sum(dim=1, keepdim=True)  # the quantizer loses a NaN; this keeps it
        return torch.addcmul(bias, matmul(rows), scale).addcmul_(minimum, row_sums)

    return linear


def _matmul(weight: torch.Tensor, scales: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns the map (N, K) uint8 -> (N, M) float32 that multiplies by `weight`, (M, K) int8, and then by `scales`."""
    onednn = torch.ops.onednn  # torch.compile uses the same operators
    packed = onednn.qlinear_prepack(weight, None)
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    plain = (None, 1.0, 0, torch.float32, "none", [], "")  # no bias, a float32 output without a scale, no activation
    return lambda rows: onednn.qlinear_pointwise(rows, 1.0, 0, packed, scales, zeros, *plain)


@cache
def _largest_weight() -> int:
    """The largest int8 weight with which the matmul is exact on this CPU: 127, or 63 without VNNI.

    Without VNNI the CPU adds two products in 16 bits, and the sum saturates: 2 * 255 * 127 is more than 32767.

    Raises DeviceError if no weight is exact.
    """
    size = 64
    for largest in (127, 63):
        with contextlib.suppress(AttributeError, RuntimeError):  # not every build of torch has the operators
            product = _matmul(torch.full((size, size), largest, dtype=torch.int8), torch.ones(size))
            found = product(torch.full((size, size), 255, dtype=torch.uint8))
            if (found == size * largest * 255).all():
                return largest
    raise DeviceError("--precision int8: this torch has no exact int8 matmul for this CPU; use fp32 or auto")
