"""The sequence length belongs to the student: its directory says at which length it was trained."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
from tiny import (
    STUDENT,
    TEACHER,
    Finished,
    run_main,
    student_weights,
    teacher_weights,
    write_published,
    write_tiny_features,
    write_transformers,
)

from formats.checksums import write_checksums
from formats.run_file import trained_length
from training.state import FILE_NAME

EXAMPLES = 9


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, features of 13 and 17 tokens, and `student`, which was trained at 17."""
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "teacher", TEACHER, teacher_weights())
    write_transformers(directory / "general", STUDENT, student_weights())
    for length in (13, 17):
        write_tiny_features(directory / f"train.{length}", 12, max_seq_length=length)
        write_tiny_features(directory / f"test.{length}", EXAMPLES, "test", max_seq_length=length)
    assert distil(directory, directory / "student", "--distill_model", "hard").status == 0
    return directory


def distil(inputs: Path, output: Path, *more: object, length: int = 17) -> Finished:
    flags = ["--features_file", inputs / f"train.{length}", "--general_student_model", inputs / "general"]
    flags += ["--output_student_dir", output, "--train_batch_size", 4, "--num_train_epochs", 1, "--device", "cpu"]
    return run_main("distill.py", *flags, *more)


def rerank(inputs: Path, model: Path, output: Path, length: int) -> Finished:
    flags = ["--model_dir", model, "--features_file", inputs / f"test.{length}", "--device", "cpu"]
    done = run_main("rerank.py", *flags, "--output_scores_file", output)
    assert done.status == 0 and len(output.read_text().splitlines()) == EXAMPLES, done
    return done


def lengths(model: Path) -> tuple[int, int | None]:
    """The lengths in `tokenizer_config.json` and in `training.json`."""
    return json.loads((model / "tokenizer_config.json").read_text())["model_max_length"], trained_length(model)


@pytest.mark.parametrize("method", ["hard", "simplified", "intermediate", "tinybert"])
@pytest.mark.parametrize("length", [13, 17])
def test_a_student_has_the_length_of_its_features(inputs: Path, tmp_path: Path, method: str, length: int) -> None:
    more = [] if method == "hard" else ["--teacher_model", inputs / "teacher"]
    more += [] if method in ("hard", "intermediate") else ["--no_teacher_check"]
    done = distil(inputs, tmp_path / "out", "--distill_model", method, "--save_model_step", 2, *more, length=length)
    assert done.status == 0, done
    assert lengths(tmp_path / "out") == (length, length)
    assert lengths(tmp_path / "out" / "checkpoint-2") == (length, None)
    if method == "tinybert":
        assert lengths(tmp_path / "out_intermediate") == (length, length)


def test_the_best_checkpoint_has_it_too(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q0 0 D0 1\nq1 0 D1 1\n")
    more = ["--dev_features_file", inputs / "test.17", "--dev_qrels", tmp_path / "qrels", "--eval_model_step", 1]
    assert distil(inputs, tmp_path / "out", "--distill_model", "hard", *more).status == 0
    assert lengths(tmp_path / "out") == (17, 17)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["best_step"] in (1, 2, 3)


def test_other_libraries_read_the_length(inputs: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(inputs / "student")
    assert tokenizer.model_max_length == 17
    assert len(tokenizer("the cat", "dog ran fast " * 20, truncation=True)["input_ids"]) == 17
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = sentence_transformers.CrossEncoder(str(inputs / "student"), device="cpu")
    assert (encoder.max_seq_length if hasattr(encoder, "max_seq_length") else encoder.max_length) == 17


def test_re_ranking_at_another_length_gives_a_warning(inputs: Path, tmp_path: Path) -> None:
    done = rerank(inputs, inputs / "student", tmp_path / "scores", 13)
    (line,) = done.stderr.splitlines()
    expected = (
        f"WARNING {inputs / 'test.13'} has max_seq_length 13, but the model {inputs / 'student'} was trained at 17"
    )
    assert line.startswith(expected) and "--max_seq_length 17" in line
    assert (tmp_path / "scores.log").read_text().count(line) == 1
    done = rerank(inputs, inputs / "student", tmp_path / "same", 17)
    assert done.stderr == "" and "WARNING" not in (tmp_path / "same.log").read_text()


@pytest.mark.parametrize("model_max_length", [512, 1e30, 1, 17, None, "512"])
def test_a_model_of_others_gives_no_warning(inputs: Path, tmp_path: Path, model_max_length: object) -> None:
    model = write_transformers(tmp_path / "model", STUDENT, student_weights())
    (model / "tokenizer_config.json").write_text(json.dumps({"model_max_length": model_max_length}))
    assert rerank(inputs, model, tmp_path / "scores", 13).stderr == ""


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"finished": true, "settings": {"max_seq_length": 99}}',  # a student of an earlier version
        b'{"max_seq_length": "17"}',
        b'{"max_seq_length": true}',
        b'{"max_seq_length": null}',
        b'{"max_seq_length": 17}' + b" " * (1 << 20),
        "pipe",
    ],
)
def test_a_directory_that_does_not_say_the_length_gives_no_warning(
    inputs: Path, tmp_path: Path, content: bytes | str | None
) -> None:
    model = write_transformers(tmp_path / "model", STUDENT, student_weights())
    if content == "pipe":
        os.mkfifo(model / "training.json")
    elif content is not None:
        (model / "training.json").write_bytes(content)
    assert rerank(inputs, model, tmp_path / "scores", 13).stderr == ""


def test_a_run_of_an_earlier_version_resumes(inputs: Path, tmp_path: Path) -> None:
    """It has another `model_max_length`, no `max_seq_length` in training.json, and no margin loss."""
    out = tmp_path / "out"
    own = ["--distill_model", "hard", "--save_model_step", 1]
    assert distil(inputs, out, *own).status == 0
    names = ("model.safetensors", "config.json", "tokenizer_config.json", "training.json")
    before = [(out / name).read_bytes() for name in names]
    run = json.loads(before[-1])
    assert run.pop("max_seq_length") == 17
    assert run["settings"].pop("margin_weight") == 0
    for checkpoint in out.glob("checkpoint-*"):
        file = checkpoint / FILE_NAME
        with safetensors.safe_open(file, "pt") as saved:
            state = json.loads(saved.metadata()["state"])
        assert state["progress"]["settings"].pop("margin_weight") == 0
        assert state["progress"]["sums"].pop() == 0
        file.write_bytes(safetensors.torch.save(safetensors.torch.load_file(file), {"state": json.dumps(state)}))
        write_checksums(checkpoint)
    (out / "training.json").write_text(json.dumps(run | {"finished": False}))
    for name in names[:3]:
        (out / name).unlink()
    done = distil(inputs, out, *own, "--resume")
    assert done.status == 0 and f"resuming from {out}/checkpoint-" in done.stderr
    assert [(out / name).read_bytes() for name in names] == before
