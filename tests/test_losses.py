"""The published losses: computed by hand, and compared with their direct form."""

import argparse
import math

import pytest
import torch
from tiny import (
    MAX_SEQ_LENGTH,
    STUDENT,
    TEACHER,
    student_weights,
    teacher_weights,
    write_published,
    write_tiny_features,
)

from benchmarks import reference
from distill import METHODS, distillation_losses
from formats.features import Features
from modeling import losses
from modeling.general_student import make_fit_dense
from modeling.losses import attention_loss, hard_label_loss, hidden_states_loss, soft_label_loss, teacher_layers
from modeling.model_files import load_ranker
from training.flags import set_weights
from training.inputs import Models
from training.precision import Precision
from training.terms import LOSSES, TERMS

BATCH, HEADS, TOKENS, STUDENT_HEAD, TEACHER_HEAD = 2, 3, 5, 4, 7
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def random_queries_keys(seed: int, head_size: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, HEADS, TOKENS, head_size)
    return tuple(
        (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).requires_grad_() for _ in range(2)
    )


def published_attention_loss(
    student: list, teacher: list, mask: torch.Tensor, ignore_padding: bool = False
) -> torch.Tensor:
    """The published form, from the attention scores, in float64. `ignore_padding` cuts each example to its length."""
    if ignore_padding:
        total = torch.zeros((), dtype=torch.float64)
        for i, length in enumerate(mask.sum(dim=-1).tolist()):
            cut = [[tuple(x[i : i + 1, :, :length] for x in pair) for pair in side] for side in (student, teacher)]
            total = total + published_attention_loss(*cut, mask[i : i + 1, :length])
        return total / len(mask)
    total = torch.zeros((), dtype=torch.float64)
    for (query_s, key_s), (query_t, key_t) in zip(student, teacher, strict=True):
        scores = []
        for query, key in ((query_s, key_s), (query_t, key_t)):
            raw = torch.einsum("bhie,bhje->bhij", query, key) / math.sqrt(query.shape[-1])
            raw = raw + (1.0 - mask.double())[:, None, None, :] * -10000.0
            scores.append(torch.where(raw <= -100.0, torch.zeros_like(raw), raw))
        total = total + ((scores[0] - scores[1]) ** 2).sum() / scores[0].numel()
    return total


def test_teacher_layers_by_hand() -> None:
    assert teacher_layers(3, 12) == [0, 4, 8, 12]
    assert teacher_layers(6, 12) == [0, 2, 4, 6, 8, 10, 12]
    assert teacher_layers(4, 4) == [0, 1, 2, 3, 4]
    for student, teacher in ((5, 12), (12, 6), (4, 6)):
        with pytest.raises(ValueError, match=f"{student} layers does not divide a teacher of {teacher}"):
            teacher_layers(student, teacher)


def test_attention_loss_by_hand() -> None:
    # one head, two tokens, student heads of size 1, teacher heads of size 4: scores q k / 1 and q k / 2
    student = (torch.tensor([[[[1.0], [2.0]]]]), torch.tensor([[[[3.0], [5.0]]]]))  # [[3, 5], [6, 10]]
    query = torch.tensor([[[[2.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0]]]])
    key = torch.tensor([[[[1.0, 1.0, 9.0, 9.0], [3.0, 2.0, 9.0, 9.0]]]])  # [[1, 3], [2, 4]]
    both = torch.tensor([[1, 1]])
    assert attention_loss([student], [(query, key)], both).item() == pytest.approx((4 + 4 + 16 + 36) / 4)
    # with twice the layers the sum is twice as large
    assert attention_loss([student] * 2, [(query, key)] * 2, both).item() == pytest.approx(2 * (4 + 4 + 16 + 36) / 4)
    # the scores of a padded key count 0, those of a padded query count; the mean is over all four
    padded = torch.tensor([[1, 0]])
    assert attention_loss([student], [(query, key)], padded).item() == pytest.approx((4 + 16) / 4)


def test_attention_loss_is_zero_with_a_zero_gradient_where_the_scores_agree() -> None:
    query, key = (tensor.detach().requires_grad_() for tensor in random_queries_keys(0, STUDENT_HEAD))
    loss = attention_loss([(query, key)], [(query.detach(), key.detach())], MASK)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    loss.backward()
    assert query.grad.abs().max() < 1e-5


@pytest.mark.parametrize("ignore_padding", [False, True], ids=["padding", "no padding"])
@pytest.mark.parametrize("form", ["gram", "scores"])
def test_both_forms_agree_with_the_published_one_in_float64(
    form: str, ignore_padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = [random_queries_keys(seed, STUDENT_HEAD) for seed in (1, 2)]
    teacher = [random_queries_keys(seed, TEACHER_HEAD) for seed in (3, 4)]
    expected = published_attention_loss(student, teacher, MASK, ignore_padding)
    flat = [tensor for pair in student for tensor in pair]
    expected_gradients = torch.autograd.grad(expected, flat)

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # so that all is computed in float64
    if form == "scores":
        monkeypatch.setattr(losses, "_sum_of_squares_by_gram", losses._sum_of_squares_by_scores)
    found = attention_loss(student, teacher, MASK, ignore_padding)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for gradient, expected_gradient in zip(torch.autograd.grad(found, flat), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-13)


def test_attention_loss_in_float32_agrees_loosely() -> None:
    student, teacher = [random_queries_keys(1, STUDENT_HEAD)], [random_queries_keys(3, TEACHER_HEAD)]
    expected = published_attention_loss(student, teacher, MASK)
    expected_gradients = torch.autograd.grad(expected, student[0])
    found = attention_loss(student, teacher, MASK)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, expected_gradient in zip(torch.autograd.grad(found, student[0]), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def counted_forms(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    taken: list[str] = []
    for name in ("_sum_of_squares_by_gram", "_sum_of_squares_by_scores"):
        form = getattr(losses, name)
        monkeypatch.setattr(losses, name, lambda *args, name=name, form=form: (taken.append(name), form(*args))[1])
    return taken


def test_ordinary_scores_take_the_gram_form(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = counted_forms(monkeypatch)
    attention_loss([random_queries_keys(1, STUDENT_HEAD)], [random_queries_keys(3, TEACHER_HEAD)], MASK)
    assert taken == ["_sum_of_squares_by_gram"]


@pytest.mark.parametrize("large_side", ["student", "teacher"])
def test_real_scores_below_the_floor_are_clipped_as_published(large_side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = counted_forms(monkeypatch)
    scales = {"student": 1.0, "teacher": 1.0} | {large_side: 12.0}
    student = [random_queries_keys(1, STUDENT_HEAD), random_queries_keys(2, STUDENT_HEAD, scales["student"])]
    teacher = [random_queries_keys(3, TEACHER_HEAD), random_queries_keys(4, TEACHER_HEAD, scales["teacher"])]
    raw = [q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) for q, k in (student[1], teacher[1])]
    assert min(scores[0].min().item() for scores in raw) < -100
    expected = published_attention_loss(student, teacher, MASK)
    found = attention_loss(student, teacher, MASK)
    assert set(taken) == {"_sum_of_squares_by_scores"}
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    flat = [tensor for pair in student for tensor in pair]
    for gradient, wanted in zip(torch.autograd.grad(found, flat), torch.autograd.grad(expected, flat), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_a_score_of_exactly_the_floor_counts_zero() -> None:
    one = torch.ones(1, 1, 1, 1)
    for score, counted in ((-100.0, 0.0), (-99.0, -99.0), (-101.0, 0.0), (150.0, 150.0)):
        loss = attention_loss([(one * score, one)], [(one, one)], torch.tensor([[1]]))
        assert loss.item() == pytest.approx((counted - 1.0) ** 2)


def test_large_values_in_padded_keys_change_nothing() -> None:
    student, teacher = [random_queries_keys(1, STUDENT_HEAD)], [random_queries_keys(3, TEACHER_HEAD)]
    expected = attention_loss(student, teacher, MASK).item()
    with torch.no_grad():
        student[0][1][1, :, 3:] = 700.0
        teacher[0][1][1, :, 3:] = -700.0
    assert attention_loss(student, teacher, MASK).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("teacher_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_half_precision_inputs_are_upcast_once(teacher_dtype: torch.dtype) -> None:
    student, teacher = [random_queries_keys(1, STUDENT_HEAD)], [random_queries_keys(3, TEACHER_HEAD)]
    halves = [tuple(x.detach().bfloat16().requires_grad_() for x in pair) for pair in student]
    of_teacher = [tuple(x.detach().to(teacher_dtype) for x in pair) for pair in teacher]
    exact = [tuple(x.detach().double().requires_grad_() for x in pair) for pair in halves]
    expected = published_attention_loss(exact, [tuple(x.double() for x in pair) for pair in of_teacher], MASK)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_loss(halves, of_teacher, MASK)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, exact_gradient in zip(
        torch.autograd.grad(found, halves[0]), torch.autograd.grad(expected, exact[0]), strict=True
    ):
        assert gradient.dtype == torch.bfloat16  # rounded once, at the end
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2**-8, atol=1e-6)


def test_hidden_states_loss_by_hand() -> None:
    fit_dense = torch.nn.Linear(1, 2)
    with torch.no_grad():
        fit_dense.weight.copy_(torch.tensor([[1.0], [2.0]]))
        fit_dense.bias.copy_(torch.tensor([0.5, 0.0]))
    student = [torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[0.0], [1.0]]])]  # mapped: 1.5 2, 2.5 4; 0.5 0, 1.5 2
    teacher = [torch.zeros(1, 2, 2), torch.tensor([[[0.5, 1.0], [1.5, 4.0]]])]
    expected = (1.5**2 + 2**2 + 2.5**2 + 4**2) / 4 + (0 + 1 + 0 + 4) / 4
    assert hidden_states_loss(student, teacher, fit_dense).item() == pytest.approx(expected)
    # without the second token, a padded one
    expected = (1.5**2 + 2**2) / 2 + (0 + 1) / 2
    real = torch.tensor([[1, 0]])
    assert hidden_states_loss(student, teacher, fit_dense, real).item() == pytest.approx(expected)
    # every example has the same weight, short or long
    student, teacher = student[:1] * 2, teacher[:1] * 2
    both = [torch.cat([x, x]) for x in student], [torch.cat([x, x]) for x in teacher]
    real = torch.tensor([[1, 0], [1, 1]])
    halves = (1.5**2 + 2**2) / 2, (1.5**2 + 2**2 + 2.5**2 + 4**2) / 4
    assert hidden_states_loss(*both, fit_dense, real).item() == pytest.approx(2 * sum(halves) / 2)


def test_soft_label_loss_by_hand() -> None:
    # teacher probabilities 3/4 and 1/4 at temperature 2; student 1/2 and 1/2: mean over 2 classes of t * log 2
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    assert soft_label_loss(torch.zeros(1, 2), teacher, 2.0).item() == pytest.approx(math.log(2.0) / 2)
    # student at temperature 2: 1/5 and 4/5; no factor of temperature squared
    student = torch.tensor([[0.0, 2 * math.log(4.0)]])
    expected = -(3 / 4 * math.log(1 / 5) + 1 / 4 * math.log(4 / 5)) / 2
    assert soft_label_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)
    # the mean is over the batch as well
    both = soft_label_loss(torch.cat([student, torch.zeros(1, 2)]), torch.cat([teacher, teacher]), 2.0)
    assert both.item() == pytest.approx((expected + math.log(2.0) / 2) / 2, rel=1e-6)


def test_hard_label_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    assert hard_label_loss(logits, torch.tensor([1, 0])).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert hard_label_loss(logits, torch.tensor([0, 0])).item() == pytest.approx((math.log(4) + math.log(2)) / 2)


@pytest.mark.parametrize("pooled_activation", ["none", "relu"])
@pytest.mark.parametrize(
    ("distill_model", "alpha", "temperature"),
    [("standard", 0.5, 1.0), ("standard", 0.3, 2.0), ("simplified", 0.5, 1.0), ("simplified", 0.5, 4.0),
     ("intermediate", 0.5, 1.0), ("prediction", 0.5, 2.0), ("hard", 0.5, 1.0)],
)  # fmt: skip
def test_losses_and_all_gradients_agree_with_the_reference_implementation(
    tmp_path, distill_model: str, alpha: float, temperature: float, pooled_activation: str
) -> None:
    write_published(tmp_path / "teacher", TEACHER, teacher_weights())
    write_published(tmp_path / "student", STUDENT, student_weights())
    features = Features(write_tiny_features(tmp_path / "f", count=7))
    batch = {name: torch.from_numpy(a) for name, a in features.batch(range(7), MAX_SEQ_LENGTH).items()}
    assert (batch["attention_mask"] == 0).any()  # some padding

    student, saved = load_ranker(tmp_path / "student", pooled_activation)
    teacher = None if distill_model == "hard" else load_ranker(tmp_path / "teacher", pooled_activation)[0]
    fit_dense = make_fit_dense(STUDENT.hidden, TEACHER.hidden, saved, 0, 0.02)
    weights = {f"{term.name}_weight": None for term in TERMS}
    settings = argparse.Namespace(
        distill_model=distill_model, alpha=alpha, temperature=temperature, ignore_padding=False,
        **weights,
    )  # fmt: skip
    set_weights(settings, METHODS)
    layer_map = [0, 2, 4, 6] if distill_model in ("simplified", "intermediate") else []
    models = Models(student, teacher, fit_dense, layer_map, [])
    found = distillation_losses(settings, models, batch, Precision("fp32", torch.device("cpu")))
    assert list(found) == list(LOSSES)
    found["loss"].backward()

    weights = {name: tensor.double().requires_grad_() for name, tensor in student_weights().items()}
    target = {name: tensor.double() for name, tensor in teacher_weights().items()}
    expected = reference.losses(
        distill_model, weights, target, STUDENT.heads, batch, pooled_activation, alpha=alpha, temperature=temperature
    )
    expected["loss"].backward()
    for name in LOSSES:
        wanted = expected[name].item() if name in expected else 0.0  # a term that is not published
        assert found[name].item() == pytest.approx(wanted, rel=1e-5), name
    gradients = {name: p.grad for name, p in student.named_parameters()}
    gradients |= {f"fit_dense.{name}": p.grad for name, p in fit_dense.named_parameters()}
    assert gradients.keys() == weights.keys()
    for name, weight in weights.items():
        wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
        gradient = torch.zeros_like(wanted) if gradients[name] is None else gradients[name].double()
        assert (gradient - wanted).norm() <= 1e-4 * wanted.norm() + 1e-7, name
