"""Which tests run: `gpu` where there is a GPU, `example` where `-m` names it."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selected = config.getoption("-m")
    for item in items:
        if item.get_closest_marker("example") and "example" not in selected:
            item.add_marker(pytest.mark.skip(reason="needs the example's encoder; run with -m example"))
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
