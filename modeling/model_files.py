"""Loads, saves, compares and identifies model directories. Only this module and model_reader know the names on disk."""

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from torch import nn

from modeling.bert import BertConfig, BertRanker
from modeling.initial import initial_values
from modeling.model_reader import ModelFileError, quoted, read_model
from tokenization.vocabulary import (
    NoVocabularyError,
    load_vocabulary,
    save_tokenizer,
    saved_lower_case,
    vocabulary_sha256,
)

logger = logging.getLogger(__name__)

# Some models pad their embeddings, to a multiple of at most so many rows: 30,522 tokens have 30,528 or 30,720 rows.
_MOST_PADDED_ROWS = 1024

# A model that was not fine-tuned can lack these.
_HEADS = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias")
_SIGMOID = "torch.nn.modules.activation.Sigmoid"


def load_ranker(
    model_dir: str | Path, pooled_activation: str | None = None, initialise_missing_with_seed: int | None = None
) -> tuple[BertRanker, dict[str, torch.Tensor]]:
    """Loads a ranker in float32 on the CPU, in evaluation mode.

    The directory holds `config.json` with `model.safetensors` or `pytorch_model.bin` (transformers), or
    `bert_config.json` with `pytorch_model.bin` (as published). `pooled_activation` None is the one of `config.json`, or
    else "none". Without a seed, a missing classifier or pooler is an error. With a seed it gets BERT's initial values,
    and a warning is logged.

    A classifier of one output s, as of `cross-encoder/ms-marco-*`, becomes one of two outputs, with logits [0, s]:
    P(class 1) is then sigmoid(s).

    Returns the model and the saved `fit_dense` (`weight`, `bias`), empty if there is none. Raises ModelFileError if
    anything else is missing, has the wrong shape, is not finite, or if the directory is no model of BERT.
    """
    saved = read_model(Path(model_dir))
    config, weights = saved.config, saved.weights
    with torch.device("meta"):
        model = new_ranker(config, pooled_activation or saved.pooled_activation, model_dir)
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
            weights[name] = initial_values(expected[name].shape, config.initializer_range, generator)
    unused = sorted(set(weights) - set(expected))
    if unused:
        logger.warning("%s: %d tensors not used, the first is %s", model_dir, len(unused), quoted(unused[0]))
    model = without_values(model, model_dir)
    model.load_state_dict({name: weights[name] for name in expected})
    return model.eval(), saved.fit_dense


def new_ranker(config: BertConfig, pooled_activation: str, source: str | Path) -> BertRanker:
    """A ranker at initial values. Raises ModelFileError, which names `source`, where the config comes from."""
    try:
        return BertRanker(config, pooled_activation)
    except Exception as error:  # torch raises almost anything for settings out of range
        raise ModelFileError(f"{source}: no BERT can be made from its config ({str(error) or repr(error)})") from None


def without_values(model: BertRanker, source: str | Path) -> BertRanker:
    """Moves a ranker from the device `meta` to the CPU, without values. Only its classifier has values: 0.

    The memory is reserved, and used when values are written to it. Raises ModelFileError, which names `source`, if
    there is not enough.
    """
    try:
        # not to_empty, whose empty_like imports sympy from a tensor on `meta`: 0.4 s
        empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
        model.load_state_dict(empty, assign=True)
    except RuntimeError as error:
        raise ModelFileError(f"{source}: its config needs more memory than there is ({error})") from None
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
    return model


def missing_heads(model_dir: str | Path) -> list[str]:
    """The parameters of pooler and classifier that a model directory lacks. Raises ModelFileError."""
    weights = read_model(Path(model_dir)).weights
    return [name for name in _HEADS if name not in weights]


def save_ranker(
    model: BertRanker,
    tokens: list[str],
    do_lower_case: bool,
    directory: Path,
    without_classifier: bool = False,
    fit_dense: nn.Linear | None = None,
    max_seq_length: int | None = None,
) -> None:
    """Writes a model to `directory`, in the layout that transformers' `AutoModelForSequenceClassification` loads.

    `without_classifier` is for a model that has not learned to rank; transformers' `AutoModel` loads it. `fit_dense` of
    a general student is saved as `fit_dense.weight` and `fit_dense.bias`. `max_seq_length` is what other programs
    truncate to: the length that the model was trained at. None: all its positions.

    Raises ModelFileError, before anything is written, if a weight is not finite.
    """
    tensors = model.state_dict()
    if without_classifier:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    if fit_dense is not None:
        tensors |= {f"fit_dense.{name}": tensor for name, tensor in fit_dense.state_dict().items()}
    config = asdict(model.config) | {
        "architectures": ["BertModel" if without_classifier else "BertForSequenceClassification"],
        "pooled_activation": model.pooled_activation,
    }
    if not without_classifier:
        config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    max_length = max_seq_length or model.config.max_position_embeddings
    _write_model(directory, tensors, config, tokens, do_lower_case, max_length)


def save_cross_encoder(
    model: BertRanker, tokens: list[str], do_lower_case: bool, max_seq_length: int, directory: Path
) -> None:
    """Writes a ranker with one output s, as most cross-encoders on the Hub have it; sigmoid(s) is its P(class 1).

    The classifier of two outputs has the logits z_0 and z_1, and softmax(z)_1 = sigmoid(z_1 - z_0). So the classifier
    of one output has the weight w_1 - w_0, (1, d), and the bias b_1 - b_0, (1,). Tokenizers truncate at
    `max_seq_length`.

    Raises ModelFileError, before anything is written, if the ranker has a `pooled_activation`, which transformers'
    BertForSequenceClassification does not compute.
    """
    if model.pooled_activation != "none":
        raise ModelFileError(
            f"--model_dir: its pooled_activation is {model.pooled_activation}, which transformers' "
            "BertForSequenceClassification does not compute, so it cannot be exported; use rerank.py, or train with "
            "--pooled_activation none"
        )
    tensors = model.state_dict()
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name].double().diff(dim=0)  # (1, d) and (1,)
    config = asdict(model.config) | {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "relevant"},
        "label2id": {"relevant": 0},
        "sentence_transformers": {"activation_fn": _SIGMOID},
        "sbert_ce_default_activation_function": _SIGMOID,  # for sentence-transformers before version 4
    }
    _write_model(directory, tensors, config, tokens, do_lower_case, max_seq_length)
    # text-embeddings-inference reads the maximum length here; without this file it takes the number of positions
    lengths = {"max_seq_length": max_seq_length, "do_lower_case": False}
    directory.joinpath("sentence_bert_config.json").write_text(json.dumps(lengths, indent=2) + "\n", "utf-8")


def _write_model(
    directory: Path,
    tensors: dict[str, torch.Tensor],
    config: dict[str, object],
    tokens: list[str],
    do_lower_case: bool,
    max_length: int,
) -> None:
    """Writes weights in float32, tokenizer and config. Raises ModelFileError if a weight is not finite."""
    weights = {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"the student is not written, because {name} is not finite; lower --learning_rate")
    config = config | {"model_type": "bert", "dtype": "float32"}
    # not by save_file, whose file only its owner can read
    directory.joinpath("model.safetensors").write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
    save_tokenizer(directory, tokens, do_lower_case, max_length)
    directory.joinpath("config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def fingerprint(model: BertRanker, fit_dense: nn.Linear | None = None) -> str:
    """SHA-256 of a model's settings and weights. It does not depend on the files and the layout that they come from."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode("utf-8"))
    for module in filter(None, (model, fit_dense)):
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


class FeaturesOrigin(Protocol):
    """The part of a features header that a model is compared with."""

    max_seq_length: int
    vocab_size: int
    vocab_sha256: str
    do_lower_case: bool


def check_reads_features(
    model_dir: Path, model: BertRanker, features_file: Path, header: FeaturesOrigin
) -> list[str] | None:
    """Returns the model's vocabulary, or None with a warning if its directory has none to compare.

    Raises VocabularyError if the vocabulary is damaged, and ModelFileError if lines of it are missing, or if the model
    cannot read such features: they are longer than its positions, or were made with another vocabulary or another
    `do_lower_case`.
    """
    config = model.config
    pair = f"{features_file} does not fit the model {model_dir}"
    if header.max_seq_length > config.max_position_embeddings:
        raise ModelFileError(
            f"{pair}: examples of up to {header.max_seq_length} tokens, {config.max_position_embeddings} positions; "
            "tokenize with a smaller --max_seq_length"
        )
    if header.vocab_size > config.vocab_size or config.type_vocab_size < 2:
        raise ModelFileError(
            f"{pair}: {header.vocab_size} tokens and 2 segments, embeddings for {config.vocab_size} and "
            f"{config.type_vocab_size}; tokenize with its own --bert_model_dir"
        )
    try:
        vocabulary = load_vocabulary(model_dir)
    except NoVocabularyError as error:
        logger.warning("vocabulary not compared: %s", error)
        return None
    if len(vocabulary) + _MOST_PADDED_ROWS <= config.vocab_size:
        raise ModelFileError(
            f"{model_dir}: its vocabulary has {len(vocabulary)} tokens, its config says {config.vocab_size}: lines "
            f"{len(vocabulary) + 1} to {config.vocab_size} are missing; copy the vocabulary again"
        )
    if saved_lower_case(model_dir) not in (None, header.do_lower_case):
        flag = "--no-do_lower_case" if header.do_lower_case else "--do_lower_case"
        raise ModelFileError(f"{pair}: made with do_lower_case {header.do_lower_case}; tokenize with {flag}")
    if vocabulary_sha256(vocabulary) != header.vocab_sha256:
        raise ModelFileError(f"{pair}: made with another vocabulary; tokenize with --bert_model_dir {model_dir}")
    return vocabulary
