"""torch.distributed under torchrun: several processes share one job. Without torchrun these functions do nothing.

Only rank 0 writes files and prints. If there are GPUs, each process has one. NCCL exchanges the tensors on GPUs, gloo
everything else.
"""

import contextlib
import datetime
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from runtime.device import DeviceError, device_name
from runtime.error_channel import START_SECONDS, ErrorChannel, ProcessError
from runtime.errors import InputError
from runtime.ranks import exit_after_the_first, rank, world_size
from runtime.signals import handle_terminating

_BUCKET_NUMBERS = 1 << 24  # gradients that one all_reduce sums: few calls, and no copy of all at once
_LONGEST_WAIT = datetime.timedelta(days=30)  # for slower processes; the error channel detects those that have ended
_groups: dict[str, dist.ProcessGroup] = {}  # by type of device, other than "cpu"


def rank_zero_only(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps the `main` of a script for several processes: only rank 0 prints and logs.

    An error of one process ends all of them, and rank 0 prints it. The others end without a message.
    """
    if world_size() == 1:
        return main

    def run(*args: object) -> None:
        handle_terminating(signal.SIG_DFL)  # see barrier
        store = _store()
        channel = ErrorChannel(store)
        try:
            with contextlib.ExitStack() as stack:
                if rank() > 0:
                    nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                    stack.enter_context(contextlib.redirect_stdout(nowhere))
                    stack.enter_context(contextlib.redirect_stderr(nowhere))
                channel.wait_for_all()
                _join(store)
                main(*args)
        except BaseException as error:
            status = error.code if isinstance(error, SystemExit) else 2
            is_error = status in (2, 128 + signal.SIGTERM)  # main exits with another status in all processes
            is_printed_here = channel.report(error) if is_error else rank() == 0
            if "cuda" not in _groups:  # NCCL would wait
                _leave()
            channel.close(is_done=not is_error)
            if is_printed_here:
                raise
            exit_after_the_first(status)
        _leave()
        channel.close(is_done=True)

    return run


def end_all(error: InputError) -> None:
    """Ends all processes before `main`. Returns if this process prints the error itself, and exits if not."""
    try:
        channel = ErrorChannel(_store())
    except InputError:
        return
    is_printed_here = channel.report(error)
    channel.close(is_done=False)
    if not is_printed_here:
        exit_after_the_first()


def _store() -> dist.Store:
    """Returns the store of this start of the processes: torchrun's, or that of rank 0."""
    try:
        store = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=START_SECONDS)))[0]
    except (RuntimeError, ValueError) as error:  # ValueError: no port has this number
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ProcessError(f"torchrun's store at {address} cannot be reached ({error})") from None
    return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _join(store: dist.Store) -> None:
    dist.init_process_group("gloo", store=store, rank=rank(), world_size=world_size(), timeout=_LONGEST_WAIT)


def _leave() -> None:
    """Closes the connections of torch.distributed, so that no process waits for this one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _groups.clear()


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


def barrier(device: torch.device) -> None:
    """Waits for all processes. Then they can exchange tensors on `device`."""
    if world_size() == 1:
        return
    if device.type == "cuda" and "cuda" not in _groups:
        torch.cuda.set_device(device)
        _groups["cuda"] = dist.new_group(backend="nccl", timeout=_LONGEST_WAIT)
    all_reduce(torch.zeros(1, device=device))
    if device.type == "cpu":
        # torchrun ends a process by SIGTERM or SIGHUP; an exception leaves no partial files. A process that waits for
        # a GPU cannot raise it, and ends at once.
        handle_terminating(lambda number, _: sys.exit(128 + number))


@contextlib.contextmanager
def _process_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(f"another process has ended or cannot be reached ({error})") from error


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Replaces a tensor by its sum over all processes, and returns it. Raises ProcessError if one has ended."""
    if world_size() > 1:
        with _process_errors():
            dist.all_reduce(tensor, group=_groups.get(tensor.device.type))
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


def all_gather(value: Any) -> list:
    """Returns the values of all processes, by rank. Raises ProcessError if one has ended."""
    values = [value] * world_size()
    if world_size() > 1:
        with _process_errors():
            dist.all_gather_object(values, value)
    return values


def from_rank_zero(value: Any) -> Any:
    """Returns the value of rank 0 in all processes. Raises ProcessError if one has ended."""
    values = [value]
    if world_size() > 1:
        with _process_errors():
            dist.broadcast_object_list(values)
    return values[0]


def tensors_from_rank_zero(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors of rank 0, on the CPU, in all processes. Raises ProcessError if one has ended."""
    layout = from_rank_zero({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
    if rank() > 0:
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in layout.items()}
    if world_size() > 1:
        with _process_errors():
            for name in layout:
                dist.broadcast(tensors[name], 0)
    return tensors


@contextlib.contextmanager
def files_from_rank_zero(directory: Path) -> Iterator[Path]:
    """Yields a directory with the files of rank 0's `directory`: itself at rank 0, else a temporary copy."""
    paths = [path for path in directory.iterdir() if path.is_file()] if rank() == 0 and world_size() > 1 else []
    files = from_rank_zero({path.name: path.read_bytes() for path in paths})
    if rank() == 0:
        yield directory
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in files.items():
            Path(temporary, name).write_bytes(content)
        yield Path(temporary)


def check_same(values: Mapping[str, object], contents: Collection[str] = ()) -> None:
    """Waits for all processes. Raises InputError in all of them if `values` are not the same in one of them.

    `values`: by the names of their flags. `contents`: the names whose values are hashes of files.
    """
    first, *others = all_gather((socket.gethostname(), dict(values)))
    for number, (host, theirs) in enumerate(others, start=1):
        if found := differences(theirs, first[1], contents):
            raise InputError(
                f"process {number} on {host} differs from process 0 in {found}; start all processes with the same "
                "flags, and with files of the same content"
            )


def differences(theirs: Mapping[str, object], ours: Mapping[str, object], contents: Collection[str]) -> str:
    """Returns the flags with other values, as a message names them; "" if there are none. See `check_same`."""
    found = []
    for name, value in ours.items():
        if theirs.get(name) != value:
            values = "other content" if name in contents else f"{theirs.get(name)} there, {value} here"
            found.append(f"{'' if name == 'num_processes' else '--'}{name} ({values})")
    return ", ".join(found)


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
