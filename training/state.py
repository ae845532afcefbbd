"""What a training run is made of between two updates, so that going on from it gives the bytes of never having stopped.

One safetensors file: all trained parameters, BertAdam's m and v, the generators of dropout; and in its metadata, as
JSON, the numbers that are not tensors.
"""

import json
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from runtime.distributed import rank
from runtime.errors import InputError
from training.optimizer import BertAdam

FILE_NAME = "training_state.safetensors"


class TrainingStateError(InputError):
    """A training state that does not fit the run. The message names the file."""


class Training(NamedTuple):
    """What changes in training. `trained`: student and, where the method has it, `fit_dense`."""

    trained: nn.Module
    optimizer: BertAdam
    scaler: torch.amp.GradScaler

    def parameters_with_moments(self) -> list[tuple[str, nn.Parameter]]:
        """Those that have been updated: a parameter without gradients has no m and v."""
        return [(name, p) for name, p in self.trained.named_parameters() if self.optimizer.state[p]]


def rng_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states, uint8, of the generators that this process draws dropout from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def save_training_state(
    directory: Path, training: Training, generators: list[dict[str, torch.Tensor]], progress: dict
) -> None:
    """Writes the state into a directory. `generators`: `rng_states` of all processes; `progress`: for JSON.

    Raises TrainingStateError, before anything is written, where a parameter or a moment is not finite.
    """
    tensors = {f"trained.{name}": tensor for name, tensor in training.trained.state_dict().items()}
    for name, parameter in training.parameters_with_moments():
        tensors |= {f"{moment}.{name}": training.optimizer.state[parameter][moment] for moment in ("m", "v")}
    for number, own in enumerate(generators):
        tensors |= {f"generator.{number}.{name}": state for name, state in own.items()}
    numbers = {
        "progress": progress,
        "optimizer_step": training.optimizer.param_groups[0]["step"],
        "scaler": training.scaler.state_dict(),
    }
    saved = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in saved.items():
        if not tensor.isfinite().all():
            raise TrainingStateError(f"no checkpoint is saved, since {name} is not finite; lower --learning_rate")
    directory.joinpath(FILE_NAME).write_bytes(safetensors.torch.save(saved, {"state": json.dumps(numbers)}))


def read_progress(directory: Path) -> dict:
    """The `progress` that was saved. Raises TrainingStateError."""
    return _read_numbers(directory / FILE_NAME)["progress"]


def load_training_state(directory: Path, training: Training, device: torch.device) -> dict:
    """Puts a saved state into a run of the same kind and returns its `progress`. Raises TrainingStateError."""
    path = directory / FILE_NAME
    numbers = _read_numbers(path)
    try:
        saved = safetensors.torch.load_file(path)
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
    except (KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise TrainingStateError(f"{path} is not the state of such a run ({error!r})") from None
    return numbers["progress"]


def _read_numbers(path: Path) -> dict:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return json.loads(file.metadata()["state"])
    except (TypeError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise TrainingStateError(f"{path} is no training state ({error!r})") from None
