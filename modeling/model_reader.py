"""Reads the config and the weights of a model directory, which may come from a stranger, and checks both.

Nothing in a file is executed. A file cannot make its reader use much more memory than its own size.
"""

import re
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, NoReturn

import safetensors.torch
import torch
from torch import nn

from modeling.bert import POOLED_ACTIVATIONS, BertConfig
from runtime.errors import InputError
from runtime.paths import utf8_path
from tokenization.vocabulary import read_json

# Settings with another value make another architecture.
_ARCHITECTURE = {
    "model_type": "bert",
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
}
# The limits are above all published BERTs.
_INTEGERS = {
    "num_hidden_layers": (1, 128),
    "hidden_size": (1, 1 << 14),
    "num_attention_heads": (1, 1 << 14),
    "intermediate_size": (1, 1 << 16),
    "vocab_size": (1, 1 << 21),
    "max_position_embeddings": (1, 1 << 20),
    "type_vocab_size": (1, 1 << 10),
}
_NUMBERS = {
    "hidden_dropout_prob": (0, 1),
    "attention_probs_dropout_prob": (0, 1),
    "initializer_range": (0, 100),
    "layer_norm_eps": (0, 1),
}
_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


class ModelFileError(InputError):
    """A model directory cannot be used. The message names it, and the tensor or the setting at fault."""


class SavedModel(NamedTuple):
    """`fit_dense` (`weight`, `bias`) is the map to the hidden size of the teacher, empty if the directory has none."""

    config: BertConfig
    pooled_activation: str
    weights: dict[str, torch.Tensor]  # float32
    fit_dense: dict[str, torch.Tensor]  # float32


def read_model(model_dir: Path) -> SavedModel:
    """Reads a model directory. Parameters get their names in `BertRanker`. Raises ModelFileError.

    A classifier of one output s becomes one of two outputs, with logits [0, s].
    """
    config_file = find_config(model_dir)
    config, pooled_activation = read_config(config_file)
    weights_file = _first_file(model_dir, "model.safetensors", "pytorch_model.bin")
    weights, fit_dense = _rename(_read_tensors(weights_file))
    layers = [int(found[1]) for name in weights if (found := re.match(r"bert\.encoder\.layer\.(\d{1,9})\.", name))]
    depth = max(layers, default=-1) + 1
    if depth != config.num_hidden_layers:
        raise ModelFileError(
            f"{weights_file}: has {depth} layers where {config_file.name} says {config.num_hidden_layers}"
        )
    return SavedModel(config, pooled_activation, weights | _two_outputs(weights, weights_file), fit_dense)


def find_config(model_dir: Path) -> Path:
    """The config file of a model directory. Raises ModelFileError if there is none."""
    if not model_dir.is_dir():
        raise ModelFileError(f"{model_dir} is not a directory; name a model directory")
    return _first_file(model_dir, "config.json", "bert_config.json")


def _first_file(model_dir: Path, *names: str) -> Path:
    for name in names:
        if (model_dir / name).is_file():
            return model_dir / name
        if (model_dir / name).exists():  # a named pipe would keep its reader waiting
            raise ModelFileError(f"{model_dir / name} is not a regular file; name a model directory")
    raise ModelFileError(f"{model_dir} holds neither {' nor '.join(names)}; name a model directory")


def read_config(config_file: Path) -> tuple[BertConfig, str]:
    """Reads the settings of the encoder, and the activation before the classifier ("none" if the file does not say).

    Other settings are ignored. Raises ModelFileError if the file is not the config of a BERT encoder.
    """

    def refuse(reason: str) -> NoReturn:
        raise ModelFileError(f"{config_file}: {reason}")

    try:
        settings = read_json(config_file)
    except (OSError, ValueError) as error:
        refuse(f"no BERT config ({error})")
    if not isinstance(settings, dict):
        refuse("no BERT config (it is not a JSON object)")
    for name, needed in _ARCHITECTURE.items():
        if settings.get(name, needed) != needed:
            refuse(f"{name} is {quoted(settings[name])}, a ranker needs {needed!r}")
    pooled_activation = settings.get("pooled_activation", "none")
    if pooled_activation not in POOLED_ACTIVATIONS:
        refuse(f"pooled_activation {quoted(pooled_activation)} is none of {', '.join(POOLED_ACTIVATIONS)}")
    config = BertConfig(**{field.name: settings[field.name] for field in fields(BertConfig) if field.name in settings})
    if not isinstance(config.hidden_act, str) or not re.fullmatch(r"[a-z0-9_]{1,40}", config.hidden_act):
        refuse(f"hidden_act {quoted(config.hidden_act)} is not the name of an activation")
    limits = _INTEGERS | _NUMBERS
    if config.pad_token_id is not None and type(config.vocab_size) is int:
        limits["pad_token_id"] = 0, config.vocab_size - 1
    for name, (least, most) in limits.items():
        value = getattr(config, name)
        if type(value) is not int and (name not in _NUMBERS or type(value) is not float):
            refuse(f"{name} {quoted(value)} is not {'a number' if name in _NUMBERS else 'an integer'}")
        if not least <= value <= most:
            refuse(f"{name} {quoted(value)} is not from {least} to {most}")
    return config, pooled_activation


def quoted(value: object) -> str:
    """A name or a setting of a stranger's file for a message: short and printable."""
    return f"of type {type(value).__name__}" if isinstance(value, dict | list) else repr(value)[:100]


def _read_tensors(weights_file: Path) -> dict[str, torch.Tensor]:
    """Reads the named tensors of a file. Raises ModelFileError unless all are dense, of numbers, finite, on the CPU."""
    try:
        if weights_file.suffix == ".safetensors":
            with utf8_path(weights_file) as path:
                tensors = safetensors.torch.load_file(path)
        else:
            _refuse_compressed(weights_file)
            tensors = torch.load(weights_file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises almost anything, also an OSError without a file name
        reason = (str(error).strip() or repr(error)).split("\n")[0]
        raise ModelFileError(f"{weights_file}: its weights cannot be read ({reason})") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
    ):
        raise ModelFileError(f"{weights_file}: does not hold named tensors")
    for name, tensor in tensors.items():
        is_dense = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout == torch.strided
        if not is_dense or tensor.dtype not in _DTYPES or tensor.device.type != "cpu":
            raise ModelFileError(f"{weights_file}: {quoted(name)} is not a dense tensor of numbers")
    # A tensor can repeat one number any number of times. The limit is 2: tied embeddings have two names in one file.
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > 2 * weights_file.stat().st_size:
        raise ModelFileError(f"{weights_file}: its tensors need {size} bytes, more than the file holds")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{weights_file}: {quoted(name)} is not finite")
    return tensors


def _refuse_compressed(weights_file: Path) -> None:
    """Raises ValueError for a compressed file. torch writes none but reads them, and they can be a thousand times as
    large in memory."""
    if zipfile.is_zipfile(weights_file):
        with zipfile.ZipFile(weights_file) as archive:
            size = sum(record.file_size for record in archive.infolist())
        if size > weights_file.stat().st_size:
            raise ValueError(f"decompresses to {size} bytes, more than the file holds")


def _rename(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The parameters by their names in `BertRanker`, and those of `fit_dense`, in float32."""
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    is_bare = not any(name.startswith("bert.") for name in tensors)  # an encoder without a head, as of BertModel
    weights, fit_dense = {}, {}
    for name, tensor in tensors.items():
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if is_bare and name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        if name.endswith("position_ids") or name.startswith(("cls.", "fit_denses.")):
            continue  # 0, 1, 2...; the heads of pre-training; a map for each layer, where ours is for all layers
        if name.startswith("fit_dense."):
            fit_dense[name.removeprefix("fit_dense.")] = tensor.float()
        else:
            weights[name] = tensor.float()
    return weights, fit_dense


def _two_outputs(weights: dict[str, torch.Tensor], weights_file: Path) -> dict[str, torch.Tensor]:
    """The classifier, if there is one. One output s becomes the logits [0, s]."""
    head = {name: tensor for name, tensor in weights.items() if name in ("classifier.weight", "classifier.bias")}
    outputs = {tensor.shape[0] if tensor.ndim else 0 for tensor in head.values()}
    if outputs == {1}:
        return {name: torch.cat([torch.zeros_like(tensor), tensor]) for name, tensor in head.items()}
    if outputs - {2}:
        count = " and ".join(map(str, sorted(outputs)))
        raise ModelFileError(
            f"{weights_file}: its classifier has {count} outputs; a ranker has two (class 1 is relevant), or one"
        )
    return head
