"""The report of a script: `OUTPUT.report.json` beside its output."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from formats.atomic import atomic_write
from runtime.script import refuse_existing


def beside(output: Path, suffix: str) -> Path:
    """`OUTPUT` with one more suffix."""
    return output.with_name(output.name + suffix)


def refuse_with_report(
    output: Path, flag: str, overwrite: bool, inputs: Iterable[str | Path], suffixes: Iterable[str] = (".report.json",)
) -> None:
    """Raises InputError, as `refuse_existing` does, for an output and the files that will be beside it."""
    inputs = list(inputs)
    refuse_existing(output, flag, overwrite, inputs)
    for suffix in suffixes:
        refuse_existing(beside(output, suffix), flag, overwrite, inputs)


def write_report(output: Path, figures: Mapping) -> None:
    """Writes `figures` to `OUTPUT.report.json`. Values that JSON does not have, such as paths, become text."""
    with atomic_write(beside(output, ".report.json")) as file:
        file.write(json.dumps(figures, indent=2, default=str) + "\n")
