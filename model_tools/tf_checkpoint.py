"""From the variables of a TensorFlow 1 checkpoint of BERT to a ranker. Loads no TensorFlow."""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from modeling.bert import BertConfig, BertRanker
from modeling.model_files import ModelFileError, new_ranker, without_values


class Converted(NamedTuple):
    """The ranker, and the variables that are neither used nor expected: not of an optimizer or a pre-training head."""

    model: BertRanker
    has_classifier: bool
    unknown: list[str]


def variable_name(parameter: str) -> str:
    """The name of a BertRanker's parameter in BERT's TensorFlow code (Devlin et al. 2019, `modeling.py` and
    `run_classifier.py`) and in dl4marco-bert."""
    if parameter.startswith("classifier."):
        return parameter.replace("classifier.", "output_").replace("weight", "weights")
    name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", parameter)
    name = re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)
    name = re.sub(r"_embeddings\.weight$", "_embeddings", name)
    name = re.sub(r"\.weight$", ".kernel", name)
    return re.sub(r"\.layer\.(\d+)\.", r".layer_\1.", name).replace(".", "/")


def convert_variables(
    names: Collection[str], read: Callable[[str], np.ndarray], config: BertConfig, source: str | Path
) -> Converted:
    """Makes a ranker of a checkpoint's variables. `read` returns the variable of a name. Errors name `source`.

    Kernels are (inputs, outputs) in the checkpoint, and (outputs, inputs) in the ranker. A checkpoint without
    `output_weights` and `output_bias` is a pre-trained encoder; the classifier of its ranker has no meaning. Not used
    are an optimizer's slots, which have the name of their variable as prefix (`.../kernel/adam_m`), its step counts,
    and pre-training heads (`cls/...`).

    Raises ModelFileError for a variable that is missing, has another shape, is not finite, or has no place in an
    encoder of this config.
    """
    with torch.device("meta"):
        model = new_ranker(config, "none", source)
    weights = model.state_dict()
    variables = {parameter: variable_name(parameter) for parameter in weights}
    has_classifier = "output_weights" in names or "output_bias" in names
    if not has_classifier:
        variables = {parameter: name for parameter, name in variables.items() if not name.startswith("output_")}
    missing = [name for name in variables.values() if name not in names]
    if missing:
        raise ModelFileError(f"{source}: {missing[0]} is missing from the checkpoint ({len(missing)} missing in all)")
    known = set(variables.values())
    unknown = sorted(name for name in set(names) - known if not _is_ignored(name, names))
    of_encoder = [name for name in unknown if name.startswith("bert/")]
    if of_encoder:
        raise ModelFileError(
            f"{source}: {of_encoder[0]} has no place in the encoder of the config ({len(of_encoder)} such variables)"
        )
    model = without_values(model, source)
    weights = model.state_dict()
    for parameter, name in variables.items():
        is_kernel = name.endswith("/kernel")
        array = np.asarray(read(name), np.float32)
        needed = tuple(weights[parameter].shape[::-1] if is_kernel else weights[parameter].shape)
        if array.shape != needed:
            raise ModelFileError(f"{source}: {name} has shape {array.shape} where the config needs {needed}")
        if not np.isfinite(array).all():
            raise ModelFileError(f"{source}: {name} is not finite")
        weights[parameter].copy_(torch.from_numpy(array.T.copy() if is_kernel else array.copy()))
    return Converted(model.eval(), has_classifier, unknown)


def _is_ignored(name: str, names: Collection[str]) -> bool:
    is_slot = name.rpartition("/")[0] in names
    return is_slot or name.startswith("cls/") or name in ("global_step", "beta1_power", "beta2_power")
