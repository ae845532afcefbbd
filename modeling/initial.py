"""BERT's initial values: weights normal, biases 0, LayerNorms the identity.

Devlin et al. (2019) truncate the normal at 2 standard deviations. transformers does not, and neither does this.
"""

import torch
from torch import nn


def initial_values(shape: torch.Size, std: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Initial values of a weight, normal with `std`, or of a bias, 0; float32. `generator` None is torch's default."""
    if len(shape) == 1:
        return torch.zeros(shape)
    return torch.empty(shape).normal_(0.0, std, generator=generator)


@torch.no_grad()
def set_initial_values(model: nn.Module, std: float, generator: torch.Generator | None = None) -> None:
    """Sets all parameters, in their order, to initial values, and the embedding of padding to 0.

    A model on the device `meta` has no values, and stays as it is.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    for name, parameter in model.named_parameters():
        if name.endswith("LayerNorm.weight"):
            parameter.fill_(1.0)
        else:
            parameter.copy_(initial_values(parameter.shape, std, generator))
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0.0
