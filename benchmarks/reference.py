"""The reference implementation of the published algorithm. Tests compare with it, and benchmarks take it as baseline.

It has eager attention with the scores of every layer, an optimizer that loops over parameters, and reads the losses at
every step. A model is a dict of named tensors, as in a checkpoint. Their precision is that of the computation. Dropout
is off by default.
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
    """Returns logits (B, 2), attention scores of all layers [(B, h, T, T)], and hidden states H_0 to H_L [(B, T, d)].

    B examples, h heads, T tokens, L layers, hidden size d.
    """
    embeddings = "bert.embeddings"
    tokens = batch["input_ids"].shape[1]
    hidden = (
        # padding_idx: [PAD] counts in the losses, but its embedding gets no gradient
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
    """Returns `loss`, `cls_loss`, `att_loss`, `rep_loss`, `soft_loss` and `hard_loss` of a batch.

    `student` includes the weights of its `fit_dense`. Terms that are not part of the method are 0. Both models have
    dropout, as published.
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
    """One step of BertAdam, one parameter after the other. `step` counts from 0; `state` is an empty dict at first."""
    for name, weight in weights.items():
        if weight.grad is None:
            continue
        gradient = weight.grad * min(1.0, 1.0 / (weight.grad.norm().item() + 1e-6))
        m, v = state.setdefault(name, (torch.zeros_like(weight), torch.zeros_like(weight)))
        m.mul_(0.9).add_(gradient, alpha=0.1)
        v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        change = m / (v.sqrt() + 1e-6)
        if not name.endswith("bias") and "LayerNorm" not in name:
            change += decay * weight
        weight.sub_(lr * warmup_linear(step / total_steps, warmup) * change)
        weight.grad = None


class _BertAdam(torch.optim.Optimizer):
    """`bert_adam_step` in the form that GradScaler needs."""

    def __init__(self, weights: Weights, total_steps: int, lr: float):
        super().__init__(list(weights.values()), {})
        self._settings, self._moments, self._step = (total_steps, lr), {}, 0
        self._weights = weights

    def step(self, closure=None) -> None:
        bert_adam_step(self._weights, self._moments, self._step, *self._settings)
        self._step += 1


def train(
    distill_model: str,
    student: Weights,
    teacher: Weights,
    heads: int,
    batches: list[Weights],
    lr: float = 5e-5,
    precision: torch.dtype = torch.float32,
    **settings,
) -> list[dict[str, float]]:
    """Trains `student`, one step per batch, and returns the losses of every step. `settings` are those of `losses`.

    In float16 and bfloat16 the losses are computed under autocast; in float16 a GradScaler scales them.
    """
    for weight in student.values():
        weight.requires_grad_(True)
    device = next(iter(student.values())).device.type
    optimizer = _BertAdam(student, len(batches), lr)
    scaler = torch.amp.GradScaler(device, enabled=precision == torch.float16)
    history = []
    for batch in batches:
        # One context for each step: autocast keeps its casts of the weights until it ends.
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            values = losses(distill_model, student, teacher, heads, batch, **settings)
        scaler.scale(values["loss"]).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()  # after a skipped step
        history.append({name: value.item() for name, value in values.items()})
    return history
