"""Which of several processes this one is, as torchrun tells them. Loads no torch."""

import os
import sys
import time
from typing import NoReturn


def world_size() -> int:
    """How many processes share the job."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """The rank of this process, from 0."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def exit_after_the_first(status: int | str = 2) -> NoReturn:
    """Leaves the process that reports an error the time to do so; torchrun ends all others as soon as one has ended."""
    time.sleep(1)
    sys.exit(status)
