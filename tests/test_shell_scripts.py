"""distill.sh and reranker.sh, from pairs to the table. `python` is this process, except where a test says so."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bash_runner import Ran, only_record, run_bash, run_python
from tiny import (
    ROOT,
    STUDENT,
    TEACHER,
    Finished,
    copy_project,
    some_pairs,
    student_weights,
    teacher_weights,
    write_published,
)

from formats.features import Features, read_header
from formats.trec import read_run

QUERIES, DOCUMENTS = 3, 4
METHODS = ("simplified", "standard", "tinybert", "intermediate", "prediction", "hard", "margin_mse")
Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def variables(tmp_path_factory) -> dict[str, str]:
    """A user's own collection and models, as variables of both scripts."""
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
        "candidates_run": f"{home}/top",
        "qrels": f"{home}/qrels",
        "max_seq_length": "19",
        "train_batch_size": "4",
        "num_train_epochs": "1",
        "device": "cpu",
        "precision": "fp32",
    }


@pytest.fixture
def run(variables: dict[str, str], tmp_path: Path) -> Run:
    """Runs a script with `variables` and more. Its output is in `tmp_path`."""
    own = {"output_student_dir": f"{tmp_path}/student", "student_model": f"{tmp_path}/student"}

    def run_script(script: str, answer: Callable = run_python, **more: str) -> Ran:
        return run_bash(ROOT / script, variables | own | {"runs_dir": f"{tmp_path}/runs"} | more, tmp_path, answer)

    return run_script


def log_of(directory: Path) -> str:
    return (directory / "distill.log").read_text()


def stop(student: Path) -> None:
    """Leaves a finished run as if it had been killed after its last checkpoint."""
    (student / "config.json").unlink()
    (student / "model.safetensors").unlink()
    (student / "training.json").write_text((student / "training.json").read_text().replace("true", "false"))


def next_command(done: Ran) -> tuple[str, dict[str, str]]:
    """The script and the variables of the command that distill.sh prints at its end, as bash reads them."""
    command = done.stdout[done.stdout.rindex("Next: ") :].removeprefix("Next: ")
    assignments, _, script = command.rpartition("bash ")
    shown = subprocess.run(["bash", "-c", f"{assignments} env -0"], env={}, capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in shown.stdout.split("\0")[:-1])
    return script.strip(), {name: value for name, value in found.items() if name.islower() and name != "_"}


def calls_of(done: Ran, script: str) -> list[list[str]]:
    return [arguments for arguments in done.calls if arguments[0] == script]


def flags_of(done: Ran, script: str) -> dict[str, str]:
    """The flags of the only call of a script."""
    (call,) = calls_of(done, script)
    return dict(argument.removeprefix("--").split("=", 1) for argument in call[1:] if "=" in argument)


def test_distil_then_rerank(run: Run, tmp_path: Path, variables: dict[str, str]) -> None:
    done = run("reranker.sh")
    assert done.returncode == 2 and "bash distill.sh" in done.stderr

    # with the Python of a user
    own = {"python": sys.executable, "OMP_NUM_THREADS": "1"}
    done = run("distill.sh", features_file=f"{tmp_path}/train.features", **own)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "student" / "model.safetensors").exists()
    assert next_command(done) == (
        "reranker.sh",
        {
            **{name: variables[name] for name in ("collection", "teacher_model", "max_seq_length")},
            "student_model": f"{tmp_path}/student",
            "do_lower_case": "yes",
        },
    )
    assert read_header(tmp_path / "train.features").max_seq_length == 19
    log = log_of(tmp_path / "student")
    assert "distill_model=simplified" in log and "train_batch_size=4" in log

    # a student is only replaced if the user asks for it
    done = run("distill.sh", features_file=f"{tmp_path}/train.features")
    assert done.returncode == 2 and "overwrite=yes" in done.stderr.splitlines()[-1] and not done.calls

    for teacher, python in ((variables["teacher_model"], own), ("", {})):
        done = run("reranker.sh", features_file=f"{tmp_path}/test.features", teacher_model=teacher, **python)
        assert done.returncode == 0, done.stderr
        table = done.stdout.split("\n\n")[-1].splitlines()
        assert table[0].split() == ["run", "queries", "MRR", "MRR@10", "passages/s"]
        assert table[1].split() == ["candidates", "3", "0.5000", "0.5000"]
        for line, name in zip(table[2:], ["teacher", "student"] if teacher else ["student"], strict=True):
            assert re.fullmatch(rf"{name} +3 +0\.\d{{4}} +0\.\d{{4}} +[\d.]+", line.replace("1.0000", "0.9999"))
            assert len(line) == len(table[0])


def test_all_rows_of_the_table_are_over_the_queries_of_the_candidates(
    run: Run, tmp_path: Path, variables: dict
) -> None:
    """Only the pairs of query 0 are re-ranked. Query 9 has no judgments; query 8 has no candidates."""
    write_published(tmp_path / "student", STUDENT, student_weights())
    (tmp_path / "pairs.tsv").write_text("".join(Path(variables["test_pairs"]).read_text().splitlines(True)[:DOCUMENTS]))
    (tmp_path / "top").write_text(Path(variables["candidates_run"]).read_text() + "9 Q0 D1 1 1 x\n")
    (tmp_path / "qrels").write_text(Path(variables["qrels"]).read_text() + "8 0 D1 1\n")
    own = {name: f"{tmp_path}/{file}" for name, file in
           (("test_pairs", "pairs.tsv"), ("candidates_run", "top"), ("qrels", "qrels"))}  # fmt: skip
    done = run("reranker.sh", **own)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.split("\n\n")[-1].splitlines()]
    assert [row[:2] for row in rows] == [["run", "queries"], ["candidates", "3"], ["teacher", "3"], ["student", "3"]]
    assert rows[1][2:] == ["0.5000", "0.5000"]
    for row in rows[2:]:
        scores = read_run(tmp_path / "runs" / f"{row[0]}.run")["0"]
        expected = 1 / (1 + list(scores).index("D01")) / 3
        assert row[2:4] == [f"{expected:.4f}"] * 2
        lacks = f"WARNING: {tmp_path}/runs/{row[0]}.run lacks 2 of the 3 judged queries of {tmp_path}/top; they count 0"
        assert lacks in done.stderr.splitlines()


def test_interpolation_adds_a_row_for_each_model(run: Run, tmp_path: Path) -> None:
    write_published(tmp_path / "student", STUDENT, student_weights())
    plain = run("reranker.sh")
    assert not list((tmp_path / "runs").glob("*interpolated*")) and "first stage" not in plain.stdout
    done = run("reranker.sh", interpolation_weight="0.0")
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("\n\n")[-1].splitlines()
    lines = [re.split("  +", line) for line in table]
    assert [line[0] for line in lines] == ["run", "candidates", "teacher", "teacher + first stage", "student",
                                           "student + first stage"]  # fmt: skip
    for line in (lines[3], lines[5]):  # with weight 0, the order of the candidates
        assert line[1:4] == ["3", "0.5000", "0.5000"]
    assert len({len(line) for line in (table[0], *table[2:])}) == 1
    before = plain.stdout.split("\n\n")[-1].splitlines()
    assert [line.split()[:4] for line in before] == [line[:4] for line in lines if "+" not in line[0]]
    assert list(read_run(tmp_path / "runs" / "teacher.interpolated.run")["1"]) == ["D10", "D11", "D12", "D13"]
    for weight in ("1.5", "half", "-0", "0,5"):
        done = run("reranker.sh", interpolation_weight=weight)
        assert done.returncode == 2 and not done.calls and f"interpolation_weight={weight} is not" in done.stderr


def test_the_speed_is_that_of_the_json_file(run: Run, tmp_path: Path) -> None:
    write_published(tmp_path / "student", STUDENT, student_weights())

    def answer(*arguments: str) -> Finished:
        if arguments[0] == "rerank.py":
            file = arguments[[argument.startswith("--output_scores_file") for argument in arguments].index(True)]
            speed = {"passages": 12, "seconds": 0.5, "passages_per_second": 24.04}
            Path(f"{file.partition('=')[2]}.speed.json").write_text(json.dumps(speed))
        return run_python(*arguments) if arguments[0] == "-c" else only_record()

    done = run("reranker.sh", answer, teacher_model="", features_file=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["student", "24.0"]


def test_a_training_that_was_stopped_resumes_by_itself(run: Run, tmp_path: Path) -> None:
    student = tmp_path / "student"
    own = {"save_model_step": "1", "distill_model_type": "hard"}
    assert run("distill.sh", **own).returncode == 0
    weights = (student / "model.safetensors").read_bytes()
    assert sorted(path.name for path in student.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    stop(student)  # as if killed after the second of three steps
    done = run("distill.sh", **own, learning_rate="1e-3")
    assert done.returncode == 2 and "--learning_rate (0.0002 there, 0.001 here)" in done.stderr
    done = run("distill.sh", **own)
    assert done.returncode == 0, done.stderr
    assert f"resuming from {student}/checkpoint-2" in done.stderr
    assert (student / "model.safetensors").read_bytes() == weights


def test_a_run_is_resumed_replaced_or_refused(run: Run, tmp_path: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    own = {"answer": only_record, "features_file": str(tmp_path)}

    def flags(**more: str) -> tuple[str, str]:
        done = run("distill.sh", **own, **more)
        assert done.returncode == 0, done.stderr
        found = flags_of(done, "distill.py")
        return found["resume"], found["overwrite"]

    assert flags() == ("yes", "no")  # no run yet
    (student / "training.json").write_text('{\n  "finished": false\n}')
    for found in (False, True):  # unfinished, also if it replaces an earlier one
        assert flags() == ("yes", "no")
        assert flags(overwrite="yes") == ("no", "yes")
        if not found:
            (student / "config.json").touch()
    for text in ('{\n  "finished": true\n}', "damaged", None):
        (student / "training.json").unlink()
        if text is not None:
            (student / "training.json").write_text(text)
        done = run("distill.sh", **own)
        assert (done.returncode, done.stdout, done.calls) == (2, "", [])
        assert done.stderr == (
            f"distill.sh: {student} holds a run already; set overwrite=yes to replace it, or another "
            "output_student_dir\n"
        )
        assert flags(overwrite="yes") == ("no", "yes")
    # apex cannot resume, and a run with apex starts all the same
    assert flags(output_student_dir=f"{tmp_path}/other", fp16_backend="apex") == ("no", "no")


def test_the_status_of_python_is_that_of_the_script(run: Run, tmp_path: Path) -> None:
    for status in (2, 75, 143):  # a mistake, a run that was stopped and saved, a process that was killed
        done = run("distill.sh", lambda *arguments, status=status: Finished(status, "", ""))
        assert done.returncode == status and "Next: " not in done.stdout
        done = run(
            "distill.sh", lambda *arguments, status=status: Finished(status, "", ""), features_file=str(tmp_path)
        )
        assert done.returncode == status and "Next: " not in done.stdout


def test_pairs_that_changed_are_tokenized_again(run: Run, variables: dict[str, str], tmp_path: Path) -> None:
    features, pairs = tmp_path / "train.19.features", tmp_path / "train.tsv"
    own = {"train_pairs": str(pairs), "overwrite": "yes", "distill_model_type": "hard"}
    for count in (4, 8):
        lines = Path(variables["train_pairs"]).read_text().splitlines(keepends=True)[:count]
        pairs.write_text("".join(lines))
        if features.exists():
            os.utime(pairs, (features.stat().st_mtime + 1,) * 2)
        done = run("distill.sh", **own)
        assert done.returncode == 0, done.stderr
        assert len(Features(features)) == count
    assert next_command(done)[1]["teacher_model"] == ""

    made = features.stat().st_mtime
    for seconds in (-1, 1):  # pairs that did not change are not, whatever their time stamps say
        os.utime(pairs, (made + seconds,) * 2)
        assert run("distill.sh", **own).returncode == 0
        assert features.stat().st_mtime == made
    # pairs that are missing are an error, not old
    pairs.unlink()
    done = run("distill.sh", **own)
    assert done.returncode == 2 and str(pairs) in done.stderr

    # a named features file is used as it is
    pairs.write_text("no pairs")
    done = run("distill.sh", **own, features_file=str(features))
    assert done.returncode == 0, done.stderr


def test_features_of_other_kinds_have_other_names(run: Run, tmp_path: Path) -> None:
    for own, name in (
        ({"train_pairs": "x.tsv"}, "x.19.features"),
        ({"train_pairs": "x.tsv.gz", "do_lower_case": "no"}, "x.19.cased.features"),
        ({"train_pairs": "x.v2", "max_seq_length": "20"}, "x.v2.20.features"),
        ({"train_pairs": "x.txt", "set_name": "general", "distill_model_type": "intermediate"},
         "x.19.general.features"),
        ({"train_pairs": "x.txt.gz", "set_name": "general", "distill_model_type": "intermediate",
          "do_lower_case": "no"}, "x.19.cased.general.features"),
    ):  # fmt: skip
        pairs = tmp_path / own["train_pairs"]
        pairs.touch()
        done = run("distill.sh", only_record, **own | {"train_pairs": str(pairs)})
        assert done.returncode == 0, done.stderr
        expected = {
            "set_name": own.get("set_name", "train"), "raw_data_file": str(pairs),
            "output_features_file": f"{tmp_path}/{name}", "max_seq_length": own.get("max_seq_length", "19"),
            "do_lower_case": own.get("do_lower_case", "yes"),
        }  # fmt: skip
        assert expected.items() <= flags_of(done, "tokenize_to_features.py").items()
        assert flags_of(done, "distill.py")["features_file"] == f"{tmp_path}/{name}"


def test_a_cased_student_is_not_ranked_with_lower_case(run: Run, variables: dict[str, str], tmp_path: Path) -> None:
    done = run("distill.sh", do_lower_case="no", distill_model_type="hard")
    assert done.returncode == 0, done.stderr
    assert next_command(done)[1]["do_lower_case"] == "no"
    assert not read_header(Path(variables["train_pairs"]).with_name("train.19.cased.features")).do_lower_case
    done = run("reranker.sh", teacher_model="")
    assert done.returncode == 2 and "tokenize with --no-do_lower_case" in done.stderr.splitlines()[-1]
    done = run("reranker.sh", teacher_model="", do_lower_case="no")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("variable", ["train_pairs", "teacher_model", "general_student_model"])
def test_a_path_that_is_not_there_is_named_at_once(run: Run, variable: str, tmp_path: Path) -> None:
    done = run("distill.sh", **{variable: "/no/such"}, features_file="" if "teacher" in variable else f"{tmp_path}/new")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "/no/such" in line
    if variable != "general_student_model":  # the tokenizer names it
        assert line.startswith(f"distill.sh: {variable}=/no/such does not exist; make it first") and not done.calls


@pytest.mark.parametrize("variable", ["student_model", "teacher_model", "candidates_run", "qrels", "test_pairs"])
def test_a_path_of_the_reranker_that_is_not_there_is_named(run: Run, variable: str, tmp_path: Path) -> None:
    write_published(tmp_path / "student", STUDENT, student_weights())
    done = run("reranker.sh", **{variable: "/no/such"})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "/no/such" in line
    advice = "make it first" if variable == "test_pairs" else "run 'bash distill.sh' first"
    assert line.startswith(f"reranker.sh: {variable}=/no/such does not exist; {advice}") and not done.calls


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"student_model": "", "teacher_model": ""}, "teacher_model and student_model are both empty"),
        ({"student_model": "other/teacher"}, "student_model=other/teacher has the name of the teacher's run"),
        (
            {"student_model": "x/teacher.interpolated"},
            "student_model=x/teacher.interpolated has the name",
        ),
        ({"do_lower_case": "0"}, "do_lower_case=0 is neither yes nor no"),
        ({"fp16": "yes"}, "fp16=yes is an old name"),
        ({"num_processes": "2x"}, "num_processes=2x is not a number"),
    ],
)
def test_a_mistaken_variable_of_the_reranker_is_named_at_once(run: Run, own: dict[str, str], says: str) -> None:
    done = run("reranker.sh", **own)
    assert done.returncode == 2 and not done.calls
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"reranker.sh: {says}")


@pytest.mark.parametrize(
    "variable",
    [
        "distill_model_type=simplifed", "overwrite=true", "precision=fp64", "teacher_dropout=on", "do_lower_case=0",
        "fp16=no", "teacher_check=off", "ignore_padding=1", "deterministic=true", "set_name=test", "set_name=general",
    ],
)  # fmt: skip
def test_a_mistaken_variable_is_named_at_once(run: Run, variable: str) -> None:
    name, value = variable.split("=")
    done = run("distill.sh", **{name: value})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    if name == "precision":  # distill.py names it
        assert "--precision" in line and value in line
    else:
        assert variable in line and not done.calls


def test_nothing_of_the_example_is_built_for_a_mistake(run: Run, tmp_path: Path) -> None:
    student = tmp_path / "student"
    mistakes = [
        {"distill_model_type": "simplifed"}, {"overwrite": "1"}, {"num_processes": "x"}, {"precision": "fp64"},
        {"dev_measure": "MRR"}, {"eval_model_step": "1"}, {"dev_qrels": "/no/such"}, {"dev_pairs": "/no/such"},
        {"dev_pairs": f"{tmp_path}"}, {"learning_rate": "fast"}, {"layer_map": "1;2"}, {"teacher_model": "/no/such"},
        {},
    ]  # fmt: skip
    for own in mistakes:
        if not own:
            student.mkdir()
            (student / "config.json").touch()
        done = run("distill.sh", collection="python_docs", **own)
        assert (done.returncode, done.calls) == (2, []), own
        assert len(done.stderr.splitlines()) == 1


def test_a_mistaken_flag_of_the_reranker_is_told_before_anything_is_tokenized(run: Run, tmp_path: Path) -> None:
    write_published(tmp_path / "student", STUDENT, student_weights())
    for name, value in {"precision": "fp64", "aggregation": "Max", "eval_batch_size": "0"}.items():
        done = run("reranker.sh", **{name: value})
        assert (done.returncode, done.calls) == (2, [])
        (line,) = done.stderr.splitlines()
        assert f"--{name}" in line


def test_a_run_replaces_no_input_of_the_reranker(run: Run, variables: dict[str, str], tmp_path: Path) -> None:
    write_published(tmp_path / "student", STUDENT, student_weights())
    (tmp_path / "runs").mkdir()
    for name in ("candidates_run", "qrels", "test_pairs"):
        for file in (
            "student.run",
            "teacher.run",
            "student.scores.tsv",
            "teacher.scores.tsv.log",
            "teacher.interpolated.run",
        ):
            path = tmp_path / "runs" / file
            path.symlink_to(variables[name])
            before = path.read_bytes()
            for own in ({}, {name: str(path)}):
                done = run("reranker.sh", only_record, interpolation_weight="0.5", **own)
                assert (done.returncode, done.calls) == (2, [])
                (line,) = done.stderr.splitlines()
                assert f"{name}={own.get(name, variables[name])} is {file} in runs_dir" in line
            assert path.read_bytes() == before
            path.unlink()


# --- arguments, settings, and the directory of the student


def only_check_flags(*arguments: str) -> Finished:
    """Checks the flags of the calls that do only this, as if all others succeeded."""
    return run_python(*arguments) if "--check_flags" in arguments else only_record()


def run_with(
    script: str, tmp_path: Path, *arguments: str, answer: Callable[..., Finished] = only_record, **variables: str
) -> Ran:
    """Runs a script with arguments; `answer` runs its calls of python, by default as if all succeeded."""
    plain = {"collection": "mine", "features_file": str(tmp_path), "teacher_model": "some/teacher"}
    plain |= {"student_model": "some/student", "candidates_run": str(tmp_path), "qrels": str(tmp_path)}
    return run_bash(ROOT / script, plain | {"runs_dir": f"{tmp_path}/runs"} | variables, tmp_path, answer, arguments)


def settings_of(done: Ran) -> dict[str, tuple[str, str]]:
    """The settings that a script prints: the mark and the value of each variable."""
    lines = done.stdout.partition("Settings (*: not the default)\n")[2].splitlines()
    found = (re.fullmatch(r"([ *]) (\w+) +(.*)", line) for line in lines)
    return {match[2]: (match[1], match[3]) for match in found if match}


def test_an_argument_is_like_a_variable(tmp_path: Path) -> None:
    in_environment = run_with("distill.sh", tmp_path, seed="7", rep_weight="0", learning_rate="")
    as_arguments = run_with("distill.sh", tmp_path, "seed=7", "rep_weight=0", "learning_rate=", rep_weight="3")
    assert as_arguments.returncode == 0, as_arguments.stderr
    assert as_arguments.calls == in_environment.calls
    assert flags_of(as_arguments, "distill.py")["learning_rate"] == "2e-4"
    done = run_with("reranker.sh", tmp_path, "aggregation=SumP", "teacher_model=")
    assert done.returncode == 0, done.stderr
    assert "--aggregation=SumP" in done.calls[-4] and len(calls_of(done, "rerank.py")) == 1


@pytest.mark.parametrize(
    ("script", "argument", "nearest"),
    [
        ("distill.sh", "num_train_epoch=3", "num_train_epochs"),
        ("distill.sh", "epochs=3", "num_train_epochs"),
        ("distill.sh", "lr=1e-4", "learning_rate"),
        ("distill.sh", "--seed=3", "seed"),
        ("distill.sh", "--batch_size=3", "train_batch_size"),
        ("distill.sh", "seed", "seed"),
        ("distill.sh", "Seed=1", "seed"),
        ("distill.sh", "distill_model=hard", "distill_model_type"),
        ("distill.sh", "student_model=x", "student_model"),
        ("reranker.sh", "batch_size=3", "eval_batch_size"),
        ("reranker.sh", "agregation=MaxP", "aggregation"),
        ("reranker.sh", "learning_rate=1", ""),
        ("experiments/beir.sh", "epochs=3", "num_train_epochs"),
        ("experiments/beir.sh", "sources=x", "source"),
        ("experiments/msmarco_doc.sh", "windo=3", "window"),
        ("experiments/released.sh", "released_run=x", "released_runs"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest_variable(
    tmp_path: Path, script: str, argument: str, nearest: str
) -> None:
    done = run_with(script, tmp_path, argument)
    assert (done.returncode, done.stdout, done.calls) == (2, "", [])
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{Path(script).name}: {argument.partition('=')[0]} is not a VARIABLE=VALUE of this script")
    if nearest != "student_model":
        assert f"the nearest is {nearest}" in line


@pytest.mark.parametrize(
    ("script", "name", "right"),
    [
        ("distill.sh", "lr", "learning_rate"),
        ("distill.sh", "epochs", "num_train_epochs"),
        ("distill.sh", "num_epochs", "num_train_epochs"),
        ("distill.sh", "batch_size", "train_batch_size"),
        ("distill.sh", "layers", "layer_map"),
        ("distill.sh", "max_length", "max_seq_length"),
        ("distill.sh", "distill_model", "distill_model_type"),
        ("reranker.sh", "batch_size", "eval_batch_size"),
        ("reranker.sh", "max_length", "max_seq_length"),
        ("reranker.sh", "lr", None),
    ],
)
def test_a_name_of_another_program_in_the_environment_is_refused(
    tmp_path: Path, script: str, name: str, right: str | None
) -> None:
    done = run_with(script, tmp_path, **{name: "3"})
    if right is None:  # it has no meaning there
        assert done.returncode == 0, done.stderr
        return
    assert (done.returncode, done.calls) == (2, [])
    assert done.stderr == f"{script}: {name} is set, but it is not a variable of this script; set {right}\n"


def test_help_is_the_text_of_the_script(tmp_path: Path) -> None:
    for script in ("distill.sh", "reranker.sh", "experiments/beir.sh", "experiments/msmarco_doc.sh",
                   "experiments/released.sh"):  # fmt: skip
        for arguments in (["--help"], ["seed=1", "--help"], ["-h"]):
            done = run_with(script, tmp_path, *arguments, overwrite="neither")
            assert (done.returncode, done.stderr, done.calls) == (0, "", [])
            assert set(re.findall(r"^  (\w+)=", done.stdout, flags=re.M)) == variables_of(script)
        lines = (ROOT / script).read_text().splitlines()
        assert done.stdout.startswith(lines[1].removeprefix("# ") + "\n")
        for line in lines:
            if match := re.match(r"(\w+)=\$\{\1:?-([^}]*)\} *# *(.*)", line):
                assert re.search(
                    rf"^  {re.escape(match[1] + '=' + match[2])} +{re.escape(match[3])}$", done.stdout, re.M
                )


def test_the_settings_are_printed_and_marked(tmp_path: Path) -> None:
    done = run_with("distill.sh", tmp_path, "seed=43", "rep_weight=0", "collection=my coll", "learning_rate=2e-4")
    assert done.returncode == 0, done.stderr
    settings = settings_of(done)
    assert settings.keys() == variables_of("distill.sh")
    marked = {name for name, (mark, _) in settings.items() if mark == "*"}
    assert marked == {"seed", "rep_weight", "collection", "features_file", "teacher_model", "python"}
    assert settings["seed"] == ("*", "43") and settings["learning_rate"] == (" ", "2e-4")
    assert settings["general_student_model"] == (" ", "models/my coll/general_student")
    assert settings["output_student_dir"] == (" ", "models/my coll/student_simplified_rep_weight0_seed43")
    done = run_with("distill.sh", tmp_path, "tensorboard_dir=line 1\nline 2")
    assert settings_of(done)["tensorboard_dir"][1].count("line") == 2
    settings = settings_of(run_with("reranker.sh", tmp_path, "teacher_model="))
    assert settings["teacher_model"] == ("*", "") and settings["aggregation"] == (" ", "MaxP")
    assert settings.keys() == variables_of("reranker.sh")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "simplified"),
        (["seed=42", "temperature="], "simplified"),
        (["seed=43"], "simplified_seed43"),
        (["hard_weight=0"], "simplified_hard_weight0"),
        (["distill_model_type=standard"], "standard"),
        (["seed=5", "distill_model_type=tinybert", "hard_weight=1"], "tinybert_hard_weight1_seed5"),
        (["ignore_padding=yes"], "simplified_ignore_padding"),
        (["do_lower_case=no"], "simplified_do_lower_caseno"),
        (["layer_map=4,8,12"], "simplified_layer_map4,8,12"),
        (["pooled_activation=relu", "max_seq_length=256"], "simplified_pooled_activationrelu_max_seq_length256"),
        (["temperature=../../../x y"], "simplified_temperature.._.._.._x_y"),
        (["device=cpu", "precision=fp32", "num_processes=2", "overwrite=yes", "train_loss_step=3", "teacher_check=no",
          "save_model_step=1", "keep_checkpoints=0", "deterministic=yes", "tensorboard_dir=x", "train_pairs=x",
          "general_student_model=some/model"], "simplified"),
    ],
)  # fmt: skip
def test_the_directory_follows_from_what_differs(tmp_path: Path, arguments: list[str], name: str) -> None:
    done = run_with("distill.sh", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    call = next(call for call in done.calls if "distill.py" in call)
    assert f"--output_student_dir=models/mine/student_{name}" in call
    assert next_command(done)[1]["student_model"] == f"models/mine/student_{name}"


def test_a_directory_with_too_long_a_name_is_refused(tmp_path: Path) -> None:
    arguments = ["learning_rate=5e-5", "num_train_epochs=2", "gradient_accumulation_steps=2", "warmup_proportion=0.2",
                 "teacher_dropout=yes", "pooled_activation=relu", "weight_decay=0.02"]  # fmt: skip
    done = run_with("distill.sh", tmp_path, *arguments)
    assert done.returncode == 2 and "set output_student_dir" in done.stderr
    assert run_with("distill.sh", tmp_path, *arguments, "output_student_dir=models/mine/x").returncode == 0


def test_every_variable_counts_for_the_directory_or_does_not_change_the_student() -> None:
    """The settings that a resumed run must have are those of the directory, or those of how and where it runs."""
    text = (ROOT / "distill.sh").read_text().partition("\ncompare_with_defaults\n")[0]
    sections = re.split(r"^# --- (\w+).*\n", text, flags=re.M)
    of_section = {name: set(re.findall(r"^(\w+)=\$\{\1", text, flags=re.M))
                  for name, text in zip(sections[1::2], sections[2::2], strict=True)}  # fmt: skip
    counted = of_section["method"] | of_section["best"] | of_section["training"]
    assert {"att_weight", "layer_map", "temperature", "alpha", "seed", "learning_rate", "num_train_epochs",
            "train_batch_size", "max_seq_length", "pooled_activation", "weight_decay"} <= counted  # fmt: skip
    assert of_section["running"] == {
        "teacher_check", "device", "num_processes", "precision", "fp16_backend", "fp16_opt_level", "train_loss_step",
        "save_model_step", "keep_checkpoints", "tensorboard_dir", "deterministic", "python",
    }  # fmt: skip


def test_the_commands_of_the_pages_run_as_printed_and_in_any_order(tmp_path: Path) -> None:
    """distill.py accepts the flags. Each trains into a directory of its own; the number of processes has no effect."""
    assignments = commands_of_the_pages("distill.sh")
    assignments = {words for words in assignments if not any("num_processes" in word for word in words)}
    assert len(assignments) >= 10
    directories = []
    for words in sorted(assignments):
        variables = dict(word.split("=", 1) for word in words)
        for name in ("dev_pairs", "dev_qrels", "train_pairs"):
            if name in variables:
                variables[name] = str(tmp_path)
        done = run_with("distill.sh", tmp_path, answer=only_check_flags, **variables)
        assert done.returncode == 0, (words, done.stderr)
        directories.append(next_command(done)[1].get("student_model"))
    assert len(set(directories)) == len(directories), directories


def test_the_commands_of_the_pages_that_rerank_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "some" / "student").mkdir(parents=True)
    (tmp_path / "some" / "student" / "config.json").touch()
    student = {"student_model": f"{tmp_path}/some/student"}
    assignments = commands_of_the_pages("reranker.sh")
    assert len(assignments) >= 4
    for words in sorted(assignments):
        done = run_with("reranker.sh", tmp_path, *words, answer=only_check_flags, **student)
        # no run is there to be measured, and a model of the page is not there
        assert done.returncode == 0 or "does not exist; run 'bash distill.sh' first" in done.stderr, (words, done)
        variables = dict(word.split("=", 1) for word in words if not word.startswith("student_model"))
        done = run_with("reranker.sh", tmp_path, answer=only_check_flags, **student | variables)
        assert done.returncode == 0, (words, done.stderr)


def commands_of_the_pages(script: str) -> set[tuple[str, ...]]:
    """The variables of each command of a script that README.md and docs/ print."""
    text = "".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]).replace("\\\n", " ")
    command = re.escape(f"bash {script}")
    found = re.findall(rf"((?:\w+=[^\s`]+ +)*){command}((?: +\w+=[^\s`]+)*)", text)
    return {tuple(sorted(f"{before} {after}".split())) for before, after in found}


def test_the_python_of_the_environment_beside_the_scripts_is_taken(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    done = run_bash(project / "distill.sh", {"python": ""}, tmp_path, only_record, ["--help"])
    assert done.returncode == 0
    (project / ".venv" / "bin").mkdir(parents=True)
    venv_python = project / ".venv" / "bin" / "python"
    venv_python.write_text("#!/bin/sh\necho called $1; exit 9\n")
    venv_python.chmod(0o755)
    (tmp_path / "pairs").touch()
    for script in ("distill.sh", "reranker.sh", "experiments/beir.sh", "experiments/msmarco_doc.sh",
                   "experiments/python_docs/prepare.sh"):  # fmt: skip
        own = {"python": "", "source": "x", "collection": "mine", "teacher_model": "some/teacher",
               "student_model": "some/student", "candidates_run": str(tmp_path), "qrels": str(tmp_path),
               "features_file": str(tmp_path)}  # fmt: skip
        done = run_bash(project / script, own, tmp_path, only_record)
        assert done.returncode == 9 and "\ncalled " in f"\n{done.stdout}", (script, done)
        done = run_bash(project / script, own | {"python": "false"}, tmp_path, only_record)
        assert done.returncode == 1 and "called" not in done.stdout
        if script == "distill.sh":  # what a new user starts with
            advice = "install the packages with 'make install', or set python"
            assert done.stderr == f"distill.sh: python=false cannot run the scripts; {advice}\n"


@pytest.mark.parametrize("distill_model_type", ["standard", "prediction", "hard"])
def test_one_variable_chooses_the_method(run: Run, tmp_path: Path, distill_model_type: str) -> None:
    done = run("distill.sh", distill_model_type=distill_model_type, features_file=f"{tmp_path}/train.features")
    assert done.returncode == 0, done.stderr
    assert f"distill_model={distill_model_type}" in log_of(tmp_path / "student")


def test_tinybert_runs_two_steps_with_their_own_settings(run: Run, tmp_path: Path) -> None:
    own = {
        "distill_model_type": "tinybert", "learning_rate": "2e-3", "intermediate_learning_rate": "1e-3",
        "intermediate_num_train_epochs": "3", "rep_weight": "0.5", "hard_weight": "0.25", "layer_map": "1,3,5",
        "ignore_padding": "yes",
    }  # fmt: skip
    done = run("distill.sh", **own)
    assert done.returncode == 0, done.stderr
    first, second = log_of(tmp_path / "student_intermediate"), log_of(tmp_path / "student")
    for setting in ("distill_model=intermediate", "learning_rate=0.001", "num_train_epochs=3", "rep_weight=0.5",
                    "soft_weight=0.0", "hard_weight=0.0", "layer_map=1,3,5", "ignore_padding=True"):  # fmt: skip
        assert setting in first
    for setting in ("distill_model=prediction", "learning_rate=0.002", "num_train_epochs=1", "rep_weight=0.0",
                    "soft_weight=1.0", "hard_weight=0.25",
                    f"general_student_model={tmp_path}/student_intermediate"):  # fmt: skip
        assert setting in second
    assert next_command(done)[1]["student_model"] == f"{tmp_path}/student"

    before = (tmp_path / "student" / "model.safetensors").read_bytes()
    stop(tmp_path / "student")
    done = run("distill.sh", **own)
    assert done.returncode == 0, done.stderr
    assert log_of(tmp_path / "student_intermediate") == first
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == before


def test_tinybert_is_one_call_with_the_flags_of_both_steps(run: Run, tmp_path: Path) -> None:
    own = {"intermediate_learning_rate": "1e-3", "layer_map": "1,3,5", "hard_weight": "1", "tensorboard_dir": "curves"}
    done = run("distill.sh", only_record, distill_model_type="tinybert", features_file=str(tmp_path), **own)
    assert done.returncode == 0, done.stderr
    flags = flags_of(done, "distill.py")
    assert own.items() <= flags.items()
    assert (flags["distill_model"], flags["intermediate_num_train_epochs"], flags["resume"]) == ("tinybert", "", "yes")


def test_general_distillation_then_a_method_with_another_weight(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on a mat .\na dog ran fast\n\nwhat is deep neural ranker\n" * 9)
    done = run(
        "distill.sh", set_name="general", train_pairs=f"{tmp_path}/text.txt", distill_model_type="intermediate",
        output_student_dir=f"{tmp_path}/general",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = {"general_student_model": f"{tmp_path}/general", "collection": "mine", "max_seq_length": "19"}
    assert next_command(done) == ("distill.sh", expected | {"do_lower_case": "yes"})
    assert read_header(tmp_path / "text.19.general.features").set_name == "general"
    done = run("distill.sh", general_student_model=f"{tmp_path}/general", hard_weight="0", teacher_check="no")
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
        ({"distill_model_type": "tinybert", "soft_weight": "0"}, "soft_weight"),
        (
            {"distill_model_type": "intermediate", "set_name": "general", "train_pairs": ""},
            "train_pairs=data/mine/text.txt",
        ),
    ],
)
def test_a_variable_without_use_is_refused(run: Run, tmp_path: Path, variables_set: dict, says: str) -> None:
    done = run("distill.sh", **variables_set)
    assert done.returncode == 2 and says in done.stderr.splitlines()[-1]
    assert not (tmp_path / "student").exists()


def test_hard_labels_can_be_joined_by_a_teacher(run: Run, variables: dict[str, str], tmp_path: Path) -> None:
    done = run("distill.sh", distill_model_type="hard", soft_weight="0.5")
    assert done.returncode == 0, done.stderr
    assert f"teacher_model={variables['teacher_model']}" in log_of(tmp_path / "student")
    # and without one, a teacher that does not exist is no mistake
    done = run("distill.sh", only_record, distill_model_type="hard", teacher_model="/no/such", overwrite="yes")
    assert done.returncode == 0 and flags_of(done, "distill.py")["teacher_model"] == ""


def test_the_best_student_on_dev_pairs_is_kept(run: Run, variables: dict[str, str], tmp_path: Path) -> None:
    pairs = tmp_path / "dev.tsv"
    pairs.write_text(Path(variables["test_pairs"]).read_text())
    own = {"dev_pairs": f"{pairs}", "dev_qrels": variables["qrels"]}
    done = run("distill.sh", dev_pairs=f"{pairs}", dev_qrels="")
    assert done.returncode == 2 and "--dev_features_file: needs --dev_qrels" in done.stderr.splitlines()[-1]
    done = run("distill.sh", **own | {"dev_qrels": "/no/such"})
    assert done.returncode == 2 and done.stderr.startswith("distill.sh: dev_qrels=/no/such does not exist")
    for name, value in {"dev_measure": "MAP", "eval_model_step": "1", "early_stopping_patience": "1"}.items():
        done = run("distill.sh", **{name: value})
        assert done.returncode == 2 and f"--{name}: has no use without --dev_features_file" in done.stderr
    done = run(
        "distill.sh", **own, dev_measure="NDCG@10", eval_model_step="1", early_stopping_patience="9",
        distill_model_type="tinybert",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_header(tmp_path / "dev.19.features").set_name == "dev"
    log = log_of(tmp_path / "student")
    assert log.count(" dev NDCG@10 ") == 4  # three steps, and the end
    assert "early_stopping_patience=9" in log
    assert "dev_features_file=None" in log_of(tmp_path / "student_intermediate")


def test_missing_parts_of_the_example_are_built(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    models = project / "models" / "python_docs"

    def answer(*arguments: str) -> Finished:
        if "--check_flags" in arguments:
            return only_record()
        flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments[1:] if "=" in argument)
        if arguments[0].endswith("build_collection.py"):
            (project / flags["output_dir"] / "train_pairs.tsv").touch()
            (project / flags["output_dir"] / "report.json").touch()
        elif "output_features_file" in flags:
            (project / flags["output_features_file"]).touch()
        else:
            model = project / flags.get("output_dir", flags.get("output_student_dir"))
            model.mkdir()
            (model / "config.json").touch()
        return only_record()

    def run(**variables: str) -> Ran:
        done = run_bash(
            project / "distill.sh", {"max_seq_length": "7", "precision": "bf16"} | variables, tmp_path, answer
        )
        assert done.returncode == 0, done.stderr
        return done

    done = run(num_processes="2", OMP_NUM_THREADS="1", learning_rate="1", teacher_epochs="4")
    scripts = [arguments[0].rpartition("/")[2] for arguments in done.calls]
    assert scripts == ["build_collection.py", "fetch_encoder.py", "make_general_student.py", "tokenize_to_features.py",
                       "distill.py", "tokenize_to_features.py", "-m"]  # fmt: skip
    assert "--if_stale" in done.calls[3] and "--if_stale" in done.calls[5]
    expected = {
        "distill_model": "hard", "features_file": "data/python_docs/train_pairs.7.features", "precision": "bf16",
        "general_student_model": "models/python_docs/encoder", "output_student_dir": "models/python_docs/teacher",
        "learning_rate": "3e-5", "num_train_epochs": "4", "train_batch_size": "16", "device": "auto",
    }  # fmt: skip
    assert expected.items() <= flags_of(done, "distill.py").items() and "--resume" in done.calls[4]
    assert "distill.py" in done.calls[6] and f"--features_file={expected['features_file']}" in done.calls[6]
    assert sorted(path.name for path in models.iterdir()) == [
        "encoder", "general_student", "student_simplified_max_seq_length7_learning_rate1", "teacher",
    ]  # fmt: skip

    done = run(output_student_dir=f"{tmp_path}/student")
    assert [arguments[0] for arguments in done.calls] == ["tokenize_to_features.py", "distill.py"]


# --- the values of variables

NOT_FLAGS = {  # flags of other names
    "distill.sh": {"dev_pairs": "raw_data_file"},
    "reranker.sh": {"student_model": "model_dir"},
}
CHECKED = {"overwrite", "do_lower_case", "teacher_dropout", "teacher_check", "ignore_padding", "deterministic",
           "set_name", "distill_model_type", "num_processes", "interpolation_weight"}  # fmt: skip
HOSTILE = [
    "a b 'c' \"d\" *?[x] \\n %s ~ {e,f} ; touch hacked & | > hacked",
    "$(touch hacked) `touch hacked` ${PATH} $((2*3)) !!",
    "line 1\nline 2",
    "-x --overwrite",
    "a[$(touch hacked)]",
    "x_model:",
]


def variables_of(script: str) -> set[str]:
    return set(re.findall(r"^(\w+)=\$\{\1:?-", (ROOT / script).read_text(), flags=re.M))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project, where hostile values are files, and directories of models and of unfinished runs."""
    copy = copy_project(tmp_path_factory.mktemp("hostile") / "project")
    for value in HOSTILE:
        (copy / value).mkdir()
        (copy / value / "config.json").touch()
        (copy / value / "training.json").write_text('"finished": false')
    return copy


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("script", ["distill.sh", "reranker.sh"])
def test_values_reach_python_unchanged_or_are_refused(project: Path, tmp_path: Path, script: str, value: str) -> None:
    def run(**variables: str) -> Ran:
        """With the variables in the environment, and as arguments."""
        plain = {"collection": "mine"} | variables
        done = run_bash(project / script, plain, tmp_path, only_record)
        arguments = [f"{name}={value}" for name, value in plain.items() if name in variables_of(script)]
        again = run_bash(project / script, {}, tmp_path, only_record, arguments)
        assert (again.returncode, again.calls) == (done.returncode, done.calls)
        assert not list(project.rglob("hacked"))
        return done

    python_script = {"distill.sh": "distill.py", "reranker.sh": "rerank.py"}[script]
    plain = {name: str(project) for name in ("features_file", "candidates_run", "qrels")}
    plain |= dict.fromkeys(("teacher_model", "general_student_model", "student_model"), "some/model")
    lengths = {len(call) for call in calls_of(run(**plain), python_script)}

    free = variables_of(script) - CHECKED - {"python", "train_pairs", "test_pairs"}
    done = run(**dict.fromkeys(free, value))
    assert done.returncode == 0, done.stderr
    assert {len(call) for call in calls_of(done, python_script)} == lengths
    given = {argument for call in done.calls for argument in call}
    runs_dir = {"runs_dir"} & free
    for name in free - {"collection", "candidates_run", "qrels"} - runs_dir:
        flag = NOT_FLAGS[script].get(name, name)
        flag = "model_dir" if script == "reranker.sh" and name == "teacher_model" else flag
        assert f"--{flag}={value}" in given, name
    if script == "distill.sh":
        names = ("collection", "teacher_model", "max_seq_length")
        expected = dict.fromkeys(names, value) | {"student_model": value, "do_lower_case": "yes"}
        assert next_command(done) == ("reranker.sh", expected)
    else:
        assert f"--output_scores_file={value}/{value}.scores.tsv" in given and f"--run_name={value}" in given
        assert ["msmarco_mrr_eval.py", f"--queries_of={value}", "--", value, value] in done.calls
    pairs = "train_pairs" if script == "distill.sh" else "test_pairs"
    assert f"--raw_data_file={value}" in {argument for call in run(**plain | {pairs: value, "features_file": ""}).calls
                                          for argument in call}  # fmt: skip

    for name in CHECKED & variables_of(script):
        done = run(**plain | {name: value})
        assert done.returncode == 2 and f"{name}={value}" in done.stderr and not done.calls
    assert run(**plain | {"python": value}).returncode in (126, 127)


@pytest.mark.parametrize("script", ["distill.sh", "reranker.sh"])
def test_hostile_arguments_are_refused(project: Path, tmp_path: Path, script: str) -> None:
    for value in HOSTILE:
        for argument in (value, f"{value}=1", f"PATH={value}", f"seed[$(touch hacked)]={value}", f"seed+={value}", "=",
                         f"IFS={value}", "", f"--seed {value}"):  # fmt: skip
            done = run_bash(project / script, {"collection": "mine"}, tmp_path, only_record, [argument])
            assert (done.returncode, done.stdout, done.calls) == (2, "", []), argument
            (line,) = done.stderr.splitlines()
            assert line.isprintable() and len(line) < 250
            assert not list(project.rglob("hacked"))


def test_every_variable_is_a_flag_of_distill(run: Run, tmp_path: Path) -> None:
    """Of the same name, except for those that distill.sh reads itself."""
    done = run("distill.sh", only_record, features_file=str(tmp_path))
    names = variables_of("distill.sh") - {"collection", "set_name", "train_pairs", "dev_pairs", "num_processes"}
    names -= {"python", "teacher_check", "distill_model_type"}
    assert names | {"no_teacher_check", "distill_model", "dev_features_file", "resume"} == set(
        flags_of(done, "distill.py")
    )


# Forms that bash 3.2 does not have, each with an example.
BASH_4 = {
    r"\$\{\w+(\[\S+\])?@\w": "${x@Q}",
    r"\$\{\w+(\[\S+\])?[,^]": "${x^^} ${x,,}",
    r"\b(mapfile|readarray|coproc)\b": "mapfile -t z",
    r"\b(declare|local|typeset) -\w*[Anglu]": "declare -A m",
    r"\bwait -\w*[np]": "wait -n",
    r"\|&": "a |& b",
    r"&>>": "a &>> b",
    r";;?&": "x) ;& y) ;;&",
    r"\$\{\w+\[-": "${x[-1]}",
    r"\$\{\w+: *-?\d+: *-": "${x:1:-1}",
    r"printf [^\n|]*%\(": "printf '%(%F)T' -1",
    r"printf -v \S*\[": 'printf -v "a[1]" x',
    r"(\[|\btest) -[vR] ": "[[ -v x ]]",
    r"\b(EPOCHSECONDS|EPOCHREALTIME|BASHPID|SRANDOM|BASH_ARGV0|FUNCNEST)\b": "$EPOCHSECONDS $BASHPID",
    r"\b(globstar|lastpipe|inherit_errexit|checkjobs|autocd|dirspell|globasciiranges)\b": "shopt -s globstar",
    r"\{\w+\.\.\w+\.\.": "{1..9..2}",
    r"\{0\d*\.\.": "{01..10}",
    r"exec \{\w+\}": "exec {fd}>x",
    r"\bread -\w*[iN]": "read -N 1",
    r"\$'[^']*\\[uU]": r"$'\u00e9'",
    r"\$\{[!]?\w+@": "${!x@}",
    r"=\(\)|\b(declare|local|typeset) -a \w+(\s|$)": "x=()",  # with set -u, "${x[@]}" of an empty array is an error
}
# Options and programs that only GNU has.
GNU = {
    r"\bsed -\w*[izrs]": "sed -i s/a/b/",
    r"\b(readlink -\w*f|realpath|sha256sum|md5sum|tac|shuf|seq|timeout|numfmt|nl -|stdbuf)\b": "readlink -f x",
    r"\bdate (-\w*d|--|\+\S*%N)": "date -d now",
    r"\bgrep -\w*P": "grep -oP x",
    r"\bstat -\w*c": "stat -c %s x",
    r"\bxargs -\w*[rdP]": "xargs -r",
    r"\bsort -\w*[VhR]": "sort -V",
    r"\bfind\b.* -printf": "find . -printf %p",
    r"\bhead -\w* ?-\d": "head -n -1",
    r"\bcut -\w*z|\b(cut|awk|sed|grep|sort|head|tail|cp|mv|ln|ls|rm|du|mktemp) --[a-z]": "cp --parents",
    r"\bnproc\b(?! 2>/dev/null \|\|)": "nproc",
    r"\becho -\w*[en]": "echo -e x",
    r"\bmktemp -\w*p": "mktemp -p .",
}


@pytest.mark.parametrize("path", [*ROOT.glob("*.sh"), *ROOT.glob("experiments/**/*.sh")], ids=lambda path: path.name)
def test_shell_scripts_run_in_bash_3_2(path: Path) -> None:
    """macOS has no newer one, and no GNU programs."""
    text = path.read_text()
    for pattern, example in (BASH_4 | GNU).items():
        assert re.search(pattern, example), pattern
        assert not re.search(pattern, text), (pattern, re.search(pattern, text))
