"""The outputs of a script that writes several files: the checks, and the report beside them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from formats.atomic import atomic_write, undo_unfinished_move
from runtime.errors import InputError
from runtime.script import refuse_existing, same_files


def beside(output: Path, suffix: str) -> Path:
    """`OUTPUT` with one more suffix."""
    return output.with_name(output.name + suffix)


def refuse_outputs(outputs: Sequence[tuple[str, Path]], overwrite: bool, inputs: Iterable[str | Path]) -> None:
    """Checks outputs, given as (flag, path). The first one also gets a log beside it.

    If an earlier process was killed while its outputs moved to their places, what was there before is restored.

    Raises InputError as `refuse_existing` does, and for two outputs that are the same file.
    """
    inputs = list(inputs)
    undo_unfinished_move(*(path for _, path in outputs))
    written = [(outputs[0][0], beside(outputs[0][1], ".log"))]
    for flag, path in outputs:
        refuse_existing(path, flag, overwrite, inputs, beside=[".log"] if len(written) == 1 else [])
        for other_flag, other in written:
            if same_files([path], [other]):
                raise InputError(f"{flag}: {path} is also a file of {other_flag}; name another file")
        written.append((flag, path))


def write_report(path: Path, figures: Mapping) -> None:
    """Writes `figures` as JSON. Values that JSON does not have, such as paths, become text."""
    with atomic_write(path) as file:
        file.write(json.dumps(figures, indent=2, default=str) + "\n")
