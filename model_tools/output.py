"""The model directory that a tool writes."""

from pathlib import Path

from runtime.errors import InputError


def check_output_dir(path: Path) -> None:
    """Raises InputError if the directory exists already, or cannot be made there."""
    if path.exists():
        raise InputError(f"--output_dir: {path} exists already; remove it, or name another directory")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output_dir: the directory {path.parent} does not exist; make it first")
