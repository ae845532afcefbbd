"""Several processes under torchrun: the losses and scores of one process, and one line for an error."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny import (
    MAX_SEQ_LENGTH,
    ONE_THREAD,
    ROOT,
    STUDENT,
    TEACHER,
    TOKENS,
    Finished,
    assert_refused,
    random_weights,
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

ENDINGS = ("", ".log", ".speed.json")
EXAMPLES, PASSAGES = 8, 23
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "teacher", TEACHER, teacher_weights())
    # without classifier and fit_dense: each process must initialize them alike
    bare = {k: v for k, v in student_weights().items() if not k.startswith(("classifier", "fit_dense"))}
    write_published(directory / "general", STUDENT, bare)
    write_published(directory / "ranker", STUDENT, student_weights())
    write_tiny_features(directory / "features", count=EXAMPLES)
    write_tiny_features(directory / "queries", count=19, pairs_per_query=3)
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
    """Compares the losses of each step, and the students."""
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
    # only rank 0 logs; it logs the work of both processes
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
    # the processes take batches of up to 51 tokens in turn
    assert first.startswith("process 0: 14 passages in ") and second.startswith("process 1: 9 passages in ")
    assert f"{PASSAGES} passages in " in last and last.endswith("on 2 processes, the first on cpu (1 threads)")
    log = (tmp_path / "two.log").read_text().splitlines()
    assert [line[20:] for line in log] == [first, second, last]
    assert sorted(os.listdir(tmp_path)) == sorted(f"{run}{end}" for run in ("one", "two") for end in ENDINGS)


# The other tests start processes themselves, with the environment that torchrun sets.


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """A pool of two processes that have loaded torch. Each process runs one script."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "safetensors.torch", "tqdm"])
    with context.Pool(2, maxtasksperchild=1) as pool:
        yield pool


def run_as(
    environment: dict[str, str], directory: Path, replaced: dict[str, object], script: str, *args: object
) -> Finished:
    """Runs a script as one of several processes, in a directory, with some names of the project patched."""
    os.environ |= environment
    os.chdir(directory)
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            mock.patch.object(distributed.time, "sleep")
        )  # processes without a message wait before they exit
        for name, value in replaced.items():
            stack.enter_context(mock.patch(name, value))
        return run_main(script, *args)


def out_of_memory(*args: object, **kwargs: object) -> None:
    raise torch.OutOfMemoryError


def run_two(
    pool: Pool,
    script: str,
    *args: object,
    replaced: tuple[dict[str, object], dict[str, object]] = ({}, {}),
    directories: tuple[Path, Path] = (ROOT, ROOT),
    more: tuple[list[object], list[object]] = ([], []),
) -> list[Finished]:
    """Runs a script in two processes as torchrun does. `more`: the flags that each process has in addition."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    common = {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    common |= {"MASTER_ADDR": store.host, "MASTER_PORT": str(store.port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    tasks = [
        (
            *(common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, directories[rank], replaced[rank]),
            *(script, *args, *more[rank]),
        )
        for rank in range(2)
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


def test_margins_are_those_of_one_process_with_as_many_parts(inputs: Path, tmp_path: Path, pool: Pool) -> None:
    more = ["--features_file", inputs / "queries", "--distill_model", "margin_mse", "--no_teacher_check"]
    for done in run_two(pool, "distill.py", *distil_arguments(inputs, tmp_path / "two", *more)):
        assert done.status == 0, done
    alone = distil_arguments(inputs, tmp_path / "one", *more, "--gradient_accumulation_steps", 2)
    assert run_main("distill.py", *alone).status == 0
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_each_process_has_its_own_dropout(inputs: Path, tmp_path: Path, pool: Pool) -> None:
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


def test_all_have_the_same_best_checkpoint_and_stop_after_the_same_evaluation(
    inputs: Path, tmp_path: Path, pool: Pool
) -> None:
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


original_step = BertAdam.step


def step_after_a_signal(optimizer: BertAdam, closure: None = None) -> None:
    if optimizer.param_groups[0]["step"] == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    original_step(optimizer, closure)


def test_a_signal_to_one_process_stops_all_after_the_same_step(inputs: Path, tmp_path: Path, pool: Pool) -> None:
    write_published(tmp_path / "noisy", STUDENT, student_weights(), hidden_dropout_prob=0.5)
    more = ["--general_student_model", tmp_path / "noisy", "--num_train_epochs", 6, "--train_loss_step", 5]
    whole = run_two(pool, "distill.py", *distil_arguments(inputs, tmp_path / "all", *more))
    assert [done.status for done in whole] == [0, 0]
    arguments = distil_arguments(inputs, tmp_path / "out", *more)
    stopped = {}, {"training.optimizer.BertAdam.step": step_after_a_signal}
    assert [done.status for done in run_two(pool, "distill.py", *arguments, replaced=stopped)] == [75, 75]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]
    assert run_main("distill.py", *arguments, "--resume").stderr.count("num_processes (2 there, 1 here)") == 1
    assert [done.status for done in run_two(pool, "distill.py", *arguments, "--resume")] == [0, 0]
    for name in ("model.safetensors", "train_loss.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


LOGGED = re.compile(r"[\d-]+ [\d:,]+ (INFO|WARNING|ERROR) ")


def assert_one_error(done: list[Finished], *says: str) -> None:
    """Checks that rank 0 prints the error, and nothing else, and that all processes exit with status 2."""
    assert [one.status for one in done] == [2, 2], done
    assert done[1].stderr == ""
    (line,) = (line for line in done[0].stderr.splitlines() if not LOGGED.match(line))
    assert ": error: " in line
    for part in says:
        assert part in line


def test_an_error_is_reported_once(inputs: Path, tmp_path: Path, pool: Pool) -> None:
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
        ("rerank.py", "modeling.padding.pad", rerank_arguments(inputs, tmp_path / "scores")),
    ):
        replaced = tuple({function: out_of_memory} if rank == failing else {} for rank in (0, 1))
        done = run_two(pool, script, *arguments, replaced=replaced)
        assert_one_error(
            done, f"error: process 1 on {socket.gethostname()}: out of" if failing else "error: out of", "of memory; "
        )
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["distill.log", "train_loss.jsonl", "training.json"]


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.local_device(torch.device("cuda", 1)) == torch.device("cuda", 1)  # with one process
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


# Several machines: each process has a directory of its own, with its own files under the same names.


DISTIL = (
    *("--features_file", "features", "--teacher_model", "teacher", "--general_student_model", "general"),
    *("--output_student_dir", "out", "--train_batch_size", EXAMPLES, "--train_loss_step", 1, "--num_train_epochs", 6),
    *("--learning_rate", 1e-3, "--save_model_step", 4, "--device", "cpu"),
)
RERANK = ("--model_dir", "ranker", "--features_file", "passages", "--output_scores_file", "scores", "--device", "cpu")
LONGEST = 60  # seconds until all processes have ended, the start included, on a machine that does other work too


@pytest.fixture
def machines(inputs: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The working directories of two machines. The student has dropout, so that the RNG states count."""
    for name in ("first", "second"):
        shutil.copytree(inputs, tmp_path / name)
        write_published(tmp_path / name / "general", STUDENT, student_weights(), hidden_dropout_prob=0.1)
    return tmp_path / "first", tmp_path / "second"


def free_port() -> int:
    """Returns a free port below those that the system gives to other sockets meanwhile."""
    for port in random.sample(range(20_000, 32_000), 1000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no free port")


def run_machines(
    machines: tuple[Path, Path], script: str, *args: object, processes: int = 1, rendezvous: str = "static"
) -> list[Finished]:
    """Runs torchrun in both directories, with this number of processes in each."""
    port = free_port()
    address = ["--master_addr", "127.0.0.1", "--master_port", port]
    if rendezvous == "c10d":
        address = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "job"]
    agents = []
    for number, directory in enumerate(machines):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", processes]
        command += [*address, *(["--node_rank", number] if rendezvous == "static" else []), ROOT / script, *args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        agents.append(subprocess.Popen([*map(str, command)], cwd=directory, env=ONE_THREAD, text=True, **pipes))
    with contextlib.suppress(subprocess.TimeoutExpired):
        for agent in agents:
            agent.wait(timeout=LONGEST)
    has_ended = [agent.poll() is not None for agent in agents]
    for agent in agents:
        agent.terminate()
    outputs = [agent.communicate(timeout=LONGEST) for agent in agents]
    assert all(has_ended), (has_ended, outputs)
    return [Finished(agent.returncode, *output) for agent, output in zip(agents, outputs, strict=True)]


@pytest.mark.parametrize(
    "processes, rendezvous",
    [(1, "static"), pytest.param(2, "static", marks=pytest.mark.slow), pytest.param(2, "c10d", marks=pytest.mark.slow)],
)
def test_machines_train_as_one_process_and_resume_from_the_first_one(
    machines: tuple[Path, Path], tmp_path: Path, processes: int, rendezvous: str
) -> None:
    write_published(machines[0] / "general", STUDENT, student_weights())
    write_published(machines[1] / "general", STUDENT, student_weights())
    done = run_machines(machines, "distill.py", *DISTIL, processes=processes, rendezvous=rendezvous)
    assert [one.status for one in done] == [0, 0], done
    outputs = [directory / "out" for directory in machines if (directory / "out").exists()]
    (output,) = outputs  # rank 0 alone writes; with c10d it can be on either machine
    with contextlib.chdir(machines[0]):
        assert run_main("distill.py", *DISTIL[:-2], "--output_student_dir", tmp_path / "one").status == 0
    assert_same_run(output, tmp_path / "one")
    if rendezvous == "c10d":
        return

    complete = {name: (output / name).read_bytes() for name in ("model.safetensors", "train_loss.jsonl")}
    unfinish(output)
    done = run_machines(machines, "distill.py", *DISTIL, "--resume", processes=processes)
    assert [one.status for one in done] == [0, 0], done
    assert f"resuming from {Path('out', 'checkpoint-4')}" in done[0].stderr
    assert complete == {name: (output / name).read_bytes() for name in complete}
    assert not (machines[1] / "out").exists()


def unfinish(output: Path) -> None:
    """Brings a finished run into the state after a kill that followed its last checkpoint."""
    run = json.loads((output / "training.json").read_text())
    (output / "training.json").write_text(json.dumps(run | {"finished": False}))
    (output / "model.safetensors").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_machines_give_the_scores_of_one_process(machines: tuple[Path, Path], tmp_path: Path, processes: int) -> None:
    done = run_machines(machines, "rerank.py", *RERANK, "--eval_batch_size", 3, processes=processes)
    assert [one.status for one in done] == [0, 0], done
    assert run_main("rerank.py", *rerank_arguments(machines[0], tmp_path / "one")).status == 0
    assert (machines[0] / "scores").read_bytes() == (tmp_path / "one").read_bytes()
    assert sorted(os.listdir(machines[1])) == ["features", "general", "passages", "queries", "ranker", "teacher"]


def test_an_error_on_one_machine_ends_torchrun_on_both(machines: tuple[Path, Path]) -> None:
    (machines[1] / "features").unlink()
    done = run_machines(machines, "distill.py", *DISTIL)
    assert [one.status for one in done] == [1, 1]
    message = f"distill.py: error: process 1 on {socket.gethostname()}: features: No such file or directory\n"
    assert done[0].stderr.count(message) == 1
    assert "distill.py: error" not in done[1].stderr
    assert not (machines[0] / "out").exists()


def test_only_the_first_machine_needs_the_output_directory(machines: tuple[Path, Path], pool: Pool) -> None:
    """With two trainings, a best checkpoint, dropout, and a resume of the second training."""
    for directory in machines:
        (directory / "qrels").write_text("q0 0 D4 1\nq1 0 D2 1\nq2 0 D5 1\n")
    flags = [*DISTIL, "--distill_model", "tinybert", "--dev_features_file", "passages", "--dev_qrels", "qrels"]
    flags += ["--eval_model_step", 1]
    done = run_two(pool, "distill.py", *flags, directories=machines)
    assert [one.status for one in done] == [0, 0], done
    output = machines[0] / "out"
    names = "model.safetensors", "train_loss.jsonl", "dev_eval.jsonl", "training.json"
    complete = {name: (output / name).read_bytes() for name in names}
    unfinish(output)
    done = run_two(pool, "distill.py", *flags, "--resume", directories=machines)
    assert [one.status for one in done] == [0, 0], done
    assert "out_intermediate: the run is finished, there is nothing to resume" in done[0].stdout
    assert "checkpoint-4" in done[0].stderr
    assert complete == {name: (output / name).read_bytes() for name in names}
    done = run_two(pool, "distill.py", *flags, "--resume", directories=machines)
    assert [one.status for one in done] == [0, 0] and done[0].stdout.count("nothing to resume") == 2
    inputs_alone = ["features", "general", "passages", "qrels", "queries", "ranker", "teacher"]
    assert sorted(os.listdir(machines[1])) == inputs_alone


def other_model(directory: Path) -> None:
    for name, sizes in (("teacher", TEACHER), ("ranker", STUDENT)):
        write_published(directory / name, sizes, random_weights(sizes, seed=9))


def other_features(directory: Path) -> None:
    write_tiny_features(directory / "features", count=EXAMPLES, seed=9)
    write_tiny_features(directory / "passages", count=PASSAGES, set_name="test", seed=9)


def no_features(directory: Path) -> None:
    (directory / "features").unlink()
    (directory / "passages").unlink()


@pytest.mark.parametrize(
    "change, flag, says",
    [
        (other_model, [], ["differs from process 0 in --{model} (other content); start all"]),
        (other_features, [], ["differs from process 0 in --features_file (other content); start all"]),
        (no_features, [], ["{features}: No such file or directory"]),
        (None, ["--precision", "bf16"], ["differs from process 0 in --precision (bf16 there, fp32 here); start all"]),
        (None, ["--no_such_flag"], ["unrecognized arguments: --no_such_flag"]),
    ],
    ids=["model", "features", "none", "precision", "flag"],
)
def test_all_refuse_what_differs_on_the_second_machine(
    machines: tuple[Path, Path], pool: Pool, change: Callable[[Path], None] | None, flag: list[str], says: list[str]
) -> None:
    if change is not None:
        change(machines[1])
    for script, args, names in (
        ("distill.py", DISTIL, {"model": "teacher_model", "features": "features"}),
        ("rerank.py", RERANK, {"model": "model_dir", "features": "passages"}),
    ):
        done = run_two(pool, script, *args, directories=machines, more=([], flag))
        start = f"{script}: error: process 1 on {socket.gethostname()}"
        assert_one_error(done, start, *(part.format(**names) for part in says))
    assert sorted(os.listdir(machines[0])) == ["features", "general", "passages", "queries", "ranker", "teacher"]


@pytest.mark.parametrize("script, args, more", [
    ("distill.py", DISTIL, ["--seed", 5]),
    ("distill.py", DISTIL, ["--save_model_step", 5]),
    ("distill.py", DISTIL, ["--distill_model", "tinybert"]),
    ("distill.py", DISTIL, ["--intermediate_learning_rate", 1]),
    ("rerank.py", RERANK, ["--eval_batch_size", 5]),
    ("rerank.py", RERANK, ["--pooled_activation", "relu"]),
])  # fmt: skip
@pytest.mark.slow
def test_all_refuse_a_flag_that_differs(machines: tuple[Path, Path], pool: Pool, script, args, more) -> None:
    if more[0].startswith("--intermediate"):
        args = [*args, "--distill_model", "tinybert"]
    assert_one_error(run_two(pool, script, *args, directories=machines, more=([], more)), f"process 0 in {more[0]} (")


def test_all_refuse_a_precision_that_only_one_cpu_has(machines: tuple[Path, Path], pool: Pool) -> None:
    replaced = tuple({"runtime.device.multiplies_bfloat16": answer} for answer in (always, never))
    done = run_two(pool, "distill.py", *DISTIL, "--precision", "auto", directories=machines, replaced=replaced)
    assert_one_error(done, "differs from process 0 in --precision (fp32 there, bf16 here)")


def always() -> bool:
    return True


def never() -> bool:
    return False


def wait_long(*args: object, **kwargs: object) -> None:
    threading.Event().wait(LONGEST)


def divide_by_zero(*args: object, **kwargs: object) -> None:
    raise ZeroDivisionError


def test_a_defect_in_one_process_has_its_traceback_at_rank_zero(inputs: Path, tmp_path: Path, pool: Pool) -> None:
    replaced = {}, {"modeling.padding.pad": divide_by_zero}
    done = run_two(pool, "rerank.py", *rerank_arguments(inputs, tmp_path / "scores"), replaced=replaced)
    assert [one.status for one in done] == [2, 2] and done[1].stderr == ""
    start, *lines = done[0].stderr.splitlines()
    assert start == f"rerank.py: error: process 1 on {socket.gethostname()}: Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError" and os.listdir(tmp_path) == []


def test_an_error_ends_a_process_that_is_busy(machines: tuple[Path, Path], pool: Pool) -> None:
    replaced = tuple({"modeling.padding.pad": function} for function in (wait_long, out_of_memory))
    start = time.monotonic()
    done = run_two(pool, "rerank.py", *RERANK, "--eval_batch_size", 3, directories=machines, replaced=replaced)
    assert_one_error(done, "process 1 on", "out of memory")
    assert time.monotonic() - start < LONGEST / 2
    assert sorted(os.listdir(machines[0])) == ["features", "general", "passages", "queries", "ranker", "teacher"]


@pytest.mark.slow
@pytest.mark.parametrize("number, how", [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_process_that_is_killed_ends_the_other_machine(machines: tuple[Path, Path], number: int, how: int) -> None:
    """Without torchrun, which would end the other process if it was on the same machine."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    common |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    flags = [*DISTIL, "--num_train_epochs", 100_000, "--save_model_step", 0]
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "distill.py", *map(str, flags)],
            cwd=directory, env=ONE_THREAD | common | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank, directory in enumerate(machines)
    ]  # fmt: skip
    lines = []
    for line in processes[0].stderr:
        lines.append(line)
        if "step 3 of" in line:
            break
    processes[number].send_signal(how)
    start = time.monotonic()
    outputs = [process.communicate(timeout=LONGEST)[1] for process in processes]
    assert time.monotonic() - start < LONGEST / 2
    errors = [[line for line in output.splitlines() if not LOGGED.match(line)] for output in outputs]
    if how == signal.SIGTERM:  # both save after the same step
        assert [process.returncode for process in processes] == [75, 75] and errors == [[], []]
        assert len(list((machines[0] / "out").glob("checkpoint-*"))) == 1 and not (machines[1] / "out").exists()
        return
    assert [process.returncode for process in processes] == ([-9, 2] if number == 0 else [2, -9])
    ((line,),) = (lines for lines in errors if lines)
    assert f"distill.py: error: process {number}" in line and "ended without an error message" in line


@pytest.mark.parametrize("script", ["distill.py", "rerank.py"])
@pytest.mark.parametrize(
    "variables, says",
    [
        ("WORLD_SIZE=2", "RANK is not set, but WORLD_SIZE=2; start the processes with torchrun, or unset WORLD_SIZE"),
        ("WORLD_SIZE=two", "WORLD_SIZE=two is not a number; start the processes with torchrun"),
        ("WORLD_SIZE=2 RANK=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_PORT=1", "MASTER_ADDR is not set"),
        (
            "WORLD_SIZE=2 RANK=5 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_PORT=1 MASTER_ADDR=x",
            "RANK=5 is not below WORLD",
        ),
        (
            "WORLD_SIZE=2 RANK=1 LOCAL_RANK=1 LOCAL_WORLD_SIZE=1 MASTER_PORT=1 MASTER_ADDR=x",
            "LOCAL_RANK=1 is not below",
        ),
        ("TORCHELASTIC_RUN_ID=x", "the following arguments are required"),  # without WORLD_SIZE there is one process
        ("TORCHELASTIC_RUN_ID=x RANK=5", "the following arguments are required"),
        ("WORLD_SIZE=1", "the following arguments are required"),
    ],
)
def test_variables_of_torchrun_that_are_incomplete_are_refused(
    monkeypatch: pytest.MonkeyPatch, script: str, variables: str, says: str
) -> None:
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    assert_refused(run_main(script), says)


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
