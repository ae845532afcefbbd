"""Where a model's directory is: here, or fetched from the Hugging Face Hub. Loads no torch."""

import re
from pathlib import Path

from runtime.errors import InputError

_VOCABULARY_FILES = ["config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"]
_LOOK_UP_SECONDS = 10


class HubError(InputError):
    """A name that is no model directory, and no model that could be fetched. The message says why."""


def model_directory(name: str | Path, weights: bool = True) -> Path:
    """The directory of that name, or, where there is none, that of the model with this id, such as `bert-base-uncased`
    or `cross-encoder/ms-marco-MiniLM-L6-v2`, which huggingface_hub fetches into its cache (without `weights`: only what
    the vocabulary needs).

    A name below a directory that exists here, such as `models/techer`, is taken for a path, and nothing is looked up;
    so is one that starts with `.` or `/`, or has more than one `/`.

    Raises HubError where there is neither a directory nor such a model, or where it cannot be fetched.
    """
    path, name = Path(name), str(name)
    if path.is_dir():
        return path
    is_id = re.fullmatch(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", name, re.ASCII)
    if not is_id or path.exists() or ("/" in name and path.parent.exists()):
        raise HubError(f"{name} is not a directory; name a model directory")
    from huggingface_hub import HfApi, snapshot_download  # late, since few runs need it

    unreachable = None
    try:
        # snapshot_download by itself waits without end for a network that never answers
        HfApi().model_info(name, timeout=_LOOK_UP_SECONDS)
    except Exception as error:  # each way to fail is a class of its own
        unreachable = error

    def fetch(*files: str) -> Path:
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=unreachable is not None))

    try:
        if not weights:
            return fetch(*_VOCABULARY_FILES)
        directory = fetch(*_VOCABULARY_FILES, "model.safetensors")
        if not (directory / "model.safetensors").is_file():
            directory = fetch(*_VOCABULARY_FILES, "pytorch_model.bin")
        return directory
    except Exception as error:
        reason = unreachable or error
        raise HubError(
            f"{name} is neither a directory here nor a model that could be fetched from the Hugging Face Hub: "
            f"{str(reason).strip() or repr(reason)}"
        ) from None
