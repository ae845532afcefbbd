"""The device and the precision of a model."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from runtime.errors import InputError

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


class DeviceError(InputError):
    """A device or precision that is not available. The message says which are."""


def choose_device(name: str) -> torch.device:
    """Returns the device of a name: `auto` (CUDA if there is a GPU), `cpu`, `cuda`, `cuda:1`, or a bare GPU number.

    Raises DeviceError for any other name, and for a GPU that this machine does not have.
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
        raise DeviceError(f"--device: '{name}' is not available, this machine has {gpus} GPUs; use auto or cpu")
    return device


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the memory of the GPU or the CPU was too small."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Inside, running out of memory raises InputError. It names the flags of distill.py that save memory."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError("out of memory; raise --gradient_accumulation_steps, or lower --train_batch_size") from None


def multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 matmuls. Without them bfloat16 is several times slower than float32."""
    try:
        features = Path("/proc/cpuinfo").read_text("utf-8", "replace").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features)


def choose_precision(name: str, fp16: bool, device: torch.device) -> str:
    """Returns the precision of `--precision` and `--fp16`, its old name: fp32, fp16, bf16 or int8.

    On CUDA, `auto` and `--fp16` are fp16. On a CPU, `--fp16` is bf16; `auto` is bf16 if the CPU has bfloat16 matmuls,
    else fp32.

    Raises DeviceError for a precision that the device does not have.
    """
    on_cpu = device.type == "cpu"
    if fp16:
        return "bf16" if on_cpu else "fp16"
    if name == "auto":
        return "fp16" if not on_cpu else "bf16" if multiplies_bfloat16() else "fp32"
    if name == "fp16" and on_cpu:
        raise DeviceError("--precision fp16: needs a GPU; use bf16, fp32 or auto on a CPU")
    if name == "int8" and not on_cpu:
        raise DeviceError("--precision int8: needs a CPU; add --device cpu, or use fp16 or auto")
    return name


def dtype_of(precision: str) -> torch.dtype:
    """Returns the dtype of matmuls in fp32, fp16 or bf16."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def be_deterministic() -> None:
    """Makes a GPU use only deterministic algorithms from now on. A CPU always does here.

    Must be called before anything runs on the GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and nothing here reads such memory
    torch.backends.cuda.enable_mem_efficient_sdp(False)  # these two have no deterministic backward pass
    torch.backends.cuda.enable_cudnn_sdp(False)


def copy_to_cpu(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Starts to copy a tensor to the CPU. The returned function waits for the copy, but not for later work."""
    copy = tensor.to("cpu", non_blocking=True)  # torch puts it into pinned memory
    done = torch.cuda.Event() if tensor.device.type == "cuda" else None
    if done is not None:
        done.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        if done is not None:
            done.synchronize()
        return copy

    return wait


def keep_freed_memory() -> None:
    """Makes glibc keep memory that is freed from now on. Otherwise each large tensor costs new page faults.

    Returns the memory that is free now to the system first. Does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 64 << 20)):
            libc.mallopt(option, value)


def turn_off_cudnn_attention() -> None:
    """Makes torch compute attention on a GPU without cuDNN from now on, for batches of many shapes.

    cuDNN compiles its attention for each new shape of a batch, which takes 0.1 s and more.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def device_name(device: torch.device) -> str:
    """Returns the name of a device for logs."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"
