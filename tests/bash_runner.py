"""Runs shell scripts whose `python` is this process: a call needs no new interpreter and no import of torch."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tiny import Finished, run_main

MOST_SECONDS = 300

# Sends the working directory and the arguments to this process, waits for the exit status, and prints the output.
STUB = """#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{port}
printf '%s\\0' $# "$PWD" "$@" >&3
IFS= read -r status <&3
cat '{stdout}'
cat '{stderr}' >&2
exit "$status"
"""


class Ran(NamedTuple):
    """What a shell script did. `calls` are the arguments of each call of python."""

    returncode: int
    stdout: str
    stderr: str
    calls: list[list[str]]


def run_python(*arguments: str) -> Finished:
    """Runs python with these arguments; a script runs in this process."""
    if arguments[0].endswith(".py"):
        return run_main(*arguments)
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


def only_record(*arguments: str) -> Finished:
    """Runs nothing, as if each call of python succeeded."""
    return Finished(0, "", "")


def read_arguments(stream: BinaryIO) -> list[str]:
    """Returns the working directory and the arguments. A zero byte ends each; their count comes first."""

    def read_one() -> str:
        part = b""
        while not part.endswith(b"\0"):
            byte = stream.read(1)
            assert byte, "the stub ended early"
            part += byte
        return os.fsdecode(part[:-1])

    count = int(read_one())
    return [read_one() for _ in range(1 + count)]


def run_bash(
    script: Path,
    variables: dict[str, str],
    directory: Path,
    answer: Callable[..., Finished] = run_python,
    arguments: Sequence[str] = (),
) -> Ran:
    """Runs a shell script with `variables` in its environment; `answer` runs its calls of python, one at a time.

    `directory` is for temporary files. Calls that only check flags are answered, but they are not in the result.
    """
    stub, stdout, stderr = (directory / f".{name}" for name in ("python stub", "stdout", "stderr"))
    calls: list[list[str]] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        open(directory / ".script.stdout", "w+b") as script_stdout,
        open(directory / ".script.stderr", "w+b") as script_stderr,
    ):
        server.settimeout(0.01)
        stub.write_text(STUB.format(port=server.getsockname()[1], stdout=stdout, stderr=stderr))
        stub.chmod(0o755)
        environment = os.environ | {"python": str(stub)} | variables
        child = subprocess.Popen(
            ["bash", script, *arguments], env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=script_stdout,
            stderr=script_stderr,
        )  # fmt: skip
        end = time.monotonic() + MOST_SECONDS
        try:
            while child.poll() is None:
                assert time.monotonic() < end, f"{script} takes too long"
                with contextlib.suppress(TimeoutError):
                    connection = server.accept()[0]
                    with connection, connection.makefile("rb") as stream:
                        working_directory, *call = read_arguments(stream)
                        with contextlib.chdir(working_directory):
                            done = answer(*call)
                        if "--check_flags" not in call:
                            calls.append(call)
                        stdout.write_text(done.stdout)
                        stderr.write_text(done.stderr)
                        connection.sendall(b"%d\n" % done.status)
        finally:
            child.kill()
            child.wait()
        outputs = []
        for file in (script_stdout, script_stderr):
            file.seek(0)
            outputs.append(os.fsdecode(file.read()))
    return Ran(child.returncode, *outputs, calls)
