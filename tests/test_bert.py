"""BertRanker against transformers' BERT, in float64."""

import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from tiny import ONE_THREAD, ROOT, STUDENT, student_weights, write_published

from modeling.activations import ACTIVATIONS, activation
from modeling.bert import BertConfig, BertRanker

B, T, HEADS, HEAD_SIZE, INTERMEDIATE, POSITIONS, VOCABULARY, SEGMENTS = 5, 11, 3, 4, 28, 17, 37, 2
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
MASKS = {
    "padded": (torch.arange(T) < torch.tensor([11, 1, 7, 4, 10])[:, None]).long(),
    "full": torch.ones(B, T, dtype=torch.int64),
    "holes": torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0]).repeat(B, 1),
}


def config(layers: int = 3, **settings) -> BertConfig:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HEADS * HEAD_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": SEGMENTS,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**sizes | settings)


def pair(settings: BertConfig, pooled_activation: str = "none", attention: str = "eager"):
    """A ranker, and transformers' model of the same weights; both in float64."""
    from transformers import BertConfig as TransformersConfig
    from transformers import BertForSequenceClassification

    reference = BertForSequenceClassification(
        TransformersConfig(**asdict(settings), num_labels=2, classifier_dropout=0.0, attn_implementation=attention)
    ).double()
    generator = torch.Generator().manual_seed(settings.num_hidden_layers)
    weights = {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.3
        + (1.0 if name.endswith("LayerNorm.weight") else 0.0)
        for name, tensor in reference.state_dict().items()
    }
    reference.load_state_dict(weights)
    ranker = BertRanker(settings, pooled_activation).double()
    ranker.load_state_dict(weights)
    return ranker, reference


def inputs(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(VOCABULARY, (B, T), generator=generator),  # with [PAD], also where the mask is 1
        "attention_mask": mask,
        "token_type_ids": torch.randint(SEGMENTS, (B, T), generator=generator),
    }


def reference_logits(reference: torch.nn.Module, encoded, pooled_activation: str) -> torch.Tensor:
    pooled = encoded.pooler_output.relu() if pooled_activation == "relu" else encoded.pooler_output
    return reference.classifier(pooled)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pooled_activation", ["none", "relu"])
@pytest.mark.parametrize("layers", [1, 2, 3, 5, 12])
def test_logits_states_and_gradients_are_those_of_transformers(
    layers: int, pooled_activation: str, mask: str, mode: str
) -> None:
    ranker, reference = (model.train(mode == "train") for model in pair(config(layers), pooled_activation))
    batch = inputs(MASKS[mask])
    numbers = range(1, layers + 1)
    found = ranker(**batch, hidden_states_of=range(layers + 1), queries_keys_of=numbers)
    encoded = reference.bert(**batch, output_hidden_states=True)
    expected = reference_logits(reference, encoded, pooled_activation)

    assert found.logits.dtype == torch.float64 and found.logits.shape == (B, 2)
    torch.testing.assert_close(found.logits, expected, **CLOSE)
    assert list(found.hidden_states) == list(range(layers + 1)) and list(found.queries_keys) == list(numbers)
    for one, other in zip(found.hidden_states.values(), encoded.hidden_states, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    for number in numbers:
        attention = reference.bert.encoder.layer[number - 1].attention.self
        for one, linear in zip(found.queries_keys[number], (attention.query, attention.key), strict=True):
            other = linear(encoded.hidden_states[number - 1]).reshape(B, T, HEADS, HEAD_SIZE).permute(0, 2, 1, 3)
            torch.testing.assert_close(one, other, **CLOSE)

    direction = torch.randn(B, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found.logits.backward(direction)
    expected.backward(direction)
    wanted = gradients(reference)
    assert gradients(ranker).keys() == wanted.keys()
    for name, gradient in gradients(ranker).items():
        torch.testing.assert_close(gradient, wanted[name], **CLOSE, msg=name)
    assert wanted["bert.embeddings.word_embeddings.weight"][0].abs().max() == 0  # of [PAD]


def test_bert_for_sequence_classification_has_the_same_logits() -> None:
    ranker, reference = (model.eval() for model in pair(config()))
    batch = inputs(MASKS["padded"])
    torch.testing.assert_close(ranker(**batch).logits, reference(**batch).logits, **CLOSE)


@pytest.mark.parametrize(
    ("mask", "dropout"),
    [
        ("padded", {"hidden_dropout_prob": 0.25}),
        ("full", {"hidden_dropout_prob": 0.25}),
        ("holes", {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.125}),
    ],
)
def test_dropout_is_at_the_places_and_in_the_order_of_transformers(mask: str, dropout: dict[str, float]) -> None:
    ranker, reference = (model.train() for model in pair(config(**dropout), attention="sdpa"))
    batch = inputs(MASKS[mask])
    torch.manual_seed(5)
    found = ranker(**batch).logits
    torch.manual_seed(5)
    torch.testing.assert_close(found, reference(**batch).logits, **CLOSE)
    assert not torch.equal(found, ranker(**batch).logits)


def test_attention_dropout_is_on_in_training_alone() -> None:
    ranker, _ = pair(config(attention_probs_dropout_prob=0.5))
    batch = inputs(MASKS["padded"])
    assert not torch.equal(ranker.train()(**batch).logits, ranker(**batch).logits)
    assert torch.equal(ranker.eval()(**batch).logits, ranker(**batch).logits)


def test_a_batch_without_padding_needs_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    attend = F.scaled_dot_product_attention

    def recorded(query, key, value, mask, *args, **settings) -> torch.Tensor:
        masks.append(mask)
        return attend(query, key, value, mask, *args, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    ranker = BertRanker(config()).eval()
    ranker(**inputs(MASKS["full"]))
    assert masks == [None] * 3
    ranker(**inputs(MASKS["padded"]))
    assert all(torch.equal(mask[:, 0, 0], MASKS["padded"].bool()) for mask in masks[3:])
    ranker.train()(**inputs(MASKS["padded"]))  # attention_without_padding
    assert len(masks) == 6


def test_autocast() -> None:
    ranker, _ = pair(config())
    batch = inputs(MASKS["padded"])
    expected = ranker.eval()(**batch).logits
    ranker = ranker.float()
    for training in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            found = ranker.train(training)(**batch, hidden_states_of=[3], queries_keys_of=[2])
        assert found.logits.dtype == torch.float32
        assert {x.dtype for x in found.queries_keys[2]} == {torch.bfloat16}
        torch.testing.assert_close(found.logits.double(), expected, rtol=0, atol=0.1)


def test_config_defaults_are_those_of_transformers() -> None:
    from transformers import BertConfig as TransformersConfig

    reference = TransformersConfig()
    assert asdict(BertConfig()) == {name: getattr(reference, name) for name in asdict(BertConfig())}


def test_parameters_have_the_names_the_order_and_the_shapes_of_transformers() -> None:
    settings = config(pad_token_id=None)
    ranker, reference = pair(settings)
    shapes = [[(name, tensor.shape) for name, tensor in model.state_dict().items()] for model in (ranker, reference)]
    assert shapes[0] == shapes[1]
    assert [name for name, _ in ranker.named_parameters()] == [name for name, _ in shapes[0]]
    assert list(ranker.buffers()) == []  # so a model from the device `meta` needs its parameters alone


def test_a_new_ranker_has_initial_values() -> None:
    torch.manual_seed(3)
    ranker = BertRanker(config(hidden_size=240, initializer_range=0.05, pad_token_id=2))
    weights = ranker.state_dict()
    assert weights["bert.embeddings.word_embeddings.weight"][2].abs().max() == 0
    for name, tensor in weights.items():
        if name.endswith("LayerNorm.weight"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif tensor.ndim == 1:
            assert torch.equal(tensor, torch.zeros_like(tensor)), name
        else:
            assert 0.04 < tensor.std() < 0.06 and tensor.mean().abs() < 0.01, name


def test_a_ranker_on_the_device_meta_takes_no_random_numbers() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        ranker = BertRanker(config())
    assert {tensor.device.type for tensor in ranker.state_dict().values()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_activations_are_those_of_transformers(dtype: torch.dtype) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-9, 9, 1001, dtype=dtype)
    for name, function in ACTIVATIONS.items():
        assert activation(name) is function
        assert torch.equal(function(x), ACT2FN[name](x)), name


def test_rarer_activations_come_from_transformers() -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-9, 9, 1001)
    rarer = set(ACT2FN) - set(ACTIVATIONS) - {"xielu"}  # which takes bfloat16 alone
    assert {"gelu_python", "gelu_10", "prelu"} < rarer
    for name in rarer:
        assert torch.equal(activation(name)(x), ACT2FN[name](x)), name
    ranker, reference = (model.eval() for model in pair(config(hidden_act="prelu")))  # it has a parameter
    assert list(ranker.state_dict()) == list(reference.state_dict())
    batch = inputs(MASKS["padded"])
    torch.testing.assert_close(ranker(**batch).logits, reference(**batch).logits, **CLOSE)


def test_settings_that_make_no_model_are_refused() -> None:
    for settings, message in (
        ({"hidden_size": 13}, "hidden_size 13 is not a multiple of the 3 attention heads"),
        ({"hidden_act": "gelo"}, "hidden_act 'gelo' is not a known activation; gelu, gelu_new, .* are"),
    ):
        with pytest.raises(ValueError, match=message):
            BertRanker(config(**settings))
    with pytest.raises(ValueError, match="pooled_activation 'tanh' is none of none, relu"):
        BertRanker(config(), "tanh")


def test_transformers_is_not_imported(tmp_path) -> None:
    directory = write_published(tmp_path / "m", STUDENT, student_weights())
    code = f"""
import sys
import modeling.frozen, modeling.general_student, modeling.losses, modeling.scoring
import torch
from modeling.model_files import load_ranker
ids = torch.ones(1, 3, dtype=torch.int64)
load_ranker({str(directory)!r})[0](ids, ids, ids)
print([name for name in ("transformers", "formats") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Each child is a process in which nothing has called tanh before: torch is imported and unused when it starts.
FIRST_TANH = """
import os, sys
import torch
for _ in range(int(sys.argv[1])):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    status = 1
    try:
        import modeling.bert
        torch.manual_seed(0)
        x = torch.randn(16, 384)
        status = int(not torch.equal(torch.tanh(x), torch.tanh(x)))
    finally:
        os._exit(status)
"""


@pytest.mark.slow
def test_the_first_tanh_of_a_process_is_exact() -> None:
    environment = {**ONE_THREAD, "OMP_NUM_THREADS": "2"}
    for _ in range(3):
        command = [sys.executable, "-c", FIRST_TANH, "20"]
        assert subprocess.run(command, cwd=ROOT, env=environment, timeout=300, check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.parametrize("mask", MASKS)
def test_on_a_gpu(mask: str) -> None:
    ranker, _ = (model.train() for model in pair(config()))
    batch = inputs(MASKS[mask])
    expected = ranker(**batch).logits
    expected.sum().backward()
    wanted = {name: gradient.clone() for name, gradient in gradients(ranker).items()}
    ranker = ranker.float().cuda()
    for precision, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
        ranker.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            found = ranker(**{name: tensor.cuda() for name, tensor in batch.items()}).logits
        found.sum().backward()
        torch.testing.assert_close(found.double().cpu(), expected, rtol=0, atol=tolerance)
        for name, gradient in gradients(ranker).items():
            # keys have no gradient by their bias, so a relative error alone would be that of a rounded 0
            error = (gradient.double().cpu() - wanted[name]).norm()
            assert error < 3 * tolerance * (1 + wanted[name].norm()), name
