"""The losses of optimization steps stay on the device until they are read."""

import logging
import math

import numpy as np
import torch

from formats.features import Features
from runtime.distributed import world_size
from runtime.errors import InputError
from training.state import Progress
from training.terms import LOSSES

logger = logging.getLogger(__name__)

# Steps that are read together, by type of device. Several processes read each step: they notice a signal only then, and
# torchrun does not wait long for them.
AT_ONCE = {"cpu": 1, "cuda": 8}


class UnreadSteps:
    """Steps whose results are not read yet. Reading waits for a GPU, so that the results of several are read at once.

    `skips`: whether a step may be skipped, as in float16; otherwise that is an error.
    """

    def __init__(self, features: Features, device: torch.device, skips: bool):
        self._features, self._skips = features, skips
        self._at_once = AT_ONCE[device.type] if world_size() == 1 else 1
        self._steps: list[tuple[int, np.ndarray, torch.Tensor]] = []

    def add(self, step: int, examples: np.ndarray, totals: torch.Tensor, is_skipped: torch.Tensor) -> bool:
        """Adds a step; returns whether the steps should be read now.

        `totals`: the means of `LOSSES`, and the number of signals; `is_skipped`: 0-dim, 0 or 1.
        """
        self._steps.append((step, examples, torch.cat([totals, is_skipped.view(1)])))
        return len(self._steps) == self._at_once

    def read(self, progress: Progress) -> bool:
        """Adds the steps to the progress, in order. Returns whether a process had received a signal in one of them.

        Raises InputError for the first step that was skipped but may not be.
        """
        steps, self._steps = self._steps, []
        must_stop = False
        results = torch.stack([result for _, _, result in steps]).tolist() if steps else []
        for (step, examples, _), (*means, signals, is_skipped) in zip(steps, results, strict=True):
            if is_skipped and not self._skips:
                raise self._not_finite_error(step, means, examples)
            progress.add(step, means, not is_skipped)
            must_stop |= signals > 0
        return must_stop

    def _not_finite_error(self, step: int, means: list[float], examples: np.ndarray) -> InputError:
        names = ", ".join(name for name, mean in zip(LOSSES, means, strict=True) if not math.isfinite(mean))
        example_ids = ", ".join(self._features.example_ids(examples))
        message = (
            f"step {step}: {names or 'the norm of a gradient is'} not finite, so the run stops before this step; lower "
            f"--learning_rate, or look at the teacher and the examples {example_ids}"
        )
        logger.error("%s", message)  # the whole message; stderr shows a shortened one
        return InputError(message)
