"""The precision of training: autocast and the loss scaler of float16, or NVIDIA apex instead of both."""

import contextlib
from contextlib import AbstractContextManager
from types import ModuleType

import torch
from torch import nn

from runtime.device import dtype_of
from runtime.errors import InputError
from training.optimizer import BertAdam, GradientError


class Precision:
    """fp32, bf16 or fp16 through torch.amp, or fp16 through an apex that still has amp.

    `scaler` scales the loss in fp16, and does nothing in the other precisions and with apex. Raises InputError for
    apex if it is not installed.
    """

    def __init__(self, name: str, device: torch.device, backend: str = "torch", apex_opt_level: str = "O1"):
        self.name = name
        self._device = device
        self._apex = import_apex_amp() if backend == "apex" else None
        self._apex_opt_level = apex_opt_level
        uses_torch_amp = name != "fp32" and backend == "torch"
        self._autocast = torch.autocast(device.type, dtype_of(name), enabled=uses_torch_amp)
        self.scaler = torch.amp.GradScaler(device.type, enabled=uses_torch_amp and name == "fp16")

    def initialize(self, trained: nn.ModuleDict, optimizer: BertAdam) -> None:
        """Prepares the optimizer, and for apex the modules, which it changes in place."""
        if self.name != "fp16":
            optimizer.failed = torch.zeros((), device=self._device)
        if self._apex is not None:
            self._optimizer = optimizer  # without apex it can go, and the weights with it, before the next training
            self._apex.initialize(list(trained.values()), optimizer, opt_level=self._apex_opt_level)

    def autocast(self) -> AbstractContextManager:
        """Inside, matmuls have this precision."""
        return self._autocast

    def without_casts(self) -> AbstractContextManager:
        """Inside, apex does not cast to float16. At O1 apex patches torch itself."""
        patches_torch = self._apex is not None and self._apex_opt_level == "O1"
        return self._apex.disable_casts() if patches_torch else contextlib.nullcontext()

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        """Adds the gradients of a loss. `is_last`: whether this is the last part of an accumulated batch."""
        if self._apex is None:
            self.scaler.scale(loss).backward()
            return
        with self._apex.scale_loss(loss, self._optimizer, delay_unscale=not is_last) as scaled, self.without_casts():
            scaled.backward()

    def step(self, optimizer: BertAdam, losses: torch.Tensor) -> torch.Tensor:
        """Makes an optimization step, or skips it if one of the `losses` or a gradient is not finite.

        Returns 1 if it was skipped, else 0, as a 0-dim float32 tensor on the device of the losses. In float16 later
        steps continue. In other precisions all later steps are skipped too, and the CPU does not wait for a GPU.
        """
        if self.name == "fp16":
            is_skipped = torch.full((), float(not self._scaled_step(optimizer, losses)), device=losses.device)
        else:
            optimizer.failed = torch.maximum(optimizer.failed, ~losses.isfinite().all())
            optimizer.step()
            is_skipped = optimizer.failed
        optimizer.zero_grad()
        return is_skipped

    def _scaled_step(self, optimizer: BertAdam, losses: torch.Tensor) -> bool:
        """Returns whether float16 did not overflow, so that the step was made."""
        steps_before = optimizer.param_groups[0]["step"]
        is_finite = bool(losses.isfinite().all())
        with contextlib.suppress(GradientError):
            if is_finite or self._apex is not None:  # apex must check the gradients itself
                self.scaler.step(optimizer)
        if is_finite:
            self.scaler.update()
        return optimizer.param_groups[0]["step"] > steps_before


def import_apex_amp() -> ModuleType:
    """Returns the module apex.amp. Raises InputError if there is no apex with amp."""
    try:
        from apex import amp
    except ImportError:
        raise InputError(
            "--fp16_backend apex: no NVIDIA apex with amp is installed (the PyPI package of that name is another "
            "project); use --fp16_backend torch"
        ) from None
    return amp
