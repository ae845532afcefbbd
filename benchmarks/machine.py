"""The machine of a measurement, and the file of its results."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

from formats.atomic import atomic_write


class Row(NamedTuple):
    """A measured value. `goal` is the least that it should be, or the most if `at_most`; None: no goal."""

    what: str
    value: float
    unit: str
    goal: float | None = None
    at_most: bool = False


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


def torch_machine(device: str) -> dict[str, object]:
    """The device, the driver, the versions and the date, for a file of results."""
    import torch  # late: see above

    on_gpu = device != "cpu"
    driver = None
    if on_gpu:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            driver = "unknown"  # a container can lack nvidia-smi
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "driver": driver,
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "torch": torch.__version__,
        **{package: _version(package) for package in ("transformers", "sentence-transformers")},
        "machine": describe_torch_machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_results(path: Path, device: str, passed: bool, rows: list[Row], **more: object) -> None:
    """Writes the results of a part of gpu.sh as JSON. `passed`: whether both sides gave the same results."""
    results = {"passed": passed, **torch_machine(device), "rows": [row._asdict() for row in rows], **more}
    with atomic_write(path) as file:
        file.write(json.dumps(results, indent=1) + "\n")
