"""The published algorithm written out plainly: the measure of what is right, and the baseline of what is fast.

Eager attention with its scores in every layer, an optimiser loop over parameters, losses read every step. It works on
a dict of named tensors as checkpoints hold them, in the precision of those tensors, and has no dropout unless asked.
"""

import math

import torch
import torch.nn.functional as F

Weights = dict[str, torch.Tensor]


def _linear(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _layer_norm(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return weights[f"{name}.weight"] * ((x - mean) / torch.sqrt(variance + 1e-12)) + weights[f"{name}.bias"]


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def bert(
    weights: Weights, heads: int, batch: Weights, pooled_activation: str = "none", dropout: float = 0.0
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Logits (B, 2), attention scores of every layer [(B, h, T, T)], hidden states [(B, T, d)] from H_0 on."""
    embeddings = "bert.embeddings"
    tokens = batch["input_ids"].shape[1]
    hidden = (
        # padding_idx: [PAD] is in the losses, but its embedding stays as it is
        F.embedding(batch["input_ids"], weights[f"{embeddings}.word_embeddings.weight"], padding_idx=0)
        + weights[f"{embeddings}.position_embeddings.weight"][:tokens][None]
        + weights[f"{embeddings}.token_type_embeddings.weight"][batch["token_type_ids"]]
    )
    hidden = F.dropout(_layer_norm(hidden, weights, f"{embeddings}.LayerNorm"), dropout)
    mask = (1.0 - batch["attention_mask"][:, None, None, :].to(hidden.dtype)) * -10000.0
    all_scores, all_hidden = [], [hidden]
    while f"bert.encoder.layer.{len(all_scores)}.attention.self.query.weight" in weights:
        layer = f"bert.encoder.layer.{len(all_scores)}"
        size, width = hidden.shape[0], hidden.shape[-1]
        query, key, value = (
            _linear(hidden, weights, f"{layer}.attention.self.{name}")
            .view(size, tokens, heads, width // heads)
            .permute(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // heads) + mask
        all_scores.append(scores)
        context = F.dropout(torch.softmax(scores, dim=-1), dropout) @ value
        context = context.permute(0, 2, 1, 3).contiguous().view(size, tokens, width)
        context = F.dropout(_linear(context, weights, f"{layer}.attention.output.dense"), dropout)
        attended = _layer_norm(context + hidden, weights, f"{layer}.attention.output.LayerNorm")
        inner = _gelu(_linear(attended, weights, f"{layer}.intermediate.dense"))
        output = F.dropout(_linear(inner, weights, f"{layer}.output.dense"), dropout)
        hidden = _layer_norm(output + attended, weights, f"{layer}.output.LayerNorm")
        all_hidden.append(hidden)
    pooled = torch.tanh(_linear(hidden[:, 0], weights, "bert.pooler.dense"))
    if pooled_activation == "relu":
        pooled = torch.relu(pooled)
    return _linear(pooled, weights, "classifier"), all_scores, all_hidden


def losses(
    distill_model: str,
    student: Weights,
    teacher: Weights,
    heads: int,
    batch: Weights,
    pooled_activation: str = "none",
    alpha: float = 0.5,
    temperature: float = 1.0,
    dropout: float = 0.0,
) -> dict[str, torch.Tensor]:
    """`loss`, `cls_loss`, `att_loss`, `rep_loss`, `soft_loss`, `hard_loss` of a batch; `student` has its fit_dense.

    Terms that are not part of the method are 0. Dropout is on in both models, as published.
    """
    logits, scores, hidden = bert(student, heads, batch, pooled_activation, dropout)
    with torch.no_grad():
        target_logits, target_scores, target_hidden = bert(teacher, heads, batch, pooled_activation, dropout)
    att = rep = soft = hard = logits.new_zeros(())
    if distill_model in ("simplified", "intermediate"):
        every = len(target_scores) // len(scores)
        for m, student_scores in enumerate(scores):
            pair = (student_scores, target_scores[(m + 1) * every - 1])
            pair = [torch.where(s <= -100.0, torch.zeros_like(s), s) for s in pair]
            att = att + F.mse_loss(*pair)
        for m, student_hidden in enumerate(hidden):
            rep = rep + F.mse_loss(_linear(student_hidden, student, "fit_dense"), target_hidden[m * every])
    if distill_model in ("simplified", "standard", "prediction"):
        targets = torch.softmax(target_logits / temperature, dim=-1)
        soft = (-targets * torch.log_softmax(logits / temperature, dim=-1)).mean()
    if distill_model in ("simplified", "standard", "hard"):
        hard = F.cross_entropy(logits, batch["labels"])
    cls = alpha * soft + (1 - alpha) * hard if distill_model == "standard" else soft + hard
    return {
        "loss": att + rep + cls,
        "cls_loss": cls,
        "att_loss": att,
        "rep_loss": rep,
        "soft_loss": soft,
        "hard_loss": hard,
    }


def warmup_linear(progress: float, warmup: float) -> float:
    return progress / warmup if progress < warmup else max((progress - 1.0) / (warmup - 1.0), 0.0)


@torch.no_grad()
def bert_adam_step(
    weights: Weights, state: dict, step: int, total_steps: int, lr: float, warmup: float = 0.1, decay: float = 0.01
) -> None:
    """One update, a parameter after the other. `step` counts from 0; `state` starts as an empty dict."""
    for name, weight in weights.items():
        if weight.grad is None:
            continue
        gradient = weight.grad * min(1.0, 1.0 / (weight.grad.norm().item() + 1e-6))
        m, v = state.setdefault(name, (torch.zeros_like(weight), torch.zeros_like(weight)))
        m.mul_(0.9).add_(gradient, alpha=0.1)
        v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        update = m / (v.sqrt() + 1e-6)
        if not name.endswith("bias") and "LayerNorm" not in name:
            update += decay * weight
        weight.sub_(lr * warmup_linear(step / total_steps, warmup) * update)
        weight.grad = None


def train(
    distill_model: str,
    student: Weights,
    teacher: Weights,
    heads: int,
    batches: list[Weights],
    lr: float = 5e-5,
    **settings,
) -> list[dict[str, float]]:
    """Updates `student` once a batch; returns the losses of every update. `settings` as in `losses`."""
    for weight in student.values():
        weight.requires_grad_(True)
    state, history = {}, []
    for step, batch in enumerate(batches):
        values = losses(distill_model, student, teacher, heads, batch, **settings)
        values["loss"].backward()
        bert_adam_step(student, state, step, len(batches), lr)
        history.append({name: value.item() for name, value in values.items()})
    return history
