"""The model card that distill.py writes beside a student."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from test_export_student import LENGTH, distil, succeeded
from tiny import STUDENT, TEACHER, student_weights, teacher_weights, write_published, write_tiny_features

from training.model_card import MARK, write_model_card


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "teacher", TEACHER, teacher_weights())
    write_published(directory / "general", STUDENT, student_weights())
    write_tiny_features(directory / "features", 24, max_seq_length=LENGTH)
    write_tiny_features(directory / "dev", 20, "dev", max_seq_length=LENGTH)
    (directory / "qrels").write_text("".join(f"q{query} 0 D{query} 1\n" for query in range(3)))
    return directory


def card_of(directory: Path) -> ModelCard:
    return ModelCard.load(directory / "README.md")


def test_a_card_tells_method_data_and_usage_and_no_place_time_or_speed(inputs: Path, tmp_path: Path) -> None:
    dev = "--dev_features_file", inputs / "dev", "--dev_qrels", inputs / "qrels", "--eval_model_step", 3
    succeeded(distil(inputs, tmp_path / "out", *dev, "--hard_weight", 0.5))
    card = card_of(tmp_path / "out")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-ranking")
    run = json.loads((tmp_path / "out" / "training.json").read_text())
    for part in (
        MARK, "| method | Simplified TinyBERT", " + 0.5 * hard labels |", f"max_length={LENGTH}",
        "| training examples | 24 |", f"| dev measure | MRR@10 {run['best_value']:.4f}, step {run['best_step']} of 6 |",
    ):  # fmt: skip
        assert part in card.content
    for part in (str(inputs), str(tmp_path), "examples/s", "CPU", "202"):
        assert part not in card.content


def test_cards_of_students_without_teacher_without_classifier_and_with_relu(inputs: Path, tmp_path: Path) -> None:
    succeeded(distil(inputs, tmp_path / "hard", "--distill_model", "hard"))
    card = card_of(tmp_path / "hard")
    assert "| method | fine-tuning with hard labels, without a teacher |" in card.content
    assert "knowledge-distillation" not in card.data.tags and "teacher's layers" not in card.content
    succeeded(distil(inputs, tmp_path / "general", "--distill_model", "intermediate"))
    card = card_of(tmp_path / "general")
    assert card.data.pipeline_tag == "feature-extraction"
    assert "not a ranker" in card.content and "## Usage" not in card.content and "temperature" not in card.content
    succeeded(distil(inputs, tmp_path / "relu", "--pooled_activation", "relu"))
    card = card_of(tmp_path / "relu")
    assert "`pooled_activation` is relu, which transformers does not know" in card.content
    assert "## Usage" not in card.content


def test_a_general_student_with_a_hub_id_is_the_base_model(inputs: Path, tmp_path: Path) -> None:
    succeeded(distil(inputs, tmp_path / "out"))
    run = json.loads((tmp_path / "out" / "training.json").read_text())
    assert run["base_model"] is None and card_of(tmp_path / "out").data.base_model is None
    write_model_card(tmp_path / "out", run | {"base_model": "google-bert/bert-base-uncased"})
    assert card_of(tmp_path / "out").data.base_model == "google-bert/bert-base-uncased"


def test_a_card_is_replaced_with_its_student_but_a_users_is_kept(inputs: Path, tmp_path: Path) -> None:
    succeeded(distil(inputs, tmp_path / "out"))
    succeeded(distil(inputs, tmp_path / "out", "--distill_model", "hard", "--overwrite"))
    path = tmp_path / "out" / "README.md"
    assert "hard labels, without a teacher" in path.read_text()
    own = path.read_text().replace(MARK, "My words.")
    path.write_text(own)
    done = distil(inputs, tmp_path / "out", "--overwrite")
    succeeded(done)
    assert f"WARNING {path} is kept, because distill.py did not write it" in done.stderr
    assert path.read_text() == own
