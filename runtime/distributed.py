"""torch.distributed under torchrun: several processes share one job. Without torchrun these functions do nothing.

Only rank 0 writes files and prints. If there are GPUs, each process has one.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from runtime.device import DeviceError, device_name
from runtime.errors import InputError
from runtime.ranks import exit_after_the_first, rank, world_size
from runtime.signals import handle_terminating

_BUCKET_NUMBERS = 1 << 24  # gradients that one all_reduce sums: few calls, and no copy of all at once


class ProcessError(InputError):
    """Another process has ended without reporting an error."""


def rank_zero_only(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps the `main` of a script for several processes: only rank 0 prints and logs.

    Only the first process with an error reports it. The other processes have the same error or wait for that process;
    they end without a message.
    """
    if world_size() == 1:
        return main

    def run(*args: object) -> None:
        handle_terminating(signal.SIG_DFL)  # see init_process_group
        store = next(dist.rendezvous("env://"))[0]  # of torchrun, so it outlives all of its processes
        try:
            with contextlib.ExitStack() as stack:
                if rank() > 0:
                    nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                    stack.enter_context(contextlib.redirect_stdout(nowhere))
                    stack.enter_context(contextlib.redirect_stderr(nowhere))
                main(*args)
        except SystemExit as done:  # rank 0 has reported the error, or torchrun ends this process
            if done.code and rank() > 0:
                exit_after_the_first(done.code)
            raise
        except BaseException:
            if not _is_first_error(store):
                exit_after_the_first()
            raise
        if dist.is_initialized():
            dist.destroy_process_group()

    return run


def _is_first_error(store: "dist.Store") -> bool:
    try:
        return store.add("errors", 1) == 1
    except RuntimeError:  # the store is gone, and torchrun with it
        return False


def local_device(device: torch.device) -> torch.device:
    """Returns the device of this process. Each of several processes gets the GPU with its local rank.

    Raises DeviceError if two processes would share a GPU.
    """
    if world_size() == 1 or device.type == "cpu":
        return device
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if device.index is not None:
        raise DeviceError(f"--device: {device} is one GPU for {here} processes; use cuda, auto or cpu")
    if here > gpus:
        raise DeviceError(f"--device: {here} processes need as many GPUs, this machine has {gpus}; start fewer")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def devices_name(device: torch.device) -> str:
    """Returns the device of this process and the number of processes, for logs."""
    name = device_name(device)
    return name if world_size() == 1 else f"{world_size()} processes, the first on {name}"


def init_process_group(device: torch.device) -> None:
    """Waits for all processes. Then they can exchange tensors on `device`."""
    if world_size() == 1:
        return
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    all_reduce(torch.zeros(1, device=device))  # a barrier, which init_process_group alone is not
    if device.type == "cpu":
        # torchrun ends a process by SIGTERM or SIGHUP; an exception leaves no partial files. A process that waits for
        # a GPU cannot raise it, and ends at once.
        handle_terminating(lambda number, _: sys.exit(128 + number))


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Replaces a tensor by its sum over all processes, and returns it. Raises ProcessError if one has ended."""
    if world_size() > 1:
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise ProcessError(f"another process has ended or cannot be reached ({error})") from error
    return tensor


def all_reduce_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces each gradient by its sum over all processes. All processes have gradients of the same parameters."""
    if world_size() == 1:
        return
    bucket, numbers = [], 0
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for gradient in gradients:
        bucket.append(gradient)
        numbers += gradient.numel()
        if numbers >= _BUCKET_NUMBERS or gradient is gradients[-1]:
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            sums = all_reduce(flat).split([gradient.numel() for gradient in bucket])
            for gradient, summed in zip(bucket, sums, strict=True):
                gradient.copy_(summed.view_as(gradient))
            bucket, numbers = [], 0


def all_gather(value: object) -> list:
    """Returns the values of all processes, by rank. Raises ProcessError if one has ended."""
    values = [value] * world_size()
    if world_size() > 1:
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise ProcessError(f"another process has ended or cannot be reached ({error})") from error
    return values


def process_reports(count: int, unit: str, seconds: float, device: torch.device) -> list[str]:
    """Returns a line about the work of each process; no line if there is only one process.

    `count`: the work of this process, in `unit`. Memory is the peak of the process, resident or on its GPU.
    """
    if world_size() == 1:
        return []
    import resource  # late, because Windows has none

    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = (
        f"process {rank()}: {count} {unit} in {seconds:.1f} s, {count / seconds:.1f} {unit}/s, "
        f"{time.process_time():.1f} s of CPU time since its start, at most {peak / 1e9:.2f} GB, "
        f"{device_name(device)}"
    )
    return all_gather(line)
