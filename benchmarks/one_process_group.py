"""distill.py as one of several processes, in a process group of one process: it uses NCCL on one GPU.

    torchrun --nproc_per_node 1 benchmarks/one_process_group.py FLAGS_OF_DISTILL

distill.py alone needs no process group, so it makes none for one process.
"""

import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch.distributed

import distill
from runtime import distributed
from runtime.script import run_script
from training.flags import parse_args

if __name__ == "__main__":
    ARGS = parse_args(distill.METHODS)
    torch.distributed.init_process_group("gloo")
    # Only the functions of this module see two processes. The sums over the group are those of one.
    with mock.patch.object(distributed, "world_size", lambda: 2):
        run_script(distill.main, ARGS)
    torch.distributed.destroy_process_group()
