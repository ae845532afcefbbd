"""The rank of this process and the number of processes, as torchrun sets them. Loads no torch."""

import os
import re
import sys
import time
from typing import NoReturn

from runtime.errors import InputError

_NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def world_size() -> int:
    """Returns the number of processes."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Returns the rank of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def check_environment() -> None:
    """Raises InputError if WORLD_SIZE means several processes and other variables of torchrun are missing or wrong."""
    size = os.environ.get("WORLD_SIZE") or "1"
    if size == "1":
        return
    advice = "start the processes with torchrun, or unset WORLD_SIZE for one process"
    for name in (*_NUMBERS, "MASTER_ADDR"):
        value = os.environ.get(name)
        if not value:
            raise InputError(f"{name} is not set, but WORLD_SIZE={size}; {advice}")
        if name in _NUMBERS and not re.fullmatch("[0-9]{1,9}", value):
            raise InputError(f"{name}={value} is not a number; {advice}")
    for name, number in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if int(os.environ[name]) >= int(os.environ[number]):
            raise InputError(f"{name}={os.environ[name]} is not below {number}={os.environ[number]}; {advice}")


def exit_after_the_first(status: int | str = 2) -> NoReturn:
    """Exits after a second. torchrun ends all processes when one exits, and another one still reports the error."""
    time.sleep(1)
    sys.exit(status)
