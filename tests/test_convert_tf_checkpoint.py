"""TensorFlow 1 checkpoints: names and layout of variables, and the converter, with and without TensorFlow."""

import json
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import (
    STUDENT,
    TEACHER,
    TOKENS,
    Finished,
    Sizes,
    assert_refused,
    bert_config,
    parameter_shapes,
    random_weights,
    run_main,
    run_script,
    teacher_weights,
    write_tiny_features,
)

from benchmarks import reference
from formats.features import Features
from model_tools.tf_checkpoint import Converted, convert_variables, variable_name
from modeling.model_files import ModelFileError, load_ranker, missing_heads
from modeling.model_reader import read_config
from tokenization.vocabulary import load_vocabulary, saved_lower_case

SCRIPT = "model_tools/convert_tf_checkpoint.py"


def tf_variables(sizes: Sizes, weights: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The weights in the layout of BERT's TensorFlow code: kernels are (inputs, outputs)."""
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    found = {f"bert/embeddings/{kind}_embeddings": arrays[f"bert.embeddings.{kind}_embeddings.weight"] for kind in
             ("word", "position", "token_type")}  # fmt: skip
    dense = {"bert/pooler/dense": "bert.pooler.dense"}
    norms = {"bert/embeddings/LayerNorm": "bert.embeddings.LayerNorm"}
    for i in range(sizes.layers):
        here, there = f"bert.encoder.layer.{i}", f"bert/encoder/layer_{i}"
        dense |= {
            f"{there}/attention/self/query": f"{here}.attention.self.query",
            f"{there}/attention/self/key": f"{here}.attention.self.key",
            f"{there}/attention/self/value": f"{here}.attention.self.value",
            f"{there}/attention/output/dense": f"{here}.attention.output.dense",
            f"{there}/intermediate/dense": f"{here}.intermediate.dense",
            f"{there}/output/dense": f"{here}.output.dense",
        }
        norms |= {
            f"{there}/attention/output/LayerNorm": f"{here}.attention.output.LayerNorm",
            f"{there}/output/LayerNorm": f"{here}.output.LayerNorm",
        }
    for there, here in dense.items():
        found |= {f"{there}/kernel": arrays[f"{here}.weight"].T, f"{there}/bias": arrays[f"{here}.bias"]}
    for there, here in norms.items():
        found |= {f"{there}/gamma": arrays[f"{here}.weight"], f"{there}/beta": arrays[f"{here}.bias"]}
    return found | {"output_weights": arrays["classifier.weight"], "output_bias": arrays["classifier.bias"]}


def teacher_variables() -> dict[str, np.ndarray]:
    return tf_variables(TEACHER, teacher_weights())


def variables_of_training(variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Slots and step counts of optimizers, and pre-training heads."""
    slots = {f"{name}/{slot}": np.full_like(array, np.nan) for name, array in variables.items()
             for slot in ("adam_m", "adam_v", "Adam", "Adam_1", "LAMB", "LAMB_1")}  # fmt: skip
    heads = {
        "cls/predictions/output_bias": np.zeros(len(TOKENS), np.float32),
        "cls/predictions/transform/dense/kernel": np.zeros((24, 24), np.float32),
        "cls/predictions/transform/dense/kernel/adam_m": np.zeros((24, 24), np.float32),
        "cls/seq_relationship/output_weights": np.zeros((2, 24), np.float32),
        "cls/seq_relationship/output_bias": np.zeros(2, np.float32),
    }
    counts = {"global_step": np.int64(100_000), "beta1_power": np.float32(0.5), "beta2_power": np.float32(0.5)}
    return slots | heads | counts


def write_beside(directory: Path, sizes: Sizes = TEACHER) -> Path:
    """Writes the files beside a checkpoint, and returns the checkpoint's name."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bert_config.json").write_text(json.dumps(bert_config(sizes)))
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    return directory / "bert_model.ckpt"


def convert(variables: Mapping[str, np.ndarray], directory: Path, sizes: Sizes = TEACHER) -> Converted:
    write_beside(directory, sizes)
    config, _ = read_config(directory / "bert_config.json")
    return convert_variables(variables.keys(), variables.__getitem__, config, "the checkpoint")


def refused(variables: Mapping[str, np.ndarray], directory: Path, *parts: str, sizes: Sizes = TEACHER) -> None:
    with pytest.raises(ModelFileError) as caught:
        convert(variables, directory, sizes)
    for part in ("the checkpoint: ", *parts):
        assert part in str(caught.value)


# Names and layout, without TensorFlow.


@pytest.mark.parametrize(
    ("parameter", "variable"),
    [
        ("bert.embeddings.word_embeddings.weight", "bert/embeddings/word_embeddings"),
        ("bert.embeddings.position_embeddings.weight", "bert/embeddings/position_embeddings"),
        ("bert.embeddings.token_type_embeddings.weight", "bert/embeddings/token_type_embeddings"),
        ("bert.embeddings.LayerNorm.weight", "bert/embeddings/LayerNorm/gamma"),
        ("bert.embeddings.LayerNorm.bias", "bert/embeddings/LayerNorm/beta"),
        ("bert.encoder.layer.0.attention.self.query.weight", "bert/encoder/layer_0/attention/self/query/kernel"),
        ("bert.encoder.layer.11.attention.self.value.bias", "bert/encoder/layer_11/attention/self/value/bias"),
        ("bert.encoder.layer.3.attention.output.dense.weight", "bert/encoder/layer_3/attention/output/dense/kernel"),
        (
            "bert.encoder.layer.3.attention.output.LayerNorm.bias",
            "bert/encoder/layer_3/attention/output/LayerNorm/beta",
        ),
        ("bert.encoder.layer.3.intermediate.dense.weight", "bert/encoder/layer_3/intermediate/dense/kernel"),
        ("bert.encoder.layer.3.output.dense.bias", "bert/encoder/layer_3/output/dense/bias"),
        ("bert.encoder.layer.3.output.LayerNorm.weight", "bert/encoder/layer_3/output/LayerNorm/gamma"),
        ("bert.pooler.dense.weight", "bert/pooler/dense/kernel"),
        ("classifier.weight", "output_weights"),
        ("classifier.bias", "output_bias"),
    ],
)
def test_parameters_have_the_names_of_berts_tensorflow_code(parameter: str, variable: str) -> None:
    assert variable_name(parameter) == variable


def test_parameters_and_variables_correspond_one_to_one() -> None:
    assert sorted(map(variable_name, parameter_shapes(TEACHER))) == sorted(teacher_variables())


def test_variables_become_the_weights_and_those_of_training_are_ignored(tmp_path: Path) -> None:
    variables = teacher_variables()
    for more in ({}, variables_of_training(variables)):
        found = convert(variables | more, tmp_path)
        assert (found.has_classifier, found.unknown) == (True, [])
        weights = teacher_weights()
        assert set(found.model.state_dict()) == set(weights)
        for name, tensor in found.model.state_dict().items():
            assert torch.equal(tensor, weights[name]), name


def test_half_precision_and_double_variables_become_float32(tmp_path: Path) -> None:
    for dtype in (np.float16, np.float64):
        found = convert({name: array.astype(dtype) for name, array in teacher_variables().items()}, tmp_path)
        for name, tensor in found.model.state_dict().items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, teacher_weights()[name], rtol=1e-3, atol=1e-3)


def test_an_unknown_variable_is_named_and_one_of_the_encoder_is_refused(tmp_path: Path) -> None:
    variables = teacher_variables() | {"loss_scale": np.float32(1), "adapter/kernel": np.zeros(3, np.float32)}
    assert convert(variables, tmp_path).unknown == ["adapter/kernel", "loss_scale"]
    name = "bert/encoder/layer_2/attention/self/relative/kernel"
    refused(variables | {name: np.zeros(3, np.float32)}, tmp_path, name, "no place in the encoder")
    refused(variables, tmp_path, "bert/encoder/layer_5/", "no place", sizes=TEACHER._replace(layers=5))
    refused(variables, tmp_path, "bert/encoder/layer_6/", "is missing", sizes=TEACHER._replace(layers=7))


@pytest.mark.parametrize(
    "name",
    ["bert/embeddings/LayerNorm/beta", "bert/encoder/layer_4/output/dense/kernel", "output_bias", "output_weights"],
)
def test_a_missing_variable_is_named(tmp_path: Path, name: str) -> None:
    variables = teacher_variables() | variables_of_training(teacher_variables())
    del variables[name]
    refused(variables, tmp_path, f"{name} is missing")


@pytest.mark.parametrize(
    ("name", "shape", "needed"),
    [
        ("bert/encoder/layer_1/intermediate/dense/kernel", (40, 24), (24, 40)),
        ("bert/embeddings/word_embeddings", (len(TOKENS) + 1, 24), (len(TOKENS), 24)),
        ("bert/pooler/dense/bias", (1, 24), (24,)),
        ("output_weights", (3, 24), (2, 24)),
        ("output_weights", (24, 2), (2, 24)),
        ("output_bias", (), (2,)),
    ],
)
def test_a_variable_of_another_shape_is_named(tmp_path: Path, name: str, shape: tuple, needed: tuple) -> None:
    variables = teacher_variables() | {name: np.zeros(shape, np.float32)}
    refused(variables, tmp_path, f"{name} has shape {shape} where the config needs {needed}")


def test_a_variable_that_is_not_finite_is_named(tmp_path: Path) -> None:
    variables = teacher_variables()
    variables["bert/pooler/dense/kernel"] = np.full((24, 24), np.inf, np.float32)
    refused(variables, tmp_path, "bert/pooler/dense/kernel is not finite")


# The script, with a mock of TensorFlow.


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, np.ndarray]]:
    """`{checkpoint: variables}`, which a mock of `tensorflow.train.load_checkpoint` reads."""
    found: dict[str, dict[str, np.ndarray]] = {}

    def load_checkpoint(prefix: str) -> types.SimpleNamespace:
        variables = found[prefix]
        return types.SimpleNamespace(
            get_variable_to_shape_map=lambda: {name: list(np.shape(array)) for name, array in variables.items()},
            get_tensor=variables.__getitem__,
        )

    module = types.ModuleType("tensorflow")
    module.train = types.SimpleNamespace(load_checkpoint=load_checkpoint)
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    return found


def put(checkpoints: dict, prefix: Path, variables: dict[str, np.ndarray]) -> Path:
    prefix.with_name(f"{prefix.name}.index").write_bytes(b"")
    checkpoints[str(prefix)] = variables
    return prefix


def script(prefix: object, output_dir: Path, *more: object) -> Finished:
    return run_main(SCRIPT, "--tf_checkpoint", prefix, "--output_dir", output_dir, *more)


def assert_is_the_teacher(model_dir: Path, tmp_path: Path) -> None:
    batch = Features(write_tiny_features(tmp_path / "features", count=5)).batch(range(5))
    batch = {name: torch.from_numpy(array) for name, array in batch.items() if name != "labels"}
    weights = {name: tensor.double() for name, tensor in teacher_weights().items()}
    with torch.no_grad():
        found = load_ranker(model_dir)[0](**batch).logits
    torch.testing.assert_close(found.double(), reference.bert(weights, TEACHER.heads, batch)[0], rtol=1e-5, atol=1e-6)


def test_a_ranker_is_converted(tmp_path: Path, checkpoints: dict) -> None:
    variables = teacher_variables()
    prefix = put(checkpoints, write_beside(tmp_path / "in"), variables | variables_of_training(variables))
    for number, name in enumerate((prefix, f"{prefix}.index")):
        output_dir = tmp_path / str(number)
        done = script(name, output_dir)
        assert (done.status, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 1
        assert "6 layers of hidden size 24 with a classifier" in done.stdout
        assert_is_the_teacher(output_dir, tmp_path)
        assert load_vocabulary(output_dir) == TOKENS
        assert saved_lower_case(output_dir) is True


def test_config_vocabulary_and_case_are_taken_from_flags(tmp_path: Path, checkpoints: dict) -> None:
    prefix = put(checkpoints, write_beside(tmp_path / "in"), teacher_variables())
    for name in ("bert_config.json", "vocab.txt"):
        (prefix.parent / name).rename(tmp_path / f"my_{name}")
    assert_refused(script(prefix, tmp_path / "out"), "--bert_config", prefix.parent / "bert_config.json")
    flags = ["--bert_config", tmp_path / "my_bert_config.json"]
    assert_refused(script(prefix, tmp_path / "out", *flags), "--vocab_file", prefix.parent / "vocab.txt")
    flags += ["--vocab_file", tmp_path / "my_vocab.txt", "--no-do_lower_case"]
    assert script(prefix, tmp_path / "out", *flags).status == 0
    assert saved_lower_case(tmp_path / "out") is False
    assert_is_the_teacher(tmp_path / "out", tmp_path)


def test_a_pre_trained_encoder_is_converted_without_a_classifier(tmp_path: Path, checkpoints: dict) -> None:
    variables = {name: array for name, array in teacher_variables().items() if not name.startswith("output_")}
    prefix = put(checkpoints, write_beside(tmp_path / "in"), variables | variables_of_training(variables))
    done = script(prefix, tmp_path / "out")
    assert (done.status, done.stderr) == (0, "")
    assert "without a classifier" in done.stdout
    assert missing_heads(tmp_path / "out") == ["classifier.weight", "classifier.bias"]
    with pytest.raises(ModelFileError, match="no fine-tuned ranker"):
        load_ranker(tmp_path / "out")
    model, _ = load_ranker(tmp_path / "out", initialise_missing_with_seed=7)
    for name, tensor in model.bert.state_dict().items():
        assert torch.equal(tensor, teacher_weights()[f"bert.{name}"]), name


def test_unknown_variables_are_reported(tmp_path: Path, checkpoints: dict) -> None:
    prefix = put(checkpoints, write_beside(tmp_path / "in"), teacher_variables() | {"loss_scale": np.float32(1)})
    done = script(prefix, tmp_path / "out")
    assert (done.status, done.stderr) == (0, f"{prefix}: these variables are not used: loss_scale\n")


def test_what_cannot_be_converted_is_refused(tmp_path: Path, checkpoints: dict) -> None:
    prefix = put(checkpoints, write_beside(tmp_path / "in"), teacher_variables())

    def says(*parts: object, checkpoint: object = prefix, more: tuple = (), out: Path = tmp_path / "out") -> None:
        assert_refused(script(checkpoint, out, *more), *parts)

    says("--tf_checkpoint", "name a checkpoint as TensorFlow does", checkpoint=tmp_path / "in" / "missing.ckpt")
    says("--tf_checkpoint", checkpoint=tmp_path / "in")
    says("--output_dir", "exists already", out=tmp_path / "in")
    says("--output_dir", "does not exist", out=tmp_path / "no" / "out")
    says("--vocab_file", more=("--vocab_file", tmp_path / "missing"))
    (tmp_path / "long").write_text("".join(f"{token}\n" for token in [*TOKENS, "more"]))
    says("--vocab_file", f"{len(TOKENS) + 1} tokens", more=("--vocab_file", tmp_path / "long"))
    (tmp_path / "bad").write_text("{}")
    says("bad", more=("--vocab_file", tmp_path / "bad"))
    (tmp_path / "bad").write_text("[")
    says("bad", "no BERT config", more=("--bert_config", tmp_path / "bad"))
    (tmp_path / "bad").write_text(json.dumps(bert_config(STUDENT)))
    says("has no place in the encoder", more=("--bert_config", tmp_path / "bad"))
    checkpoints.clear()
    says("--tf_checkpoint", prefix, "cannot be read")
    assert not (tmp_path / "out").exists()


def test_without_tensorflow_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    prefix = put({}, write_beside(tmp_path / "in"), {})
    assert_refused(script(prefix, tmp_path / "out"), "TensorFlow", "pip install tensorflow-cpu==2.21.0")
    assert not (tmp_path / "out").exists()


# With TensorFlow.


def write_tf_checkpoint(prefix: Path, variables: Mapping[str, np.ndarray], steps: int = 1) -> None:
    """Trains variables with these values for some steps of Adam with learning rate 0, and saves them with their slots
    as TensorFlow 1 does."""
    import tensorflow

    tf = tensorflow.compat.v1
    with tf.Graph().as_default(), tf.Session() as session:
        made = [tf.get_variable(name, initializer=array) for name, array in variables.items()]
        loss = tf.add_n([tf.reduce_sum(variable**2) for variable in made])
        step = tf.train.AdamOptimizer(0.0).minimize(loss, global_step=tf.train.get_or_create_global_step())
        session.run(tf.global_variables_initializer())
        for _ in range(steps):
            session.run(step)
        tf.train.Saver().save(session, str(prefix), write_meta_graph=False)


@pytest.mark.tensorflow
def test_a_ranker_from_tensorflow_1_has_the_weights_and_logits_of_the_checkpoint(tmp_path: Path) -> None:
    import tensorflow

    prefix = write_beside(tmp_path / "in").with_name("model.ckpt-100000")
    write_tf_checkpoint(prefix, teacher_variables())
    names = [name for name, _ in tensorflow.train.list_variables(str(prefix))]
    assert {"global_step", "beta1_power", "output_weights/Adam", "output_weights/Adam_1"} < set(names)
    done = run_script(SCRIPT, "--tf_checkpoint", prefix, "--output_dir", tmp_path / "out")
    assert (done.status, done.stderr) == (0, ""), done
    assert f"with a classifier, from {prefix} of {len(names)} variables" in done.stdout
    assert_is_the_teacher(tmp_path / "out", tmp_path)
    for name, tensor in load_ranker(tmp_path / "out")[0].state_dict().items():
        assert torch.equal(tensor, teacher_weights()[name]), name


@pytest.mark.tensorflow
def test_a_pre_trained_checkpoint_of_tensorflow_1_has_no_classifier(tmp_path: Path) -> None:
    weights = random_weights(STUDENT, seed=2)
    variables = tf_variables(STUDENT, weights)
    del variables["output_weights"], variables["output_bias"]
    heads = {"cls/seq_relationship/output_bias": np.zeros(2, np.float32)}
    prefix = write_beside(tmp_path / "in", STUDENT)
    write_tf_checkpoint(prefix, variables | heads)
    done = script(f"{prefix}.index", tmp_path / "out")
    assert done.status == 0 and "without a classifier" in done.stdout, done
    for name, tensor in load_ranker(tmp_path / "out", initialise_missing_with_seed=7)[0].bert.state_dict().items():
        assert torch.equal(tensor, weights[f"bert.{name}"]), name


@pytest.mark.tensorflow
def test_a_damaged_checkpoint_of_tensorflow_1_is_refused(tmp_path: Path) -> None:
    prefix = write_beside(tmp_path / "in", STUDENT)
    write_tf_checkpoint(prefix, tf_variables(STUDENT, random_weights(STUDENT, seed=2)))
    for suffix in (".data-00000-of-00001", ".index"):
        path = prefix.with_name(f"{prefix.name}{suffix}")
        content = path.read_bytes()
        for cut in (len(content) // 2, 0):
            path.write_bytes(content[:cut])
            assert_refused(script(prefix, tmp_path / "out"), "--tf_checkpoint", prefix, "cannot be read")
        path.write_bytes(content)
    path = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    path.unlink()
    assert_refused(script(prefix, tmp_path / "out"), "--tf_checkpoint", prefix, "cannot be read")
    assert os.listdir(tmp_path) == ["in"]
