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
    """Waits, then exits. When one process exits, torchrun ends all; the one that reports an error needs time to do so."""
    time.sleep(1)
    sys.exit(status)
