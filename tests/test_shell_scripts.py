"""distill.sh and reranker.sh, from pairs to the table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT, STUDENT, TEACHER, some_pairs, student_weights, teacher_weights, write_published

from formats.features import Features, read_header

QUERIES, DOCUMENTS = 3, 4


@pytest.fixture(scope="module")
def variables(tmp_path_factory) -> dict[str, str]:
    """A collection and models of one's own, as the environment names them to both scripts."""
    home = tmp_path_factory.mktemp("collection with a blank")
    write_published(home / "teacher", TEACHER, teacher_weights())
    write_published(home / "general", STUDENT, student_weights())
    ids = [f"{query}#D{query}{document}_0" for query in range(QUERIES) for document in range(DOCUMENTS)]
    rows = [(example_id, *pair) for example_id, pair in zip(ids, some_pairs(len(ids)), strict=True)]
    (home / "test.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (home / "train.tsv").write_text("".join("\t".join((*row, str(i % 2))) + "\n" for i, row in enumerate(rows)))
    (home / "qrels").write_text("".join(f"{query} 0 D{query}1 1\n" for query in range(QUERIES)))
    (home / "top").write_text(
        "".join(f"{query} Q0 D{query}{d} {d + 1} {9 - d} x\n" for query in range(QUERIES) for d in range(DOCUMENTS))
    )
    return {
        "collection": "mine",
        "train_pairs": f"{home}/train.tsv",
        "test_pairs": f"{home}/test.tsv",
        "teacher_model": f"{home}/teacher",
        "general_student_model": f"{home}/general",
        "output_student_dir": f"{home}/student",
        "student_model": f"{home}/student",
        "candidates_run": f"{home}/top",
        "qrels": f"{home}/qrels",
        "runs_dir": f"{home}/runs",
        "max_seq_length": "19",
        "train_batch_size": "4",
        "num_train_epochs": "1",
        "device": "cpu",
        "precision": "fp32",
        "python": sys.executable,
        "OMP_NUM_THREADS": "1",
    }


def bash(script: str, variables: dict[str, str], **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / script)],
        env=os.environ | variables | more,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_distil_then_rerank(variables: dict[str, str]) -> None:
    home = Path(variables["train_pairs"]).parent
    done = bash("reranker.sh", variables)
    assert done.returncode == 2 and "bash distill.sh" in done.stderr

    done = bash("distill.sh", variables, features_file=f"{home}/train.features")
    assert done.returncode == 0, done.stderr
    assert (home / "student" / "model.safetensors").exists()
    assert f"student_model='{home}/student' max_seq_length=19 bash reranker.sh" in done.stdout
    assert read_header(home / "train.features").max_seq_length == 19
    log = (home / "student" / "distill.log").read_text()
    assert "distill_model=simplified" in log and "train_batch_size=4" in log

    # a student is not written over unasked
    done = bash("distill.sh", variables, features_file=f"{home}/train.features")
    assert done.returncode == 2 and "overwrite=yes" in done.stderr.splitlines()[-1]

    for teacher in (variables["teacher_model"], ""):
        done = bash("reranker.sh", variables, features_file=f"{home}/test.features", teacher_model=teacher)
        assert done.returncode == 0, done.stderr
        table = done.stdout.split("\n\n")[-1].splitlines()
        assert table[0].split() == ["run", "MRR", "MRR@10", "passages/s"]
        assert table[1].split() == ["candidates", "0.5000", "0.5000"]
        for line, name in zip(table[2:], ["teacher", "student"] if teacher else ["student"], strict=True):
            assert re.fullmatch(rf"{name} +0\.\d{{4}} +0\.\d{{4}} +[\d.]+", line.replace("1.0000", "0.9999"))


def test_a_training_that_was_stopped_goes_on_by_itself(variables: dict[str, str], tmp_path: Path) -> None:
    student = tmp_path / "student"
    own = variables | {"output_student_dir": str(student), "save_model_step": "1", "distill_model_type": "hard"}
    assert bash("distill.sh", own).returncode == 0
    weights = (student / "model.safetensors").read_bytes()
    assert sorted(path.name for path in student.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    # as if killed after the second of three updates
    (student / "config.json").unlink()
    (student / "model.safetensors").unlink()
    (student / "training.json").write_text((student / "training.json").read_text().replace("true", "false"))
    done = bash("distill.sh", own, learning_rate="1e-3")
    assert done.returncode == 2 and "--learning_rate (0.0001 there, 0.001 here)" in done.stderr
    done = bash("distill.sh", own)
    assert done.returncode == 0, done.stderr
    assert f"resuming from {student}/checkpoint-2" in done.stderr
    assert (student / "model.safetensors").read_bytes() == weights


def test_pairs_that_are_newer_are_tokenized_again(variables: dict[str, str], tmp_path: Path) -> None:
    features, pairs = tmp_path / "train.19.features", tmp_path / "train.tsv"
    for count in (4, 8):
        lines = Path(variables["train_pairs"]).read_text().splitlines(keepends=True)[:count]
        pairs.write_text("".join(lines))
        if features.exists():
            os.utime(pairs, (features.stat().st_mtime + 1,) * 2)
        done = bash(
            "distill.sh", variables, train_pairs=str(pairs), overwrite="yes",
            output_student_dir=f"{tmp_path}/student", distill_model_type="hard",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(Features(features)) == count
    assert "teacher_model= " in done.stdout

    # features that are named are taken as they are
    pairs.write_text("no pairs")
    done = bash(
        "distill.sh", variables, train_pairs=str(pairs), features_file=str(features), overwrite="yes",
        output_student_dir=f"{tmp_path}/student", distill_model_type="hard",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_cased_student_is_not_ranked_with_lower_case(variables: dict[str, str], tmp_path: Path) -> None:
    own = variables | {"output_student_dir": f"{tmp_path}/student", "student_model": f"{tmp_path}/student"}
    done = bash("distill.sh", own, do_lower_case="no", distill_model_type="hard")
    assert done.returncode == 0, done.stderr
    assert "do_lower_case=no bash reranker.sh" in done.stdout
    assert not read_header(Path(variables["train_pairs"]).with_name("train.19.cased.features")).do_lower_case
    done = bash("reranker.sh", own, teacher_model="")
    assert done.returncode == 2 and "tokenize with --no-do_lower_case" in done.stderr.splitlines()[-1]
    done = bash("reranker.sh", own, teacher_model="", do_lower_case="no")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("variable", ["train_pairs", "teacher_model", "general_student_model"])
def test_a_path_that_is_not_there_is_named_at_once(variables: dict[str, str], variable: str, tmp_path: Path) -> None:
    done = bash("distill.sh", variables, output_student_dir=f"{tmp_path}/out", **{variable: "/no/such"})
    assert done.returncode == 2 and done.stderr == f"distill.sh: {variable}=/no/such is not there\n"


@pytest.mark.parametrize(
    "variable",
    [
        "distill_model_type=simplifed", "overwrite=true", "precision=fp64", "teacher_dropout=on", "do_lower_case=0",
        "fp16=no", "teacher_check=off", "ignore_padding=1", "set_name=test", "set_name=general",
    ],
)  # fmt: skip
def test_a_mistaken_variable_is_named_at_once(variables: dict[str, str], variable: str) -> None:
    name, value = variable.split("=")
    done = bash("distill.sh", variables, **{name: value})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert variable in line


@pytest.mark.parametrize("distill_model_type", ["standard", "prediction", "hard"])
def test_one_variable_chooses_the_method(variables: dict[str, str], tmp_path: Path, distill_model_type: str) -> None:
    done = bash(
        "distill.sh",
        variables,
        distill_model_type=distill_model_type,
        output_student_dir=f"{tmp_path}/student",
        features_file=f"{tmp_path}/train.features",
    )
    assert done.returncode == 0, done.stderr
    assert f"distill_model={distill_model_type}" in (tmp_path / "student" / "distill.log").read_text()


def log_of(directory: Path) -> str:
    return (directory / "distill.log").read_text()


def test_tinybert_is_two_steps_and_goes_on_with_the_second(variables: dict[str, str], tmp_path: Path) -> None:
    own = variables | {
        "distill_model_type": "tinybert", "output_student_dir": f"{tmp_path}/student", "learning_rate": "2e-3",
        "intermediate_learning_rate": "1e-3", "intermediate_num_train_epochs": "3", "rep_weight": "0.5",
        "hard_weight": "0.25", "layer_map": "1,3,5", "ignore_padding": "yes",
    }  # fmt: skip
    done = bash("distill.sh", own)
    assert done.returncode == 0, done.stderr
    first, second = log_of(tmp_path / "student_intermediate"), log_of(tmp_path / "student")
    for setting in ("distill_model=intermediate", "learning_rate=0.001", "num_train_epochs=3", "rep_weight=0.5",
                    "soft_weight=0.0", "hard_weight=0.0", "layer_map=1,3,5", "ignore_padding=True"):  # fmt: skip
        assert setting in first
    for setting in ("distill_model=prediction", "learning_rate=0.002", "num_train_epochs=1", "rep_weight=0.0",
                    "soft_weight=1.0", "hard_weight=0.25",
                    f"general_student_model={tmp_path}/student_intermediate"):  # fmt: skip
        assert setting in second
    assert f"student_model='{tmp_path}/student' max_seq_length=19 bash reranker.sh" in done.stdout

    before = (tmp_path / "student" / "model.safetensors").read_bytes()
    for name in ("config.json", "model.safetensors"):  # as if it had stopped in between
        (tmp_path / "student" / name).unlink()
    done = bash("distill.sh", own)
    assert done.returncode == 0, done.stderr
    assert "The first step is done" in done.stdout
    assert log_of(tmp_path / "student_intermediate") == first
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == before


def test_general_distillation_then_a_method_with_another_weight(variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on a mat .\na dog ran fast\n\nwhat is deep neural ranker\n" * 9)
    own = variables | {
        "set_name": "general",
        "train_pairs": f"{tmp_path}/text.txt",
        "distill_model_type": "intermediate",
    }
    done = bash("distill.sh", own, output_student_dir=f"{tmp_path}/general")
    assert done.returncode == 0, done.stderr
    line = f"collection='mine' general_student_model='{tmp_path}/general' max_seq_length=19 bash distill.sh"
    assert line in done.stdout
    assert read_header(tmp_path / "text.19.general.features").set_name == "general"
    done = bash(
        "distill.sh", variables, general_student_model=f"{tmp_path}/general", hard_weight="0", teacher_check="no",
        output_student_dir=f"{tmp_path}/student",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = log_of(tmp_path / "student")
    assert "hard_weight=0.0" in log and "soft_weight=1.0" in log and "no_teacher_check=True" in log
    assert "fit_dense not found" not in log


@pytest.mark.parametrize(
    ("variables_set", "says"),
    [
        ({"distill_model_type": "standard", "layer_map": "2,4,6"}, "--layer_map: has no use"),
        ({"distill_model_type": "prediction", "ignore_padding": "yes"}, "--ignore_padding: has no use"),
        ({"distill_model_type": "hard", "temperature": "2"}, "--temperature: has no use"),
        ({"distill_model_type": "simplified", "alpha": "0.5"}, "--alpha: has no use"),
        ({"distill_model_type": "tinybert", "soft_weight": "0"}, "soft_weight=0 leaves"),
        ({"distill_model_type": "intermediate", "set_name": "general", "train_pairs": ""}, "text.txt is not there"),
    ],
)
def test_a_variable_without_use_is_refused(variables: dict[str, str], tmp_path: Path, variables_set: dict, says: str):
    done = bash("distill.sh", variables, output_student_dir=f"{tmp_path}/student", **variables_set)
    assert done.returncode == 2 and says in done.stderr.splitlines()[-1]
    assert not (tmp_path / "student").exists()


def test_hard_labels_can_be_joined_by_a_teacher(variables: dict[str, str], tmp_path: Path) -> None:
    own = {"distill_model_type": "hard", "soft_weight": "0.5", "output_student_dir": f"{tmp_path}/student"}
    done = bash("distill.sh", variables, **own)
    assert done.returncode == 0, done.stderr
    assert f"teacher_model={variables['teacher_model']}" in log_of(tmp_path / "student")


def test_the_best_student_on_dev_pairs_is_kept(variables: dict[str, str], tmp_path: Path) -> None:
    pairs = tmp_path / "dev.tsv"
    pairs.write_text(Path(variables["test_pairs"]).read_text())
    own = variables | {"dev_pairs": f"{pairs}", "output_student_dir": f"{tmp_path}/student"}
    done = bash("distill.sh", own, dev_qrels="")
    assert done.returncode == 2 and done.stderr.startswith("distill.sh: dev_qrels= is not there")
    for name in ("dev_measure", "eval_model_step", "early_stopping_patience"):
        done = bash("distill.sh", own, dev_pairs="", **{name: "1"})
        assert done.returncode == 2 and done.stderr == f"distill.sh: {name}=1 has no use without dev_pairs\n"
    done = bash(
        "distill.sh", own, dev_qrels=variables["qrels"], dev_measure="NDCG@10", eval_model_step="1",
        early_stopping_patience="9", distill_model_type="tinybert",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_header(tmp_path / "dev.19.features").set_name == "dev"
    log = log_of(tmp_path / "student")
    assert log.count(" dev NDCG@10 ") == 4  # three updates, and the end
    assert "early_stopping_patience=9" in log
    assert "dev_features_file=None" in log_of(tmp_path / "student_intermediate")
