"""A pair's score does not depend on its batch: not on the batch's size, its order, its other pairs, or the threads."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ONE_THREAD, ROOT, TOKENS, Sizes, random_weights, run_main, write_transformers
from tqdm import tqdm

from formats.features import Example, FeaturesHeader, write_features
from formats.scores import read_scores
from modeling import int8
from modeling.frozen import FrozenRanker
from modeling.model_files import load_ranker
from modeling.scoring import relevance_scores
from runtime.device import DeviceError
from tokenization.vocabulary import vocabulary_sha256

SIZES = Sizes(layers=3, hidden=60, heads=5, intermediate=130, positions=90)
PAIRS, LONGEST = 70, 85
# How far a score, from 0 to 1, can move. In bf16 a matmul of another size can round in another way.
BOUNDS = {"fp32": 1e-6, "bf16": 0.02, "int8": 1e-6}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("invariance")
    return write_transformers(directory / "model", SIZES, random_weights(SIZES, seed=3, std=0.1)).parent


@pytest.fixture(scope="module")
def pairs() -> list[list[int]]:
    """Token ids of pairs of 6 to 85 tokens."""
    generator = np.random.default_rng(5)
    return [generator.integers(5, len(TOKENS), n).tolist() for n in generator.integers(6, LONGEST + 1, PAIRS)]


def scores(model: FrozenRanker, pairs: list[list[int]], tokens: int) -> np.ndarray:
    offsets = np.cumsum([0, *map(len, pairs)])
    arrays = np.concatenate(pairs), offsets, np.full(len(pairs), 4)  # 4 tokens of the query
    with tqdm(disable=True) as bar:
        found, _ = relevance_scores(model, *arrays, tokens, bar)
    return found()


def scores_by_two_threads(model: FrozenRanker, pairs: list[list[int]], tokens: int, path: Path) -> np.ndarray:
    """In a child: once this process has started a second thread, its later children with two threads wait forever."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(2)
            np.save(path, scores(model, pairs, tokens))
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return np.load(path)


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_score_does_not_depend_on_its_batch(
    directory: Path, pairs: list[list[int]], precision: str, tmp_path: Path
) -> None:
    model = FrozenRanker(load_ranker(directory / "model")[0].eval(), precision)
    alone = np.concatenate([scores(model, [pair], 1) for pair in pairs])
    assert alone.std() > 0.01
    found = {f"{tokens} tokens": scores(model, pairs, tokens) for tokens in (1, 300, 1360, 10_000)}
    order = np.random.default_rng(1).permutation(PAIRS)
    found["order"] = np.empty(PAIRS)
    found["order"][order] = scores(model, [pairs[i] for i in order], 1360)
    for length in (6, LONGEST):  # beside a short neighbor, beside a long one, first and last
        other = [7] * length
        found[f"before {length}"] = np.array([scores(model, [pair, other], 10_000)[0] for pair in pairs[:20]])
        found[f"after {length}"] = np.array([scores(model, [other, pair], 10_000)[1] for pair in pairs[:20]])
    found["2 threads"] = scores_by_two_threads(model, pairs, 1360, tmp_path / "scores.npy")
    moved = {name: float(np.abs(values - alone[: len(values)]).max()) for name, values in found.items()}
    assert max(moved.values()) < BOUNDS[precision], moved


@pytest.mark.parametrize("precision", BOUNDS)
def test_rerank_has_the_same_scores_for_any_batch_size(
    directory: Path, pairs: list[list[int]], precision: str, tmp_path: Path
) -> None:
    examples = [Example(f"1#D{i}_passage-0", pair, 4, -1) for i, pair in enumerate(pairs)]
    header = FeaturesHeader(LONGEST, len(TOKENS), True, "test", vocabulary_sha256(TOKENS))
    write_features(tmp_path / "features", header, examples)
    found = []
    for size in (1, 5, 16, 64):
        output = tmp_path / f"scores.{size}"
        flags = ["--model_dir", directory / "model", "--features_file", tmp_path / "features", "--device", "cpu"]
        flags += ["--output_scores_file", output, "--precision", precision, "--eval_batch_size", size]
        done = run_main("rerank.py", *flags)
        assert (done.status, done.stderr) == (0, ""), done
        found.append([row.score for row in read_scores(output)])
    assert np.ptp(np.array(found), axis=0).max() < BOUNDS[precision]


def quantized(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The formula of modeling/int8.py in float64."""
    weight, x = weight.double(), x.double()
    scales = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
    low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
    scale = (high - low) / 255
    rounded = torch.where(scale > 0, torch.round((x - low) / scale), 0.0)
    return (scale * rounded + low) @ (torch.round(weight / scales) * scales).T + bias


@pytest.mark.skipif(int8._largest_weight() < 127, reason="this CPU has no VNNI")
@pytest.mark.parametrize("inputs", [24, 30, 384, 5])
def test_a_row_is_quantized_with_its_own_scale(inputs: int) -> None:
    generator = torch.Generator().manual_seed(inputs)
    weight, bias = torch.randn(7, inputs, generator=generator), torch.randn(7, generator=generator)
    x = torch.randn(70, inputs, generator=generator) * torch.logspace(-3, 3, 70)[:, None]
    x[3] = 0
    weight[2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing deprecated
        linear = int8.quantized_linear(weight, bias)
        found = linear(x)
    error = (found - x @ weight.T - bias).norm(dim=1) / (x.norm(dim=1) + 1e-9)
    assert error.max() < 0.05
    # A value in the middle of two steps can be rounded to either.
    assert ((found - quantized(weight, bias, x)).norm(dim=1) <= 1e-5 + 0.02 * x.norm(dim=1)).all()
    for row in range(len(x)):
        assert torch.equal(linear(x[row : row + 1]), found[row : row + 1])
    weight.zero_(), bias.zero_()
    assert torch.equal(linear(x), found)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_stays_visible(value: float) -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    x[2, 7] = value
    y = int8.quantized_linear(torch.randn(9, 64), torch.zeros(9))(x)
    assert [row.isfinite().all().item() for row in y] == [True, True, False, True, True]


def test_without_vnni_no_sum_saturates() -> None:
    """oneDNN is told to use AVX2 alone. Then 2 * 255 * 127 does not fit into the 16 bits of its sums."""
    code = """
import torch
from modeling import int8
weight, x = torch.ones(8, 384), torch.arange(384.0).flip(0).expand(64, 384).contiguous()
found = int8.quantized_linear(weight, torch.zeros(8))(x)
print(int8._largest_weight(), bool(((found - x.sum(1, keepdim=True)).abs() < 1).all()))
"""
    environment = ONE_THREAD | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["63", "True"], ["127", "True"]), done.stdout


def test_a_torch_without_an_int8_matmul_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    int8._largest_weight.cache_clear()
    monkeypatch.setattr(int8, "_matmul", missing)
    with pytest.raises(DeviceError, match="--precision int8: this torch has no exact int8 matmul"):
        int8.quantized_linear(torch.ones(2, 3), torch.ones(2))
    int8._largest_weight.cache_clear()
