"""The checkpoints of an output directory: checkpoint-STEP/ to resume from, and best-STEP/, the best checkpoint."""

import logging
import re
import shutil
from pathlib import Path

from formats.checksums import FILE_NAME as CHECKSUMS
from formats.checksums import check_checksums
from runtime.errors import InputError
from training.curves import LOSS_FILE
from training.state import FILE_NAME as TRAINING_STATE

logger = logging.getLogger(__name__)

CHECKPOINT_FILES = {"config.json", "model.safetensors", "vocab.txt", LOSS_FILE, TRAINING_STATE}
BEST_WEIGHTS = "best_model.safetensors"  # in a checkpoint: the weights of the best checkpoint until then


def checkpoints(directory: Path) -> list[Path]:
    """Returns the checkpoints in an output directory, oldest first."""
    paths = [path for path in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name)]
    return sorted(paths, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def best_checkpoints(directory: Path) -> list[Path]:
    """Returns best-STEP/ of an unfinished run. After a kill there can be two: also the previous one."""
    return [path for path in directory.glob("best-*") if re.fullmatch(r"best-[0-9]{1,18}", path.name)]


def newest_complete_checkpoint(directory: Path) -> Path | None:
    """Returns the newest checkpoint that is not damaged. A warning names each newer one that is."""
    for checkpoint in reversed(checkpoints(directory)):
        try:
            check_checksums(checkpoint, CHECKPOINT_FILES)
            return checkpoint
        except InputError as error:
            logger.warning("%s; resuming from an earlier checkpoint", error)
    return None


def remove_checkpoint(checkpoint: Path) -> None:
    """Removes a checkpoint. What a kill leaves of it does not count as complete. Of a link, removes only the link."""
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        checkpoint.unlink()
        return
    checkpoint.joinpath(CHECKSUMS).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def remove_best_checkpoint(best: Path) -> None:
    """Removes a best-STEP/. What a kill leaves of it does not count as a model."""
    best.joinpath("config.json").unlink(missing_ok=True)
    shutil.rmtree(best)
