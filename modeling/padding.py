"""Padded batches, built on the model's device from token ids without padding. The CPU sends few bytes and few calls."""

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Returns an array of integers as a tensor on a device. A GPU copies it while the CPU continues.

    torch computes with signed integers, so an unsigned dtype becomes the signed one with the same bits.
    """
    if array.dtype.kind == "u":
        array = array.view(f"i{array.dtype.itemsize}")
    tensor = torch.from_numpy(np.require(array, requirements="W"))  # torch warns of an array that cannot be written
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # otherwise the CPU waits for the copy
    return tensor.to(device, non_blocking=True)


def pad(
    tokens: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    first_segment_lengths: torch.Tensor,
    width: int,
) -> dict[str, torch.Tensor]:
    """Pads B examples with id 0 to T = `width` tokens, which is at least the length of the longest one.

    `tokens`: (N,) int16, int32 or int64, the token ids of all examples; int16 holds the bits of unsigned numbers.
    Example b has the ids `tokens[starts[b] : starts[b] + lengths[b]]`. The other tensors: (B,).

    Returns `input_ids`, `attention_mask`, `token_type_ids`: (B, T) int64 on the device of the inputs, as
    `formats.features.pad_examples` does.
    """
    places = torch.arange(width, device=tokens.device)
    is_token = places < lengths[:, None]  # (B, T)
    ids = tokens[(starts[:, None] + places).clamp_(max=len(tokens) - 1)].long()  # (B, T); any id on padding
    if tokens.dtype == torch.int16:
        ids &= 0xFFFF
    return {
        "input_ids": ids.mul_(is_token),
        "attention_mask": is_token.long(),
        "token_type_ids": (is_token & (places >= first_segment_lengths[:, None])).long(),
    }
