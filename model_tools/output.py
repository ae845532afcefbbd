"""The model directory that a tool writes, and the flag about its tokenizer."""

import argparse
from pathlib import Path

from runtime.errors import InputError


def check_output_dir(path: Path) -> None:
    """Raises InputError if the directory exists already, or cannot be made there."""
    if path.exists():
        raise InputError(f"--output_dir: {path} exists already; remove it, or name another directory")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output_dir: the directory {path.parent} does not exist; make it first")


def add_lower_case_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --do_lower_case. Without it the value is None, and the model's tokenizer_config.json decides."""
    parser.add_argument(
        "--do_lower_case",
        action=argparse.BooleanOptionalAction,
        help="for an uncased model (default: as in the model's tokenizer_config.json, else uncased)",
    )
