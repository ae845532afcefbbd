"""BertAdam against its formula."""

import math

import pytest
import torch

from benchmarks import reference
from training.optimizer import BertAdam, decay_groups, warmup_linear

SHAPES = {
    "layer.dense.weight": (5, 3),
    "layer.dense.bias": (5,),
    "layer.LayerNorm.weight": (7,),
    "layer.LayerNorm.bias": (7,),
    "scalar.weight": (1,),
    "unused.weight": (2, 2),
}


def random_parameters(seed: int = 0) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in SHAPES.items()
    }


def test_warmup_linear_by_hand() -> None:
    assert [warmup_linear(x, 0.25) for x in (0.0, 0.125, 0.25, 0.625, 1.0, 1.5)] == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    assert [warmup_linear(x, 0.0) for x in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    # continuous, and never negative
    assert warmup_linear(0.1 - 1e-12, 0.1) == pytest.approx(1.0)
    assert all(0.0 <= warmup_linear(step / 97, 0.1) <= 1.0 for step in range(120))


@pytest.mark.parametrize(("lr", "warmup", "decay"), [(0.1, 0.1, 0.01), (1e-3, 0.0, 0.3), (0.5, 0.5, 0.0)])
def test_thirty_steps_agree_with_the_reference_implementation(lr: float, warmup: float, decay: float) -> None:
    found, expected = random_parameters(), random_parameters()
    optimizer = BertAdam(decay_groups(found.items(), decay), lr=lr, total_steps=25, warmup=warmup)
    state: dict = {}
    generator = torch.Generator().manual_seed(1)
    for step in range(30):  # the last five steps have a learning rate of 0
        for name, shape in SHAPES.items():
            if name == "unused.weight":
                continue
            gradient = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (step % 7 - 3)
            found[name].grad, expected[name].grad = gradient.clone(), gradient.clone()
        assert optimizer.learning_rate() == lr * warmup_linear(step / 25, warmup)
        optimizer.step()
        reference.bert_adam_step(expected, state, step, 25, lr, warmup, decay)
        for name in SHAPES:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)
    assert torch.equal(found["unused.weight"], random_parameters()["unused.weight"])
    assert not torch.equal(found["layer.dense.weight"], random_parameters()["layer.dense.weight"])


def test_the_second_step_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    optimizer = BertAdam([weight], lr=0.1, total_steps=4, warmup=0.5, weight_decay=0.01)
    weight.grad = torch.tensor([0.3, -0.4], dtype=torch.float64)  # its norm is 0.5, so it is not clipped
    optimizer.step()
    assert weight.tolist() == [2.0, -1.0]  # the learning rate was 0
    weight.grad = torch.tensor([0.0, 0.4], dtype=torch.float64)
    optimizer.step()
    m = [0.9 * 0.03, 0.9 * -0.04 + 0.04]
    v = [0.999 * 0.001 * 0.09, 0.999 * 0.001 * 0.16 + 0.001 * 0.16]
    expected = [
        p - 0.05 * (m_i / (math.sqrt(v_i) + 1e-6) + 0.01 * p) for p, m_i, v_i in zip([2.0, -1.0], m, v, strict=True)
    ]
    assert weight.tolist() == pytest.approx(expected, rel=1e-12)


def test_each_tensor_is_clipped_on_its_own() -> None:
    large, small = (torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    optimizer = BertAdam([large, small], lr=1.0, total_steps=10, warmup=0.0, weight_decay=0.0)
    large.grad = torch.tensor([30.0, 40.0], dtype=torch.float64)
    small.grad = torch.tensor([0.03, 0.04], dtype=torch.float64)
    optimizer.step()
    assert optimizer.state[large]["m"].tolist() == pytest.approx([0.06, 0.08], rel=1e-6)
    assert optimizer.state[small]["m"].tolist() == pytest.approx([0.003, 0.004], rel=1e-12)


def test_no_bias_correction() -> None:
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = BertAdam([weight], lr=1.0, total_steps=10, warmup=0.0, weight_decay=0.0)
    weight.grad = torch.tensor([0.5], dtype=torch.float64)
    optimizer.step()
    # 0.05 / sqrt(0.00025), where Adam with bias correction would make a step of 1
    assert weight.item() == pytest.approx(-0.05 / (math.sqrt(0.00025) + 1e-6), rel=1e-12)


def test_biases_and_layer_norm_do_not_decay() -> None:
    parameters = random_parameters()
    groups = decay_groups(parameters.items(), 0.01)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in parameters.items()} == {
        "layer.dense.weight": 0.01,
        "layer.dense.bias": 0.0,
        "layer.LayerNorm.weight": 0.0,
        "layer.LayerNorm.bias": 0.0,
        "scalar.weight": 0.01,
        "unused.weight": 0.01,
    }
    optimizer = BertAdam(groups, lr=1.0, total_steps=10, warmup=0.0)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, before in random_parameters().items():
        kept = 0.99 if decays[id(parameters[name])] else 1.0
        torch.testing.assert_close(parameters[name], before * kept, rtol=1e-12, atol=0)


def test_a_step_that_the_scaler_skips_is_not_counted() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = BertAdam([weight], lr=0.1, total_steps=4, warmup=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    steps = []
    for gradient in ([1.0, 1.0], [math.inf, 1.0], [math.nan, 0.0], [1.0, 1.0]):
        before = weight.detach().clone()
        scaler.scale((weight * torch.tensor(gradient)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        steps.append([group["step"] for group in optimizer.param_groups])
        if not all(map(math.isfinite, gradient)):
            assert torch.equal(weight.detach(), before)
    assert steps == [[1], [1], [1], [2]]
    assert torch.isfinite(weight).all()
    assert weight.tolist() != [1.0, 2.0]
    assert optimizer.learning_rate() == pytest.approx(0.1)


def test_the_state_survives_a_round_trip() -> None:
    runs = []
    for interrupted in (False, True):
        parameters = random_parameters()
        optimizer = BertAdam(decay_groups(parameters.items(), 0.01), lr=0.1, total_steps=9)
        for step in range(6):
            if interrupted and step == 3:
                saved = optimizer.state_dict()
                optimizer = BertAdam(decay_groups(parameters.items(), 0.01), lr=0.1, total_steps=9)
                optimizer.load_state_dict(saved)
            for parameter in parameters.values():
                parameter.grad = torch.full_like(parameter, 0.1 * (step + 1))
            optimizer.step()
        runs.append(parameters)
    for name in SHAPES:
        assert torch.equal(runs[0][name], runs[1][name])


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"total_steps": 0}, {"warmup": 1.0}, {"warmup": -0.1}])
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="needs lr >= 0"):
        BertAdam([torch.nn.Parameter(torch.zeros(1))], **({"lr": 0.1, "total_steps": 5} | settings))
