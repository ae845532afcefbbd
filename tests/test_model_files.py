"""Model directories: loaded, refused, saved, compared with features."""

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from tiny import (
    STUDENT,
    TEACHER,
    TOKENS,
    Sizes,
    bert_config,
    random_weights,
    student_weights,
    teacher_weights,
    write_published,
    write_tiny_features,
    write_transformers,
)

from benchmarks import reference
from formats.features import Features, FeaturesHeader
from modeling.general_student import make_fit_dense
from modeling.model_files import ModelFileError, check_reads_features, fingerprint, load_ranker, save_ranker
from tokenization.vocabulary import VocabularyError, load_vocabulary, vocabulary_sha256


@pytest.fixture
def batch(tmp_path: Path) -> dict[str, torch.Tensor]:
    features = Features(write_tiny_features(tmp_path / "features", count=5))
    return {name: torch.from_numpy(a) for name, a in features.batch(range(5)).items() if name != "labels"}


def logits(model_dir: Path, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return load_ranker(model_dir)[0](**batch).logits


def refused(model_dir: Path, *parts: str, seed: int | None = None) -> None:
    with pytest.raises(ModelFileError) as caught:
        load_ranker(model_dir, initialise_missing_with_seed=seed)
    for part in (str(model_dir), *parts):
        assert part in str(caught.value)


def renamed(weights: dict[str, torch.Tensor], change) -> dict[str, torch.Tensor]:
    return {change(name): tensor for name, tensor in weights.items()}


def test_both_layouts_load_and_compute_what_the_reference_does(tmp_path: Path, batch: dict) -> None:
    weights = teacher_weights()
    write_published(tmp_path / "published", TEACHER, weights)
    write_transformers(tmp_path / "transformers", TEACHER, weights)
    expected = reference.bert({name: tensor.double() for name, tensor in weights.items()}, TEACHER.heads, batch)[0]
    for layout in ("published", "transformers"):
        model, fit_dense = load_ranker(tmp_path / layout)
        assert not model.training
        assert fit_dense == {}
        assert model.pooled_activation == "none"
        assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
            name: tuple(tensor.shape) for name, tensor in weights.items()
        }
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, weights[name]), name
        torch.testing.assert_close(logits(tmp_path / layout, batch).double(), expected, rtol=1e-5, atol=1e-6)


def test_every_hidden_state_and_score_is_that_of_the_reference(tmp_path: Path, batch: dict) -> None:
    weights = teacher_weights()
    model, _ = load_ranker(write_published(tmp_path / "m", TEACHER, weights))
    layers = range(1, TEACHER.layers + 1)
    with torch.no_grad():
        found = model(**batch, hidden_states_of=range(TEACHER.layers + 1), queries_keys_of=layers)
        only_one = model(**batch, queries_keys_of=[2])
    double = {name: tensor.double() for name, tensor in weights.items()}
    _, scores, hidden = reference.bert(double, TEACHER.heads, batch)
    assert len(found.hidden_states) == len(hidden) == TEACHER.layers + 1
    for one, other in zip(found.hidden_states.values(), hidden, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    real = batch["attention_mask"][:, None, None, :].bool()
    for number in layers:
        query, key = found.queries_keys[number]
        product = query.double() @ key.double().transpose(-1, -2) / (TEACHER.hidden / TEACHER.heads) ** 0.5
        torch.testing.assert_close(
            product.masked_fill(~real, 0.0), scores[number - 1].masked_fill(~real, 0.0), rtol=1e-4, atol=1e-5
        )
    assert (list(only_one.queries_keys), only_one.hidden_states) == ([2], {})


def test_other_names_of_the_same_weights(tmp_path: Path, batch: dict) -> None:
    weights = teacher_weights()
    expected = logits(write_transformers(tmp_path / "original", TEACHER, weights), batch)
    same = {
        "module": renamed(weights, lambda name: f"module.{name}"),
        "gamma and beta": renamed(
            weights,
            lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ),
        ),
        "bare encoder": renamed(weights, lambda name: name.removeprefix("bert.")),
        "half precision": {name: tensor.half().float() for name, tensor in weights.items()},
    }
    for number, (what, changed) in enumerate(same.items()):
        directory = write_transformers(tmp_path / str(number), TEACHER, changed)
        tolerance = 0.2 if what == "half precision" else 0.0
        torch.testing.assert_close(logits(directory, batch), expected, rtol=tolerance, atol=tolerance)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in teacher_weights().items()}
    model, _ = load_ranker(write_transformers(tmp_path / "m", TEACHER, halves))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_config_and_weights_of_transformers_are_preferred(tmp_path: Path) -> None:
    write_published(tmp_path / "m", STUDENT, student_weights())
    write_transformers(tmp_path / "m", TEACHER, teacher_weights())
    assert load_ranker(tmp_path / "m")[0].config.hidden_size == TEACHER.hidden


# Models as they are published.


def pre_training_heads(sizes: Sizes) -> dict[str, torch.Tensor]:
    """The tensors that pre-training of BERT and of TinyBERT adds to the encoder."""
    return {
        "cls.predictions.bias": torch.zeros(sizes.vocabulary),
        "cls.predictions.transform.dense.weight": torch.zeros(sizes.hidden, sizes.hidden),
        "cls.predictions.transform.dense.bias": torch.zeros(sizes.hidden),
        "cls.predictions.transform.LayerNorm.weight": torch.ones(sizes.hidden),
        "cls.predictions.transform.LayerNorm.bias": torch.zeros(sizes.hidden),
        "cls.predictions.decoder.weight": torch.zeros(sizes.vocabulary, sizes.hidden),
        "cls.predictions.decoder.bias": torch.zeros(sizes.vocabulary),
        "cls.seq_relationship.weight": torch.zeros(2, sizes.hidden),
        "cls.seq_relationship.bias": torch.zeros(2),
    }


def position_ids(sizes: Sizes) -> dict[str, torch.Tensor]:
    return {"bert.embeddings.position_ids": torch.arange(sizes.positions)[None]}


def fit_denses() -> dict[str, torch.Tensor]:
    """General students of TinyBERT have a map for each hidden state."""
    maps = {f"fit_denses.{m}.weight": torch.zeros(TEACHER.hidden, STUDENT.hidden) for m in range(STUDENT.layers + 1)}
    return maps | {f"fit_denses.{m}.bias": torch.zeros(TEACHER.hidden) for m in range(STUDENT.layers + 1)}


def without(weights: dict[str, torch.Tensor], *parts: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(parts)}


def bare(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return renamed(weights, lambda name: name.removeprefix("bert."))


@pytest.mark.parametrize("write", [write_published, write_transformers])
@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights | position_ids(STUDENT),
        lambda weights: weights | pre_training_heads(STUDENT) | position_ids(STUDENT),
        lambda weights: without(weights, "fit_dense.") | fit_denses() | pre_training_heads(STUDENT),
        lambda weights: bare(without(weights, "fit_dense.") | position_ids(STUDENT)),
        lambda weights: bare(weights | pre_training_heads(STUDENT) | position_ids(STUDENT)),
        lambda weights: renamed(weights | pre_training_heads(STUDENT), lambda name: f"module.{name}"),
    ],
    ids=["position_ids", "cls", "fit_denses", "bare", "bare cls", "module"],
)
def test_a_ranker_with_known_extra_tensors_loads_without_a_warning(
    tmp_path: Path, batch: dict, caplog: pytest.LogCaptureFixture, write, change
) -> None:
    weights = student_weights()
    expected = reference.bert({name: tensor.double() for name, tensor in weights.items()}, STUDENT.heads, batch)[0]
    found = logits(write(tmp_path / "m", STUDENT, change(weights)), batch)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "fit_dense"),
    [
        (lambda weights: weights | pre_training_heads(STUDENT), True),
        (lambda weights: without(weights, "fit_dense.") | fit_denses() | pre_training_heads(STUDENT), False),
        (lambda weights: bare(without(weights, "fit_dense.") | position_ids(STUDENT)), False),
        (lambda weights: without(weights, "fit_dense.") | pre_training_heads(STUDENT) | position_ids(STUDENT), False),
    ],
    ids=["general TinyBERT", "general TinyBERT with a map for each layer", "BertModel", "BertForPreTraining"],
)
def test_a_published_general_student_lacks_only_its_classifier(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change, fit_dense: bool
) -> None:
    weights = student_weights()
    directory = write_published(tmp_path / "m", STUDENT, change(without(weights, "classifier.")))
    model, found = load_ranker(directory, initialise_missing_with_seed=7)
    assert caplog.messages == [
        f"{directory}: classifier.weight, classifier.bias not found, starting from initial values"
    ]
    for name, parameter in model.named_parameters():
        if not name.startswith("classifier."):
            assert torch.equal(parameter, weights[name]), name
    assert set(found) == ({"weight", "bias"} if fit_dense else set())
    assert all(torch.equal(tensor, weights[f"fit_dense.{name}"]) for name, tensor in found.items())


@pytest.mark.parametrize("write", [write_published, write_transformers])
def test_a_classifier_of_one_output_scores_by_its_sigmoid(
    tmp_path: Path, batch: dict, caplog: pytest.LogCaptureFixture, write
) -> None:
    from transformers import AutoModelForSequenceClassification

    weights = teacher_weights()
    weights |= {name: weights[name][1:].clone() for name in ("classifier.weight", "classifier.bias")}
    directory = write(tmp_path / "m", TEACHER, weights)
    model, _ = load_ranker(directory)
    assert not caplog.records
    found = logits(directory, batch)
    assert torch.equal(found[:, 0], torch.zeros(5))
    expected = reference.bert({name: tensor.double() for name, tensor in weights.items()}, TEACHER.heads, batch)[0]
    assert tuple(expected.shape) == (5, 1)
    torch.testing.assert_close(found[:, 1:].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.double().softmax(-1)[:, 1:], expected.sigmoid(), rtol=1e-5, atol=1e-6)

    (tmp_path / "saved").mkdir()
    save_ranker(model, TOKENS, True, tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, found, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits(tmp_path / "saved", batch), found)


@pytest.mark.parametrize(("rows", "biases", "count"), [(3, 3, "3"), (5, 5, "5"), (1, 2, "1 and 2"), (0, 0, "0")])
@pytest.mark.parametrize("seed", [None, 7])
def test_a_classifier_of_other_outputs_is_refused(
    tmp_path: Path, rows: int, biases: int, count: str, seed: int | None
) -> None:
    head = {"classifier.weight": torch.zeros(rows, 24), "classifier.bias": torch.zeros(biases)}
    directory = write_transformers(tmp_path / "m", TEACHER, teacher_weights() | head)
    refused(directory, f"its classifier has {count} outputs; a ranker has two", seed=seed)


# Errors name the tensor, the setting or the file.


@pytest.mark.parametrize("name", ["classifier.weight", "classifier.bias", "bert.pooler.dense.weight"])
def test_a_teacher_with_an_incomplete_head_is_refused(tmp_path: Path, name: str) -> None:
    weights = teacher_weights()
    del weights[name]
    refused(write_published(tmp_path / "m", TEACHER, weights), f"{name} is missing", "--distill_model hard")


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize(
    "name",
    [
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.LayerNorm.bias",
        "bert.encoder.layer.2.attention.self.key.bias",
        "bert.encoder.layer.5.output.LayerNorm.weight",
    ],
)
def test_a_missing_weight_of_the_encoder_is_refused(tmp_path: Path, name: str, seed: int | None) -> None:
    weights = teacher_weights()
    del weights[name]
    refused(write_published(tmp_path / "m", TEACHER, weights), f"{name} is missing", seed=seed)


def test_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    for name, shape in (("classifier.weight", (2, 23)), ("bert.encoder.layer.1.output.dense.weight", (40, 24))):
        directory = write_published(tmp_path / name, TEACHER, teacher_weights() | {name: torch.zeros(shape)})
        refused(directory, f"{name} has shape {shape} where the config needs", seed=7)


def test_a_depth_that_differs_from_the_config_is_refused(tmp_path: Path) -> None:
    refused(write_published(tmp_path / "less", TEACHER._replace(layers=5), teacher_weights()), "6 layers", "says 5")
    refused(write_published(tmp_path / "more", TEACHER._replace(layers=7), teacher_weights()), "6 layers", "says 7")
    weights = without(teacher_weights(), "bert.encoder.layer.3.")
    refused(write_published(tmp_path / "gap", TEACHER, weights), "bert.encoder.layer.3.", "is missing")


def config_refused(directory: Path, settings: object, *parts: str) -> None:
    write_transformers(directory, STUDENT, student_weights())
    content = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
    (directory / "config.json").write_bytes(content)
    refused(directory, "config", *parts, seed=7)


def test_a_hidden_size_that_the_heads_do_not_divide_is_refused(tmp_path: Path) -> None:
    settings = bert_config(STUDENT, num_attention_heads=5)
    config_refused(tmp_path / "m", settings, "hidden_size 12 is not a multiple of the 5 attention heads")


@pytest.mark.parametrize(
    "settings",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'"bert"',
        b"null",
        b"\xff\xfe",
        {"model_type": "roberta"},
        bert_config(STUDENT, model_type="distilbert"),
        bert_config(STUDENT, pooled_activation="gelu"),
        bert_config(STUDENT, pooled_activation=["relu"]),
        bert_config(STUDENT, num_attention_heads=0),
        bert_config(STUDENT, num_attention_heads=-4),
        bert_config(STUDENT, num_attention_heads="4"),
        bert_config(STUDENT, hidden_size="12"),
        bert_config(STUDENT, hidden_size=0),
        bert_config(STUDENT, hidden_size=-12),
        bert_config(STUDENT, num_hidden_layers=None),
        bert_config(STUDENT, vocab_size=0),
        bert_config(STUDENT, vocab_size=-1),
        bert_config(STUDENT, max_position_embeddings=-1),
        bert_config(STUDENT, hidden_act="no such function"),
        bert_config(STUDENT, pad_token_id=10_000),
        bert_config(STUDENT, hidden_dropout_prob=2.0),
        bert_config(STUDENT, attention_probs_dropout_prob=-1.0),
        bert_config(STUDENT, layer_norm_eps="small"),
        bert_config(STUDENT, initializer_range="small"),
        bert_config(STUDENT, initializer_range=-0.02),
    ],
    ids=str,
)
def test_a_config_that_is_not_of_bert_is_refused(tmp_path: Path, settings: object) -> None:
    config_refused(tmp_path / "m", settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (b"[]", "no BERT config (it is not a JSON object)"),
        (bert_config(STUDENT, model_type="roberta"), "model_type is 'roberta', a ranker needs 'bert'"),
        (bert_config(STUDENT, pooled_activation="gelu"), "pooled_activation 'gelu' is none of none, relu"),
        (bert_config(STUDENT, hidden_act="no such"), "hidden_act 'no such' is not the name of an activation"),
        (bert_config(STUDENT, hidden_act="gelo"), "hidden_act 'gelo' is not a known activation; gelu, gelu_new"),
        (bert_config(STUDENT, hidden_size="12"), "hidden_size '12' is not an integer"),
        (bert_config(STUDENT, hidden_size=[12]), "hidden_size of type list is not an integer"),
        (bert_config(STUDENT, layer_norm_eps="small"), "layer_norm_eps 'small' is not a number"),
        (bert_config(STUDENT, pad_token_id=10_000), f"pad_token_id 10000 is not from 0 to {len(TOKENS) - 1}"),
    ],
)
def test_the_setting_at_fault_is_named_with_its_value(tmp_path: Path, settings: object, message: str) -> None:
    config_refused(tmp_path / "m", settings, message)


def test_settings_of_another_architecture_are_refused_and_settings_of_outputs_are_ignored(
    tmp_path: Path, batch: dict
) -> None:
    for name, value in (
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("position_embedding_type", "relative_key"),
    ):
        refused(write_published(tmp_path / name, STUDENT, student_weights(), **{name: value}), name, str(value))
    usual = write_published(tmp_path / "usual", STUDENT, student_weights())
    other = write_published(
        tmp_path / "other", STUDENT, student_weights(), return_dict=False, chunk_size_feed_forward=5, num_labels=7
    )
    assert torch.equal(logits(usual, batch), logits(other, batch))


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    sizes = STUDENT._replace(layers=0)
    refused(write_transformers(tmp_path / "m", sizes, random_weights(sizes, 0)), "config.json")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        weights = teacher_weights()
        weights["bert.encoder.layer.4.intermediate.dense.weight"][39, 23] = value
        for write in (write_published, write_transformers):
            directory = write(tmp_path / f"{value} {write.__name__}", TEACHER, weights)
            refused(directory, "'bert.encoder.layer.4.intermediate.dense.weight' is not finite")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    for write, name in ((write_transformers, "model.safetensors"), (write_published, "pytorch_model.bin")):
        directory = write(tmp_path / name, STUDENT, student_weights())
        content = (directory / name).read_bytes()
        size = len(content)
        for cut in (0, 1, 7, 8, 9, 100, size // 3, size // 2, size - 5000, size - 100, size - 1):
            (directory / name).write_bytes(content[:cut])
            refused(directory, name)
        for other in (
            b"\0" * 500,
            b"\xff" * 500,
            b"text\n" * 99,
            b"\x80\x02.",
            b"\x80\x02K\x01.",
            b"\x80\x02}.",
            b"PK",
        ):
            (directory / name).write_bytes(other)
            refused(directory)
        (directory / name).unlink()
        refused(directory, "model.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        5,
        None,
        [torch.zeros(2)],
        {"classifier.weight": 5},
        {5: torch.zeros(2)},
        {"model": {"classifier.weight": torch.zeros(2)}},
    ],
    ids=str,
)
def test_a_bin_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    directory = write_published(tmp_path / "m", STUDENT, {})
    torch.save(content, directory / "pytorch_model.bin")
    refused(directory, "pytorch_model.bin", seed=7)


class Calls:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_code_in_a_bin_file_is_not_executed(tmp_path: Path) -> None:
    directory = write_published(tmp_path / "m", STUDENT, student_weights())
    for zipped in (True, False):
        torch.save(
            student_weights() | {"classifier.bias": Calls(tmp_path / "ran")},
            directory / "pytorch_model.bin",
            _use_new_zipfile_serialization=zipped,
        )
        refused(directory, "pytorch_model.bin", seed=7)
    assert not (tmp_path / "ran").exists()


def test_a_path_without_a_model_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "is not a directory")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is not a directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds neither config.json nor bert_config.json")


# Parts that a general student can lack.


def test_a_missing_classifier_gets_seeded_initial_values_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_published(tmp_path / "m", STUDENT, without(student_weights(), "classifier."))

    def classifier(seed: int) -> torch.Tensor:
        caplog.clear()
        model, fit_dense = load_ranker(tmp_path / "m", initialise_missing_with_seed=seed)
        assert "classifier.weight, classifier.bias not found" in caplog.text
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert sorted(fit_dense) == ["bias", "weight"]
        assert torch.equal(model.classifier.bias, torch.zeros(2))
        return model.classifier.weight.detach()

    first = classifier(7)
    assert torch.equal(classifier(7), first)
    assert not torch.equal(classifier(8), first)
    assert 0.001 < first.abs().mean() < 0.05  # of standard deviation 0.02


def test_a_missing_fit_dense_gets_seeded_initial_values_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    first, same, other = (make_fit_dense(12, 24, {}, seed, 0.02) for seed in (7, 7, 8))
    assert "fit_dense not found" in caplog.text
    assert torch.equal(first.weight, same.weight)
    assert not torch.equal(first.weight, other.weight)
    assert tuple(first.weight.shape) == (24, 12)
    assert torch.equal(first.bias, torch.zeros(24))
    assert 0.01 < first.weight.std() < 0.03


def test_a_saved_fit_dense_is_used_if_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    saved = {"weight": torch.randn(24, 12), "bias": torch.randn(24)}
    fit_dense = make_fit_dense(12, 24, saved, 7, 0.02)
    assert torch.equal(fit_dense.weight, saved["weight"])
    assert not caplog.records
    for teacher_size, parts in ((32, saved), (24, {"weight": saved["weight"]})):
        found, expected = (make_fit_dense(12, teacher_size, parts, 7, 0.02) for parts in (parts, {}))
        assert "fit_dense does not fit this teacher, starting from initial values" in caplog.text
        assert torch.equal(found.weight, expected.weight)
        caplog.clear()


# Saved models.


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_a_saved_ranker_loads_in_transformers_with_the_same_logits_and_tokens(
    tmp_path: Path, batch: dict, do_lower_case: bool
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, _ = load_ranker(write_published(tmp_path / "m", STUDENT, student_weights()))
    (tmp_path / "saved").mkdir()
    save_ranker(model, TOKENS, do_lower_case, tmp_path / "saved")
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits(tmp_path / "saved", batch), model(**batch).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    encoded = tokenizer("The cat?", "un running café")
    pieces = (
        "[CLS] the cat ? [SEP] un run ##ning cafe [SEP]"
        if do_lower_case
        else ("[CLS] [UNK] cat ? [SEP] un run ##ning [UNK] [SEP]")
    )
    assert encoded["input_ids"] == [TOKENS.index(piece) for piece in pieces.split()]
    assert encoded["token_type_ids"] == [0] * 5 + [1] * 5
    assert tokenizer.model_max_length == STUDENT.positions
    assert load_vocabulary(tmp_path / "saved") == TOKENS
    (tmp_path / "saved" / "vocab.txt").unlink()  # tokenizer.json has the same tokens
    assert load_vocabulary(tmp_path / "saved") == TOKENS


def test_a_saved_ranker_loads_in_sentence_transformers(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model, _ = load_ranker(write_published(tmp_path / "m", STUDENT, student_weights()))
    (tmp_path / "saved").mkdir()
    save_ranker(model, TOKENS, True, tmp_path / "saved")
    pieces = "[CLS] the cat [SEP] dog ran fast [SEP]"
    ids = [TOKENS.index(piece) for piece in pieces.split()]
    with torch.no_grad():
        expected = model(
            torch.tensor([ids]), torch.ones(1, 8, dtype=torch.int64), torch.tensor([[0] * 4 + [1] * 4])
        ).logits
    encoder = sentence_transformers.CrossEncoder(str(tmp_path / "saved"), device="cpu")
    found = encoder.predict([("the cat", "dog ran fast")], activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    torch.testing.assert_close(found.reshape(1, 2), expected, rtol=1e-5, atol=1e-6)


def test_config_and_fingerprint_of_a_saved_ranker(tmp_path: Path) -> None:
    weights = student_weights()
    model, saved = load_ranker(write_published(tmp_path / "m", STUDENT, weights, attention_probs_dropout_prob=0))
    (tmp_path / "saved").mkdir()
    save_ranker(model, TOKENS, True, tmp_path / "saved")
    settings = bert_config(STUDENT, attention_probs_dropout_prob=0) | {"layer_norm_eps": 1e-12, "pad_token_id": 0}
    config = settings | {
        "architectures": ["BertForSequenceClassification"],
        "dtype": "float32",
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "model_type": "bert",
        "pooled_activation": "none",
    }
    assert (tmp_path / "saved" / "config.json").read_text() == json.dumps(config, indent=2, sort_keys=True) + "\n"

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in model.state_dict():
        digest.update(f"{name} {tuple(weights[name].shape)}".encode() + weights[name].numpy().tobytes())
    assert fingerprint(model) == fingerprint(load_ranker(tmp_path / "saved")[0]) == digest.hexdigest()
    for name in ("weight", "bias"):
        digest.update(f"{name} {tuple(saved[name].shape)}".encode() + saved[name].numpy().tobytes())
    fit_dense = make_fit_dense(STUDENT.hidden, TEACHER.hidden, saved, 7, 0.02)
    assert fingerprint(model, fit_dense) == digest.hexdigest()


def test_the_head_is_recorded_and_read_back(tmp_path: Path, batch: dict) -> None:
    write_published(tmp_path / "m", STUDENT, student_weights())
    for activation in ("none", "relu"):
        model, _ = load_ranker(tmp_path / "m", activation)
        (tmp_path / activation).mkdir()
        save_ranker(model, TOKENS, True, tmp_path / activation)
        config = json.loads((tmp_path / activation / "config.json").read_text())
        assert config["pooled_activation"] == activation
        loaded, _ = load_ranker(tmp_path / activation)
        assert loaded.pooled_activation == activation
        expected = reference.bert(
            {name: t.double() for name, t in student_weights().items()}, STUDENT.heads, batch, activation
        )[0]
        torch.testing.assert_close(logits(tmp_path / activation, batch).double(), expected, rtol=1e-5, atol=1e-6)
    assert load_ranker(tmp_path / "relu", "none")[0].pooled_activation == "none"


def test_transformers_loads_a_model_without_its_classifier_as_an_encoder(tmp_path: Path, batch: dict) -> None:
    from transformers import AutoModel

    model, _ = load_ranker(write_published(tmp_path / "m", STUDENT, student_weights()))
    (tmp_path / "saved").mkdir()
    save_ranker(model, TOKENS, True, tmp_path / "saved", without_classifier=True)
    loaded, report = AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values()), report
    assert type(loaded).__name__ == "BertModel"
    with torch.no_grad():
        expected = model(**batch, hidden_states_of=[STUDENT.layers]).hidden_states[STUDENT.layers]
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(loaded.eval()(**batch).last_hidden_state[real], expected[real], rtol=1e-5, atol=1e-6)
    refused(tmp_path / "saved", "classifier.weight is missing")
    again, fit_dense = load_ranker(tmp_path / "saved", initialise_missing_with_seed=7)
    assert fit_dense == {}
    assert all(torch.equal(weight, model.bert.state_dict()[name]) for name, weight in again.bert.state_dict().items())


@pytest.mark.parametrize("without_classifier", [True, False])
def test_the_fit_dense_of_a_general_student_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, without_classifier: bool
) -> None:
    model, saved = load_ranker(write_published(tmp_path / "m", STUDENT, student_weights()))
    fit_dense = make_fit_dense(STUDENT.hidden, TEACHER.hidden, saved, 7, 0.02)
    (tmp_path / "saved").mkdir()
    save_ranker(model, TOKENS, True, tmp_path / "saved", without_classifier, fit_dense)
    again, found = load_ranker(tmp_path / "saved", initialise_missing_with_seed=7)
    assert len(caplog.records) == without_classifier
    assert torch.equal(again.classifier.weight, model.classifier.weight) is not without_classifier
    assert set(found) == {"weight", "bias"}
    assert all(torch.equal(tensor, saved[name]) for name, tensor in found.items())


def test_a_ranker_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model, saved = load_ranker(write_published(tmp_path / "m", STUDENT, student_weights()))
    fit_dense = make_fit_dense(STUDENT.hidden, TEACHER.hidden, saved, 7, 0.02)
    with torch.no_grad():
        model.classifier.weight[0, 0] = fit_dense.bias[3] = float("nan")
    (tmp_path / "saved").mkdir()
    for more, name in (((), "classifier.weight"), ((True, fit_dense), "fit_dense.bias")):
        with pytest.raises(ModelFileError, match=f"{name} is not finite"):
            save_ranker(model, TOKENS, True, tmp_path / "saved", *more)
        assert os.listdir(tmp_path / "saved") == []


# Features and the vocabulary of a model.


def header(**changes) -> FeaturesHeader:
    made = FeaturesHeader(17, len(TOKENS), True, "train", vocabulary_sha256(TOKENS))
    return made._replace(**changes)


def test_features_that_a_model_cannot_read_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = write_published(tmp_path / "m", STUDENT, student_weights())
    model, _ = load_ranker(directory)
    assert check_reads_features(directory, model, tmp_path / "f", header()) == TOKENS
    for changes, message in (
        ({"max_seq_length": STUDENT.positions + 1}, "examples of up to 20 tokens, 19 positions"),
        ({"vocab_size": len(TOKENS) + 1}, f"embeddings for {len(TOKENS)}"),
        ({"vocab_sha256": vocabulary_sha256([*TOKENS[:-2], TOKENS[-1], TOKENS[-2]])}, "another vocabulary"),
    ):
        with pytest.raises(ModelFileError, match=message):
            check_reads_features(directory, model, tmp_path / "f", header(**changes))
    assert check_reads_features(directory, model, tmp_path / "f", header(max_seq_length=STUDENT.positions)) == TOKENS
    assert not caplog.records
    (directory / "vocab.txt").unlink()
    assert check_reads_features(directory, model, tmp_path / "f", header()) is None
    assert "vocabulary not compared" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"model": null}',
        b'{"model": {"type": "BPE", "vocab": {}}}',
        b'{"model": {"vocab": {"[PAD]": 0, "a": 2}}}',
        b'{"model": {"vocab": {"[PAD]": 0, "a": 0}}}',
        b'{"model": {"vocab": {"[PAD]": "0", "a": 1}}}',
        b'{"model": {"vocab": ["[PAD]"]}}',
        b"\xff",
    ],
)
def test_a_tokenizer_json_without_a_wordpiece_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(VocabularyError, match=r"tokenizer\.json"):
        load_vocabulary(tmp_path)


@pytest.mark.parametrize("token", ["two\nlines", "end\r", "\ud800"])
def test_a_token_that_vocab_txt_cannot_hold_is_refused(tmp_path: Path, token: str) -> None:
    vocabulary = {name: number for number, name in enumerate([*TOKENS, token])}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    with pytest.raises(VocabularyError, match=r"tokenizer\.json: token .* cannot be a line of vocab\.txt"):
        load_vocabulary(tmp_path)
