"""Scripts parse their flags before they load torch, so that --help and a wrong flag take less than a second."""

import pytest
from tiny import ROOT, assert_refused, run_script

PATTERNS = ("*.py", "benchmarks/*.py", "data_preparation/*.py", "experiments/**/*.py", "model_tools/*.py")
SCRIPTS = [
    str(path.relative_to(ROOT))
    for pattern in PATTERNS
    for path in sorted(ROOT.glob(pattern))
    if '__name__ == "__main__"' in path.read_text()
]

# The project is not on the path, as when the script is called from another directory. At the end prints whether torch
# was loaded.
PROGRAM = """
import atexit, runpy, sys
atexit.register(lambda: print("torch" in sys.modules))
sys.argv[:] = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0] or "."
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_flag_is_refused_before_torch_is_loaded(script: str) -> None:
    done = run_script("-c", PROGRAM, script, "--no_such_flag")
    assert done.stdout == "False\n"
    assert_refused(done, f"{script.rpartition('/')[2]}: error: ")


@pytest.mark.parametrize(
    "script", ["distill.py", "rerank.py", "benchmarks/distilling.py", "model_tools/make_general_student.py"]
)
def test_help_is_printed_before_torch_is_loaded(script: str) -> None:
    done = run_script("-c", PROGRAM, script, "--help")
    assert (done.status, done.stderr) == (0, "")
    assert "--help" in done.stdout
    assert done.stdout.endswith("\nFalse\n")
