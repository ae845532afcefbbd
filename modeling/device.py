"""Where a model runs, and in which precision."""

import torch


class DeviceError(ValueError):
    """A device that is not there. The message says which are."""


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; else `cpu`, `cuda`, `cuda:1`, or a bare GPU number.

    Raises DeviceError for any other name, and for a GPU that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{name}" if name.isdecimal() else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index is not None):
        raise DeviceError(f"--device: '{name}' is none of auto, cpu, cuda, cuda:N, N")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise DeviceError(f"--device: '{name}' is not there, this machine has {gpus} GPUs; use auto or cpu")
    return device


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed for want of memory, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def half_precision(device: torch.device) -> torch.dtype:
    """What `--fp16` means: float16 on CUDA, bfloat16 (no scaling needed) on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def device_name(device: torch.device) -> str:
    """For logs."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"
