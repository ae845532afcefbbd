"""FrozenRanker against BertRanker, which test_bert.py compares with transformers."""

import pytest
import torch
from tiny import STUDENT, TEACHER, TOKENS, random_weights, write_transformers

from modeling import frozen
from modeling.bert import BertConfig, BertRanker
from modeling.frozen import FrozenRanker
from modeling.model_files import load_ranker
from runtime.device import DeviceError, choose_precision

T = 13
LENGTHS = [13, 3, 8, 5, 8]


@pytest.fixture(scope="module", params=["none", "relu"])
def ranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BertRanker:
    directory = tmp_path_factory.mktemp("model") / "m"
    write_transformers(directory, TEACHER, random_weights(TEACHER, seed=3), pooled_activation=request.param)
    return load_ranker(directory)[0].eval().requires_grad_(False)


def batch(lengths: list[int] = LENGTHS, width: int = T) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, len(TOKENS), mask.shape, generator=generator) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": (torch.arange(width) > 4).long() * mask,
    }


def in_float64(ranker: BertRanker) -> BertRanker:
    copy = BertRanker(ranker.config, ranker.pooled_activation).double().eval().requires_grad_(False)
    copy.load_state_dict(ranker.state_dict())
    return copy


def test_logits_in_float64(ranker: BertRanker) -> None:
    reference = in_float64(ranker)
    for lengths in (LENGTHS, [T] * 4, [2], [T]):
        inputs = batch(lengths)
        expected = reference(**inputs).logits
        found = FrozenRanker(reference)(**inputs)
        assert found.logits.dtype == torch.float64
        assert (found.hidden_states, found.queries_keys) == ({}, {})
        torch.testing.assert_close(found.logits, expected, rtol=1e-12, atol=1e-12)


def test_padding_changes_nothing(ranker: BertRanker) -> None:
    model = FrozenRanker(in_float64(ranker))
    together = model(**batch()).logits
    for row, length in enumerate(LENGTHS):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch().items()}
        torch.testing.assert_close(model(**alone).logits, together[row : row + 1], rtol=1e-12, atol=1e-12)


def test_states_for_a_loss_are_returned_with_their_padding(ranker: BertRanker) -> None:
    reference = in_float64(ranker)
    layers = {"hidden_states_of": [0, 2, TEACHER.layers], "queries_keys_of": [1, TEACHER.layers]}
    expected = reference(**batch(), **layers)
    found = FrozenRanker(reference)(**batch(), **layers)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-12, atol=1e-12)
    assert set(found.hidden_states) == {0, 2, TEACHER.layers}
    assert set(found.queries_keys) == {1, TEACHER.layers}
    for layer, states in found.hidden_states.items():
        assert states.shape == (len(LENGTHS), T, TEACHER.hidden)
        torch.testing.assert_close(states, expected.hidden_states[layer], rtol=1e-11, atol=1e-11)
    for layer, pair in found.queries_keys.items():
        for one, other in zip(pair, expected.queries_keys[layer], strict=True):
            assert one.shape == (len(LENGTHS), TEACHER.heads, T, TEACHER.hidden // TEACHER.heads)
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.1), ("int8", 0.25)])
def test_other_precisions_are_close(ranker: BertRanker, precision: str, tolerance: float) -> None:
    expected = in_float64(ranker)(**batch()).logits
    assert expected.std() > 2 * tolerance
    found = FrozenRanker(ranker, precision)(**batch()).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    assert not torch.equal(found.double(), expected)


def test_autocast_around_it_changes_nothing(ranker: BertRanker) -> None:
    model = FrozenRanker(ranker, "bf16")
    expected = model(**batch(), hidden_states_of=[0, TEACHER.layers])
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**batch(), hidden_states_of=[0, TEACHER.layers])
    assert found.logits.dtype == torch.float32
    assert torch.equal(found.logits, expected.logits)
    for layer, states in expected.hidden_states.items():
        assert torch.equal(found.hidden_states[layer], states)


def test_without_pre_packed_weights(ranker: BertRanker, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = FrozenRanker(ranker, "bf16")(**batch()).logits
    monkeypatch.setattr(frozen, "multiplies_bfloat16", lambda: False)
    torch.testing.assert_close(FrozenRanker(ranker, "bf16")(**batch()).logits, expected, rtol=0, atol=0.1)


def test_the_ranker_can_change_afterwards() -> None:
    ranker = BertRanker(student_config()).eval()
    model = FrozenRanker(ranker, "fp32")
    before = model(**batch()).logits
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.zero_()
    assert torch.equal(model(**batch()).logits, before)


def student_config() -> BertConfig:
    return BertConfig(
        vocab_size=STUDENT.vocabulary,
        hidden_size=STUDENT.hidden,
        num_hidden_layers=STUDENT.layers,
        num_attention_heads=STUDENT.heads,
        intermediate_size=STUDENT.intermediate,
        max_position_embeddings=STUDENT.positions,
    )


def test_precisions_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    for multiplies, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("runtime.device.multiplies_bfloat16", lambda multiplies=multiplies: multiplies)
        assert choose_precision("auto", False, cpu) == expected
        assert choose_precision("fp32", True, cpu) == "bf16"
    assert choose_precision("auto", False, gpu) == choose_precision("fp32", True, gpu) == "fp16"
    assert [choose_precision(name, False, gpu) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    assert [choose_precision(name, False, cpu) for name in ("fp32", "bf16", "int8")] == ["fp32", "bf16", "int8"]
    with pytest.raises(DeviceError, match="--precision fp16: needs a GPU"):
        choose_precision("fp16", False, cpu)
    with pytest.raises(DeviceError, match="--precision int8: needs a CPU"):
        choose_precision("int8", False, gpu)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 0.02), ("bf16", 0.1)])
def test_on_a_gpu(ranker: BertRanker, precision: str, tolerance: float) -> None:
    reference = in_float64(ranker)
    moved = BertRanker(ranker.config, ranker.pooled_activation).cuda().eval()
    moved.load_state_dict(ranker.state_dict())
    model = FrozenRanker(moved, precision)
    layers = {"hidden_states_of": [2], "queries_keys_of": [TEACHER.layers]}
    for lengths in (LENGTHS, [T] * 4):
        expected = reference(**batch(lengths), **layers)
        for more in ({}, layers):
            found = model(**batch(lengths), **more)
            torch.testing.assert_close(found.logits.double().cpu(), expected.logits, rtol=0, atol=tolerance)
        states = found.hidden_states[2].double().cpu()
        torch.testing.assert_close(states, expected.hidden_states[2], rtol=0.05, atol=10 * tolerance)
