"""General students, which are students before distillation: other shapes and fewer layers of a model, and fit_dense."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from modeling.bert import BertRanker
from modeling.initial import initial_values, set_initial_values
from modeling.model_files import new_ranker
from modeling.model_reader import find_config, read_config

logger = logging.getLogger(__name__)


def initial_ranker(
    model_dir: str | Path, num_layers: int, hidden_size: int, num_heads: int, intermediate_size: int, seed: int
) -> BertRanker:
    """A ranker of another shape at BERT's initial values. All other settings are those of a model directory.

    Raises ModelFileError if the directory has no config of a BERT encoder, or if it makes no model of this shape.
    """
    config, pooled_activation = read_config(find_config(Path(model_dir)))
    config = replace(
        config,
        num_hidden_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=num_heads,
        intermediate_size=intermediate_size,
    )
    model = new_ranker(config, pooled_activation, model_dir)
    set_initial_values(model, config.initializer_range, torch.Generator().manual_seed(seed))
    return model.eval()


def take_layers(model: BertRanker, layers: list[int]) -> BertRanker:
    """A ranker of `layers` of the model, counted from 1, in this order, with its embeddings and its head."""
    taken = BertRanker(replace(model.config, num_hidden_layers=len(layers)), model.pooled_activation)
    weights = model.state_dict()

    def source(name: str) -> str:
        found = re.match(r"(bert\.encoder\.layer\.)(\d+)(\..*)", name)
        return f"{found[1]}{layers[int(found[2])] - 1}{found[3]}" if found else name

    taken.load_state_dict({name: weights[source(name)] for name in taken.state_dict()})
    return taken.eval()


def make_fit_dense(
    student_size: int, teacher_size: int, saved: dict[str, torch.Tensor], seed: int, initializer_range: float
) -> nn.Linear:
    """The linear map from the student's hidden states to the teacher's: (..., d_s) to (..., d_t).

    It has the `saved` weight and bias if they fit. Otherwise it has initial values by `seed`, and a warning is logged.
    """
    fit_dense = nn.Linear(student_size, teacher_size)
    needed = {name: tensor.shape for name, tensor in fit_dense.state_dict().items()}
    if {name: tensor.shape for name, tensor in saved.items()} != needed:
        reason = "does not fit this teacher" if saved else "not found"
        logger.warning("student: fit_dense %s, starting from initial values", reason)
        generator = torch.Generator().manual_seed(seed)
        saved = {name: initial_values(shape, initializer_range, generator) for name, shape in needed.items()}
    fit_dense.load_state_dict(saved)
    return fit_dense
