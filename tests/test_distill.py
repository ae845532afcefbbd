"""Distillation: the script against the reference implementation, its output files, and its errors."""

import contextlib
import gc
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import (
    MAX_SEQ_LENGTH,
    STUDENT,
    TEACHER,
    TOKENS,
    Finished,
    assert_refused,
    random_weights,
    run_main,
    run_script,
    some_pairs,
    student_weights,
    teacher_weights,
    write_published,
    write_tiny_features,
    write_transformers,
)

import training.inputs
from benchmarks import reference
from formats.features import Example, Features, FeaturesHeader, write_features
from modeling.model_files import load_ranker
from tokenization.pair_encoding import encode_pairs
from tokenization.vocabulary import vocabulary_sha256
from tokenization.wordpiece import WordPiece
from training.inputs import Models, epoch_order, warn_of_label_ratio
from training.optimizer import BertAdam
from training.terms import LOSSES

EXAMPLES = 8
LINE_KEYS = ["global_step", *LOSSES, "learning_rate"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "teacher", TEACHER, teacher_weights())
    write_published(directory / "general", STUDENT, student_weights())
    write_tiny_features(directory / "features", count=EXAMPLES)
    return directory


def arguments(inputs: Path, output: Path, *more: object) -> list[object]:
    flags = ["--features_file", inputs / "features", "--general_student_model", inputs / "general"]
    flags += ["--output_student_dir", output, "--train_batch_size", EXAMPLES, "--train_loss_step", 1]
    if "hard" not in more:
        flags += ["--teacher_model", inputs / "teacher"]
    return [*flags, "--device", "cpu", *more]


def distil(inputs: Path, output: Path, *more: object) -> list[dict]:
    """Runs the script; returns the lines of train_loss.jsonl."""
    done = run_main("distill.py", *arguments(inputs, output, *more))
    assert done.status == 0, done
    return loss_lines(output)


def loss_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "train_loss.jsonl").read_text().splitlines()]


def reference_batches(features_file: Path, batch_size: int, epochs: int, seed: int = 42) -> list[dict]:
    features = Features(features_file)
    batches = []
    for epoch in range(epochs):
        order = epoch_order(seed, epoch, len(features))
        for first in range(0, len(features) - batch_size + 1, batch_size):
            batch = features.batch(order[first : first + batch_size], features.header.max_seq_length)
            batches.append({name: torch.from_numpy(array) for name, array in batch.items()})
    return batches


def reference_run(distill_model: str, batches: list[dict], **settings) -> tuple[list[dict], dict]:
    weights = {name: tensor.double() for name, tensor in student_weights().items()}
    teacher = {name: tensor.double() for name, tensor in teacher_weights().items()}
    return reference.train(distill_model, weights, teacher, STUDENT.heads, batches, **settings), weights


def assert_same_losses(found: list[dict], expected: list[dict], rel: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for step, (line, values) in enumerate(zip(found, expected, strict=True)):
        for name, value in values.items():
            assert line[name] == pytest.approx(value, rel=rel, abs=1e-12), (step, name)


# Losses and weights.


@pytest.mark.parametrize("pooled_activation", ["none", "relu"])
@pytest.mark.parametrize(
    ("distill_model", "flags", "settings"),
    [
        ("simplified", [], {}),
        ("standard", [], {}),
        ("standard", ["--alpha", 0.3, "--temperature", 2], {"alpha": 0.3, "temperature": 2.0}),
        ("simplified", ["--temperature", 4, "--learning_rate", 1e-3], {"temperature": 4.0, "lr": 1e-3}),
        ("prediction", ["--learning_rate", 1e-3], {"lr": 1e-3}),
    ],
)
def test_twenty_steps_agree_with_the_reference_implementation(
    inputs: Path, tmp_path: Path, distill_model: str, flags: list, settings: dict, pooled_activation: str
) -> None:
    found = distil(
        inputs, tmp_path / "out", "--distill_model", distill_model, "--pooled_activation", pooled_activation,
        "--num_train_epochs", 20, *flags,
    )  # fmt: skip
    batches = reference_batches(inputs / "features", EXAMPLES, 20)
    expected, weights = reference_run(distill_model, batches, pooled_activation=pooled_activation, **settings)
    assert_same_losses(found, expected)
    assert expected[-1]["loss"] < expected[0]["loss"]
    rates = [settings.get("lr", 5e-5) * reference.warmup_linear(step / 20, 0.1) for step in range(20)]
    assert [line["learning_rate"] for line in found] == pytest.approx(rates)
    student, _ = load_ranker(tmp_path / "out")
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(
            tensor.double(), weights[name].detach(), rtol=1e-4, atol=1e-4 * settings.get("lr", 1e-2)
        )


def test_hard_labels_need_no_teacher_and_agree_with_the_reference_implementation(inputs: Path, tmp_path: Path) -> None:
    found = distil(
        inputs, tmp_path / "out", "--distill_model", "hard", "--num_train_epochs", 10, "--learning_rate", 1e-3
    )
    expected, _ = reference_run("hard", reference_batches(inputs / "features", EXAMPLES, 10), lr=1e-3)
    assert [line["soft_loss"] for line in found] == [0.0] * 10
    assert_same_losses(found, expected)


def test_several_batches_an_epoch_and_a_partial_batch_is_skipped(inputs: Path, tmp_path: Path) -> None:
    more = ["--train_batch_size", 3, "--num_train_epochs", 4, "--learning_rate", 1e-3, "--seed", 5]
    found = distil(inputs, tmp_path / "out", *more)
    assert [line["global_step"] for line in found] == list(range(1, 9))  # 8 examples: 2 batches of 3 in each epoch
    expected, _ = reference_run("simplified", reference_batches(inputs / "features", 3, 4, seed=5), lr=1e-3)
    assert_same_losses(found, expected)


def test_every_example_is_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    orders = [epoch_order(seed, epoch, 50).tolist() for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == epoch_order(1, 0, 50).tolist()


def test_accumulation_changes_memory_and_nothing_else(inputs: Path, tmp_path: Path) -> None:
    runs = {}
    for parts in (1, 2, 4):
        more = ["--gradient_accumulation_steps", parts, "--num_train_epochs", 6, "--learning_rate", 1e-3]
        lines = distil(inputs, tmp_path / str(parts), *more)
        runs[parts] = lines, load_ranker(tmp_path / str(parts))[0].state_dict()
    for parts in (2, 4):
        assert_same_losses(runs[parts][0], runs[1][0])
        for name, tensor in runs[1][1].items():
            torch.testing.assert_close(runs[parts][1][name], tensor, rtol=0, atol=1e-6)


def test_standard_losses_do_not_depend_on_the_padding(inputs: Path, tmp_path: Path) -> None:
    write_tiny_features(tmp_path / "features", count=EXAMPLES, max_seq_length=STUDENT.positions)
    found = distil(inputs, tmp_path / "out", "--distill_model", "standard", "--features_file", tmp_path / "features")
    expected, _ = reference_run("standard", reference_batches(tmp_path / "features", EXAMPLES, 2))
    assert_same_losses(found, expected)


def test_mixed_precision_on_a_cpu_is_close_to_float32(inputs: Path, tmp_path: Path) -> None:
    more = ["--num_train_epochs", 6, "--learning_rate", 1e-3]
    exact = distil(inputs, tmp_path / "exact", *more)
    mixed = distil(inputs, tmp_path / "mixed", *more, "--fp16")
    assert mixed != exact
    for line, expected in zip(mixed, exact, strict=True):
        for name in LINE_KEYS:
            assert line[name] == pytest.approx(expected[name], rel=0.05), name


# The output files.


def test_the_loss_lines_hold_what_is_documented(inputs: Path, tmp_path: Path) -> None:
    lines = distil(inputs, tmp_path / "out", "--train_batch_size", 2)
    assert [list(line) for line in lines] == [LINE_KEYS] * 8
    for line in lines:
        assert line["loss"] == pytest.approx(line["att_loss"] + line["rep_loss"] + line["cls_loss"], rel=1e-6)
        assert line["cls_loss"] == pytest.approx(line["soft_loss"] + line["hard_loss"], rel=1e-6)


def test_a_loss_line_is_the_mean_since_the_line_before(inputs: Path, tmp_path: Path) -> None:
    more = ["--train_batch_size", 2, "--num_train_epochs", 2, "--gradient_accumulation_steps", 2]
    every = distil(inputs, tmp_path / "every", *more)
    third = distil(inputs, tmp_path / "third", *more, "--train_loss_step", 3)
    assert [line["global_step"] for line in third] == [3, 6, 8]
    for line, first in zip(third, (0, 3, 6), strict=True):
        since = every[first : line["global_step"]]
        for name in LINE_KEYS[1:-1]:
            assert line[name] == pytest.approx(np.mean([one[name] for one in since]), rel=1e-5), name
        assert line["learning_rate"] == since[-1]["learning_rate"]


def test_checkpoints_are_model_directories(inputs: Path, tmp_path: Path) -> None:
    more = ["--train_batch_size", 2, "--learning_rate", 1e-2, "--pooled_activation", "relu"]
    distil(inputs, tmp_path / "out", *more, "--save_model_step", 3)
    checkpoints = sorted(path.name for path in (tmp_path / "out").glob("checkpoint*"))
    assert checkpoints == ["checkpoint-3", "checkpoint-6"]
    weights = []
    for directory in (tmp_path / "out" / "checkpoint-3", tmp_path / "out" / "checkpoint-6", tmp_path / "out"):
        assert {"config.json", "model.safetensors", "vocab.txt"} <= set(os.listdir(directory))
        model, fit_dense = load_ranker(directory)
        assert (fit_dense, model.pooled_activation) == ({}, "relu")
        weights.append(model.classifier.weight)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert not list((tmp_path / "out").glob(".*"))
    # after the last step there is no checkpoint: it would be the student itself
    distil(inputs, tmp_path / "other", "--train_batch_size", 2, "--save_model_step", 8)
    assert not list((tmp_path / "other").glob("checkpoint*"))


def test_the_output_directory_holds_the_student_its_losses_and_the_log(inputs: Path, tmp_path: Path) -> None:
    few = "--no_teacher_check"  # the examples are too few for it
    done = run_main("distill.py", *arguments(inputs, tmp_path / "deep" / "out", few))
    assert done.status == 0
    names = {"config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json"}
    assert set(os.listdir(tmp_path / "deep" / "out")) == names | {
        *("train_loss.jsonl", "speed.jsonl", "distill.log", "training.json", "README.md")
    }
    log = (tmp_path / "deep" / "out" / "distill.log").read_text()
    assert "learning_rate=5e-05" in log
    assert "step 2 of 2" in log
    assert "WARNING" not in log
    assert log == done.stderr


def test_missing_parts_of_the_student_are_named_in_the_log(inputs: Path, tmp_path: Path) -> None:
    weights = {k: v for k, v in student_weights().items() if not k.startswith(("classifier", "fit_dense"))}
    write_published(tmp_path / "bare", STUDENT, weights)
    distil(inputs, tmp_path / "out", "--general_student_model", tmp_path / "bare")
    log = (tmp_path / "out" / "distill.log").read_text()
    assert re.search(r"WARNING .*bare: classifier.weight, classifier.bias not found", log)
    assert re.search(r"WARNING .*fit_dense not found", log)


def test_a_map_to_a_teacher_of_another_size_is_not_used(inputs: Path, tmp_path: Path) -> None:
    for name, rows in (("narrow", 20), ("none", None)):
        weights = {k: v for k, v in student_weights().items() if not k.startswith("fit_dense")}
        if rows:
            weights |= {"fit_dense.weight": torch.ones(rows, STUDENT.hidden), "fit_dense.bias": torch.ones(rows)}
        write_published(tmp_path / name, STUDENT, weights)
        distil(inputs, tmp_path / f"from_{name}", "--general_student_model", tmp_path / name)
    assert loss_lines(tmp_path / "from_narrow") == loss_lines(tmp_path / "from_none")
    log = (tmp_path / "from_narrow" / "distill.log").read_text()
    assert "WARNING student: fit_dense does not fit this teacher, starting from initial values" in log


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(inputs: Path, tmp_path: Path) -> None:
    weights = {k: v for k, v in student_weights().items() if not k.startswith(("classifier", "fit_dense"))}
    write_published(tmp_path / "bare", STUDENT, weights, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    found = []
    for run, seed in enumerate((7, 7, 8)):
        more = ["--train_batch_size", 4, "--seed", seed, "--general_student_model", tmp_path / "bare"]
        distil(inputs, tmp_path / str(run), *more)
        found.append((tmp_path / str(run) / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_relative_output_directory_works(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    distil(inputs, Path("."), "--save_model_step", 1)
    assert load_ranker(tmp_path)[0].config.hidden_size == STUDENT.hidden
    assert load_ranker(tmp_path / "checkpoint-1")[0].config.hidden_size == STUDENT.hidden


def test_a_student_keeps_its_own_head(inputs: Path, tmp_path: Path) -> None:
    write_transformers(tmp_path / "general", STUDENT, student_weights(), pooled_activation="relu")
    more = ["--distill_model", "hard", "--general_student_model", tmp_path / "general"]
    found = distil(inputs, tmp_path / "out", *more)
    batches = reference_batches(inputs / "features", EXAMPLES, 2)
    assert found[0]["loss"] == pytest.approx(reference_run("hard", batches, pooled_activation="relu")[0][0]["loss"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pooled_activation"] == "relu"


# The teacher.


def test_the_teacher_has_no_dropout_unless_asked_for(inputs: Path, tmp_path: Path) -> None:
    noisy = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    write_published(tmp_path / "teacher", TEACHER, teacher_weights(), **noisy)
    before = (tmp_path / "teacher" / "pytorch_model.bin").read_bytes()
    more = ["--num_train_epochs", 3, "--teacher_model", tmp_path / "teacher"]
    expected, _ = reference_run("simplified", reference_batches(inputs / "features", EXAMPLES, 3))
    assert_same_losses(distil(inputs, tmp_path / "still", *more), expected)
    noise = distil(inputs, tmp_path / "noise", *more, "--teacher_dropout")
    assert abs(noise[0]["rep_loss"] / expected[0]["rep_loss"] - 1) > 0.01
    assert abs(noise[0]["att_loss"] / expected[0]["att_loss"] - 1) > 0.01
    assert (tmp_path / "teacher" / "pytorch_model.bin").read_bytes() == before


def test_the_student_has_its_dropout(inputs: Path, tmp_path: Path) -> None:
    write_published(tmp_path / "general", STUDENT, student_weights(), hidden_dropout_prob=0.5)
    found = distil(inputs, tmp_path / "out", "--general_student_model", tmp_path / "general")
    expected, _ = reference_run("simplified", reference_batches(inputs / "features", EXAMPLES, 2))
    assert abs(found[0]["loss"] / expected[0]["loss"] - 1) > 0.01


def test_logits_alone_can_be_learned_from_any_depth_and_number_of_heads(inputs: Path, tmp_path: Path) -> None:
    sizes = TEACHER._replace(layers=4, heads=3)
    write_published(tmp_path / "teacher", sizes, random_weights(sizes, 5))
    more = ["--teacher_model", tmp_path / "teacher"]
    distil(inputs, tmp_path / "out", "--distill_model", "standard", *more)
    done = run_main("distill.py", *arguments(inputs, tmp_path / "no", *more))
    assert_refused(done, "--general_student_model", "3 layers does not divide a teacher of 4")


# The terms of the loss.


def test_each_method_is_a_preset_of_the_four_weights(inputs: Path, tmp_path: Path) -> None:
    def weights(*values: float) -> list[object]:
        names = ("--att_weight", "--rep_weight", "--soft_weight", "--hard_weight")
        return [part for pair in zip(names, values, strict=True) for part in pair]

    for distill_model, values in (
        ("simplified", (1, 1, 1, 1)),
        ("standard", (0, 0, 0.5, 0.5)),
        ("intermediate", (1, 1, 0, 0)),
        ("prediction", (0, 0, 1, 0)),
    ):
        preset = distil(inputs, tmp_path / distill_model, "--distill_model", distill_model)
        for other in ("simplified", "standard"):
            output = tmp_path / f"{distill_model}_from_{other}"
            assert distil(inputs, output, "--distill_model", other, *weights(*values)) == preset
            found = (output / "model.safetensors").read_bytes()
            assert found == (tmp_path / distill_model / "model.safetensors").read_bytes()


def test_the_loss_is_the_weighted_sum_and_a_term_of_weight_zero_is_not_computed(inputs: Path, tmp_path: Path) -> None:
    first = distil(inputs, tmp_path / "all")[0]
    more = ["--att_weight", 2, "--rep_weight", 0.25, "--soft_weight", 3, "--hard_weight", 0.5]
    line = distil(inputs, tmp_path / "weighted", *more)[0]
    terms = [first[f"{name}_loss"] for name in ("att", "rep", "soft", "hard")]
    assert [line[f"{name}_loss"] for name in ("att", "rep", "soft", "hard")] == pytest.approx(terms)
    assert line["cls_loss"] == pytest.approx(3 * terms[2] + 0.5 * terms[3])
    assert line["loss"] == pytest.approx(2 * terms[0] + 0.25 * terms[1] + line["cls_loss"])
    for number, name in enumerate(("att", "rep", "soft", "hard")):
        line = distil(inputs, tmp_path / f"without_{name}", f"--{name}_weight", 0)[0]
        assert line[f"{name}_loss"] == 0.0
        assert line["loss"] == pytest.approx(sum(terms) - terms[number])


def test_tinybert_in_two_steps_agrees_with_the_reference_implementation(inputs: Path, tmp_path: Path) -> None:
    first = distil(inputs, tmp_path / "first", "--distill_model", "intermediate", "--learning_rate", 1e-3)
    batches = reference_batches(inputs / "features", EXAMPLES, 2)
    expected, weights = reference_run("intermediate", batches, lr=1e-3)
    assert_same_losses(first, expected)

    # the first step gives an encoder with fit_dense; the seed initializes the classifier of the second step
    raw = safetensors.torch.load_file(tmp_path / "first" / "model.safetensors")
    assert not any(name.startswith("classifier") for name in raw)
    torch.testing.assert_close(
        raw["fit_dense.weight"].double(), weights["fit_dense.weight"].detach(), rtol=0, atol=1e-6
    )
    more = ["--distill_model", "prediction", "--general_student_model", tmp_path / "first"]
    second = distil(inputs, tmp_path / "second", *more, "--learning_rate", 1e-3)
    assert "classifier.weight, classifier.bias not found" in (tmp_path / "second" / "distill.log").read_text()
    model, _ = load_ranker(tmp_path / "first", initialise_missing_with_seed=42)
    weights |= {f"classifier.{name}": p.detach().double() for name, p in model.classifier.named_parameters()}
    weights = {name: tensor.detach() for name, tensor in weights.items()}
    teacher = {name: tensor.double() for name, tensor in teacher_weights().items()}
    assert_same_losses(second, reference.train("prediction", weights, teacher, STUDENT.heads, batches, lr=1e-3))
    assert load_ranker(tmp_path / "second")[1] == {}  # a ranker has no fit_dense


def test_tinybert_is_its_two_trainings_in_one_command(inputs: Path, tmp_path: Path) -> None:
    first = ["--distill_model", "intermediate", "--learning_rate", 2e-3, "--num_train_epochs", 3, "--att_weight", 0.5]
    distil(inputs, tmp_path / "first", *first, "--layer_map", "1,3,6", "--ignore_padding")
    second = ["--distill_model", "prediction", "--learning_rate", 1e-3, "--temperature", 2]
    distil(inputs, tmp_path / "second", *second, "--general_student_model", tmp_path / "first", "--no_teacher_check")

    more = ["--distill_model", "tinybert", "--learning_rate", 1e-3, "--temperature", 2, "--no_teacher_check"]
    more += ["--intermediate_learning_rate", 2e-3, "--intermediate_num_train_epochs", 3, "--att_weight", 0.5]
    distil(inputs, tmp_path / "out", *more, "--layer_map", "1,3,6", "--ignore_padding")
    for name, other in (("out_intermediate", "first"), ("out", "second")):
        for file in ("model.safetensors", "train_loss.jsonl", "config.json", "training.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / other / file).read_bytes(), file
    for name in ("out_intermediate", "out"):  # each training has its own log
        log = (tmp_path / name / "distill.log").read_text()
        assert log.count("settings: ") == log.count("examples in ") == 1


def test_tinybert_frees_its_first_student_before_the_second(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, load = [], training.inputs.load_models

    def watched(*args: object) -> Models:
        gc.collect()
        alive.append(sum(type(one) is BertAdam for one in gc.get_objects()))
        return load(*args)

    monkeypatch.setattr(training.inputs, "load_models", watched)
    distil(inputs, tmp_path / "out", "--distill_model", "tinybert", "--no_teacher_check")
    assert alive[1] == alive[0]


def test_tinybert_with_nothing_to_learn_is_refused(inputs: Path, tmp_path: Path) -> None:
    for more, says in (
        (["--soft_weight", 0], "--soft_weight"),
        (["--att_weight", 0, "--rep_weight", 0], "--att_weight"),
        (["--fp16", "--fp16_backend", "apex"], "--fp16_backend"),
        (["--alpha", 0.3], "--alpha"),
        (["--output_student_dir", "."], "--output_student_dir: tinybert needs a second directory"),
    ):
        refused(inputs, tmp_path, "--distill_model", "tinybert", *more, says=(says,))
    more = ["--intermediate_learning_rate", 1e-3]
    refused(
        inputs, tmp_path, *more, says=("--intermediate_learning_rate: has no use without --distill_model tinybert",)
    )


@pytest.mark.parametrize("name", ["out", "out_intermediate"])
@pytest.mark.parametrize("flag", ["--teacher_model", "--general_student_model"])
def test_tinybert_replaces_no_input(inputs: Path, tmp_path: Path, flag: str, name: str) -> None:
    source = inputs / ("teacher" if flag == "--teacher_model" else "general")
    shutil.copytree(source, tmp_path / name)
    more = ["--distill_model", "tinybert", "--overwrite", flag, tmp_path / name]
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", *more))
    assert_refused(done, "--output_student_dir", f"{tmp_path / name} is an input and would be lost")
    assert os.listdir(tmp_path) == [name]  # nothing is trained before


def test_tinybert_replaces_no_earlier_run_without_overwrite(inputs: Path, tmp_path: Path) -> None:
    for name in ("out_intermediate", "out"):
        distil(inputs, tmp_path / name)
        before = (tmp_path / name / "model.safetensors").read_bytes()
        done = run_main("distill.py", *arguments(inputs, tmp_path / "out", "--distill_model", "tinybert"))
        assert_refused(done, f"{tmp_path / name} holds config.json of an earlier run")
        assert (tmp_path / name / "model.safetensors").read_bytes() == before
        shutil.rmtree(tmp_path / name)


def test_general_distillation_needs_neither_labels_nor_a_fine_tuned_teacher(inputs: Path, tmp_path: Path) -> None:
    weights = {k: v for k, v in teacher_weights().items() if not k.startswith(("classifier", "bert.pooler"))}
    write_published(tmp_path / "encoder", TEACHER, weights)
    features = write_tiny_features(tmp_path / "text", EXAMPLES, set_name="test")
    more = ["--distill_model", "intermediate", "--features_file", features, "--teacher_model", tmp_path / "encoder"]
    found = distil(inputs, tmp_path / "done", *more)
    assert_same_losses(found, reference_run("intermediate", reference_batches(features, EXAMPLES, 2))[0])
    refused(inputs, tmp_path, *more, "--soft_weight", 1, says=("encoder", "no fine-tuned ranker"))


def test_a_layer_map_sets_the_teacher_layer_of_each_student_layer(inputs: Path, tmp_path: Path) -> None:
    uniform = distil(inputs, tmp_path / "uniform")
    assert distil(inputs, tmp_path / "same", "--layer_map", "2,4,6") == uniform
    # the map is not in order and names one layer twice
    found = distil(inputs, tmp_path / "map", "--layer_map", "5,5,3")
    assert found[0]["soft_loss"] == uniform[0]["soft_loss"]
    batch = reference_batches(inputs / "features", EXAMPLES, 1)[0]
    weights = [{k: v.double() for k, v in side.items()} for side in (student_weights(), teacher_weights())]
    _, scores, hidden = reference.bert(weights[0], STUDENT.heads, batch)
    _, target_scores, target_hidden = reference.bert(weights[1], TEACHER.heads, batch)
    att = rep = 0.0
    for m, n in enumerate((0, 5, 5, 3)):
        fitted = hidden[m] @ weights[0]["fit_dense.weight"].T + weights[0]["fit_dense.bias"]
        rep += (fitted - target_hidden[n]).square().mean().item()
        if m:
            pair = [torch.where(s <= -100, 0.0, s) for s in (scores[m - 1], target_scores[n - 1])]
            att += (pair[0] - pair[1]).square().mean().item()
    assert (found[0]["att_loss"], found[0]["rep_loss"]) == pytest.approx((att, rep), rel=1e-5)
    # depths that do not divide
    sizes = STUDENT._replace(layers=4)
    write_published(tmp_path / "four", sizes, random_weights(sizes, 5))
    more = ["--general_student_model", tmp_path / "four", "--layer_map"]
    assert len(distil(inputs, tmp_path / "out4", *more, "1,2,4,6")) == 2
    refused(inputs, tmp_path, *more, "2,4,6", says=("--layer_map", "names 3 layers for the 4 of the student"))


def test_the_losses_can_ignore_padding(inputs: Path, tmp_path: Path) -> None:
    every = distil(inputs, tmp_path / "padding")[0]
    more = ["--ignore_padding"]
    found = distil(inputs, tmp_path / "none", *more)
    assert found[0]["att_loss"] != pytest.approx(every["att_loss"], rel=1e-3)
    assert found[0]["soft_loss"] == pytest.approx(every["soft_loss"], rel=1e-6)
    # each loss is the mean over the examples, each one alone without padding
    features = Features(inputs / "features")
    alone = {"att_loss": [], "rep_loss": []}
    weights = [{k: v.double() for k, v in side.items()} for side in (student_weights(), teacher_weights())]
    for i in range(EXAMPLES):
        batch = {name: torch.from_numpy(array) for name, array in features.batch([i]).items()}
        values = reference.losses("simplified", *weights, STUDENT.heads, batch)
        for name, terms in alone.items():
            terms.append(values[name].item())
    for name, terms in alone.items():
        assert found[0][name] == pytest.approx(np.mean(terms), rel=1e-5), name
    assert_same_losses(distil(inputs, tmp_path / "parts", *more, "--gradient_accumulation_steps", 4), found)


# The check of the teacher.


def write_labelled_features(path: Path, labels: np.ndarray) -> Path:
    encoded = encode_pairs(WordPiece(TOKENS, True), some_pairs(len(labels)), MAX_SEQ_LENGTH)
    examples = (Example(f"e{i}", ids, first, int(labels[i])) for i, (ids, first) in enumerate(encoded))
    write_features(
        path, FeaturesHeader(MAX_SEQ_LENGTH, len(TOKENS), True, "train", vocabulary_sha256(TOKENS)), examples
    )
    return path


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The teacher's margins z_1 - z_0 for 300 examples, (300,) float64."""
    path = write_labelled_features(tmp_path_factory.mktemp("gaps") / "features", np.zeros(300))
    batch = {name: torch.from_numpy(array) for name, array in Features(path).batch(range(300)).items()}
    logits, _, _ = reference.bert({k: v.double() for k, v in teacher_weights().items()}, TEACHER.heads, batch)
    return (logits[:, 1] - logits[:, 0]).numpy()


def test_a_teacher_that_ranks_the_examples_is_accepted_and_its_auc_logged(
    inputs: Path, tmp_path: Path, gaps: np.ndarray
) -> None:
    # the first 100 labels agree with the teacher; the other 200 are 0 and 1 in turn
    labels = (gaps > np.median(gaps)).astype(int)
    labels[100:] = np.arange(200) % 2
    features = write_labelled_features(tmp_path / "features", labels)
    distil(inputs, tmp_path / "out", "--features_file", features)
    found = re.search(
        r"teacher checked: AUC (0\.\d+) over 128 relevant and 128 not relevant",
        (tmp_path / "out" / "distill.log").read_text(),
    )
    order = epoch_order(42, 0, 300)
    ones, zeros = (gaps[order[labels[order] == label][:128]] for label in (1, 0))
    wins = [(one > zero) + 0.5 * (one == zero) for one in ones for zero in zeros]
    assert float(found[1]) == pytest.approx(np.mean(wins), abs=6e-4)


def test_a_random_or_flipped_teacher_is_refused_with_its_auc(inputs: Path, tmp_path: Path, gaps: np.ndarray) -> None:
    flipped_labels = write_labelled_features(tmp_path / "flipped", gaps < np.median(gaps))
    random_labels = write_labelled_features(tmp_path / "random", np.arange(300) % 2)
    for distill_model in ("simplified", "standard", "prediction"):
        more = ["--distill_model", distill_model, "--features_file"]
        says = (
            "--teacher_model",
            str(inputs / "teacher"),
            "AUC 0.000 over 128 relevant and 128 not relevant",
            "flipped",
        )
        refused(inputs, tmp_path, *more, flipped_labels, says=(*says, "--no_teacher_check"))
        refused(inputs, tmp_path, *more, random_labels, says=("hardly better than chance", "--no_teacher_check"))
    distil(inputs, tmp_path / "done", "--features_file", flipped_labels, "--no_teacher_check")
    # without soft labels the teacher is not checked
    distil(inputs, tmp_path / "states", "--features_file", flipped_labels, "--distill_model", "intermediate")


def test_a_teacher_is_not_checked_with_too_few_examples(inputs: Path, tmp_path: Path, gaps: np.ndarray) -> None:
    labels = np.zeros(300, int)
    labels[np.argsort(gaps)[:15]] = 1
    distil(inputs, tmp_path / "done", "--features_file", write_labelled_features(tmp_path / "few", labels))
    log = (tmp_path / "done" / "distill.log").read_text()
    assert "WARNING teacher not checked: 15 examples with label 1 are too few (16 are needed)" in log
    labels[np.argsort(gaps)[15]] = 1
    refused(
        inputs, tmp_path, "--features_file", write_labelled_features(tmp_path / "enough", labels),
        says=("AUC 0.000 over 16 relevant and 128 not relevant examples",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("positives", "negatives", "flags"),
    [
        (1, 1, []), (2, 1, []), (40, 20, []), (41, 20, ["filter_positives.py", "--best", "--max_positive_passages"]),
        (20, 80, []), (20, 200, []), (4, 200, []), (4, 201, ["filter_positives.py", "--keep_best", "--num_negatives"]),
        (1, 1000, ["--num_random_negatives"]), (2903, 240, ["--threshold"]), (0, 9, ["--keep_best"]),
        (9, 0, ["--best"]), (0, 0, []),
    ],
)  # fmt: skip
def test_an_extreme_ratio_of_labels_gives_a_warning(
    caplog: pytest.LogCaptureFixture, positives: int, negatives: int, flags: list[str]
) -> None:
    """Examples without a label do not count."""
    warn_of_label_ratio(Path("x.features"), np.array([1] * positives + [0] * negatives + [-1] * 7, np.int8))
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == bool(flags)
    for message in messages:
        assert message.startswith(f"x.features has {positives} positives and {negatives} negatives: ")
        assert all(flag in message for flag in (*flags, "data_preparation/make_train_pairs.py"))


def test_the_ratio_of_labels_is_in_the_log_of_a_training(inputs: Path, tmp_path: Path) -> None:
    features = write_labelled_features(tmp_path / "features", np.arange(300) % 20 > 0)
    distil(inputs, tmp_path / "out", "--features_file", features, "--no_teacher_check")
    log = (tmp_path / "out" / "distill.log").read_text()
    assert f"WARNING {features} has 285 positives and 15 negatives" in log
    distil(inputs, tmp_path / "balanced")
    assert "negatives" not in (tmp_path / "balanced" / "distill.log").read_text()


# apex.


class FakeAmp(ModuleType):
    """Records the calls of the script to apex.amp."""

    def __init__(self) -> None:
        super().__init__("apex.amp")
        self.calls: list[tuple] = []

    def initialize(self, models: list, optimizer: torch.optim.Optimizer, opt_level: str) -> tuple:
        self.calls.append(("initialize", len(models), type(optimizer).__name__, opt_level))
        return models, optimizer

    def disable_casts(self) -> contextlib.AbstractContextManager:
        self.calls.append(("disable_casts",))
        return contextlib.nullcontext()

    def scale_loss(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer, delay_unscale: bool = False):
        calls = self.calls

        class Scaled:
            def __enter__(self) -> torch.Tensor:
                calls.append(("scale_loss", delay_unscale))
                return loss

            def __exit__(self, *error: object) -> None:
                pass

        return Scaled()


@pytest.mark.parametrize(("level", "casts"), [("O1", [("disable_casts",)]), ("O2", [])])
def test_an_apex_that_has_amp_is_used(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, casts: list[tuple]
) -> None:
    apex, amp = ModuleType("apex"), FakeAmp()
    apex.amp = amp  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.amp", amp)
    more = ["--fp16", "--fp16_backend", "apex", "--fp16_opt_level", level, "--gradient_accumulation_steps", 2]
    found = distil(inputs, tmp_path / "out", *more)
    # at O1 apex patches torch; the bound of the attention scores, their loss and the backward pass disable these casts
    halves = [call for is_first in (True, False) for call in (*casts, *casts, ("scale_loss", is_first), *casts)]
    assert amp.calls == [("initialize", 2, "BertAdam", level), *halves * 2]
    # neither torch's scaler nor its autocast is used
    assert_same_losses(found, reference_run("simplified", reference_batches(inputs / "features", EXAMPLES, 2))[0])


@pytest.mark.parametrize("installed", [False, True], ids=["no apex", "an apex without amp"])
def test_without_apex_amp_the_backend_is_refused(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex") if installed else None)
    monkeypatch.delitem(sys.modules, "apex.amp", raising=False)
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", "--fp16", "--fp16_backend", "apex"))
    assert_refused(done, "--fp16_backend apex", "use --fp16_backend torch")
    assert os.listdir(tmp_path) == []


# Errors: each is one line, and no file is left.


def refused(inputs: Path, tmp_path: Path, *more: object, says: tuple[str, ...]) -> None:
    before = sorted(os.listdir(tmp_path))
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", *more))
    assert_refused(done, *says)
    assert done.stdout == ""
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("train_batch_size", ["0", "-1", "1.5", "x", "9"]),
        ("gradient_accumulation_steps", ["0", "-2", "3", "16", "x"]),
        ("num_train_epochs", ["0", "-1", "1.5", "nan", "inf", "x", "0.5"]),
        ("learning_rate", ["-1e-5", "nan", "inf", "x"]),
        ("weight_decay", ["-0.1", "nan", "inf"]),
        ("warmup_proportion", ["-0.1", "1", "1.5", "nan"]),
        ("alpha", ["-0.1", "1.1", "nan"]),
        ("temperature", ["0", "-1", "nan", "inf"]),
        ("train_loss_step", ["0", "-1", "x"]),
        ("save_model_step", ["-1", "x"]),
        ("seed", ["-1", "1.5", str(1 << 64), "x"]),
        ("max_seq_length", ["16", "18", "0", "x"]),
        ("distill_model", ["tinybert1", "x"]),
        ("att_weight", ["-1", "nan", "inf", "x"]),
        ("hard_weight", ["-0.5", "x"]),
        ("margin_weight", ["-0.5", "x"]),
        ("layer_map", ["2,4", "0,2,4", "2,4,7", "2,4,6,6", "2,,4", "2;4;6", "-1,2,3", "a", "2.0,4,6"]),
        ("pooled_activation", ["gelu"]),
        ("fp16_backend", ["amp"]),
        ("fp16_opt_level", ["O4", "O2"]),
        ("device", ["tpu", "mps", "cuda:x", "cuda:99", "99", "-1"]),
    ],
)
def test_a_flag_out_of_range_is_refused(inputs: Path, tmp_path: Path, name: str, values: list[str]) -> None:
    for value in values:
        says = "--train_batch_size" if name == "gradient_accumulation_steps" and value in ("3", "16") else f"--{name}"
        refused(inputs, tmp_path, f"--{name}={value}", says=(says,))


def test_flags_that_contradict_each_other_are_refused(inputs: Path, tmp_path: Path) -> None:
    def flags(says: str, *more: object) -> None:
        refused(inputs, tmp_path, *more, says=(says,))

    flags("--no_cuda", "--no_cuda", "--device", "cuda:0")
    flags("--fp16_backend", "--fp16_backend", "apex")
    flags("--fp16_opt_level", "--fp16", "--fp16_opt_level", "O2")
    flags("--do_lower_case", "--no-do_lower_case")
    flags("--teacher_model", "--distill_model", "hard", "--teacher_model", inputs / "teacher")
    flags("--alpha", "--alpha", "0.5")
    flags("--temperature", "--distill_model", "hard", "--temperature", "1")
    flags("--temperature", "--distill_model", "intermediate", "--temperature", "2")
    flags("--no_teacher_check", "--distill_model", "intermediate", "--no_teacher_check")
    flags("--temperature", "--distill_model", "margin_mse", "--temperature", "2")
    flags("--train_batch_size", "--margin_weight", "1", "--gradient_accumulation_steps", EXAMPLES)
    flags("--layer_map", "--distill_model", "standard", "--layer_map", "2,4,6")
    flags("--ignore_padding", "--distill_model", "prediction", "--ignore_padding")
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", "hard")[:-1])
    assert_refused(done, "--teacher_model: needed for --distill_model simplified")
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", "hard")[:-1], "--distill_model", "margin_mse")
    assert_refused(done, "--teacher_model: needed for --distill_model margin_mse")
    assert os.listdir(tmp_path) == []


def test_an_earlier_run_is_kept_without_overwrite(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    distil(inputs, output, "--save_model_step", 1)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    done = run_main("distill.py", *arguments(inputs, output))
    assert_refused(done, "--output_student_dir", "holds config.json of an earlier run", "--overwrite")
    # another error does not change the earlier run
    done = run_main("distill.py", *arguments(inputs, output, "--overwrite", "--features_file", tmp_path / "typo"))
    assert_refused(done, str(tmp_path / "typo"))
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    lines = distil(inputs, output, "--overwrite", "--distill_model", "standard")
    assert lines[0]["att_loss"] == 0.0
    assert (output / "model.safetensors").read_bytes() != before[output / "model.safetensors"]
    assert not (output / "checkpoint-1").exists()


def test_a_directory_that_holds_a_model_or_is_a_file_is_refused(inputs: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "bert_config.json", "model.safetensors", "checkpoint-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("mine")
        done = run_main("distill.py", *arguments(inputs, tmp_path / name))
        assert_refused(done, "--output_student_dir", f"holds {name}")
    (tmp_path / "file").write_text("mine")
    done = run_main("distill.py", *arguments(inputs, tmp_path / "file"))
    assert_refused(done, "--output_student_dir", "is a file")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_input_is_not_overwritten_by_the_student(inputs: Path, tmp_path: Path) -> None:
    for role in ("general", "teacher"):
        own = shutil.copytree(inputs / role, tmp_path / role / "checkpoint-7")
        flag = "--general_student_model" if role == "general" else "--teacher_model"
        for output, given in ((own, []), (own.parent, []), (own.parent, ["--features_file", own / "features"])):
            (own / "features").write_bytes((inputs / "features").read_bytes())
            done = run_main("distill.py", *arguments(inputs, output, flag, own, "--overwrite", *given))
            (own / "features").unlink()
            assert_refused(done, "--output_student_dir", str(own), "is an input")
        assert sorted(path.name for path in own.iterdir()) == sorted(path.name for path in (inputs / role).iterdir())


def test_the_student_has_the_head_of_its_teacher(inputs: Path, tmp_path: Path) -> None:
    write_transformers(tmp_path / "teacher", TEACHER, teacher_weights(), pooled_activation="relu")
    distil(inputs, tmp_path / "out", "--teacher_model", tmp_path / "teacher")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pooled_activation"] == "relu"
    without = distil(inputs, tmp_path / "none", "--teacher_model", tmp_path / "teacher", "--pooled_activation", "none")
    assert without[0] == distil(inputs, tmp_path / "published")[0]


def test_an_unfinished_run_without_checkpoints_can_be_started_again(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train_loss.jsonl").write_text("old\n")
    assert distil(inputs, tmp_path / "out")[0]["global_step"] == 1


def test_models_that_cannot_learn_from_each_other_are_refused(inputs: Path, tmp_path: Path) -> None:
    def model(name: str, sizes, **changes) -> Path:
        weights = random_weights(sizes, 5) | changes.pop("weights", {})
        return write_published(tmp_path / name, sizes, weights, **changes)

    def student(path: Path, *says: str) -> None:
        refused(inputs, tmp_path, "--general_student_model", path, says=says)

    heads = model("heads", STUDENT._replace(heads=3))
    student(heads, "--general_student_model", "3 attention heads cannot learn from 4")
    student(model("depth", STUDENT._replace(layers=4)), "4 layers does not divide a teacher of 6")
    student(model("short", STUDENT._replace(positions=16)), "up to 17 tokens, 16 positions")
    vocabulary = [*TOKENS[:-2], TOKENS[-1], TOKENS[-2]]
    student(model("other", STUDENT, tokens=vocabulary), str(tmp_path / "other"), "another vocabulary")
    student(model("narrow", STUDENT._replace(vocabulary=len(TOKENS) - 1)), "tokens and 2 segments")
    student(tmp_path / "none", str(tmp_path / "none"), "is not a directory")
    teacher = model("teacher", TEACHER, tokens=vocabulary)
    refused(inputs, tmp_path, "--teacher_model", teacher, says=(str(teacher), "another vocabulary"))
    (teacher / "pytorch_model.bin").unlink()
    refused(inputs, tmp_path, "--teacher_model", teacher, says=(str(teacher), "model.safetensors nor pytorch_model"))
    (tmp_path / "heads" / "vocab.txt").unlink()
    refused(
        inputs, tmp_path, "--distill_model", "hard", "--general_student_model", heads, says=("needs a vocab.txt",)
    )  # fmt: skip


def test_a_teacher_that_is_no_fine_tuned_ranker_is_refused(inputs: Path, tmp_path: Path) -> None:
    # the student, without a classifier, would give a warning; the error is still the only line
    bare = {k: v for k, v in student_weights().items() if not k.startswith("classifier")}
    write_published(tmp_path / "bare", STUDENT, bare)
    weights = teacher_weights()
    del weights["classifier.weight"]
    write_published(tmp_path / "teacher", TEACHER, weights)
    more = ["--general_student_model", tmp_path / "bare", "--teacher_model", tmp_path / "teacher"]
    refused(inputs, tmp_path, *more, says=("classifier.weight is missing", "no fine-tuned ranker"))


def test_features_that_cannot_be_learned_from_are_refused(inputs: Path, tmp_path: Path) -> None:
    def features(path: Path, *says: str) -> None:
        refused(inputs, tmp_path, "--features_file", path, says=("error", str(path), *says))

    features(write_tiny_features(tmp_path / "unlabelled", 8, set_name="test"), "no labels")
    features(write_tiny_features(tmp_path / "none", 0), "--features_file", "has no examples")
    features(write_tiny_features(tmp_path / "few", 7), "--train_batch_size", "8 is more than the 7 examples")
    features(write_tiny_features(tmp_path / "long", 8, max_seq_length=20), "up to 20 tokens, 19 positions")
    features(write_tiny_features(tmp_path / "other", 8, tokens=[*TOKENS[:-1], "new"]), "another vocabulary")
    features(tmp_path / "missing")
    (tmp_path / "text").write_text("q1\tquery\tpassage\t1\n")
    features(tmp_path / "text", "tokenize_to_features.py")
    (tmp_path / "cut").write_bytes((inputs / "features").read_bytes()[:-9])
    features(tmp_path / "cut", "block 1", "cut off")
    (tmp_path / "empty").write_bytes(b"")
    features(tmp_path / "empty", "is empty")
    features(inputs, "is a directory")


def test_a_training_that_diverges_leaves_no_model(inputs: Path, tmp_path: Path) -> None:
    more = ["--learning_rate", "1e38", "--num_train_epochs", 5]
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", *more))
    assert done.status == 2
    assert "error: step 3: loss, cls_loss, att_loss" in done.stderr.splitlines()[-1]
    assert "the examples e6, e5, e0, e4, e7, e3, e1, e2" in done.stderr.splitlines()[-1]
    assert not {"config.json", "model.safetensors"} & set(os.listdir(tmp_path / "out"))
    assert not list(tmp_path.rglob(".*"))


def test_the_script_runs_as_a_program(inputs: Path, tmp_path: Path) -> None:
    done = run_script("distill.py", *arguments(inputs, tmp_path / "out", "--alpha", "0.5"))
    assert_refused(done, "distill.py: error: --alpha")
    done = run_script("distill.py", *arguments(inputs, tmp_path / "out"))
    assert (done.status, done.stdout) == (0, "")
    in_process = distil(inputs, tmp_path / "same")
    assert loss_lines(tmp_path / "out") == in_process


# On a GPU.


def on_gpu(inputs: Path, output: Path, *more: object) -> Finished:
    done = run_main("distill.py", *arguments(inputs, output, "--num_train_epochs", 20, *more))
    assert done.status == 0, done
    return done


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_reference_implementation(inputs: Path, tmp_path: Path) -> None:
    on_gpu(inputs, tmp_path / "out", "--device", 0)
    expected, _ = reference_run("simplified", reference_batches(inputs / "features", EXAMPLES, 20))
    assert_same_losses(loss_lines(tmp_path / "out"), expected, rel=1e-4)
    assert "device: cuda:0" in (tmp_path / "out" / "distill.log").read_text()


@pytest.mark.gpu
@pytest.mark.parametrize("distill_model", ["simplified", "standard", "hard"])
def test_float16_with_a_scaler_is_close_to_float32(inputs: Path, tmp_path: Path, distill_model: str) -> None:
    more = ["--distill_model", distill_model, "--device", "cuda", "--learning_rate", 1e-3]
    on_gpu(inputs, tmp_path / "exact", *more)
    on_gpu(inputs, tmp_path / "mixed", *more, "--fp16")
    assert_same_applied_steps(loss_lines(tmp_path / "mixed"), loss_lines(tmp_path / "exact"))


def assert_same_applied_steps(mixed: list[dict], exact: list[dict]) -> None:
    """Compares the losses of float16 without its skipped steps: the next step has the same learning rate."""
    applied = [line for line, after in itertools.pairwise(mixed) if line["learning_rate"] != after["learning_rate"]]
    assert len(applied) >= len(exact) // 2
    for line, expected in zip(applied, exact, strict=False):
        assert line["learning_rate"] == expected["learning_rate"]
        assert line["loss"] == pytest.approx(expected["loss"], rel=0.05)


@pytest.mark.gpu
def test_the_gpu_is_used_if_there_is_one(inputs: Path, tmp_path: Path) -> None:
    on_gpu(inputs, tmp_path / "out", "--device", "auto")
    assert "device: cuda" in (tmp_path / "out" / "distill.log").read_text()
    on_gpu(inputs, tmp_path / "cpu", "--device", "auto", "--no_cuda")
    assert "device: cpu" in (tmp_path / "cpu" / "distill.log").read_text()
