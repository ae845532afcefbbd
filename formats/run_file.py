"""training.json: whether a training run is finished, and its settings."""

import json
from pathlib import Path
from typing import Any

from formats.atomic import atomic_write

RUN_FILE = "training.json"
_MOST_BYTES = 1 << 20


def read_run_file(directory: Path) -> dict[str, Any]:
    """Returns `finished` (bool) and `settings` (dict) of the run in an output directory, and what else the file tells.

    A missing or damaged file gives an unfinished run without settings, and so does a named pipe or a huge file.
    """
    path = directory / RUN_FILE
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise ValueError
        run = json.loads(path.read_bytes())
        return {**run, "finished": run["finished"] is True, "settings": dict(run["settings"])}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {"finished": False, "settings": {}}


def trained_length(model_dir: Path) -> int | None:
    """Returns the `max_seq_length` that a student was trained at. None: the directory does not say, or is no student's.

    A `tokenizer_config.json` does not tell it: its `model_max_length` can be any limit, such as 512 or 1e30.
    """
    length = read_run_file(model_dir).get("max_seq_length")
    return length if type(length) is int else None


def write_run_file(
    directory: Path, finished: bool, settings: dict[str, Any], outcome: dict[str, Any] | None = None
) -> None:
    """Writes training.json. `outcome`: what else a finished run tells."""
    with atomic_write(directory / RUN_FILE) as file:
        json.dump({"finished": finished, **(outcome or {}), "settings": settings}, file, indent=2)
        file.write("\n")
