"""Runs scripts as new processes of a locale do, without the seconds that each new process needs to import libraries.

`python locale_server.py` imports them once, in its own locale. Then it reads one call per line from standard input, as
JSON: the arguments as text with surrogates, and two paths for stdout and stderr. For each call it forks. The child
decodes its arguments, and opens its standard streams, as Python does at the start of a process in this locale. The
server prints the exit status.
"""

import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class LocaleServer:
    """A server in a process with the variables of a locale. It ends with the block of `with`."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._paths = [directory / "stdout", directory / "stderr"]
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__)], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "LocaleServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Runs a script. Returns its exit status, stdout and stderr."""
        call = [list(map(str, arguments)), *map(str, self._paths)]
        self._process.stdin.write(json.dumps(call).encode() + b"\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return status, *(os.fsdecode(path.read_bytes()) for path in self._paths)


def run_in_child(arguments: list[bytes], paths: list[str]) -> int:
    """Runs a script in a forked process. Returns its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 70
    try:
        for number, path in enumerate(paths, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)  # with the encoding and the error handler of this locale
            opened = io.TextIOWrapper(
                io.FileIO(stream.fileno(), "w", closefd=False), stream.encoding, stream.errors, write_through=True
            )
            setattr(sys, name, opened)
            setattr(sys, f"__{name}__", opened)
        sys.argv = list(map(os.fsdecode, arguments))
        sys.path[0] = str(ROOT / Path(sys.argv[0]).parent)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        except SystemExit as done:
            status = done.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def serve() -> None:
    import bm25s  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch._dynamo

    torch.set_num_threads(1)
    for line in sys.stdin.buffer:
        arguments, *paths = json.loads(line)
        sent = [argument.encode("utf-8", "surrogateescape") for argument in arguments]
        print(run_in_child(sent, paths), flush=True)


if __name__ == "__main__":
    serve()
