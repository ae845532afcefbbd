"""Several processes under torchrun: the losses and scores of one process, and one word on an error."""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny import (
    MAX_SEQ_LENGTH,
    ROOT,
    STUDENT,
    TEACHER,
    TOKENS,
    Finished,
    assert_refused,
    run_main,
    run_script,
    student_weights,
    teacher_weights,
    write_published,
    write_tiny_features,
)
from torch.distributed import TCPStore

from formats.features import Example, FeaturesHeader, write_features
from modeling.model_files import load_ranker
from runtime import distributed
from runtime.device import DeviceError
from tokenization.vocabulary import vocabulary_sha256
from training.optimizer import BertAdam

EXAMPLES, PASSAGES = 8, 23
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "teacher", TEACHER, teacher_weights())
    # without a classifier and fit_dense, whose initial values must be the same in each process
    bare = {k: v for k, v in student_weights().items() if not k.startswith(("classifier", "fit_dense"))}
    write_published(directory / "general", STUDENT, bare)
    write_published(directory / "ranker", STUDENT, student_weights())
    write_tiny_features(directory / "features", count=EXAMPLES)
    write_tiny_features(directory / "passages", count=PASSAGES, set_name="test")
    return directory


def distil_arguments(inputs: Path, output: Path, *more: object) -> list[object]:
    flags = ["--features_file", inputs / "features", "--teacher_model", inputs / "teacher", "--general_student_model"]
    flags += [inputs / "general", "--output_student_dir", output, "--train_batch_size", EXAMPLES, "--train_loss_step"]
    return [*flags, 1, "--num_train_epochs", 6, "--learning_rate", 1e-3, "--device", "cpu", *more]


def rerank_arguments(inputs: Path, output: Path, *more: object) -> list[object]:
    flags = ["--model_dir", inputs / "ranker", "--features_file", inputs / "passages", "--output_scores_file", output]
    return [*flags, "--eval_batch_size", 3, "--device", "cpu", *more]


def loss_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "train_loss.jsonl").read_text().splitlines()]


def assert_same_run(found: Path, expected: Path, rel: float = 2e-6) -> None:
    """The losses of each update, and the students."""
    lines, expected_lines = loss_lines(found), loss_lines(expected)
    assert lines == [pytest.approx(line, rel=rel) for line in expected_lines]
    assert lines[-1]["loss"] < lines[0]["loss"]
    weights, expected_weights = (load_ranker(path)[0].state_dict() for path in (found, expected))
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=rel)


def test_distilling_has_the_losses_of_one_process(inputs: Path, tmp_path: Path) -> None:
    more = ["--gradient_accumulation_steps", 2, "--save_model_step", 4]
    done = run_script(*TORCHRUN, "distill.py", *distil_arguments(inputs, tmp_path / "two", *more))
    assert (done.status, done.stdout) == (0, ""), done
    assert run_main("distill.py", *distil_arguments(inputs, tmp_path / "one", *more)).status == 0
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert {*os.listdir(tmp_path / "two")} == {*os.listdir(tmp_path / "one"), "training_curves.png"}
    # one process speaks, also of what each did
    log = (tmp_path / "two" / "distill.log").read_text()
    assert log == done.stderr
    assert log.count("step 6 of 6") == log.count("classifier.weight, classifier.bias not found") == 1
    assert "device: 2 processes, the first on cpu" in log
    for number in (0, 1):
        assert re.search(rf" process {number}: 24 examples in [\d.]+ s, [\d.]+ examples/s, .* at most 0\.\d+ GB", log)
    assert re.search(r" 48 examples in .* examples/s\n\Z", log)


def test_reranking_has_the_scores_of_one_process_in_input_order(inputs: Path, tmp_path: Path) -> None:
    done = run_script(*TORCHRUN, "rerank.py", *rerank_arguments(inputs, tmp_path / "two"))
    assert (done.status, done.stderr) == (0, ""), done
    assert run_main("rerank.py", *rerank_arguments(inputs, tmp_path / "one")).status == 0
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    first, second, last = done.stdout.splitlines()
    # batches of up to 51 tokens, in turn
    assert first.startswith("process 0: 14 passages in ") and second.startswith("process 1: 9 passages in ")
    assert f"{PASSAGES} passages in " in last and last.endswith("on 2 processes, the first on cpu (1 threads)")
    log = (tmp_path / "two.log").read_text().splitlines()
    assert [line[20:] for line in log] == [first, second, last]
    assert sorted(os.listdir(tmp_path)) == ["one", "one.log", "one.speed.json", "two", "two.log", "two.speed.json"]


# The rest needs no torchrun of its own, only what it tells its processes.


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two processes at a time that have loaded torch; each serves one script."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "transformers.models.bert.modeling_bert", "tqdm"])
    with context.Pool(2, maxtasksperchild=1) as pool:
        yield pool


def run_as(environment: dict[str, str], replaced: dict[str, object], script: str, *args: object) -> Finished:
    """Runs a script as one of several processes, in which some names of the project stand for something else."""
    os.environ |= environment
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(distributed.time, "sleep"))  # before a process ends without a word
        for name, value in replaced.items():
            stack.enter_context(mock.patch(name, value))
        return run_main(script, *args)


def out_of_memory(*args: object, **kwargs: object) -> None:
    raise torch.OutOfMemoryError


def run_two(
    pool: Pool, script: str, *args: object, replaced: tuple[dict[str, object], dict[str, object]] = ({}, {})
) -> list[Finished]:
    """Runs a script in two processes as torchrun does."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    common = {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    common |= {"MASTER_ADDR": store.host, "MASTER_PORT": str(store.port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    tasks = [
        (common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, replaced[rank], script, *args) for rank in range(2)
    ]
    return pool.starmap_async(run_as, tasks, chunksize=1).get(timeout=100)


@pytest.mark.parametrize(
    "more", [["--ignore_padding"], ["--distill_model", "standard", "--train_batch_size", 6]], ids=["ignore", "standard"]
)
def test_other_losses_are_those_of_one_process_too(inputs: Path, tmp_path: Path, pool, more: list[object]) -> None:
    several_buckets = {"runtime.distributed._BUCKET_NUMBERS": 1000}
    arguments = distil_arguments(inputs, tmp_path / "two", *more)
    for done in run_two(pool, "distill.py", *arguments, replaced=(several_buckets, several_buckets)):
        assert done.status == 0, done
    assert run_main("distill.py", *distil_arguments(inputs, tmp_path / "one", *more)).status == 0
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_each_process_draws_its_own_dropout(inputs: Path, tmp_path: Path, pool: Pool) -> None:
    write_published(tmp_path / "noisy", STUDENT, student_weights(), hidden_dropout_prob=0.5)
    header = FeaturesHeader(MAX_SEQ_LENGTH, len(TOKENS), True, "train", vocabulary_sha256(TOKENS))
    write_features(tmp_path / "features", header, [Example("the same", [2, 7, 9, 3, 8, 11, 3], 4, 1)] * 2)
    more = ["--features_file", tmp_path / "features", "--general_student_model", tmp_path / "noisy"]
    alone = []
    for seed in (5, 6):
        arguments = distil_arguments(inputs, tmp_path / str(seed), *more, "--seed", seed, "--train_batch_size", 1)
        assert run_main("distill.py", *arguments).status == 0
        alone.append(loss_lines(tmp_path / str(seed))[0]["loss"])
    arguments = distil_arguments(inputs, tmp_path / "two", *more, "--seed", 5, "--train_batch_size", 2)
    assert [done.status for done in run_two(pool, "distill.py", *arguments)] == [0, 0]
    assert loss_lines(tmp_path / "two")[0]["loss"] == pytest.approx(sum(alone) / 2, rel=1e-6)
    assert abs(alone[0] / alone[1] - 1) > 0.01


def test_all_keep_the_same_student_and_stop_after_the_same_evaluation(inputs: Path, tmp_path: Path, pool: Pool) -> None:
    (tmp_path / "qrels").write_text("q0 0 D4 1\nq1 0 D2 1\nq2 0 D5 1\n")
    more = ["--dev_features_file", inputs / "passages", "--dev_qrels", tmp_path / "qrels", "--eval_model_step", 1]
    more += ["--dev_measure", "NDCG@10", "--early_stopping_patience", 2, "--learning_rate", 0]
    done = run_two(pool, "distill.py", *distil_arguments(inputs, tmp_path / "two", *more))
    assert [one.status for one in done] == [0, 0], done
    assert run_main("distill.py", *distil_arguments(inputs, tmp_path / "one", *more)).status == 0
    lines = (tmp_path / "one" / "dev_eval.jsonl").read_text()
    assert lines.count("\n") == 3
    assert (tmp_path / "two" / "dev_eval.jsonl").read_text() == lines
    outcome = json.loads((tmp_path / "two" / "training.json").read_text())
    assert (outcome["finished"], outcome["best_step"], outcome["last_step"]) == (True, 1, 3)


make_update = BertAdam.step


def update_and_be_stopped(optimizer: BertAdam, closure: None = None) -> None:
    if optimizer.param_groups[0]["step"] == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    make_update(optimizer, closure)


def test_a_signal_to_one_process_stops_all_after_the_same_update(inputs: Path, tmp_path: Path, pool: Pool) -> None:
    write_published(tmp_path / "noisy", STUDENT, student_weights(), hidden_dropout_prob=0.5)
    more = ["--general_student_model", tmp_path / "noisy", "--num_train_epochs", 6, "--train_loss_step", 5]
    whole = run_two(pool, "distill.py", *distil_arguments(inputs, tmp_path / "all", *more))
    assert [done.status for done in whole] == [0, 0]
    arguments = distil_arguments(inputs, tmp_path / "out", *more)
    stopped = {}, {"training.optimizer.BertAdam.step": update_and_be_stopped}
    assert [done.status for done in run_two(pool, "distill.py", *arguments, replaced=stopped)] == [75, 75]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]
    assert run_main("distill.py", *arguments, "--resume").stderr.count("num_processes (2 there, 1 here)") == 1
    assert [done.status for done in run_two(pool, "distill.py", *arguments, "--resume")] == [0, 0]
    for name in ("model.safetensors", "train_loss.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


def assert_one_error(done: list[Finished], says: str) -> int:
    """One of the processes says so, and all end with status 2; returns which said it."""
    assert [one.status for one in done] == [2, 2]
    logged = re.compile(r"[\d-]+ [\d:,]+ (INFO|WARNING|ERROR) ")
    lines = [
        (number, line) for number, one in enumerate(done) for line in one.stderr.splitlines() if not logged.match(line)
    ]
    ((number, line),) = lines
    assert ": error: " in line and says in line
    return number


def test_a_mistake_is_named_once(inputs: Path, tmp_path: Path, pool: Pool) -> None:
    def distil_refused(*more: object, says: str) -> None:
        assert_one_error(run_two(pool, "distill.py", *distil_arguments(inputs, tmp_path / "out", *more)), says)

    distil_refused("--no_such_flag", says="--no_such_flag")
    distil_refused("--gradient_accumulation_steps", 8, says="--gradient_accumulation_steps times the 2 processes")
    distil_refused("--fp16", "--fp16_backend", "apex", says="--fp16_backend: apex works in one process only")
    distil_refused("--teacher_model", tmp_path / "none", says="is not a directory")
    assert os.listdir(tmp_path) == []
    distil_refused("--learning_rate", 1e38, says="step 3: loss, cls_loss, att_loss")
    assert sorted(os.listdir(tmp_path / "out")) == ["distill.log", "speed.jsonl", "train_loss.jsonl", "training.json"]
    no_directory = rerank_arguments(inputs, tmp_path / "none" / "scores")
    assert_one_error(run_two(pool, "rerank.py", *no_directory), "--output_scores_file: the directory")


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_process_ends_all(inputs: Path, tmp_path: Path, pool: Pool, failing: int) -> None:
    for script, function, arguments in (
        ("distill.py", "modeling.losses.hard_label_loss", distil_arguments(inputs, tmp_path / "out")),
        ("rerank.py", "formats.feature_layout.pad_batch", rerank_arguments(inputs, tmp_path / "scores")),
    ):
        replaced = tuple({function: out_of_memory} if rank == failing else {} for rank in (0, 1))
        done = run_two(pool, script, *arguments, replaced=replaced)
        assert assert_one_error(done, "out of memory; ") == failing
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["distill.log", "train_loss.jsonl", "training.json"]


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.local_device(torch.device("cuda", 1)) == torch.device("cuda", 1)  # of one process
    environment = {"TORCHELASTIC_RUN_ID": "x", "RANK": 6, "WORLD_SIZE": 8, "LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 4}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert distributed.local_device(torch.device("cuda")) == torch.device("cuda", 2)
    assert distributed.local_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(DeviceError, match="--device: cuda:1 is one GPU for 4 processes"):
        distributed.local_device(torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(DeviceError, match="--device: 4 processes need as many GPUs, this machine has 3"):
        distributed.local_device(torch.device("cuda"))


def test_the_shell_scripts_start_as_many_processes_as_their_variable_says(inputs: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\n[[ "$*" == *" "* ]] && echo "threads ${OMP_NUM_THREADS:-}: $*"\n')
    python.chmod(0o755)
    for name in ("test_pairs", "candidates_run", "qrels"):
        (tmp_path / name).touch()
    variables = {
        "collection": "mine", "train_pairs": inputs / "features", "features_file": inputs / "features",
        "teacher_model": inputs / "teacher", "general_student_model": inputs / "general", "python": python,
        "student_model": inputs / "ranker", "runs_dir": tmp_path, "output_student_dir": tmp_path / "student",
        "precision": "fp32", **{name: tmp_path / name for name in ("test_pairs", "candidates_run", "qrels")},
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def run(script: str, number: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", ROOT / script],
            env=environment | {name: str(value) for name, value in variables.items()} | {"num_processes": str(number)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    for script, called in (("distill.sh", "distill.py"), ("reranker.sh", "rerank.py")):
        assert f"threads : {called} --" in run(script, 1).stdout
        start = "-m torch.distributed.run --standalone --nproc_per_node 1000"
        assert f"threads 1: {start} {called} --" in run(script, 1000).stdout
        for mistake in (0, 1.5, "two", -1):
            done = run(script, mistake)
            assert (done.returncode, done.stdout) == (2, "") and f"num_processes={mistake}" in done.stderr


def test_the_benchmark_refuses_what_it_cannot_share() -> None:
    for flags in (["--processes", 1], ["--processes", 2, "--threads", 3], ["--processes", 3, "--threads", 3]):
        assert_refused(run_main("benchmarks/processes.py", *flags), "--processes")
    for flags in (["--hidden_size", 100], ["--updates", 0], ["--rounds", 0]):
        assert_refused(run_main("benchmarks/processes.py", *flags), flags[0])


@pytest.mark.gpu
def test_gpus_have_the_losses_of_one(inputs: Path, tmp_path: Path) -> None:
    more = ["--device", "cuda"]
    done = run_script(*TORCHRUN, "distill.py", *distil_arguments(inputs, tmp_path / "two", *more))
    if torch.cuda.device_count() == 1:
        assert "error: --device: 2 processes need as many GPUs, this machine has 1" in done.stderr
        return
    assert done.status == 0, done
    assert run_main("distill.py", *distil_arguments(inputs, tmp_path / "one", *more)).status == 0
    assert_same_run(tmp_path / "two", tmp_path / "one", rel=1e-4)
