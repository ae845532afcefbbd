"""The speed of training."""

import time


class Clock:
    """Measures two speeds: of the steps since the last loss line, without evaluations and checkpoints, and of all."""

    def __init__(self, first_step: int):
        self._first_step, self._begin = first_step, time.monotonic()
        self._steps, self._seconds = 0, 0.0

    def start_step(self) -> None:
        self._step_begin = time.monotonic()

    def end_step(self) -> None:
        self._steps, self._seconds = self._steps + 1, self._seconds + time.monotonic() - self._step_begin

    def take_steps_per_second(self) -> float:
        rate = self._steps / self._seconds
        self._steps, self._seconds = 0, 0.0
        return rate

    def mean_steps_per_second(self, step: int) -> float:
        return (step - self._first_step) / (time.monotonic() - self._begin)
