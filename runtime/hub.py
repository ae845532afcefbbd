"""The directory of a model: a local one, or one downloaded from the Hugging Face Hub. Loads no torch."""

import re
from pathlib import Path

from runtime.errors import InputError

_VOCABULARY_FILES = ["config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"]
_LOOK_UP_SECONDS = 10


class HubError(InputError):
    """A name that is neither a directory nor a model that could be downloaded. The message says why."""


def model_directory(name: str | Path, weights: bool = True) -> Path:
    """Returns the directory `name` if it exists. Otherwise `name` is the id of a model on the Hub, such as
    `bert-base-uncased` or `cross-encoder/ms-marco-MiniLM-L6-v2`. huggingface_hub downloads it into its cache; without
    `weights` it downloads only the files of the vocabulary.

    These names are not ids, so they are not looked up: a name in a directory that exists here, such as `models/techer`;
    a name that starts with `.` or `/`; a name with more than one `/`.

    Raises HubError if there is neither a directory nor a model of this name, or if the model cannot be downloaded.
    """
    path, name = Path(name), str(name)
    if path.is_dir():
        return path
    is_id = re.fullmatch(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", name, re.ASCII)
    if not is_id or path.exists() or ("/" in name and path.parent.exists()):
        raise HubError(f"{name} is not a directory; name a model directory")
    from huggingface_hub import HfApi, snapshot_download  # late: few runs need it

    unreachable = None
    try:
        # snapshot_download has no timeout for a network that does not answer
        HfApi().model_info(name, timeout=_LOOK_UP_SECONDS)
    except Exception as error:  # every kind of failure has its own class
        unreachable = error

    def download(*files: str) -> Path:
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=unreachable is not None))

    try:
        if not weights:
            return download(*_VOCABULARY_FILES)
        directory = download(*_VOCABULARY_FILES, "model.safetensors")
        if not (directory / "model.safetensors").is_file():
            directory = download(*_VOCABULARY_FILES, "pytorch_model.bin")
        return directory
    except Exception as error:
        reason = unreachable or error
        raise HubError(
            f"{name} is neither a directory nor a model that could be downloaded from the Hugging Face Hub: "
            f"{str(reason).strip() or repr(reason)}"
        ) from None


def model_files(name: str | Path | None) -> list[Path]:
    """Returns the files of a local model directory; none for an id of the Hub, or for None.

    The outputs of scripts in it do not count: a file NAME with NAME.log beside it, and NAME.SUFFIX.
    """
    if name is None or not Path(name).is_dir():
        return []
    files = [path for path in Path(name).iterdir() if not path.is_dir()]
    names = {path.name for path in files}
    outputs = tuple(f"{name}." for name in names if f"{name}.log" in names)
    return [path for path in files if not f"{path.name}.".startswith(outputs)]
