"""General students: layers of a model, or a new model of another shape."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny import (
    STUDENT,
    TEACHER,
    TOKENS,
    Finished,
    Sizes,
    assert_refused,
    parameter_shapes,
    random_weights,
    run_main,
    teacher_weights,
    write_published,
    write_tiny_features,
    write_transformers,
)

from modeling.model_files import load_ranker, missing_heads
from tokenization.vocabulary import load_vocabulary, saved_lower_case

SCRIPT = "model_tools/make_general_student.py"
SCRATCH = Sizes(layers=2, hidden=20, heads=5, intermediate=33, positions=TEACHER.positions)
SHAPE = ("--num_layers", 2, "--hidden_size", 20, "--num_heads", 5, "--intermediate_size", 33)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transformers(tmp_path_factory.mktemp("teacher") / "teacher", TEACHER, teacher_weights())


def make(model_dir: Path, output_dir: Path, *more: object) -> Finished:
    return run_main(SCRIPT, "--model_dir", model_dir, "--output_dir", output_dir, *more)


def made(model_dir: Path, output_dir: Path, *more: object) -> dict[str, torch.Tensor]:
    """The weights of the student. If it has no classifier, these have one with initial values."""
    done = make(model_dir, output_dir, *more)
    assert (done.status, done.stderr) == (0, ""), done
    assert len(done.stdout.splitlines()) == 1 and str(output_dir) in done.stdout
    assert ("without a classifier" in done.stdout) == ("classifier.weight" in missing_heads(output_dir))
    return load_ranker(output_dir, initialise_missing_with_seed=7)[0].state_dict()


def source(name: str, layers: list[int]) -> str:
    """The name of the model's parameter that becomes a student's parameter."""
    parts = name.split(".")
    if parts[:3] == ["bert", "encoder", "layer"]:
        parts[3] = str(layers[int(parts[3])] - 1)
    return ".".join(parts)


@pytest.mark.parametrize("layers", [[2, 4, 6], [6, 1], [3, 3]])
def test_layers_are_taken_in_the_order_named_with_embeddings_and_head(
    teacher: Path, tmp_path: Path, layers: list[int]
) -> None:
    found = made(teacher, tmp_path / "student", "--layers", ",".join(map(str, layers)))
    assert set(found) == set(parameter_shapes(TEACHER._replace(layers=len(layers))))
    weights = teacher_weights()
    for name, tensor in found.items():
        assert torch.equal(tensor, weights[source(name, layers)]), name
    assert missing_heads(tmp_path / "student") == []
    assert load_vocabulary(tmp_path / "student") == TOKENS


def test_an_encoder_without_classifier_gives_a_student_without_one(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in teacher_weights().items() if not name.startswith("classifier.")}
    encoder = write_published(tmp_path / "encoder", TEACHER, weights)
    found = made(encoder, tmp_path / "student", "--layers", "5,2")
    assert missing_heads(tmp_path / "student") == ["classifier.weight", "classifier.bias"]
    for name, tensor in found.items():
        if not name.startswith("classifier."):
            assert torch.equal(tensor, weights[source(name, [5, 2])]), name


def test_a_missing_pooler_starts_from_the_seed_and_is_reported(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in teacher_weights().items() if not name.startswith("bert.pooler.")}
    encoder = write_published(tmp_path / "encoder", TEACHER, weights)
    done = make(encoder, tmp_path / "student", "--layers", "1", "--seed", 5)
    assert "whose pooler is missing and starts from seed 5" in done.stdout
    assert missing_heads(tmp_path / "student") == []


def test_a_student_from_scratch_has_its_shape_and_berts_initial_values(teacher: Path, tmp_path: Path) -> None:
    found = made(teacher, tmp_path / "student", *SHAPE)
    assert missing_heads(tmp_path / "student") == ["classifier.weight", "classifier.bias"]
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == parameter_shapes(SCRATCH)
    for name, tensor in found.items():
        if name.endswith("LayerNorm.weight"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif tensor.ndim == 1:
            assert not tensor.any(), name
        else:
            assert abs(tensor.mean()) < 0.02 * 5 / tensor.numel() ** 0.5, name
            assert 0.9 < tensor[1:].std() / 0.02 < 1.1 or tensor.numel() < 400, name
    words = found["bert.embeddings.word_embeddings.weight"]
    assert not words[0].any()
    assert words[1:].any(dim=1).all()
    layers = [found[f"bert.encoder.layer.{i}.attention.self.query.weight"] for i in range(2)]
    assert not torch.equal(*layers)


def test_other_settings_and_the_vocabulary_are_those_of_the_model(tmp_path: Path) -> None:
    settings = {
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.25,
        "attention_probs_dropout_prob": 0.125,
        "initializer_range": 0.5,
        "layer_norm_eps": 1e-7,
    }
    model = write_transformers(tmp_path / "model", STUDENT, random_weights(STUDENT, 2), **settings)
    (model / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    found = made(model, tmp_path / "student", *SHAPE[:-2])
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    shape = {
        "num_hidden_layers": 2,
        "hidden_size": 20,
        "num_attention_heads": 5,
        "intermediate_size": 80,
        "vocab_size": len(TOKENS),
        "max_position_embeddings": STUDENT.positions,
    }
    assert {name: config[name] for name in settings | shape} == settings | shape
    assert 0.4 < found["bert.encoder.layer.1.output.dense.weight"].std() < 0.6
    assert load_vocabulary(tmp_path / "student") == TOKENS
    assert saved_lower_case(tmp_path / "student") is False
    made(model, tmp_path / "uncased", *SHAPE, "--do_lower_case")
    assert saved_lower_case(tmp_path / "uncased") is True


def test_the_seed_decides_the_initial_values(teacher: Path, tmp_path: Path) -> None:
    first, same, other = (
        made(teacher, tmp_path / name, *SHAPE, *more)
        for name, more in (("first", ()), ("same", ("--seed", 42)), ("other", ("--seed", 43)))
    )
    files = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "same").iterdir()}
    name = "bert.encoder.layer.0.attention.self.key.weight"
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])


def test_transformers_loads_a_student_from_scratch(teacher: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    found = made(teacher, tmp_path / "student", *SHAPE)
    loaded, report = AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, found[f"bert.{name}"]), name


def test_a_student_from_scratch_can_be_distilled(teacher: Path, tmp_path: Path) -> None:
    made(teacher, tmp_path / "general", "--num_layers", 3, "--hidden_size", 12, "--num_heads", 4)
    write_tiny_features(tmp_path / "features", count=8)
    done = run_main(
        "distill.py", "--features_file", tmp_path / "features", "--teacher_model", teacher, "--device", "cpu",
        "--general_student_model", tmp_path / "general", "--output_student_dir", tmp_path / "student",
        "--train_batch_size", 4, "--num_train_epochs", 1,
    )  # fmt: skip
    assert done.status == 0, done
    assert "classifier.weight, classifier.bias not found, starting from initial values" in done.stderr
    assert missing_heads(tmp_path / "student") == []


def test_what_cannot_be_made_is_refused(teacher: Path, tmp_path: Path) -> None:
    scratch = dict(zip(SHAPE[::2], SHAPE[1::2], strict=True))

    def refused(*more: object, says: tuple[object, ...], model_dir: Path = teacher) -> None:
        assert_refused(make(model_dir, tmp_path / "student", *more), *says)
        assert not (tmp_path / "student").exists()

    for flag, value in scratch.items():
        refused("--layers", "1,2", flag, value, says=("--layers", flag, "give one of them"))
        refused(*(part for pair in (scratch | {flag: 0}).items() for part in pair), says=(flag, "1 or more"))
    for flag in SHAPE[:6:2]:
        rest = [part for pair in scratch.items() if pair[0] != flag for part in pair]
        refused(*rest, says=(flag, "needed to make a student from scratch"))
    refused(says=("--num_layers", "--layers"))
    refused(*SHAPE, "--num_heads", 3, says=("--hidden_size: 20", "multiple of --num_heads 3"))
    for layers in ("", "2,", "a", "1.5"):
        refused("--layers", layers, says=("--layers", "not a list of layers"))
    for layers in ("0", "7", "1,2,7", "-1"):
        refused(f"--layers={layers}", says=("--layers", teacher, "has layers 1 to 6"))
    refused(*SHAPE, "--seed", -1, says=("--seed",))
    (tmp_path / "empty").mkdir()
    for shape in (SHAPE, ("--layers", "1")):
        refused(*shape, model_dir=tmp_path / "empty", says=(tmp_path / "empty",))
        refused(*shape, model_dir=tmp_path / "missing", says=(tmp_path / "missing",))
        refused(*shape, "--output_dir", tmp_path / "no" / "student", says=("--output_dir", "does not exist"))
        refused(*shape, "--output_dir", teacher, says=("--output_dir", "exists already"))
    few = write_transformers(tmp_path / "few", TEACHER, teacher_weights(), tokens=[*TOKENS, "more"])
    refused(*SHAPE, model_dir=few, says=("--model_dir", f"{len(TOKENS) + 1} tokens"))
    assert sorted(os.listdir(tmp_path)) == ["empty", "few"]
