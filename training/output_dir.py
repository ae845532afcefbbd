"""The checks of an output directory before a training: no input in it is lost, and no earlier run without a flag."""

import re
from collections.abc import Iterable
from pathlib import Path

from formats.run_file import RUN_FILE, read_run_file, write_run_file
from runtime.errors import InputError
from runtime.hub import model_files
from runtime.script import LOCK_FILE, same_files
from training.checkpoints import best_checkpoints, checkpoints, remove_checkpoint
from training.curves import DEV_FILE, LOSS_FILE, PICTURE, SPEED_FILE

LOG_FILE = "distill.log"
_MODEL_FILES = ("config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json")
# The files that a run writes or removes.
_FILES = (*_MODEL_FILES, RUN_FILE, LOSS_FILE, SPEED_FILE, DEV_FILE, PICTURE, LOG_FILE, LOCK_FILE)
# The directories that a run writes or removes, and partial files.
_DIRECTORIES = re.compile(r"(checkpoint|best)-[0-9]{1,18}|\..+\.[0-9]+\.partial")


def check_inputs_stay(directory: Path, files: Iterable[Path | None], models: Iterable[str | None]) -> None:
    """Raises InputError if a run in `directory` would replace or remove an input: a file, or a file of a model."""
    inputs = {file: file for file in files if file is not None}
    inputs |= {file: model for model in models for file in model_files(model)}
    outputs = [directory / name for name in _FILES]
    if directory.is_dir():
        outputs += [path for one in directory.iterdir() if _DIRECTORIES.fullmatch(one.name) for path in _all_in(one)]
    for file in same_files(inputs, outputs):
        raise InputError(f"--output_student_dir: {inputs[file]} is an input and would be lost; name another directory")


def _all_in(path: Path) -> list[Path]:
    return [path, *path.rglob("*")]


def check_earlier_run(directory: Path, overwrite: bool, resume: bool) -> None:
    """Raises InputError if a run would replace a student or checkpoints without `overwrite`.

    With `resume` the directory can hold an earlier part of the run.
    """
    models = ("config.json", "model.safetensors", "pytorch_model.bin", "bert_config.json")
    found = [directory / name for name in models if (directory / name).exists()]
    found += checkpoints(directory) + best_checkpoints(directory)
    is_run = (directory / RUN_FILE).exists()
    if found and not overwrite and not (resume and is_run):
        can_resume = is_run and not read_run_file(directory)["finished"]
        raise InputError(
            f"--output_student_dir: {directory} holds {found[0].name} of an earlier run; "
            + ("pass --resume to resume it, " if can_resume else "pass ")
            + "--overwrite to replace it, or name another directory"
        )


def discard_run(directory: Path) -> None:
    """Marks the run in a directory, if there is one, as not begun. Its model stays until a new one replaces it."""
    if (directory / RUN_FILE).exists():
        write_run_file(directory, False, {})
        for checkpoint in checkpoints(directory):
            remove_checkpoint(checkpoint)
