"""The rank of this process and the number of processes, as torchrun sets them. Loads no torch."""

import os
import sys
import time
from typing import NoReturn


def world_size() -> int:
    """Returns the number of processes."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """Returns the rank of this process, from 0."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def exit_after_the_first(status: int | str = 2) -> NoReturn:
    """Exits after a second. torchrun ends all processes when one exits, and another one still reports the error."""
    time.sleep(1)
    sys.exit(status)
