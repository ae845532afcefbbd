"""Scripts parse their flags before they load torch, so that --help and a wrong flag take less than a second.

Loading a model imports nothing that takes long and is not used.
"""

from pathlib import Path

import pytest
from tiny import ROOT, STUDENT, assert_refused, run_script, student_weights, write_published, write_tiny_features

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


def test_rerank_does_not_load_torchs_compiler(tmp_path: Path) -> None:
    """torch imports it and sympy, 1 second, when it draws values or copies sizes on the device `meta`."""
    model = write_published(tmp_path / "model", STUDENT, student_weights())
    features = write_tiny_features(tmp_path / "features", count=12, set_name="test")
    program = PROGRAM.replace('"torch" in', '{"torch._dynamo", "sympy", "transformers"} &')
    program = program.replace("sys.modules)", "sys.modules.keys())")
    flags = ["--model_dir", model, "--features_file", features, "--output_scores_file", tmp_path / "scores"]
    done = run_script("-c", program, "rerank.py", *flags, "--device", "cpu")
    assert done.status == 0 and done.stdout.endswith("\nset()\n"), done
