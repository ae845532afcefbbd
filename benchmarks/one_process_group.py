"""distill.py as one of several processes, in a process group of one process: so it uses NCCL on one GPU."""
# ruff: noqa: E402

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import os
import shlex
from unittest import mock

from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import run_script


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Runs distill.py in a process group of one process. distill.py alone makes none for one process.
Prints what distill.py prints. "python benchmarks/checks.py nccl" calls this script, and compares the losses.

  torchrun --nproc_per_node 1 benchmarks/one_process_group.py --distill_flags="--features_file FILE ..."

or, without torchrun,

  export RANK=0 WORLD_SIZE=1 MASTER_ADDR=localhost MASTER_PORT=29500
  python benchmarks/one_process_group.py --distill_flags="--features_file FILE ..."

The exit status is that of distill.py.""",
    )
    parser.add_argument(
        "--distill_flags", type=shlex.split, required=True, help="the flags of distill.py, quoted as in a shell"
    )
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError without the variables that torch.distributed reads."""
    if "MASTER_ADDR" not in os.environ:
        raise InputError("MASTER_ADDR is not set; start this script by torchrun")


if __name__ == "__main__":
    args = parse_args()  # before the imports below, which take seconds

import torch.distributed

import distill
from runtime import distributed
from training import flags

if __name__ == "__main__":
    sys.argv[1:] = args.distill_flags
    training_args = flags.parse_args(distill.METHODS)
    torch.distributed.init_process_group("gloo")
    # Only the functions of this module see two processes. The sums over the group are those of one.
    with mock.patch.object(distributed, "world_size", lambda: 2):
        run_script(distill.main, training_args)
    torch.distributed.destroy_process_group()
