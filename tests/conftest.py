"""Shared fixtures, and skipped tests: `gpu` without a GPU, `tensorflow`, `tensorboard` and `extras` if not installed,
`example` without `-m example`."""

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

NEEDED = {  # the modules that a mark needs
    "tensorflow": ("tensorflow",),
    "tensorboard": ("tensorboard",),
    "extras": ("onnx", "onnxruntime", "onnxscript", "pyterrier", "rerankers"),
}


# A shell that starts the tests in the background ignores SIGINT and SIGQUIT, and nohup ignores SIGHUP. Processes
# inherit that. The tests send these signals to scripts.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    signal.signal(number, handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selected = config.getoption("-m")
    for item in items:
        if item.get_closest_marker("example") and "example" not in selected:
            item.add_marker(pytest.mark.skip(reason="needs the example's encoder; run with -m example"))
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
        for mark, modules in NEEDED.items():
            missing = [module for module in modules if importlib.util.find_spec(module) is None]
            if item.get_closest_marker(mark) and missing:
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))


@pytest.fixture(scope="session", autouse=True)
def no_curves() -> Iterator[None]:
    """Turns the plot off, which takes longer than most runs of the tests. Tests of the curves turn it on."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.curves.write_training_curves", lambda directory: False)
        yield


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A model directory with only a vocabulary, which is all that tokenizing needs."""
    from tiny import TOKENS

    directory = tmp_path / "model"
    directory.mkdir()
    directory.joinpath("vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    return directory
