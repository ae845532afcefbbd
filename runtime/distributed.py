"""Several processes that share one job, as torchrun starts them. Without torchrun there is one, and nothing here costs.

Process 0 alone writes and speaks. On GPUs each process has one of its own.
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

_BUCKET_NUMBERS = 1 << 24  # from so many on, gradients are summed: few calls, and no copy of all at once


class ProcessError(InputError):
    """Another process is gone, and not for an error that it could report."""


def rank_zero_only(main: Callable[[], None]) -> Callable[[], None]:
    """A script's `main` for several processes: what those after the first print or log goes nowhere.

    An error is raised in one process alone, the first that meets it. The others, which meet the same mistake or wait in
    vain for that one, end without a word.
    """
    if world_size() == 1:
        return main

    def run() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # one that waits for the others would see no exception; see join
        store = next(dist.rendezvous("env://"))[0]  # torchrun keeps it, so it outlives any of its processes
        try:
            with contextlib.ExitStack() as stack:
                if rank() > 0:
                    nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                    stack.enter_context(contextlib.redirect_stdout(nowhere))
                    stack.enter_context(contextlib.redirect_stderr(nowhere))
                main()
        except SystemExit as done:  # argparse has spoken in process 0, or torchrun ends this one
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
    """The device of this process: where several run on GPUs, the one with its number on this machine.

    Raises DeviceError where they would have to share one.
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
    """For logs: where this process runs, the first of so many."""
    name = device_name(device)
    return name if world_size() == 1 else f"{world_size()} processes, the first on {name}"


def join(device: torch.device) -> None:
    """Returns when all processes are here; from then on they can exchange what is on `device`."""
    if world_size() == 1:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    all_reduce(torch.zeros(1, device=device))  # also waits, which starting a group need not do
    if device.type == "cpu":
        # So torchrun ends a process; as an exception it leaves nothing half written. One that waits for a GPU would not
        # see it, and is ended at once.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Replaces a tensor by its sum over all processes, and returns it. Raises ProcessError where one is gone."""
    if world_size() > 1:
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise ProcessError(f"another process has ended or cannot be reached ({error})") from error
    return tensor


def all_reduce_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces each gradient by its sum over all processes; each has the same parameters with one."""
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
    """The values of all processes, by their numbers. Raises ProcessError where one is gone."""
    values = [value] * world_size()
    if world_size() > 1:
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise ProcessError(f"another process has ended or cannot be reached ({error})") from error
    return values


def costs(count: int, unit: str, seconds: float, device: torch.device) -> list[str]:
    """What each of several processes did in so many seconds, a line a process; none where there is one.

    `count`: this process's part, in `unit`. Memory is the most that the process held, resident or on its GPU.
    """
    if world_size() == 1:
        return []
    import resource  # late, since Windows has none

    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = (
        f"process {rank()}: {count} {unit} in {seconds:.1f} s, {count / seconds:.1f} {unit}/s, "
        f"{time.process_time():.1f} s of processor time since its start, at most {peak / 1e9:.2f} GB, "
        f"{device_name(device)}"
    )
    return all_gather(line)
