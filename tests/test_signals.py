"""Signals to a script, at its imports, in its work and at its end; a closed pipe; signals to the shell scripts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_startup import SCRIPTS
from test_workers import is_running, linux
from tiny import (
    ONE_THREAD,
    ROOT,
    STUDENT,
    copy_project,
    run_forked,
    run_main,
    student_weights,
    write_published,
    write_tiny_features,
)

from runtime.signals import quiet_interrupt, signals_raised

ENDING = [(signal.SIGINT, "rerank.py: interrupted\n"), (signal.SIGTERM, ""), (signal.SIGHUP, "")]


def run_with_stubs(directory: Path, module: str, *command: object) -> subprocess.CompletedProcess:
    """Runs a script whose `module` sends SIGINT when it is imported, and is then empty."""
    (directory / f"{module}.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    environment = ONE_THREAD | {"PYTHONPATH": str(directory)}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, timeout=60
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupt_of_the_first_imports_has_no_traceback(tmp_path: Path, script: str) -> None:
    done = run_with_stubs(tmp_path, "argparse", script, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")  # 130 in a shell


def test_an_interrupt_of_the_import_of_torch_has_no_traceback(tmp_path: Path) -> None:
    files = ["--features_file", tmp_path / "features", "--general_student_model", "x", "--output_student_dir", "y"]
    for command in (
        ("rerank.py", "--features_file", tmp_path, "--model_dir", "x", "--output_scores_file", tmp_path / "scores"),
        ("distill.py", *files, "--distill_model", "hard"),
        ("model_tools/make_general_student.py", "--model_dir", "x", "--layers", "1", "--output_dir", tmp_path / "z"),
    ):
        done = run_with_stubs(tmp_path, "torch", *command)
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_ignored_signals_stay_ignored_and_handlers_stay() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for handler in (signal.SIG_IGN, print):
            for number in numbers:
                signal.signal(number, handler)
            quiet_interrupt()
            with signals_raised():
                assert [signal.getsignal(number) for number in numbers] == [handler] * 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# rerank.py


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "model", STUDENT, student_weights())
    write_tiny_features(directory / "features", count=60, set_name="test")
    return directory


def arguments(inputs: Path, output: Path) -> list[object]:
    flags = ["--model_dir", inputs / "model", "--features_file", inputs / "features", "--device", "cpu"]
    return [*flags, "--output_scores_file", output, "--overwrite"]


PHASES = {  # a function that rerank.py calls in each phase
    "loading": ("formats.features", "check_pairs"),
    "after loading": ("runtime.distributed", "barrier"),
    "scoring": ("modeling.scoring", "relevance_scores"),
    "writing": ("os", "fsync"),
    "renaming": ("os", "replace"),
    "reporting": ("runtime.script", "append_line"),
}


def send_in(phase: str, *numbers: int) -> Callable[[], None]:
    """Returns a `prepare` that sends signals at the start of a phase."""

    def prepare() -> None:
        module, name = PHASES[phase]
        function = getattr(sys.modules[module], name)

        def sending(*args: object, **named: object) -> object:
            for number in numbers:
                os.kill(os.getpid(), number)
            return function(*args, **named)

        setattr(sys.modules[module], name, sending)

    return prepare


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_to_rerank_leaves_the_old_scores_or_the_new_ones(inputs: Path, tmp_path: Path, phase: str) -> None:
    output = tmp_path / "scores"
    assert run_main("rerank.py", *arguments(inputs, tmp_path / "expected")).status == 0
    expected = (tmp_path / "expected").read_bytes()
    for number, says in [*ENDING, (signal.SIGQUIT, ""), (signal.SIGKILL, "")]:
        output.write_bytes(b"old")
        # the second signal arrives while the first one ends the script
        numbers = (number, signal.SIGTERM) if says or number == signal.SIGHUP else (number,)
        done = run_forked(tmp_path, "rerank.py", *arguments(inputs, output), prepare=send_in(phase, *numbers))
        ends_itself = number in dict(ENDING)
        assert (done.status, done.stderr) == (128 + number if ends_itself else -number, says), done
        assert output.read_bytes() == (expected if phase == "reporting" else b"old")
        partial = [name for name in os.listdir(tmp_path) if name.endswith(".partial")]
        assert not partial or (not ends_itself and phase in ("scoring", "writing", "renaming"))
        for name in partial:
            (tmp_path / name).unlink()
        assert run_main("rerank.py", *arguments(inputs, output)).status == 0
        assert output.read_bytes() == expected


# a closed pipe


def test_a_reader_of_stdout_that_has_gone_costs_no_output(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "pairs").write_text("q#D_0\tthe\tcat\n")
    (tmp_path / "scores").write_text("q\tD_0\t1\n")
    flags = ["--set_name", "test", "--bert_model_dir", model_dir, "--output_features_file", tmp_path / "features"]
    for command, outputs in (
        (["tokenize_to_features.py", *flags, "--raw_data_file", tmp_path / "pairs"], ["features", "features.log"]),
        (["convert_to_trec_results.py", "--scores_file", tmp_path / "scores", "--output_results_file",
          tmp_path / "run"], ["run"]),
        (["msmarco_mrr_eval.py", tmp_path / "qrels", tmp_path / "run"], []),
    ):  # fmt: skip
        (tmp_path / "qrels").write_text("q 0 D 1\n")
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=ROOT, env=ONE_THREAD, stdout=write, stderr=subprocess.PIPE
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
        assert all((tmp_path / name).stat().st_size for name in outputs)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_stdout_that_is_full_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("q\tD_0\t1\n")
    command = ["convert_to_trec_results.py", "--scores_file", tmp_path / "scores", "--output_results_file"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *map(str, command), tmp_path / "run"], cwd=ROOT, env=ONE_THREAD, stdout=full,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr


# the shell scripts

# It runs until SIGTERM, and then saves. It notes its process, and the signal.
STUB = """#!{python}
import os, signal, sys, time
if sys.argv[1] != "{script}" or "--check_flags" in sys.argv:
    sys.exit(0)
def save(number, frame):
    time.sleep(0.2)
    print("saved", file=open("{notes}", "a"), flush=True)
    sys.exit({status})
signal.signal(signal.SIGTERM, save)
print(os.getpid(), file=open("{notes}", "a"), flush=True)
time.sleep(60)
sys.exit(9)
"""


def stop_shell_script(
    directory: Path, shell_script: str | Path, script: str, status: int, number: int, to_group: bool, **variables: str
) -> tuple[int, list[str]]:
    """Sends a signal to a shell script whose `python` runs `script`. Returns its exit status, and the notes of STUB.

    Checks that no process is left.
    """
    notes, python = directory / "notes", directory / "python stub"
    python.write_text(STUB.format(python=sys.executable, script=script, status=status, notes=notes))
    python.chmod(0o755)
    for name in ("pairs", "features", "qrels"):
        (directory / name).write_text("x\n")
    (directory / "model").mkdir()
    (directory / "model" / "config.json").touch()
    own = dict.fromkeys(("train_pairs", "test_pairs", "candidates_run", "qrels"), str(directory / "qrels"))
    own |= dict.fromkeys(("teacher_model", "general_student_model", "student_model"), str(directory / "model"))
    own |= {"collection": "mine", "features_file": str(directory / "features"), "python": str(python)}
    own |= {"output_student_dir": str(directory / "out"), "runs_dir": str(directory / "runs")} | variables
    process = subprocess.Popen(
        ["bash", ROOT / shell_script], env=os.environ | own, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not notes.exists() or not notes.read_text().endswith("\n"):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    child = int(notes.read_text())
    (os.killpg if to_group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert "Next: " not in out and "Traceback" not in err
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process.returncode, notes.read_text().splitlines()[1:]


@linux
@pytest.mark.parametrize("to_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_to_distill_sh_saves_and_has_the_status_of_distill_py(
    tmp_path: Path, number: int, to_group: bool
) -> None:
    status, notes = stop_shell_script(tmp_path, "distill.sh", "distill.py", 75, number, to_group)
    if not (to_group and number == signal.SIGHUP):  # the stub has no handler of SIGHUP
        assert (status, notes) == (75, ["saved"])


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_to_reranker_sh_ends_rerank_py(tmp_path: Path, number: int) -> None:
    status, notes = stop_shell_script(tmp_path, "reranker.sh", "rerank.py", 143, number, False)
    assert (status, notes) == (128 + number, ["saved"])


@linux
def test_a_signal_to_distill_sh_ends_the_preparation_of_the_example(tmp_path: Path) -> None:
    own = {"collection": "python_docs", "features_file": ""}
    shell_script = copy_project(tmp_path / "project") / "distill.sh"
    script = "experiments/python_docs/build_collection.py"
    status, notes = stop_shell_script(tmp_path, shell_script, script, 143, signal.SIGTERM, False, **own)
    assert (status, notes) == (143, ["saved"])


@linux
@pytest.mark.skipif(
    subprocess.run(["sh", "-c", "setpriv --pdeathsig TERM true"], capture_output=True).returncode != 0,
    reason="needs setpriv of util-linux",
)
@pytest.mark.parametrize("script", ["distill", "rerank"])
def test_a_shell_script_that_is_killed_leaves_no_process(tmp_path: Path, script: str) -> None:
    shell_script = {"distill": "distill.sh", "rerank": "reranker.sh"}[script]
    status, notes = stop_shell_script(tmp_path, shell_script, f"{script}.py", 75, signal.SIGKILL, False)
    assert (status, notes) == (-signal.SIGKILL, ["saved"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_make_table_stops_its_shell_script(number: int) -> None:
    program = """
from experiments.shell import run_shell
from runtime.script import run_script
stop = "trap 'echo saved; exit 75' INT; echo started; while :; do sleep 0.05; done"
run_script(lambda: run_shell(["-c", stop], {}, "the row"))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("saved\n", "-c: interrupted\n")
    assert process.returncode == 128 + signal.SIGINT


def start_distill_sh(home: Path, output: Path) -> subprocess.Popen:
    own = {"collection": "mine", "train_pairs": "unused", "features_file": str(home / "features")}
    own |= {"general_student_model": str(home / "general"), "teacher_model": "", "distill_model_type": "hard"}
    own |= {"python": sys.executable, "train_loss_step": "1", "train_batch_size": "2", "device": "cpu"}
    own |= {"max_seq_length": "17", "precision": "fp32", "save_model_step": "0", "output_student_dir": str(output)}
    return subprocess.Popen(["bash", ROOT / "distill.sh"], env=ONE_THREAD | own, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """The directory of the inputs of `start_distill_sh`, and the weights of a student that was never stopped."""
    home = tmp_path_factory.mktemp("whole")
    write_published(home / "general", STUDENT, student_weights())
    write_tiny_features(home / "features", count=300)
    process = start_distill_sh(home, home / "student")
    process.communicate(timeout=120)
    assert process.returncode == 0
    return home, (home / "student" / "model.safetensors").read_bytes()


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_distill_sh_that_was_stopped_resumes(tmp_path: Path, whole_run: tuple[Path, bytes], number: int) -> None:
    home, whole = whole_run
    process = start_distill_sh(home, tmp_path / "out")
    for line in process.stderr:
        if "step 3 of" in line:
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 75)
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1
    process = start_distill_sh(home, tmp_path / "out")
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole
