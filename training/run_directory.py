"""The output directory of a training run: checkpoints, resuming, the best checkpoint, loss lines, the student."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from formats.atomic import atomic_directory, atomic_write, remove_partial_files
from formats.checksums import FILE_NAME as CHECKSUMS
from formats.checksums import write_checksums
from formats.features import FeaturesHeader
from formats.run_file import RUN_FILE, read_run_file, write_run_file
from modeling.model_files import save_ranker
from runtime.distributed import all_gather, check_same, differences, from_rank_zero, rank
from runtime.errors import InputError, naming_errors
from runtime.script import append_line
from training import curves
from training.checkpoints import (
    BEST_WEIGHTS,
    best_checkpoints,
    checkpoint_step,
    checkpoints,
    newest_complete_checkpoint,
    remove_best_checkpoint,
    remove_checkpoint,
)
from training.curves import DEV_FILE, LOSS_FILE, PICTURE, SPEED_FILE, read_lines_until, used_losses
from training.inputs import Models
from training.model_card import write_model_card
from training.state import Progress, Training, load_training_state, read_notes, rng_states, save_training_state

logger = logging.getLogger(__name__)


class RunDirectory:
    """The run in an output directory, which this process has locked. Only rank 0 writes.

    `settings` must be the same to resume; `contents` names those that are hashes of files. If `machine` differs, there
    is a warning.
    """

    def __init__(self, path: Path, settings: dict[str, Any], contents: Iterable[str], machine: dict[str, Any]):
        self.path, self.settings, self.machine = path, settings, machine
        self._contents = set(contents)
        self.start: Path | None = None  # the checkpoint from which the run resumes; rank 0 alone reads it
        self._earlier: dict[str, Any] = {}  # its notes and progress
        self._first_step = 0
        self._board: Any = None

    def find_start(self, resume: bool) -> bool:
        """Rank 0 chooses where the run starts, for all processes. Returns False if the run is finished.

        With `resume` it is the newest complete checkpoint. Raises InputError if the earlier run had other settings, or
        if the settings differ between processes.
        """
        check_same(self.settings, self._contents)
        is_finished = False
        if resume and rank() == 0:
            run = read_run_file(self.path)
            is_finished = run["finished"]
            if is_finished:
                self._check_settings(run["settings"])
                print(f"{self.path}: the run is finished, there is nothing to resume")
            else:
                self._find_checkpoint()
        step = checkpoint_step(self.start) if self.start else 0
        is_finished, self._first_step = from_rank_zero((is_finished, step))
        return not is_finished

    def _find_checkpoint(self) -> None:
        self.start = newest_complete_checkpoint(self.path)
        if self.start is not None:
            self._earlier = read_notes(self.start)
            self._check_settings(self._earlier["settings"])
            if self._earlier["machine"] != self.machine:
                earlier = self._earlier["machine"]
                logger.warning(
                    "until now the run was on %s, it resumes on %s: rounding may differ", earlier, self.machine
                )

    def _check_settings(self, earlier: dict[str, Any]) -> None:
        earlier = {"margin_weight": 0.0} | earlier  # versions before margins did not write it
        if found := differences(earlier, self.settings, self._contents):
            raise InputError(
                f"--resume: the run in {self.path} differs in {found}; give the flags and files of that run, pass "
                "--overwrite instead to start again, or name another --output_student_dir"
            )

    def check_writing(self) -> None:
        """Writes the student into a directory that is removed again. So what is written last cannot lose the run.

        Raises InputError if a directory is in the place of a file, and OSError if the student cannot be written.
        """
        with (
            naming_errors(self.path, "writing"),
            tempfile.TemporaryDirectory(prefix=".", suffix=f".{os.getpid()}.partial", dir=self.path) as partial,
        ):
            self._write_student(Path(partial))
            for name in (*os.listdir(partial), PICTURE):
                if (self.path / name).is_dir():
                    raise InputError(f"--output_student_dir: {self.path / name} is a directory; remove it")

    def prepare(self) -> None:
        """Brings the directory into the state of the checkpoint that the run resumes, or of the beginning.

        The model of an earlier run stays until the new one replaces it; its checkpoints are removed.
        """
        start = self.start
        remove_partial_files(self.path)
        if start is None:
            self.path.joinpath(RUN_FILE).unlink(missing_ok=True)
        for checkpoint in checkpoints(self.path):
            if start is None or checkpoint_step(checkpoint) > checkpoint_step(start):  # of another run, or damaged
                remove_checkpoint(checkpoint)
        for best in best_checkpoints(self.path):  # its weights are in the checkpoint `start` too
            shutil.rmtree(best)
        write_run_file(self.path, False, self.settings)
        for name in (LOSS_FILE, DEV_FILE):
            if name == DEV_FILE and self.settings["dev_qrels"] is None:
                self.path.joinpath(name).unlink(missing_ok=True)
                continue
            with atomic_write(self.path / name, binary=True) as file:
                file.write(b"" if start is None else start.joinpath(name).read_bytes())
        speeds = read_lines_until(self.path / SPEED_FILE, self.first_step())
        self.path.joinpath(SPEED_FILE).unlink(missing_ok=True)
        for line in speeds:
            append_line(self.path / SPEED_FILE, json.dumps(line))

    def open(
        self,
        models: Models,
        header: FeaturesHeader,
        is_ranker: bool,
        keep_checkpoints: int,
        tensorboard_dir: Path | None,
    ) -> None:
        """Sets what the run writes. A student that is not a ranker is written without a classifier.

        `header`: of the training features.
        """
        self._models, self._header, self._is_ranker = models, header, is_ranker
        self._keep_checkpoints = keep_checkpoints
        if tensorboard_dir is not None and rank() == 0:
            # TensorBoard forgets the steps of a killed run after its last checkpoint.
            try:
                self._board = import_tensorboard().SummaryWriter(str(tensorboard_dir), purge_step=self.first_step() + 1)
            except UnicodeEncodeError:
                raise InputError("--tensorboard_dir: TensorBoard needs a path that is UTF-8, name another") from None

    def first_step(self) -> int:
        """Returns the step of the checkpoint that this process resumes; 0 without one."""
        return self._first_step

    def restore(self, training: Training, device: torch.device) -> Progress:
        """Loads the checkpoint that the run resumes into `training`, if there is one; returns the progress."""
        if self._first_step == 0:
            return Progress()
        if self._earlier.get("best_step") is not None:
            self._save_best(self._earlier["best_step"], self.start / BEST_WEIGHTS)
        return load_training_state(self.start, training, device)

    def record_losses(self, line: dict[str, Any], examples_per_second: float) -> None:
        """Adds a line to train_loss.jsonl and one to speed.jsonl."""
        if rank() > 0:
            return
        append_line(self.path / LOSS_FILE, json.dumps(line))
        speed = {"global_step": line["global_step"], "examples_per_second": round(examples_per_second, 2)}
        append_line(self.path / SPEED_FILE, json.dumps(speed))
        names = ("learning_rate", *(name for name in used_losses([line]) if line[name] is not None))
        self._show({name: line[name] for name in names} | {"examples_per_second": examples_per_second}, line)

    def record_dev(self, measure: str, value: float, progress: Progress) -> None:
        """Counts a dev evaluation in `progress`, adds it to dev_eval.jsonl, and saves the student if it is the best."""
        step = progress.global_step
        is_best = progress.add_dev(value)
        if is_best and rank() == 0:
            self._save_best(step)
        comment = "the best" if is_best else f"the best is step {progress.best_step}"
        logger.info("step %d: dev %s %.4f, %s", step, measure, value, comment)
        if rank() == 0:
            line = {"global_step": step, "measure": measure, "value": value, "best_step": progress.best_step}
            append_line(self.path / DEV_FILE, json.dumps(line))
            self._show({f"dev {measure}": value}, line)

    def _show(self, values: dict[str, float], line: dict[str, Any]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, line["global_step"])
            self._board.flush()

    def save(self, training: Training, progress: Progress, device: torch.device) -> None:
        """Saves checkpoint-STEP/, and removes all but the `keep_checkpoints` newest ones, unless that is 0."""
        states = all_gather(rng_states(device))
        if rank() > 0:
            return
        checkpoint = self.path / f"checkpoint-{progress.global_step}"
        with atomic_directory(checkpoint, last=CHECKSUMS) as partial:
            self._write_student(partial)
            notes = {"settings": self.settings, "machine": self.machine}
            save_training_state(partial, training, states, progress, notes)
            shutil.copyfile(self.path / LOSS_FILE, partial / LOSS_FILE)
            if self.settings["dev_qrels"] is not None:
                shutil.copyfile(self.path / DEV_FILE, partial / DEV_FILE)
            if progress.best_step is not None:
                shutil.copyfile(self._best(progress.best_step) / "model.safetensors", partial / BEST_WEIGHTS)
            write_checksums(partial)
        logger.info("wrote %s", checkpoint)
        if self._keep_checkpoints:
            for older in checkpoints(self.path)[: -self._keep_checkpoints]:
                remove_checkpoint(older)

    def finish(self, progress: Progress, facts: dict[str, Any]) -> None:
        """Writes the student: the best checkpoint if there is one, or the student after the last step.

        `facts`: more entries of training.json, for the model card.
        """
        if self._board is not None:
            self._board.close()
        if rank() > 0:
            return
        outcome = dict(facts)
        with atomic_directory(self.path, last="config.json") as partial:
            if progress.best_step is None:
                self._write_student(partial)
            else:
                shutil.copytree(self._best(progress.best_step), partial, dirs_exist_ok=True)
                outcome |= {
                    "last_step": progress.global_step,
                    "best_step": progress.best_step,
                    "best_value": progress.best_value,
                }
            write_model_card(partial, outcome | {"settings": self.settings}, earlier=self.path)
        for best in best_checkpoints(self.path):
            shutil.rmtree(best)
        write_run_file(self.path, True, self.settings, outcome)
        logger.info("wrote %s", self.path)
        self._draw_curves()

    def _draw_curves(self) -> None:
        try:
            if curves.write_training_curves(self.path):
                logger.info("drew %s", self.path / PICTURE)
        except Exception as error:  # an error in the plot must not lose the student
            logger.warning("no training curves: %r", error)

    def _best(self, step: int) -> Path:
        return self.path / f"best-{step}"

    def _save_best(self, step: int, weights: Path | None = None) -> None:
        """Writes best-STEP/ with the current student or the `weights` of a checkpoint; removes the previous one."""
        best = self._best(step)
        with atomic_directory(best, last="config.json") as partial:
            self._write_student(partial)
            if weights is not None:
                shutil.copyfile(weights, partial / "model.safetensors")
        for earlier in best_checkpoints(self.path):
            if earlier != best:
                remove_best_checkpoint(earlier)

    def _write_student(self, into: Path) -> None:
        student, fit_dense = self._models.student, self._models.fit_dense
        save_ranker(
            student,
            self._models.vocabulary,
            self._header.do_lower_case,
            into,
            without_classifier=not self._is_ranker,
            fit_dense=None if self._is_ranker else fit_dense,
            max_seq_length=self._header.max_seq_length,
        )


def import_tensorboard() -> ModuleType:
    """Returns the module torch.utils.tensorboard. Raises InputError if TensorBoard is not installed."""
    try:
        from torch.utils import tensorboard
    except ImportError:
        raise InputError(
            "--tensorboard_dir: TensorBoard is not installed; pip install tensorboard, or leave it out"
        ) from None
    return tensorboard
