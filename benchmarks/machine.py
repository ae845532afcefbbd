"""The machine of a measurement."""

import importlib.metadata
import os
import platform
from pathlib import Path


def describe_machine(*packages: str) -> str:
    """The processor, the number of cores that this process may use, and the versions of Python and of `packages`."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = (line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
        name = next(names, name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = (f"{package} {importlib.metadata.version(package)}" for package in packages)
    return ", ".join([f"{name}, {cores} cores, Python {platform.python_version()}", *versions])


def describe_torch_machine() -> str:
    """The same, with the GPU and the number of threads of torch."""
    import torch  # late: other measurements need no torch

    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{describe_machine('torch')}, {torch.get_num_threads()} threads"
