"""The shell scripts distill.sh and reranker.sh: their variables, and how to run them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from experiments.recipe import Variable
from runtime.errors import InputError
from runtime.signals import signals_handled

_ROOT = Path(__file__).resolve().parents[1]
# Exit status of distill.py when a signal stopped it: it saved a checkpoint and can resume.
STOPPED = 75
# Variables of the machine, not of the experiment. They come from the environment and can differ between rows.
MACHINE_VARIABLES = {"device", "num_processes", "python"}
# Variables that make_table.py sets for each row.
ROW_VARIABLES = {
    *("seed", "overwrite", "features_file", "output_student_dir", "student_model", "runs_dir"),
    *("test_pairs", "candidates_run", "qrels", "interpolation_weight"),
}


def script_variables(script: str) -> set[str]:
    """Returns the names of the variables that a shell script reads from the environment."""
    return set(re.findall(r"^(\w+)=\$\{\1:?-", _ROOT.joinpath(script).read_text("utf-8"), flags=re.M))


def all_variables() -> set[str]:
    """Returns the variables of both scripts."""
    return script_variables("distill.sh") | script_variables("reranker.sh")


def recipe_variables() -> set[str]:
    """Returns the variables that a recipe can set."""
    return all_variables() - ROW_VARIABLES - MACHINE_VARIABLES


def check_environment() -> None:
    """Raises InputError if a variable of the scripts is set in the environment.

    It would change every row, and no file would record it.
    """
    for name in sorted(all_variables() - MACHINE_VARIABLES):
        if name in os.environ:
            raise InputError(f"the variable {name} is set in the environment; set it in the recipe and unset it here")


def run_shell(arguments: list[str], variables: Mapping[str, Variable], what: str) -> None:
    """Runs `bash ARGUMENTS` with `variables` in its environment.

    SIGINT, SIGTERM and SIGHUP go to all its processes as SIGINT. Then the call waits, so that distill.py can save a
    checkpoint.

    Raises InputError, which names `what`, if bash fails, and KeyboardInterrupt if a signal stopped it.
    """
    environment = {"python": sys.executable} | os.environ | _as_text(variables)
    child = None
    is_stopped = False

    def stop(*_: object) -> None:
        nonlocal is_stopped
        is_stopped = True
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)

    with signals_handled(stop):
        child = subprocess.Popen(["bash", *arguments], env=environment, stdin=subprocess.DEVNULL, process_group=0)
        if is_stopped:  # before the child was there
            stop()
        status = child.wait()
    if is_stopped or status == STOPPED:
        raise KeyboardInterrupt
    if status:
        raise InputError(f"{what}: bash ended with status {status}, see above; the same command resumes")


def _as_text(variables: Mapping[str, Variable]) -> dict[str, str]:
    """Variables as the shell scripts expect them: yes and no for true and false."""
    return {
        name: {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        for name, value in variables.items()
    }
