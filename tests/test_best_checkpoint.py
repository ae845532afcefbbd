"""The best student on a dev set: what is measured, which is kept, early stopping, and going on after a stop."""

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from test_resume import DROPOUT, STOPPED, at_update, result, send
from tiny import (
    STUDENT,
    TEACHER,
    TOKENS,
    assert_refused,
    run_forked,
    run_main,
    student_weights,
    teacher_weights,
    write_published,
    write_tiny_features,
    write_transformers,
)

from evaluation.dev import DevPairs, measure_of, read_dev_pairs
from formats.checksums import check_checksums
from formats.features import Example, FeaturesHeader, read_header, write_features
from formats.files import InputError
from formats.scores import PassageScore, read_scores
from modeling.checkpoint import load_ranker
from modeling.vocabulary import vocabulary_sha256

UPDATES = 20  # four epochs of 5
PAIRS = 90  # of queries q0 to q2, in documents D0 to D6 each


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "teacher", TEACHER, teacher_weights())
    write_transformers(directory / "general", STUDENT, student_weights(), **DROPOUT)
    write_tiny_features(directory / "features", count=21)
    write_tiny_features(directory / "dev", count=PAIRS, set_name="dev", seed=5)
    (directory / "qrels").write_text("q0 0 D1 1\nq1 0 D3 1\nq2 0 D4 2\nq2 0 D6 1\nq2 0 D0 0\n")
    return directory


def arguments(inputs: Path, output: Path, *more: object) -> list[object]:
    flags = ["--features_file", inputs / "features", "--general_student_model", inputs / "general", "--device", "cpu"]
    flags += ["--output_student_dir", output, "--train_batch_size", 4, "--num_train_epochs", 4, "--train_loss_step", 3]
    flags += ["--learning_rate", 1e-2, "--distill_model", "hard", "--dev_features_file", inputs / "dev"]
    return [*flags, "--dev_qrels", inputs / "qrels", "--eval_model_step", 2, *more]


def distil(inputs: Path, output: Path, *more: object) -> list[dict]:
    """Runs the script; returns the lines of dev_eval.jsonl."""
    done = run_main("distill.py", *arguments(inputs, output, *more))
    assert done.status == 0, done
    return dev_lines(output)


def dev_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "dev_eval.jsonl").read_text().splitlines()]


def run_file(output: Path) -> dict:
    return json.loads((output / "training.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    distil(inputs, output, "--save_model_step", 4)
    return output


def test_x(uninterrupted):
    for line in dev_lines(uninterrupted):
        print(line)
    print(os.listdir(uninterrupted), (uninterrupted/"distill.log").read_text())
    assert 0
