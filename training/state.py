"""The state of a training run between two steps. A run that resumes from it gives the same bytes as one without a stop.

One safetensors file holds all trained parameters, BertAdam's m and v, and the RNG states of dropout. Its metadata holds
the numbers that are not tensors, as JSON.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from runtime.distributed import from_rank_zero, rank, tensors_from_rank_zero
from runtime.errors import InputError
from runtime.paths import utf8_path
from training.optimizer import BertAdam
from training.terms import LOSSES

FILE_NAME = "training_state.safetensors"
MAX_SKIPPED = 100  # skipped steps in a row that stop the run; a scaler finds its scale within about 20


class TrainingStateError(InputError):
    """A training state that does not fit the run. The message names the file."""


@dataclasses.dataclass
class Progress:
    """The progress of a run. `sums`: the sums of `LOSSES` over the `num_summed` steps since the last loss line."""

    global_step: int = 0
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * len(LOSSES))
    num_summed: int = 0
    skipped_in_a_row: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_since_best: int = 0

    def add(self, step: int, losses: Sequence[float], is_applied: bool) -> None:
        """Counts a step. Losses that are not finite are not summed. `is_applied` is False for a skipped step.

        Raises InputError after `MAX_SKIPPED` skipped steps in a row.
        """
        self.global_step = step
        self.skipped_in_a_row = 0 if is_applied else self.skipped_in_a_row + 1
        if all(map(math.isfinite, losses)):
            self.sums = [total + loss for total, loss in zip(self.sums, losses, strict=True)]
            self.num_summed += 1
        if self.skipped_in_a_row == MAX_SKIPPED:
            raise InputError(
                f"step {step}: a loss or a gradient was not finite in float16, {MAX_SKIPPED} times in a row; use "
                "--precision bf16 or fp32, or look at the teacher"
            )

    def add_dev(self, value: float) -> bool:
        """Counts a dev evaluation; returns whether it is the best one so far."""
        is_best = self.best_value is None or value > self.best_value
        if is_best:
            self.best_step, self.best_value = self.global_step, value
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        return is_best

    def take_mean_losses(self) -> dict[str, float | None]:
        """Returns the mean losses since the last call, or None for each if all steps since then were skipped."""
        means = [total / self.num_summed if self.num_summed else None for total in self.sums]
        self.sums, self.num_summed = [0.0] * len(LOSSES), 0
        return dict(zip(LOSSES, means, strict=True))


class Training(NamedTuple):
    """The objects that training changes. `trained`: the student, and `fit_dense` if the method has it."""

    trained: nn.Module
    optimizer: BertAdam
    scaler: torch.amp.GradScaler

    def parameters_with_moments(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters with m and v: those that had a gradient."""
        return [(name, p) for name, p in self.trained.named_parameters() if self.optimizer.state[p]]


def rng_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the RNG states, uint8, of dropout in this process."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def save_training_state(
    directory: Path, training: Training, rng: list[dict[str, torch.Tensor]], progress: Progress, notes: dict
) -> None:
    """Writes the state into a directory. `rng`: the `rng_states` of all processes; `notes`: more entries of the JSON.

    Raises TrainingStateError, before anything is written, if a parameter or a moment is not finite.
    """
    tensors = {f"trained.{name}": tensor for name, tensor in training.trained.state_dict().items()}
    for name, parameter in training.parameters_with_moments():
        tensors |= {f"{moment}.{name}": training.optimizer.state[parameter][moment] for moment in ("m", "v")}
    for number, own in enumerate(rng):
        tensors |= {f"generator.{number}.{name}": state for name, state in own.items()}
    numbers = {
        "progress": dataclasses.asdict(progress) | notes,
        "optimizer_step": training.optimizer.param_groups[0]["step"],
        "scaler": training.scaler.state_dict(),
    }
    saved = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in saved.items():
        if not tensor.isfinite().all():
            raise TrainingStateError(f"no checkpoint is saved, because {name} is not finite; lower --learning_rate")
    directory.joinpath(FILE_NAME).write_bytes(safetensors.torch.save(saved, {"state": json.dumps(numbers)}))


def read_notes(directory: Path) -> dict:
    """Returns the `notes` and the progress that were saved, in one dict. Raises TrainingStateError."""
    return _read_numbers(directory / FILE_NAME)["progress"]


def load_training_state(directory: Path | None, training: Training, device: torch.device) -> Progress:
    """Loads a saved state into a run with the same settings; returns its progress. Raises TrainingStateError.

    Rank 0 alone reads the directory, and sends the state to the other processes. They can pass None.
    """
    path = directory and directory / FILE_NAME
    numbers, saved = {}, {}
    try:
        if rank() == 0:
            with utf8_path(path) as name:
                numbers, saved = _read_numbers(path), safetensors.torch.load_file(name)
        numbers, saved = from_rank_zero(numbers), tensors_from_rank_zero(saved)
        training.trained.load_state_dict(
            {name.removeprefix("trained."): saved[name] for name in saved if name.startswith("trained.")}
        )
        for name, parameter in training.trained.named_parameters():
            if f"m.{name}" in saved:
                moments = {moment: saved[f"{moment}.{name}"].to(parameter.device) for moment in ("m", "v")}
                training.optimizer.state[parameter] = moments
        for group in training.optimizer.param_groups:
            group["step"] = numbers["optimizer_step"]
        if training.scaler.is_enabled():
            training.scaler.load_state_dict(numbers["scaler"])
        torch.set_rng_state(saved[f"generator.{rank()}.cpu"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(saved[f"generator.{rank()}.cuda"], device)
        progress = Progress(**{field.name: numbers["progress"][field.name] for field in dataclasses.fields(Progress)})
        progress.sums += [0.0] * (len(LOSSES) - len(progress.sums))  # versions before margins have one term less
        return progress
    except (KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise TrainingStateError(f"{path} is not the state of a run with these settings ({error!r})") from None


def _read_numbers(path: Path) -> dict:
    try:
        with utf8_path(path) as name, safetensors.safe_open(name, "pt") as file:
            return json.loads(file.metadata()["state"])
    except (TypeError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise TrainingStateError(f"{path} is not a training state ({error!r})") from None
