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
of the CPU in a GPU run besides calling the model: reading, batches, copies, the optimizer's calls, losses, scores.
Prints microseconds a pair and milliseconds a step: the fastest of several rounds.

  python benchmarks/host_share.py

The first line is without a GPU. Batches then have one token, because a GPU does the padding itself; the calls are the
same. The time is CPU time of one thread, so other programs count little. If there is a GPU, a second line has the wall
time with it, with the real copies and padding. The exit status is 0: there is nothing to compare with.""",
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
import training.inputs
from benchmarks import synthetic
from benchmarks.child import reranking_seconds, training_losses_and_speed
from benchmarks.machine import describe_torch_machine
from benchmarks.synthetic import Shape, make_features, make_model
from modeling.bert import RankerOutput
from modeling.padding import pad
from runtime.script import run_script
from training.flags import parse_args as parse_distill_args

GPU_PAIRS = 512  # pairs of full length in a batch, as on a GPU
BATCH = 64


class NullRanker:
    """In place of FrozenRanker. It returns zeros."""

    def __init__(self, ranker: torch.nn.Module, precision: str):
        self.device = ranker.classifier.weight.device

    def __call__(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> RankerOutput:
        return RankerOutput(torch.zeros(len(input_ids), 2, device=self.device), {}, {})


class NullLosses:
    """In place of `distillation_losses`. The losses are 0, and all parameters have gradients of 0."""

    def __init__(self) -> None:
        self._models, self._grads = None, []

    def __call__(self, args: argparse.Namespace, models: distill.Models, *_: object) -> dict[str, torch.Tensor]:
        if self._models is not models:
            self._models = models
            self._grads = [(parameter, torch.zeros_like(parameter)) for parameter in models.trained().parameters()]
            self._loss = torch.zeros((), device=self._grads[0][0].device, requires_grad=True)
        for parameter, grad in self._grads:
            parameter.grad = grad
        return dict.fromkeys(distill.LOSSES, self._loss)


def pad_to_one(*tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """In place of `pad`: the same calls, without the work of the GPU."""
    return pad(*tensors[:-1], 1)


@contextlib.contextmanager
def null_models(device: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(rerank, "FrozenRanker", NullRanker))
        stack.enter_context(mock.patch.object(distill, "distillation_losses", NullLosses()))
        if device == "cpu":
            for module in (modeling.scoring, training.inputs):
                stack.enter_context(mock.patch.object(module, "pad", pad_to_one))
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
    run(distill.main, lambda: parse_distill_args(distill.METHODS), *inputs, *more)
    _, speed = training_losses_and_speed(output)
    return BATCH / speed * 1e3


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print(describe_torch_machine())
    # small tensors, but as many of them as in 3/384
    small_vocabulary = mock.patch.object(synthetic, "TOKENS", synthetic.TOKENS[:99])
    with tempfile.TemporaryDirectory() as temporary, small_vocabulary:
        directory = Path(temporary)
        for name in ("student", "teacher"):
            make_model(directory / name, Shape(3, 12), seed=1)
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
