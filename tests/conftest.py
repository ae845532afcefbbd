"""Which tests run: `gpu` where there is a GPU; `example` and `slow` where `-m` names them."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selected = config.getoption("-m")
    for item in items:
        for name in ("example", "slow"):
            if item.get_closest_marker(name) and name not in selected:
                item.add_marker(pytest.mark.skip(reason=f"run with -m {name}"))
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
