"""The losses of Simplified TinyBERT (Chen et al., ECIR 2021, arXiv 2009.07531), as published.

All losses are computed in float32, and are float32 scalars. A mean is over all elements, padding included, as
published. `ignore_padding` is another objective: a mean over the tokens of each example without its padding (for
attention scores: over queries and keys without padding), then over the examples.

Letters in shapes: B batch, T tokens (padding included), d hidden size, h heads, e head size; s student, t teacher.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from runtime.device import copy_to_cpu

QueriesKeys = tuple[torch.Tensor, torch.Tensor]  # (B, h, T, e) each

# The attention loss sets scores at or below this to 0. The published code excludes padded keys in this way.
SCORE_FLOOR = -100.0


def teacher_layers(student_depth: int, teacher_depth: int) -> list[int]:
    """The teacher layers k*m, k = N/M, for the student layers m = 0 (embeddings) to M.

    TinyBERT (Jiao et al. 2020) eq. 6. Raises ValueError if the student's depth M does not divide the teacher's depth N.
    """
    if teacher_depth % student_depth:
        raise ValueError(f"a student of {student_depth} layers does not divide a teacher of {teacher_depth}")
    return [m * (teacher_depth // student_depth) for m in range(student_depth + 1)]


def attention_loss(
    student: Sequence[QueriesKeys],
    teacher: Sequence[QueriesKeys],
    attention_mask: torch.Tensor,
    ignore_padding: bool = False,
    bound: Callable[[], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sum over layer pairs of mean((S_s - S_t)^2), S = Q K^T / sqrt(e) + mask, scores <= -100 set to 0 in both first.

    TinyBERT eq. 7. `attention_mask`: (B, T), 0 on padded keys. The mask adds -10000 to their scores, so they become 0.

    Let A = [Q_s/sqrt(e_s), -Q_t/sqrt(e_t)] and B = [K_s, K_t], with zeros in the padded rows of B. The sum of squares
    of a head is then ||A B^T||^2 = <A^T A, B^T B>: Gram matrices of head size instead of T x T scores. This is exact if
    no score of a real key is <= -100, which the bound max|q| max|k| / sqrt(e) < 100 proves. A batch that exceeds the
    bound is computed from its scores. `bound`: from `attention_bound`, if it was called before.
    """
    with torch.autocast(attention_mask.device.type, enabled=False):
        bound = bound or attention_bound(student, teacher, attention_mask)
        real = attention_mask[:, None, :, None]  # (B, 1, T, 1)
        pairs = list(zip(student, teacher, strict=True))
        sum_of_squares = _sum_of_squares_by_gram if bound() < -SCORE_FLOOR else _sum_of_squares_by_scores
        heads, tokens = student[0][0].shape[1:3]
        counted = attention_mask.sum(dim=-1) if ignore_padding else tokens  # (B,) or one for all
        terms = [
            (sum_of_squares(*of_student, *of_teacher, real, ignore_padding) / (heads * counted**2)).mean()
            for of_student, of_teacher in pairs
        ]
        return torch.stack(terms).sum()


def attention_bound(
    student: Sequence[QueriesKeys], teacher: Sequence[QueriesKeys], attention_mask: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """Starts to compute the bound that `attention_loss` needs on the CPU, the only number that the losses need there.

    A GPU has no pause if other work is issued between this call and `attention_loss`.
    """
    with torch.autocast(attention_mask.device.type, enabled=False):
        real = attention_mask[:, None, :, None]  # (B, 1, T, 1)
        all_of_them = [*student, *teacher]
        return copy_to_cpu(torch.stack([_bound_of_scores(q.detach(), k.detach(), real) for q, k in all_of_them]).amax())


def _bound_of_scores(query: torch.Tensor, key: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """An upper bound of the magnitude of all scores of real keys, by the Cauchy-Schwarz inequality."""
    dtype = torch.promote_types(query.dtype, torch.float32)  # of the norms; no copy of Q and K in it
    of_query, of_key = (torch.linalg.vector_norm(x, dim=-1, dtype=dtype) for x in (query, key))  # (B, h, T)
    return of_query.amax() * (of_key * real[..., 0]).amax() / math.sqrt(query.shape[-1])


class _SumOfSquaresByGram(torch.autograd.Function):
    """The sums of squared differences between the scores, (B,), by Gram matrices. `real`: (B, 1, T, 1), 0 on padding.

    Only Q, K and the small Gram matrices are saved. The backward pass computes A and B again. The gradients of
    <A^T A, B^T B> are 2 A (B^T B) for A and 2 B (A^T A) for B; the student needs its own columns of them.

    A = A' D, with A' = [Q_s, Q_t] and a diagonal D of 1/sqrt(e_s) and -1/sqrt(e_t). D multiplies the Gram matrices, so
    that A' is made in one step from Q_s and Q_t.
    """

    @staticmethod
    def _unscaled_a_and_b(
        query_s: torch.Tensor,
        key_s: torch.Tensor,
        query_t: torch.Tensor,
        key_t: torch.Tensor,
        real: torch.Tensor,
        ignore_padding: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        a = torch.cat([query_s, query_t], dim=-1)  # (B, h, T, e_s + e_t)
        b = torch.cat([key_s, key_t], dim=-1) * real  # (B, h, T, e_s + e_t)
        # In float32: Gram matrices in half precision lose the gradient.
        return (a * real if ignore_padding else a).float(), b.float()

    @staticmethod
    def forward(ctx, query_s, key_s, query_t, key_t, real, ignore_padding):
        a, b = _SumOfSquaresByGram._unscaled_a_and_b(query_s, key_s, query_t, key_t, real, ignore_padding)
        e_s, e_t = query_s.shape[-1], query_t.shape[-1]
        scale = torch.cat([a.new_full((e_s,), 1 / math.sqrt(e_s)), a.new_full((e_t,), -1 / math.sqrt(e_t))])  # D
        scaled_gram_a = (a.transpose(-1, -2) @ a) * (scale[:, None] * scale)  # A^T A, (B, h, e_s + e_t, e_s + e_t)
        gram_b = b.transpose(-1, -2) @ b  # (B, h, e_s + e_t, e_s + e_t)
        ctx.save_for_backward(query_s, key_s, query_t, key_t, real, scaled_gram_a, gram_b, scale)
        ctx.ignore_padding = ignore_padding
        return (scaled_gram_a * gram_b).sum(dim=(1, 2, 3))

    @staticmethod
    def backward(ctx, grad):
        query_s, key_s, query_t, key_t, real, scaled_gram_a, gram_b, scale = ctx.saved_tensors
        a, b = _SumOfSquaresByGram._unscaled_a_and_b(query_s, key_s, query_t, key_t, real, ctx.ignore_padding)
        size = query_s.shape[-1]
        grad = 2.0 * grad[:, None, None, None]  # (B, 1, 1, 1)
        grad_query = a @ (gram_b[..., :size] * scale[:, None] * (grad / math.sqrt(size)))  # (B, h, T, e_s)
        grad_key = b @ (scaled_gram_a[..., :size] * grad)  # (B, h, T, e_s)
        return grad_query.to(query_s.dtype), grad_key.to(key_s.dtype), None, None, None, None


_sum_of_squares_by_gram = _SumOfSquaresByGram.apply


def _sum_of_squares_by_scores(
    query_s: torch.Tensor,
    key_s: torch.Tensor,
    query_t: torch.Tensor,
    key_t: torch.Tensor,
    real: torch.Tensor,
    ignore_padding: bool,
) -> torch.Tensor:
    """The same sums by the scores, as published."""
    mask = (1.0 - real.transpose(-1, -2).float()) * -10000.0  # (B, 1, 1, T)

    def scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        query = query.float() / math.sqrt(query.shape[-1])
        raw = query @ key.float().transpose(-1, -2) + mask  # (B, h, T, e) x (B, h, e, T) -> (B, h, T, T)
        return torch.where(raw <= SCORE_FLOOR, torch.zeros_like(raw), raw)

    difference = scores(query_s, key_s) - scores(query_t, key_t)  # (B, h, T, T)
    if ignore_padding:
        difference = difference * real
    return difference.square().sum(dim=(1, 2, 3))


def hidden_states_loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    fit_dense: torch.nn.Module,
    real: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over layer pairs of mean((fit_dense(H_s) - H_t)^2), H: (B, T, d_s) and (B, T, d_t). TinyBERT eq. 8 and 9.

    `fit_dense` is one linear map from d_s to d_t for all layers. `real` is the (B, T) attention mask if padding is
    ignored.
    """

    def mean_square(h_s: torch.Tensor, h_t: torch.Tensor) -> torch.Tensor:
        fitted, target = fit_dense(h_s).float(), h_t.float()
        if real is None:
            return F.mse_loss(fitted, target)
        of_tokens = (fitted - target).square().mean(dim=-1) * real  # (B, T)
        return (of_tokens.sum(dim=-1) / real.sum(dim=-1)).mean()

    return torch.stack([mean_square(h_s, h_t) for h_s, h_t in zip(student, teacher, strict=True)]).sum()


def soft_label_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """mean over batch AND classes of -softmax(z_t / temp) * log_softmax(z_s / temp), z: (B, 2). TinyBERT eq. 10.

    As published, there is no factor temp^2 (Hinton et al. 2015). The mean over classes halves the usual cross-entropy.
    """
    targets = torch.softmax(teacher_logits.float() / temperature, dim=-1)
    return (-targets * torch.log_softmax(student_logits.float() / temperature, dim=-1)).mean()


def margin_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    num_margins: torch.Tensor,
) -> torch.Tensor:
    """MarginMSE (Hofstaetter et al. 2020, arXiv 2010.02666): mean of ((s_i - s_j) - (t_i - t_j))^2.

    The sum is over all relevant i and not relevant j of the same query. The score of a pair is its log odds: the logit
    of relevant minus the logit of not relevant, z_1 - z_0, s of the student and t of the teacher. z: (B, 2); labels 0
    or 1 and numbers of queries: (B,). The sum is divided by `num_margins`, a float32 scalar.
    """
    difference = (student_logits.float() - teacher_logits.float()).diff(dim=-1)[:, 0]  # s - t, (B,)
    is_margin = (queries[:, None] == queries) & (labels[:, None] > labels)  # (B, B)
    return ((difference[:, None] - difference).square() * is_margin).sum() / num_margins


def hard_label_loss(student_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of (B, 2) logits against (B,) labels 0 or 1."""
    return F.cross_entropy(student_logits.float(), labels)
