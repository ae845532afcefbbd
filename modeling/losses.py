"""The losses of Simplified TinyBERT (Chen et al., ECIR 2021, arXiv 2009.07531) as they were published.

Letters in shapes: B batch, T tokens (padding included), d hidden size, h heads, e head size; s student, t teacher.
All means are over all elements, padding included. All losses are computed in float32 and returned as float32 scalars.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

QueriesKeys = tuple[torch.Tensor, torch.Tensor]  # (B, h, T, e) each

# Scores at or below this count 0 in the attention loss, which is how the published code keeps padding out of it.
SCORE_FLOOR = -100.0


def teacher_layers(student_depth: int, teacher_depth: int) -> list[int]:
    """The uniform map k*m, k = N/M, for student layers m = 0 (embeddings) to M (TinyBERT, Jiao et al. 2020, eq. 6).

    Raises ValueError where the depths do not divide.
    """
    if teacher_depth % student_depth:
        raise ValueError(f"a student of {student_depth} layers does not divide a teacher of {teacher_depth}")
    return [m * (teacher_depth // student_depth) for m in range(student_depth + 1)]


def attention_loss(
    student: Sequence[QueriesKeys], teacher: Sequence[QueriesKeys], attention_mask: torch.Tensor
) -> torch.Tensor:
    """Sum over layer pairs of mean((S_s - S_t)^2), S = Q K^T / sqrt(e) + mask, scores <= -100 set to 0 in both first.

    TinyBERT eq. 7. `attention_mask`: (B, T), 0 on padded keys, whose scores are below -100 by the mask of -10000.

    With A = [Q_s/sqrt(e_s), -Q_t/sqrt(e_t)] and B = [K_s, K_t], padded rows of B zeroed, the sum of squares of a head
    is ||A B^T||^2 = <A^T A, B^T B>: two matrices of head size instead of scores of T x T. That holds while no real
    score is <= -100, which max|q| max|k| / sqrt(e) < 100 proves; a batch where it does not takes the direct form.
    """
    with torch.autocast(attention_mask.device.type, enabled=False):
        # Upcast once: low-precision Gram products lose the gradient.
        pairs = [
            tuple((q.float() / math.sqrt(q.shape[-1]), k.float()) for q, k in pair)
            for pair in zip(student, teacher, strict=True)
        ]
        real_keys = attention_mask[:, None, :, None]  # (B, 1, T, 1)
        bound = torch.stack(
            [
                q.detach().norm(dim=-1).amax() * (k.detach() * real_keys).norm(dim=-1).amax()
                for pair in pairs
                for q, k in pair
            ]
        ).amax()
        if bound < -SCORE_FLOOR:  # the one number that is read off the device
            terms = [_mean_square_by_gram(*pair, real_keys) for pair in pairs]
        else:
            terms = [_mean_square_by_scores(*pair, attention_mask) for pair in pairs]
        return torch.stack(terms).sum()


def _mean_square_by_gram(student: QueriesKeys, teacher: QueriesKeys, real_keys: torch.Tensor) -> torch.Tensor:
    """`student` and `teacher`: queries already divided by sqrt(e), and keys."""
    (query_s, key_s), (query_t, key_t) = student, teacher
    a = torch.cat([query_s, -query_t], dim=-1)  # (B, h, T, e_s + e_t)
    b = torch.cat([key_s, key_t], dim=-1) * real_keys  # (B, h, T, e_s + e_t)
    gram_a = a.transpose(-1, -2) @ a  # (B, h, e_s + e_t, e_s + e_t)
    gram_b = b.transpose(-1, -2) @ b  # (B, h, e_s + e_t, e_s + e_t)
    batch, heads, tokens, _ = a.shape
    return (gram_a * gram_b).sum() / (batch * heads * tokens * tokens)


def _mean_square_by_scores(student: QueriesKeys, teacher: QueriesKeys, attention_mask: torch.Tensor) -> torch.Tensor:
    """The published form. `student` and `teacher`: queries already divided by sqrt(e), and keys."""
    mask = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0  # (B, 1, 1, T)

    def scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        raw = query @ key.transpose(-1, -2) + mask  # (B, h, T, e) x (B, h, e, T) -> (B, h, T, T)
        return torch.where(raw <= SCORE_FLOOR, torch.zeros_like(raw), raw)

    return F.mse_loss(scores(*student), scores(*teacher))


def hidden_states_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], fit_dense: torch.nn.Module
) -> torch.Tensor:
    """Sum over layer pairs of mean((fit_dense(H_s) - H_t)^2), H: (B, T, d_s) and (B, T, d_t). TinyBERT eq. 8 and 9.

    `fit_dense`: one linear map from d_s to d_t for all layers.
    """
    terms = [F.mse_loss(fit_dense(h_s).float(), h_t.float()) for h_s, h_t in zip(student, teacher, strict=True)]
    return torch.stack(terms).sum()


def soft_label_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """mean over batch AND classes of -softmax(z_t / temp) * log_softmax(z_s / temp), z: (B, 2). TinyBERT eq. 10.

    As published: no factor temp^2 (Hinton et al. 2015), and half of what a mean over the batch alone gives.
    """
    targets = torch.softmax(teacher_logits.float() / temperature, dim=-1)
    return (-targets * torch.log_softmax(student_logits.float() / temperature, dim=-1)).mean()


def hard_label_loss(student_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of (B, 2) logits against (B,) labels 0 or 1."""
    return F.cross_entropy(student_logits.float(), labels)
