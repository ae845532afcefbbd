"""training.json: whether a training run is finished, and its settings."""

import json
from pathlib import Path
from typing import Any

from formats.atomic import atomic_write

RUN_FILE = "training.json"


def read_run_file(directory: Path) -> dict[str, Any]:
    """Returns `finished` (bool) and `settings` (dict) of the run in an output directory, and what else the file tells.

    A missing or damaged file gives an unfinished run without settings.
    """
    try:
        run = json.loads((directory / RUN_FILE).read_bytes())
        return {**run, "finished": run["finished"] is True, "settings": dict(run["settings"])}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {"finished": False, "settings": {}}


def write_run_file(
    directory: Path, finished: bool, settings: dict[str, Any], outcome: dict[str, Any] | None = None
) -> None:
    """Writes training.json. `outcome`: what else a finished run tells."""
    with atomic_write(directory / RUN_FILE) as file:
        json.dump({"finished": finished, **(outcome or {}), "settings": settings}, file, indent=2)
        file.write("\n")
