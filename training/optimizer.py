"""BertAdam: the optimizer that BERT was fine-tuned with, and its learning rate schedule."""

import math
from collections.abc import Iterable

import torch


class GradientError(ArithmeticError):
    """A gradient that is not finite."""


# AdamW divides m and v by 1 - beta^step. At this step that is 1, so AdamW equals BertAdam.
_NO_BIAS = 1e9


def warmup_linear(progress: float, warmup: float) -> float:
    """The factor on the learning rate: progress/warmup below `warmup`, then max((progress - 1)/(warmup - 1), 0).

    `progress` is the share of the optimization steps that are done. For 0 <= warmup < 1.
    """
    return progress / warmup if progress < warmup else max((progress - 1.0) / (warmup - 1.0), 0.0)


class BertAdam(torch.optim.Optimizer):
    """Adam as published with BERT (Devlin et al. 2019): no bias correction, decoupled weight decay, and each parameter
    tensor's gradient clipped to norm `max_grad_norm` on its own.

        p -= lr_t * ( m / (sqrt(v) + eps) + weight_decay * p ),  lr_t = lr * warmup_linear(step / total_steps, warmup)

    `step` counts the optimization steps from 0, so the first one has a learning rate of 0 if there is a warm-up. It is
    in `param_groups`. Gradients must be unscaled and have the memory layout of their parameters, as autograd's have.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        total_steps: int,
        warmup: float = 0.1,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        max_grad_norm: float = 1.0,
    ):
        if lr < 0 or total_steps < 1 or not 0 <= warmup < 1:
            raise ValueError(f"lr {lr}, total_steps {total_steps}, warmup {warmup}: needs lr >= 0, 1 or more, [0, 1)")
        settings = {"lr": lr, "total_steps": total_steps, "warmup": warmup, "weight_decay": weight_decay}
        super().__init__(params, settings | {"betas": betas, "eps": eps, "max_grad_norm": max_grad_norm, "step": 0})
        self.failed: torch.Tensor | None = None

    def learning_rate(self) -> float:
        """Returns the learning rate of the next step."""
        group = self.param_groups[0]
        return group["lr"] * warmup_linear(group["step"] / group["total_steps"], group["warmup"])

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Makes one optimization step for all parameters that have a gradient. Clips the gradients in place.

        Raises GradientError, before anything changes, if the norm of a gradient is not finite. To find that, the CPU
        waits for a GPU. It does not wait if `failed` is set, a float32 number on the device of the parameters: then
        such a norm sets it to 1 instead, and while it is 1 no step changes parameters, m or v.
        """
        grads_of = [[p.grad for p in group["params"] if p.grad is not None] for group in self.param_groups]
        all_grads = [grad for grads in grads_of for grad in grads]
        all_norms = torch.stack(torch._foreach_norm(all_grads)) if all_grads else torch.zeros(0)
        not_finite = ~all_norms.isfinite().all()
        if self.failed is not None:
            self.failed = torch.maximum(self.failed, not_finite)
        elif not_finite:
            raise GradientError("the norm of a gradient is not finite")
        norms_of = all_norms.split([len(grads) for grads in grads_of])
        for group, grads, norms in zip(self.param_groups, grads_of, norms_of, strict=True):
            params = [p for p in group["params"] if p.grad is not None]
            rate = group["lr"] * warmup_linear(group["step"] / group["total_steps"], group["warmup"])
            group["step"] += 1
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}
            beta1, beta2 = group["betas"]
            _clip_each(grads, norms, group["max_grad_norm"])
            torch._fused_adamw_(
                params,
                grads,
                [self.state[p]["m"] for p in params],
                [self.state[p]["v"] for p in params],
                [],
                [torch.full((), _NO_BIAS, device=params[0].device)] * len(params),
                lr=rate,
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                found_inf=self.failed,
            )


def _clip_each(grads: list[torch.Tensor], norms: torch.Tensor, max_norm: float) -> None:
    """Scales each gradient to at most `max_norm` on its own, in place, as `clip_grad_norm_` of torch does for one.

    `norms`: those of the gradients, (n,).
    """
    if not math.isfinite(max_norm):
        return
    factors = (norms + 1e-6).reciprocal_().mul_(max_norm).clamp_max_(1.0)
    torch._foreach_mul_(grads, list(factors))


def decay_groups(named_parameters: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float) -> list[dict]:
    """Returns two parameter groups: with weight decay, and without it for biases and LayerNorm."""
    decayed, not_decayed = [], []
    for name, parameter in named_parameters:
        (not_decayed if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": not_decayed, "weight_decay": 0.0}]
