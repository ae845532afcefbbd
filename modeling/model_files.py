"""The one door through which weights enter and leave. Nothing else knows a parameter's name on disk."""

import copy
import hashlib
import json
import logging
import re
import zipfile
from pathlib import Path
from typing import NamedTuple, Protocol

import safetensors.torch
import torch
from torch import nn
from transformers import BertConfig

from modeling.bert import POOLED_ACTIVATIONS, BertRanker
from runtime.errors import InputError
from tokenization.vocabulary import (
    VocabularyError,
    load_vocabulary,
    read_json,
    save_tokenizer,
    saved_lower_case,
    vocabulary_sha256,
)

logger = logging.getLogger(__name__)

# What of a config makes the encoder. The rest of it (names, labels, how outputs are returned) is not for us.
_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)
# What they may be: more than any BERT there is has.
_WHOLE_NUMBERS = {
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
# Settings that would make another model of it.
_ENCODER = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
# What a model that was not fine-tuned may lack.
_HEADS = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias")


class ModelFileError(InputError):
    """A model directory that cannot be used. The message names it and the tensor or setting at fault."""


class FeaturesOrigin(Protocol):
    """What features say of their making."""

    max_seq_length: int
    vocab_size: int
    vocab_sha256: str
    do_lower_case: bool


class Checkpoint(NamedTuple):
    """What a model directory holds. `fit_dense` is the map to the teacher's hidden size, where it was saved."""

    config: BertConfig
    pooled_activation: str
    weights: dict[str, torch.Tensor]
    fit_dense: dict[str, torch.Tensor]


def load_ranker(
    model_dir: str | Path, pooled_activation: str | None = None, initialise_missing_with_seed: int | None = None
) -> tuple[BertRanker, dict[str, torch.Tensor]]:
    """Loads a ranker in float32 on the CPU from either layout: `config.json` with `model.safetensors` or
    `pytorch_model.bin` (transformers), or `bert_config.json` with `pytorch_model.bin` (as published).

    `pooled_activation` None takes what `config.json` says, or "none". A missing classifier or pooler is an error,
    unless a seed is given: then it starts at BERT's initial values with a warning. Returns the model, in evaluation
    mode, and the saved `fit_dense` (`weight`, `bias`), empty where there is none.

    A classifier of one output s, as of `cross-encoder/ms-marco-*`, becomes one of two, with logits [0, s]: P(class 1)
    is then sigmoid(s).

    Raises ModelFileError for anything else that is missing, of the wrong shape, not finite, or no model at all.
    """
    checkpoint = _read(Path(model_dir))
    config, weights = checkpoint.config, checkpoint.weights
    with torch.device("meta"):
        model = new_ranker(config, pooled_activation or checkpoint.pooled_activation, model_dir)
    expected = model.state_dict()

    for name, tensor in weights.items():
        if name in expected and tensor.shape != expected[name].shape:
            raise ModelFileError(
                f"{model_dir}: {name} has shape {tuple(tensor.shape)} where the config needs "
                f"{tuple(expected[name].shape)}"
            )
    missing = [name for name in expected if name not in weights]
    heads = [name for name in _HEADS if name in missing]
    if set(missing) - set(heads):
        name = min(set(missing) - set(heads))
        raise ModelFileError(f"{model_dir}: {name} is missing from the weights ({len(missing)} missing in all)")
    if heads and initialise_missing_with_seed is None:
        raise ModelFileError(
            f"{model_dir}: {heads[0]} is missing, so it is no fine-tuned ranker; fine-tune it with --distill_model hard"
        )
    if heads:
        logger.warning("%s: %s not found, starting from initial values", model_dir, ", ".join(heads))
        generator = torch.Generator().manual_seed(initialise_missing_with_seed)
        for name in heads:
            weights[name] = _initial_values(expected[name].shape, config.initializer_range, generator)
    unused = sorted(set(weights) - set(expected))
    if unused:
        logger.warning("%s: %d tensors not used, the first is %s", model_dir, len(unused), _shown(unused[0]))
    model = without_values(model, model_dir)
    model.load_state_dict({name: weights[name] for name in expected})
    return model.eval(), checkpoint.fit_dense


def new_ranker(config: BertConfig, pooled_activation: str, where: str | Path) -> BertRanker:
    """A ranker whose weights mean nothing yet. Raises ModelFileError, which names `where` the config is from."""
    try:
        return BertRanker(config, pooled_activation)
    except Exception as error:  # a setting out of range raises almost anything, deep inside torch
        raise ModelFileError(f"{where}: no BERT can be made from its config ({error!r})") from None


def without_values(model: BertRanker, where: str | Path) -> BertRanker:
    """A ranker of the device `meta` as one on the CPU, to be filled; only its classifier has values, which are 0.

    Memory that is not written to costs nothing yet. Raises ModelFileError where there could not be as much.
    """
    try:
        model = model.to_empty(device="cpu")
    except RuntimeError as error:
        raise ModelFileError(f"{where}: its config asks for more memory than there is ({error})") from None
    embeddings = model.bert.embeddings  # their position and segment numbers no checkpoint holds
    embeddings.position_ids = torch.arange(model.config.max_position_embeddings)[None, :]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
    return model


def missing_heads(model_dir: str | Path) -> list[str]:
    """Which of a pooler's and a classifier's parameters a model directory lacks. Raises ModelFileError."""
    weights = _read(Path(model_dir)).weights
    return [name for name in _HEADS if name not in weights]


def initial_ranker(
    model_dir: str | Path, num_layers: int, hidden_size: int, num_heads: int, intermediate_size: int, seed: int
) -> BertRanker:
    """A model of another shape at BERT's initial values, with all other settings of a model directory's config.

    Weights are normal with the config's `initializer_range` (Devlin et al. 2019 cut the normal at 2 deviations), biases
    0, LayerNorms the identity, and the embedding of padding 0, as in transformers. Raises ModelFileError.
    """
    config, pooled_activation = read_config(_config_file(Path(model_dir)))
    config.num_hidden_layers = num_layers
    config.hidden_size = hidden_size
    config.num_attention_heads = num_heads
    config.intermediate_size = intermediate_size
    model = new_ranker(config, pooled_activation, model_dir)
    generator = torch.Generator().manual_seed(seed)
    words = model.bert.embeddings.word_embeddings
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.copy_(_initial_values(parameter.shape, config.initializer_range, generator))
        if words.padding_idx is not None:
            words.weight[words.padding_idx] = 0.0
    return model.eval()


def make_fit_dense(
    student_size: int, teacher_size: int, saved: dict[str, torch.Tensor], seed: int, initializer_range: float
) -> nn.Linear:
    """The linear map from student to teacher hidden states.

    It comes from a checkpoint, or, where that has none or was taught by a teacher of another size, with a warning from
    initial values.
    """
    fit_dense = nn.Linear(student_size, teacher_size)
    needed = {name: tensor.shape for name, tensor in fit_dense.state_dict().items()}
    if {name: tensor.shape for name, tensor in saved.items()} != needed:
        reason = "does not fit this teacher" if saved else "not found"
        logger.warning("student: fit_dense %s, starting from initial values", reason)
        generator = torch.Generator().manual_seed(seed)
        saved = {name: _initial_values(shape, initializer_range, generator) for name, shape in needed.items()}
    fit_dense.load_state_dict(saved)
    return fit_dense


def take_layers(model: BertRanker, layers: list[int]) -> BertRanker:
    """A model of the layers named, counted from 1, in that order, with the embeddings and the head of `model`."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(layers)
    taken = BertRanker(config, model.pooled_activation)
    weights = model.state_dict()

    def source(name: str) -> str:
        found = re.match(r"(bert\.encoder\.layer\.)(\d+)(\..*)", name)
        return f"{found[1]}{layers[int(found[2])] - 1}{found[3]}" if found else name

    taken.load_state_dict({name: weights[source(name)] for name in taken.state_dict()})
    return taken.eval()


def save_ranker(
    model: BertRanker,
    tokens: list[str],
    do_lower_case: bool,
    directory: Path,
    without_classifier: bool = False,
    fit_dense: nn.Linear | None = None,
) -> None:
    """Writes a model directory that transformers' `AutoModelForSequenceClassification` loads into `directory`.

    `without_classifier` leaves it out, of a model that has not learned to rank; transformers' `AutoModel` loads that.
    A general student brings its `fit_dense`, which is saved as `fit_dense.weight` and `fit_dense.bias`.

    Raises ModelFileError, before anything is written, where a weight is not finite.
    """
    tensors = model.state_dict()
    if without_classifier:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    if fit_dense is not None:
        tensors |= {f"fit_dense.{name}": tensor for name, tensor in fit_dense.state_dict().items()}
    weights = {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"the student is not written, since its {name} is not finite; lower --learning_rate")
    config = {name: getattr(model.config, name) for name in _SETTINGS} | {
        "architectures": ["BertModel" if without_classifier else "BertForSequenceClassification"],
        "model_type": "bert",
        "pooled_activation": model.pooled_activation,
        "dtype": "float32",
    }
    if not without_classifier:
        config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    # save_file would make a file that nobody but its owner can read
    directory.joinpath("model.safetensors").write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
    save_tokenizer(directory, tokens, do_lower_case, model.config.max_position_embeddings)
    directory.joinpath("config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def fingerprint(model: BertRanker, fit_dense: nn.Linear | None = None) -> str:
    """SHA-256 of a model's settings and weights, the same from whatever files and layout they came."""
    settings = {name: getattr(model.config, name) for name in _SETTINGS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode("utf-8"))
    for module in filter(None, (model, fit_dense)):
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def check_reads_features(
    model_dir: Path, model: BertRanker, features_file: Path, header: FeaturesOrigin
) -> list[str] | None:
    """Returns the model's vocabulary, or None with a warning where its directory has none to compare.

    Raises ModelFileError where the model cannot read features that were made so: longer than its positions, or with
    another vocabulary or case.
    """
    config = model.config
    where = f"{features_file} does not fit the model {model_dir}"
    if header.max_seq_length > config.max_position_embeddings:
        raise ModelFileError(
            f"{where}: examples of up to {header.max_seq_length} tokens, {config.max_position_embeddings} positions; "
            "tokenize with a smaller --max_seq_length"
        )
    if header.vocab_size > config.vocab_size or config.type_vocab_size < 2:
        raise ModelFileError(
            f"{where}: {header.vocab_size} tokens and 2 segments, embeddings for {config.vocab_size} and "
            f"{config.type_vocab_size}; tokenize with its own --bert_model_dir"
        )
    try:
        vocabulary = load_vocabulary(model_dir)
    except VocabularyError as error:
        logger.warning("vocabulary not compared: %s", error)
        return None
    if saved_lower_case(model_dir) not in (None, header.do_lower_case):
        flag = "--no-do_lower_case" if header.do_lower_case else "--do_lower_case"
        raise ModelFileError(f"{where}: made with do_lower_case {header.do_lower_case}; tokenize with {flag}")
    if vocabulary_sha256(vocabulary) != header.vocab_sha256:
        raise ModelFileError(f"{where}: made with another vocabulary; tokenize with --bert_model_dir {model_dir}")
    return vocabulary


def _config_file(model_dir: Path) -> Path:
    if not model_dir.is_dir():
        raise ModelFileError(f"{model_dir} is not a directory; name a model directory")
    return _first_file(model_dir, "config.json", "bert_config.json")


def read_config(config_file: Path) -> tuple[BertConfig, str]:
    """What makes the encoder, and the activation before its classifier. Raises ModelFileError for no BERT config."""
    try:
        settings = read_json(config_file)
        if settings.get("model_type", "bert") != "bert":
            raise ModelFileError(f"{config_file}: model_type '{settings['model_type']}' is not bert")
        pooled_activation = settings.pop("pooled_activation", "none")
        for name, needed in _ENCODER.items():
            if settings.get(name, needed) != needed:
                raise ModelFileError(f"{config_file}: {name} is {settings[name]}, a ranker needs {needed}")
        config = BertConfig.from_dict({name: settings[name] for name in _SETTINGS if name in settings})
        last_token = {"pad_token_id": (0, config.vocab_size - 1)} if config.pad_token_id is not None else {}
        for name, (least, most) in (_WHOLE_NUMBERS | _NUMBERS | last_token).items():
            value = getattr(config, name)
            if type(value) is not int and (name not in _NUMBERS or type(value) is not float):
                raise ModelFileError(f"{config_file}: {name} {_shown(value)} is no number that it could be")
            if not least <= value <= most:
                raise ModelFileError(f"{config_file}: {name} {_shown(value)} is not from {least} to {most}")
        if config.hidden_size % config.num_attention_heads:
            raise ModelFileError(
                f"{config_file}: hidden size {config.hidden_size} is no multiple of {config.num_attention_heads} heads"
            )
    except ModelFileError:
        raise
    except Exception as error:  # the check of a field raises a class of its own, by version of transformers
        raise ModelFileError(f"{config_file}: no BERT config ({error})") from None
    if pooled_activation not in POOLED_ACTIVATIONS:
        raise ModelFileError(f"{config_file}: pooled_activation '{pooled_activation}' is not known")
    return config, pooled_activation


def _read(model_dir: Path) -> Checkpoint:
    config_file = _config_file(model_dir)
    config, pooled_activation = read_config(config_file)
    weights_file = _first_file(model_dir, "model.safetensors", "pytorch_model.bin")
    try:
        if weights_file.suffix == ".safetensors":
            raw = safetensors.torch.load_file(weights_file)
        else:
            _refuse_packed(weights_file)
            raw = torch.load(weights_file, map_location="cpu", weights_only=True)
    except Exception as error:  # damage raises almost anything, an OSError without a name included
        reason = (str(error).strip() or repr(error)).split("\n")[0]
        raise ModelFileError(f"{weights_file}: no weights that can be read ({reason})") from None
    if not isinstance(raw, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in raw.items()
    ):
        raise ModelFileError(f"{weights_file}: holds something else than named tensors")

    for name, tensor in raw.items():
        plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.dtype not in _DTYPES or tensor.device.type != "cpu":
            raise ModelFileError(f"{weights_file}: {_shown(name)} is no plain tensor of numbers")
    # One number can claim to be a tensor of any size. Tied embeddings are in the file once, under two names.
    size = sum(tensor.numel() * tensor.element_size() for tensor in raw.values())
    if size > 2 * weights_file.stat().st_size:
        raise ModelFileError(f"{weights_file}: its tensors claim {size} bytes, more than the file holds")

    weights, fit_dense = {}, {}
    bare = not any(_without_prefix(name).startswith("bert.") for name in raw)
    for name, tensor in raw.items():
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{weights_file}: {_shown(name)} is not finite")
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", _without_prefix(name))
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if bare and name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        if name.endswith("position_ids") or name.startswith(("cls.", "fit_denses.")):
            continue  # counts 0, 1, 2...; the heads of pre-training; maps of one layer each, where ours serves all
        if name.startswith("fit_dense."):
            fit_dense[name.removeprefix("fit_dense.")] = tensor.float()
        else:
            weights[name] = tensor.float()
    depths = [int(found[1]) for name in weights if (found := re.match(r"bert\.encoder\.layer\.(\d{1,9})\.", name))]
    depth = max(depths, default=-1) + 1
    if depth != config.num_hidden_layers:
        raise ModelFileError(
            f"{weights_file}: has {depth} layers where {config_file.name} says {config.num_hidden_layers}"
        )
    return Checkpoint(config, pooled_activation, weights | _two_outputs(weights, weights_file), fit_dense)


def _refuse_packed(weights_file: Path) -> None:
    """torch packs nothing, but unpacks what is packed, a thousandfold. Raises ValueError."""
    if zipfile.is_zipfile(weights_file):
        with zipfile.ZipFile(weights_file) as archive:
            size = sum(record.file_size for record in archive.infolist())
        if size > weights_file.stat().st_size:
            raise ValueError(f"unpacks to {size} bytes, more than the file holds")


def _two_outputs(weights: dict[str, torch.Tensor], weights_file: Path) -> dict[str, torch.Tensor]:
    """The classifier, where there is one, with a class of logit 0 in front if it has but one output."""
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


def _shown(value: object) -> str:
    """What a stranger's file holds, for a message: printable, and no longer than one reads."""
    return value[:100] if isinstance(value, str) and value.isprintable() else repr(value)[:100]


def _without_prefix(name: str) -> str:
    return name.removeprefix("module.")


def _first_file(model_dir: Path, *names: str) -> Path:
    for name in names:
        if (model_dir / name).is_file():
            return model_dir / name
    raise ModelFileError(f"{model_dir} holds neither {' nor '.join(names)}; name a model directory")


def _initial_values(shape: torch.Size, initializer_range: float, generator: torch.Generator) -> torch.Tensor:
    """BERT's: weights normal, biases 0."""
    if len(shape) == 1:
        return torch.zeros(shape)
    return torch.empty(shape).normal_(0.0, initializer_range, generator=generator)
