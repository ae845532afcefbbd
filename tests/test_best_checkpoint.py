"""The best checkpoint on a dev set: the measure, the choice, early stopping, and resuming."""

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from test_resume import DROPOUT, STOPPED, at_step, fail_at, result, send
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

from formats.checksums import check_checksums
from formats.features import Example, FeaturesHeader, read_header, write_features
from formats.scores import PassageScore, read_scores
from modeling.model_files import load_ranker
from runtime.errors import InputError
from tokenization.vocabulary import vocabulary_sha256
from training.checkpoints import CHECKPOINT_FILES
from training.dev import DevPairs, measure_of, read_dev_pairs

STEPS = 20  # four epochs of 5
PAIRS = 90  # of queries q0 to q2, in documents D0 to D6 each
MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
SAVING = ["--save_model_step", 4]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "teacher", TEACHER, teacher_weights())
    write_transformers(directory / "general", STUDENT, student_weights(), **DROPOUT)
    write_tiny_features(directory / "features", count=21)
    write_tiny_features(directory / "dev", count=PAIRS, set_name="dev", seed=5)
    (directory / "qrels").write_text("q0 0 D4 1\nq1 0 D2 1\nq2 0 D5 2\nq2 0 D3 0\n")
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
    distil(inputs, output, *SAVING)
    return output


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def run(inputs: Path, tmp_path: Path, *more: object, **settings) -> int:
    return run_forked(tmp_path, "distill.py", *arguments(inputs, tmp_path / "out", *SAVING, *more), **settings).status


# The measure.


def dev_pairs(measure: str, qrels: dict[str, dict[str, int]]) -> DevPairs:
    return DevPairs(Path("none"), 0, qrels, measure, [])


def test_documents_are_ranked_by_their_best_passages() -> None:
    qrels = {"a": {"D1": 1}, "b": {"D2": 1, "D3": 1}, "c": {"D9": 1}}
    passages = [
        PassageScore("a", "D1_0", 0.2), PassageScore("a", "D2_0", 0.6), PassageScore("a", "D1_1", 0.9),  # D1, D2
        PassageScore("b", "D1_0", 0.5), PassageScore("b", "D2_passage-7", 0.5),  # D2, D1: the higher id at equal scores
        PassageScore("c", "D9_0", 0.1), PassageScore("c", "D_8_0", 0.3), PassageScore("c", "D7_0", 0.2),  # rank 3
    ]  # fmt: skip
    assert measure_of(dev_pairs("MRR@10", qrels), passages) == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert measure_of(dev_pairs("MRR@2", qrels), passages) == pytest.approx((1 + 1 + 0) / 3)
    assert measure_of(dev_pairs("P@2", qrels), passages) == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    ndcg = (1 + 1 / (1 + 1 / math.log2(3)) + 1 / math.log2(4)) / 3
    assert measure_of(dev_pairs("NDCG@10", qrels), passages) == pytest.approx(ndcg)


def test_scores_that_32_bits_cannot_tell_apart_keep_their_order() -> None:
    scores = {"D1": 1 - 1e-12, "D2": 1 - 2e-12, "D3": 1 - 3e-12}
    passages = [PassageScore("a", f"{doc_id}_0", score) for doc_id, score in scores.items()]
    for place, doc_id in enumerate(scores, start=1):
        assert measure_of(dev_pairs("MRR", {"a": {doc_id: 1}}), passages) == pytest.approx(1 / place)


def test_the_values_are_those_of_the_scripts_on_each_checkpoint(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    lines = distil(inputs, output, "--save_model_step", 2)
    assert [line["global_step"] for line in lines] == list(range(2, STEPS + 1, 2))
    values = {}
    for step in range(2, STEPS, 2):
        model, scores, results = output / f"checkpoint-{step}", tmp_path / f"{step}.scores", tmp_path / f"{step}.run"
        for script, *flags in (
            ("rerank.py", "--model_dir", model, "--features_file", inputs / "dev", "--output_scores_file", scores,
             "--device", "cpu"),
            ("convert_to_trec_results.py", "--scores_file", scores, "--output_results_file", results,
             "--aggregation", "MaxP"),
        ):  # fmt: skip
            assert run_main(script, *flags).status == 0
        measured = run_main("msmarco_mrr_eval.py", inputs / "qrels", results).stdout
        values[step] = float(re.search(r"^MRR@10: (.*)$", measured, flags=re.M)[1])
        assert len(list(read_scores(scores))) == PAIRS
    assert {line["global_step"]: line["value"] for line in lines[:-1]} == values

    # in each line the best step is the first with the highest value so far
    for number, line in enumerate(lines, start=1):
        best = max(lines[:number], key=lambda earlier: earlier["value"])
        assert line == {**line, "measure": "MRR@10", "best_step": best["global_step"]}
    best_step = lines[-1]["best_step"]
    assert best_step not in (2, STEPS)  # otherwise the test would show little
    assert len({line["best_step"] for line in lines}) > 2

    # the student is that checkpoint; training.json and the log say so
    assert {name: contents(output)[name] for name in MODEL_FILES} == {
        name: content for name, content in contents(output / f"checkpoint-{best_step}").items() if name in MODEL_FILES
    }
    outcome = run_file(output)
    assert (outcome["finished"], outcome["best_step"], outcome["last_step"]) == (True, best_step, STEPS)
    assert outcome["best_value"] == values[best_step]
    log = (output / "distill.log").read_text()
    assert f"the student is that of step {best_step}, dev MRR@10 {values[best_step]:.4f}, the best of 20" in log
    assert not list(output.glob("best-*"))

    # each checkpoint has the weights of the best checkpoint until then
    for line in lines[:-1]:
        checkpoint = output / f"checkpoint-{line['global_step']}"
        weights = (checkpoint / "best_model.safetensors").read_bytes()
        assert weights == (output / f"checkpoint-{line['best_step']}" / "model.safetensors").read_bytes()
        assert (checkpoint / "dev_eval.jsonl").read_text().count("\n") == line["global_step"] / 2


def test_evaluating_changes_nothing_of_the_training(inputs: Path, tmp_path: Path, uninterrupted: Path) -> None:
    flags = arguments(inputs, tmp_path / "out", *SAVING)
    place = flags.index("--dev_features_file")
    assert run_main("distill.py", *flags[:place], *SAVING).status == 0  # dropout shows a change of the RNG state
    for name in ("train_loss.jsonl", "checkpoint-16/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert not (tmp_path / "out" / "dev_eval.jsonl").exists()


def test_the_first_of_equal_checkpoints_is_the_best(inputs: Path, tmp_path: Path) -> None:
    lines = distil(inputs, tmp_path / "out", "--learning_rate", 0, *SAVING)
    assert len({line["value"] for line in lines}) == 1 and {line["best_step"] for line in lines} == {2}
    more = ["--learning_rate", 0, "--early_stopping_patience", 3]
    assert [line["global_step"] for line in distil(inputs, tmp_path / "stopped", *more)] == [2, 4, 6, 8]


def test_by_default_it_evaluates_after_each_epoch_and_another_measure(inputs: Path, tmp_path: Path) -> None:
    flags = [str(flag) for flag in arguments(inputs, tmp_path / "out", "--dev_measure", "ndcg@10")]
    place = flags.index("--eval_model_step")
    done = run_main("distill.py", *flags[:place], *flags[place + 2 :])
    assert done.status == 0, done
    lines = dev_lines(tmp_path / "out")
    assert [(line["global_step"], line["measure"]) for line in lines] == [(n, "ndcg@10") for n in (5, 10, 15, 20)]
    done = run_main("distill.py", *arguments(inputs, tmp_path / "seven", "--eval_model_step", 7))
    assert [line["global_step"] for line in dev_lines(tmp_path / "seven")] == [7, 14, 20]  # and after the last step


# Stopping early.


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_it_stops_after_the_given_evaluations_without_a_better_one(
    inputs: Path, tmp_path: Path, uninterrupted: Path, patience: int
) -> None:
    output = tmp_path / "out"
    lines = distil(inputs, output, "--early_stopping_patience", patience, *SAVING)
    whole = dev_lines(uninterrupted)
    number = next(
        number
        for number in range(patience + 1, len(whole) + 1)
        if max(line["value"] for line in whole[: number - patience]) >= max(line["value"] for line in whole[:number])
    )
    assert number < len(whole)
    assert lines == whole[:number]
    outcome = run_file(output)
    assert (outcome["finished"], outcome["last_step"], outcome["best_step"]) == (
        True,
        number * 2,
        lines[-1]["best_step"],
    )
    losses = [json.loads(line)["global_step"] for line in (output / "train_loss.jsonl").read_text().splitlines()]
    assert losses[-1] == number * 2  # the last line has the losses of the remaining steps
    assert not (output / f"checkpoint-{number * 2}").exists()
    before = contents(output / "checkpoint-4")
    done = run_main(
        "distill.py", *arguments(inputs, output, "--early_stopping_patience", patience, *SAVING, "--resume")
    )
    assert (done.status, "is finished" in done.stdout) == (0, True)
    assert contents(output / "checkpoint-4") == before

    stopped = tmp_path / "stopped"
    stopped.mkdir()
    more = ["--early_stopping_patience", patience]
    assert run(inputs, stopped, *more, prepare=at_step(5, send(signal.SIGTERM))) == STOPPED
    assert run(inputs, stopped, *more, "--resume") == 0
    shutil.rmtree(stopped / "out" / "checkpoint-5")
    assert result(stopped / "out") == result(output)


# Resuming.


@pytest.mark.parametrize("stop", [1, 9, 10, 18])
def test_a_run_that_was_stopped_resumes_exactly(inputs: Path, tmp_path: Path, uninterrupted: Path, stop: int) -> None:
    output = tmp_path / "out"
    assert run(inputs, tmp_path, prepare=at_step(stop, send(signal.SIGTERM))) == STOPPED
    lines = dev_lines(output)
    assert len(lines) == stop // 2
    check_checksums(output / f"checkpoint-{stop}", CHECKPOINT_FILES)
    assert [path.name for path in output.glob("best-*")] == [f"best-{line['best_step']}" for line in lines[-1:]]
    for best in output.glob("best-*"):
        load_ranker(best)
        assert {path.name for path in best.iterdir()} == MODEL_FILES
    assert run(inputs, tmp_path, "--resume") == 0
    if stop % 4:
        shutil.rmtree(output / f"checkpoint-{stop}")
    assert result(output) == result(uninterrupted)


@pytest.mark.parametrize("kill", [1, 7, 12, 20])
def test_a_run_that_was_killed_resumes_exactly(inputs: Path, tmp_path: Path, uninterrupted: Path, kill: int) -> None:
    output = tmp_path / "out"
    assert run(inputs, tmp_path, prepare=at_step(kill, send(signal.SIGKILL))) == -signal.SIGKILL
    assert run(inputs, tmp_path, "--resume", prepare=at_step(3, send(signal.SIGKILL))) in (0, -signal.SIGKILL)
    assert run(inputs, tmp_path, "--resume") == 0
    assert result(output) == result(uninterrupted)
    steps = [json.loads(line)["global_step"] for line in (output / "speed.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


@pytest.mark.parametrize("name", ["best-8", "dev_eval.jsonl"])
def test_a_run_that_was_killed_while_it_saved_the_best_checkpoint_resumes_exactly(
    inputs: Path, tmp_path: Path, uninterrupted: Path, name: str
) -> None:
    killed = 0
    for call in range(1, 100, 6):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        status = run(inputs, tmp_path, prepare=fail_at(call, send(signal.SIGKILL), name))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        killed += 1
        for best in (tmp_path / "out").glob("best-*"):
            if (best / "config.json").exists():
                load_ranker(best)  # it is complete
        assert run(inputs, tmp_path, "--resume") == 0
        assert result(tmp_path / "out") == result(uninterrupted)
        assert not list((tmp_path / "out").rglob(".*"))
    assert killed > 1


def test_the_best_checkpoint_is_not_lost_by_starting_again(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = arguments(inputs, output)  # without checkpoints
    prepare = at_step(7, send(signal.SIGKILL))
    assert run_forked(tmp_path, "distill.py", *flags, prepare=prepare).status == -signal.SIGKILL
    (best,) = output.glob("best-*")
    load_ranker(best)
    done = run_main("distill.py", *flags)
    assert_refused(done, f"holds {best.name} of an earlier run", "--resume", "--overwrite")
    done = run_main("distill.py", *flags, "--resume", "--general_student_model", best)
    assert_refused(done, str(best), "is an input and would be lost")
    load_ranker(best)
    assert run_main("distill.py", *flags, "--overwrite").status == 0
    assert not list(output.glob("best-*"))


def test_other_dev_data_and_flags_are_refused_and_named(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(inputs, tmp_path, prepare=at_step(5, send(signal.SIGTERM))) == STOPPED
    before = result(output)
    write_tiny_features(tmp_path / "dev", count=PAIRS, set_name="dev", seed=6)
    (tmp_path / "qrels").write_text((inputs / "qrels").read_text().replace("D4", "D5"))
    for more, says in (
        (["--dev_features_file", tmp_path / "dev"], "--dev_features_file (other content)"),
        (["--dev_qrels", tmp_path / "qrels"], "--dev_qrels (other content)"),
        (["--dev_measure", "MRR"], "--dev_measure (MRR@10 there, MRR here)"),
        (["--eval_model_step", 3], "--eval_model_step (2 there, 3 here)"),
        (["--early_stopping_patience", 3], "--early_stopping_patience (None there, 3 here)"),
    ):
        assert_refused(run_main("distill.py", *arguments(inputs, output, *SAVING, "--resume", *more)), says)
    assert result(output) == before
    shutil.copytree(inputs, tmp_path / "moved")
    assert run(tmp_path / "moved", tmp_path, "--resume") == 0


# Errors.


def test_flags_that_contradict_each_other_are_refused(inputs: Path, tmp_path: Path) -> None:
    flags = arguments(inputs, tmp_path / "out")
    bare = flags[: flags.index("--dev_features_file")]
    dev = ["--dev_features_file", inputs / "dev", "--dev_qrels", inputs / "qrels"]
    for more, *says in (
        (dev[:2], "--dev_features_file: needs --dev_qrels"),
        (dev[2:], "--dev_qrels: needs --dev_features_file"),
        (["--dev_measure", "MRR"], "--dev_measure: has no use without --dev_features_file and --dev_qrels"),
        (["--eval_model_step", 5], "--eval_model_step: has no use"),
        (["--early_stopping_patience", 5], "--early_stopping_patience: has no use"),
        ([*dev, "--dev_measure", "MRR@0"], "--dev_measure", "MRR@0"),
        ([*dev, "--dev_measure", "quality"], "--dev_measure", "quality"),
        ([*dev, "--dev_measure", "P"], "--dev_measure", "P"),
        ([*dev, "--eval_model_step", 0], "--eval_model_step: needs to be 1 or more"),
        ([*dev, "--early_stopping_patience", -1], "--early_stopping_patience: needs to be 1 or more"),
        ([*dev, "--distill_model", "intermediate", "--teacher_model", inputs / "teacher"], "not a ranker"),
    ):
        assert_refused(run_main("distill.py", *bare, *more), *says)
    assert os.listdir(tmp_path) == []


def test_dev_data_that_cannot_be_measured_is_refused(inputs: Path, tmp_path: Path) -> None:
    def refused(flag: str, path: Path, *says: object) -> None:
        assert_refused(run_main("distill.py", *arguments(inputs, tmp_path / "out", flag, path)), path, *says)
        assert not (tmp_path / "out").exists()

    flag, other = "--dev_features_file", [*TOKENS[:-1], "new"]
    refused(flag, tmp_path / "missing", "No such file")
    refused(flag, write_tiny_features(tmp_path / "train", 5), "block 0 example 0", "has no '#'")
    refused(flag, write_tiny_features(tmp_path / "text", 5, "general"), flag, "plain text without queries")
    long = write_tiny_features(tmp_path / "long", 5, "dev", max_seq_length=19)
    refused(flag, long, flag, "max_seq_length 19 where --features_file has 17")
    refused(flag, write_tiny_features(tmp_path / "other", 5, "dev", tokens=other), "another vocabulary")
    cased = write_tiny_features(tmp_path / "cased", 5, "dev", do_lower_case=False)
    refused(flag, cased, "do_lower_case False where --features_file has True")
    header = FeaturesHeader(17, len(TOKENS), True, "dev", vocabulary_sha256(TOKENS))
    examples = [Example(f"q0#{passage_id}", [2, 5, 3, 3], 3, -1) for passage_id in ("D1_0", "D1_x")]
    write_features(tmp_path / "ids", header, examples)
    refused(flag, tmp_path / "ids", "block 0 example 1", "'D1_x' is not a document id")
    write_features(tmp_path / "repeated", header, [examples[0]] * 2)
    refused(flag, tmp_path / "repeated", "block 0 example 1: example id 'q0#D1_0' is already that of block 0 example 0")
    write_features(tmp_path / "none", header, [])
    refused(flag, tmp_path / "none", flag, "has no examples")

    flag = "--dev_qrels"
    refused(flag, tmp_path / "missing", "No such file")
    (tmp_path / "strangers").write_text("q9 0 D1 1\n")
    refused(flag, tmp_path / "strangers", flag, "share no query")
    (tmp_path / "short").write_text("q0 0 D1 1\nq0 D2 1\n")
    refused(flag, tmp_path / "short", "line 2", "3 columns")
    for text in ("q0 0 D4 0\nq9 0 D4 1\n", "q0 0 D4 -2\nq1 0 D2 -1\n", "q0 0 D9 1\nq1 0 doc 2\n"):
        (tmp_path / "nothing").write_text(text)
        refused(flag, tmp_path / "nothing", flag, "no document in", "is relevant in")
    (tmp_path / "high").write_text("q0 0 D4 1\nq1 0 D2 10001\n")
    high = arguments(inputs, tmp_path / "out", flag, tmp_path / "high", "--dev_measure", "NDCG@10")
    assert_refused(run_main("distill.py", *high), flag, tmp_path / "high", "a relevance of 10001 is above 10000")
    assert not (tmp_path / "out").exists()


def test_tinybert_checks_the_dev_judgments_before_its_first_step(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q0 0 D4 0\n")
    flags = arguments(inputs, tmp_path / "out", "--dev_qrels", tmp_path / "qrels")
    flags[flags.index("hard")] = "tinybert"
    assert_refused(run_main("distill.py", *flags, "--teacher_model", inputs / "teacher"), "--dev_qrels", "no document")
    assert sorted(os.listdir(tmp_path)) == ["qrels"]


def test_dev_judgments_below_0_do_not_count(inputs: Path, tmp_path: Path) -> None:
    """q1 has only such judgments, as in the qrels of the TREC Web tracks. Each measure has the name that was given."""
    (tmp_path / "qrels").write_text("q0 0 D4 1\nq0 0 D1 -2\nq1 0 D2 -2\nq1 0 D3 -5\n")
    lines = distil(inputs, tmp_path / "out", "--dev_qrels", tmp_path / "qrels", "--dev_measure", "nDCG@10")
    assert all(line["measure"] == "nDCG@10" and 0 < line["value"] <= 0.5 for line in lines)


def test_dev_queries_without_judgments_and_contradictions_are_noted(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q0 0 D1 1\nq1 0 D2 0\nq1 0 D2 1\nq8 0 D1 1\n")
    dev = read_dev_pairs(inputs / "dev", tmp_path / "qrels", "MRR@10", read_header(inputs / "features"))
    contradiction, unjudged = dev.notes
    assert "line 3: document D2 of query q1 has relevance 1, but 0 in line 2" in contradiction
    assert "1 of 3 queries have no judgments" in unjudged
    assert (dev.count, dev.qrels["q1"]) == (PAIRS, {"D2": 1})
    with pytest.raises(InputError):
        read_dev_pairs(inputs / "dev", inputs / "dev", "MRR@10", read_header(inputs / "features"))


def test_a_student_whose_scores_overflow_ends_the_run(inputs: Path, tmp_path: Path) -> None:
    weights = student_weights()
    weights["classifier.weight"] = weights["classifier.weight"].sign() * 3e38
    write_transformers(tmp_path / "large", STUDENT, weights)
    more = ["--general_student_model", tmp_path / "large", "--distill_model", "prediction", "--att_weight", 1]
    more += ["--soft_weight", 1e-38, "--teacher_model", inputs / "teacher", "--no_teacher_check"]
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", *more, "--learning_rate", 0))
    assert done.status == 2
    assert "error: " in done.stderr.splitlines()[-1] and "not finite" in done.stderr.splitlines()[-1]
