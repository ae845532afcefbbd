"""The host's share of a GPU run: the work of rerank.py for each pair, and of distill.py for each optimization step."""
# ruff: noqa: E402

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse

from runtime.errors import InputError
from runtime.flags import Parser


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Runs rerank.py and distill.py with null models, which compute nothing. What remains is the work
that the CPU has in a GPU run besides calling the model: reading, batches, copies, the optimizer's calls, losses, scores.
Prints microseconds a pair and milliseconds a step: the fastest of several rounds.

  python benchmarks/host_share.py

Without a GPU, the batches are not padded, because a GPU pads them itself. One thread of torch is used, and the time
is that of the processor, so that other programs count little. With a GPU, a second line has the wall time with the real
copies and padding.""",
    )
    parser.add_argument("--pairs", type=int, default=100_000, help="of 64 to 256 tokens (default 100000)")
    parser.add_argument("--steps", type=int, default=300, help="of 64 examples (default 300)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the fastest counts (default 3)")
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for numbers that are too small."""
    for name, least in (("pairs", 1), ("steps", 2), ("rounds", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name}: needs to be {least} or more")


if __name__ == "__main__":
    args = parse_args()  # before the imports below, which take seconds

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch

import distill
import modeling.scoring
import rerank
from benchmarks.child import reranking_seconds, training_losses_and_speed
from benchmarks.machine import describe_torch_machine
from benchmarks.synthetic import Shape, make_features, make_model
from modeling.bert import RankerOutput
from runtime.script import run_script
from training import flags

GPU_PAIRS = 512  # pairs of full length in a batch, as on a GPU
BATCH = 64


class NullRanker:
    """In place of FrozenRanker. It returns zeros."""

    def __init__(self, ranker: torch.nn.Module, precision: str):
        self.device = ranker.classifier.weight.device

    def __call__(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> RankerOutput:
        return RankerOutput(torch.zeros(len(input_ids), 2, device=self.device), {}, {})


class _NullLoss(torch.autograd.Function):
    """A loss of 0, whose gradients are 0."""

    @staticmethod
    def forward(ctx, *parameters):
        ctx.save_for_backward(*parameters)
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx, grad):
        return tuple(torch._foreach_mul(ctx.saved_tensors, 0.0))


def null_losses(args: argparse.Namespace, models: distill.Models, *_: object) -> dict[str, torch.Tensor]:
    """In place of `distillation_losses`. All parameters get a gradient."""
    loss = _NullLoss.apply(*models.trained().parameters())
    return dict.fromkeys(distill.LOSSES, loss)


def not_padded(tokens: torch.Tensor, starts: torch.Tensor, *_: object) -> dict[str, torch.Tensor]:
    """In place of `pad`, which is the work of the GPU."""
    return {"input_ids": torch.zeros(len(starts), 1)}


@contextlib.contextmanager
def null_models(device: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(rerank, "FrozenRanker", NullRanker))
        stack.enter_context(mock.patch.object(distill, "distillation_losses", null_losses))
        if device == "cpu":
            stack.enter_context(mock.patch.object(modeling.scoring, "pad", not_padded))
            stack.enter_context(mock.patch.object(time, "monotonic", time.process_time))
        yield


def run(
    main: Callable[[argparse.Namespace], None], parse: Callable[[], argparse.Namespace], *arguments: object
) -> None:
    """Runs a script in this process, without its output."""
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with mock.patch.object(sys, "argv", ["script", *map(str, arguments)]), quiet[0], quiet[1]:
        main(parse())


def microseconds_a_pair(directory: Path, device: str, pairs: int) -> float:
    output = directory / "scores"
    inputs = ["--model_dir", directory / "student", "--features_file", directory / "test.features"]
    more = ["--output_scores_file", output, "--overwrite", "--device", device, "--eval_batch_size", GPU_PAIRS]
    run(rerank.main, rerank.parse_args, *inputs, *more)
    return reranking_seconds(output) / pairs * 1e6


def milliseconds_a_step(directory: Path, device: str, steps: int) -> float:
    """Of the steps in the second half of a run, without the loss line."""
    output = directory / "out"
    inputs = ["--features_file", directory / "train.features", "--general_student_model", directory / "student"]
    more = ["--teacher_model", directory / "teacher", "--no_teacher_check", "--output_student_dir", output]
    more += ["--overwrite", "--device", device, "--train_batch_size", BATCH, "--train_loss_step", steps // 2]
    run(distill.main, lambda: flags.parse_args(distill.METHODS), *inputs, *more)
    _, speed = training_losses_and_speed(output)
    return BATCH / speed * 1e3


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print(describe_torch_machine())
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        for name, layers in (("student", 3), ("teacher", 3)):  # small tensors, but as many of them as in 3/384
            make_model(directory / name, Shape(layers, 12), seed=layers)
        make_features(directory / "test.features", "test", args.pairs, 256)
        make_features(directory / "train.features", "train", args.steps * BATCH // 2, 256)  # distill.py: two epochs
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            with null_models(device):
                pair = min(microseconds_a_pair(directory, device, args.pairs) for _ in range(args.rounds))
                step = min(milliseconds_a_step(directory, device, args.steps) for _ in range(args.rounds))
            print(
                f"{device}: {pair:.2f} microseconds a pair in rerank.py, {step:.2f} ms a step in distill.py", flush=True
            )


if __name__ == "__main__":
    run_script(main, args)
