"""What a measurement was taken on."""

import importlib.metadata
import os
import platform
from pathlib import Path


def describe_machine(*packages: str) -> str:
    """Processor, cores that this process may use, Python, and the versions of some packages."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = (line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
        name = next(names, name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = (f"{package} {importlib.metadata.version(package)}" for package in packages)
    return ", ".join([f"{name}, {cores} cores, Python {platform.python_version()}", *versions])
