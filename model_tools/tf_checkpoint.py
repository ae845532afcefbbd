"""A TensorFlow 1 checkpoint of BERT, by its variables' names, as a ranker. Loads no TensorFlow."""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from modeling.bert import BertConfig, BertRanker
from modeling.model_files import ModelFileError, new_ranker, without_values


class Converted(NamedTuple):
    """`unknown` are the variables left out that are neither of an optimizer nor of a pre-training head."""

    model: BertRanker
    has_classifier: bool
    unknown: list[str]


def variable_name(parameter: str) -> str:
    """What BERT's TensorFlow code (Devlin et al. 2019, `modeling.py` and `run_classifier.py`), and dl4marco-bert after
    it, call a parameter of BertRanker."""
    if parameter.startswith("classifier."):
        return parameter.replace("classifier.", "output_").replace("weight", "weights")
    name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", parameter)
    name = re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)
    name = re.sub(r"_embeddings\.weight$", "_embeddings", name)
    name = re.sub(r"\.weight$", ".kernel", name)
    return re.sub(r"\.layer\.(\d+)\.", r".layer_\1.", name).replace(".", "/")


def convert_variables(
    names: Collection[str], read: Callable[[str], np.ndarray], config: BertConfig, where: str | Path
) -> Converted:
    """Makes a ranker of a checkpoint's variables; `read` returns one by its name. Errors say `where` they are from.

    Kernels lie there as (inputs, outputs), and here as (outputs, inputs). Without `output_weights` and `output_bias` it
    is a pre-trained encoder, whose classifier here means nothing. Left out are an optimizer's slots, which lie below
    the variable that they are for (`.../kernel/adam_m`), its counts, and pre-training heads (`cls/...`).

    Raises ModelFileError for a variable that is missing, of another shape, not finite, or part of another encoder.
    """
    with torch.device("meta"):
        model = new_ranker(config, "none", where)
    weights = model.state_dict()
    variables = {parameter: variable_name(parameter) for parameter in weights}
    has_classifier = "output_weights" in names or "output_bias" in names
    if not has_classifier:
        variables = {parameter: name for parameter, name in variables.items() if not name.startswith("output_")}
    missing = [name for name in variables.values() if name not in names]
    if missing:
        raise ModelFileError(f"{where}: {missing[0]} is missing from the checkpoint ({len(missing)} missing in all)")
    known = set(variables.values())
    unknown = sorted(name for name in set(names) - known if not _is_left_out(name, names))
    of_encoder = [name for name in unknown if name.startswith("bert/")]
    if of_encoder:
        raise ModelFileError(
            f"{where}: {of_encoder[0]} has no place in the encoder of the config ({len(of_encoder)} such variables)"
        )
    model = without_values(model, where)
    weights = model.state_dict()
    for parameter, name in variables.items():
        is_kernel = name.endswith("/kernel")
        array = np.asarray(read(name), np.float32)
        needed = tuple(weights[parameter].shape[::-1] if is_kernel else weights[parameter].shape)
        if array.shape != needed:
            raise ModelFileError(f"{where}: {name} has shape {array.shape} where the config needs {needed}")
        if not np.isfinite(array).all():
            raise ModelFileError(f"{where}: {name} is not finite")
        weights[parameter].copy_(torch.from_numpy(array.T.copy() if is_kernel else array.copy()))
    return Converted(model.eval(), has_classifier, unknown)


def _is_left_out(name: str, names: Collection[str]) -> bool:
    is_slot = name.rpartition("/")[0] in names
    return is_slot or name.startswith("cls/") or name in ("global_step", "beta1_power", "beta2_power")
