"""What tests share, and which run: `gpu` with a GPU, `tensorflow` where it is installed, `example` as `-m` names it."""

import importlib.util
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selected = config.getoption("-m")
    for item in items:
        if item.get_closest_marker("example") and "example" not in selected:
            item.add_marker(pytest.mark.skip(reason="needs the example's encoder; run with -m example"))
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
        if item.get_closest_marker("tensorflow") and importlib.util.find_spec("tensorflow") is None:
            item.add_marker(pytest.mark.skip(reason="needs TensorFlow"))


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """What tokenizing needs of a model: its vocabulary."""
    from tiny import TOKENS

    directory = tmp_path / "model"
    directory.mkdir()
    directory.joinpath("vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    return directory
