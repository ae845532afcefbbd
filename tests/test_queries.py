"""MarginMSE: the loss against a double loop, the order that keeps queries together, and the script."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import (
    STUDENT,
    TEACHER,
    Finished,
    assert_refused,
    run_main,
    student_weights,
    teacher_weights,
    write_published,
    write_tiny_features,
)

from formats.features import Features
from modeling.losses import margin_loss
from modeling.model_files import load_ranker
from training.inputs import epoch_order, steps_from
from training.queries import Queries, read_queries

PAIRS, BATCH = 23, 6


def random_queries(seed: int, count: int = 60) -> Queries:
    """Queries of all kinds of sizes; some have no relevant pair, and some have no other."""
    generator = np.random.default_rng(seed)
    numbers = np.unique(generator.integers(0, count // 4, count), return_inverse=True)[1]
    return Queries(numbers, (generator.random(count) < 0.4).astype(np.int8))


def sum_by_loops(student: torch.Tensor, teacher: torch.Tensor, labels: list[int], queries: list[int]) -> torch.Tensor:
    """The sum over the margins, by two loops over the pairs."""
    total = student.new_zeros(())
    for i in range(len(labels)):
        for j in range(len(labels)):
            if queries[i] == queries[j] and labels[i] == 1 and labels[j] == 0:
                of_student, of_teacher = ((z[i, 1] - z[i, 0]) - (z[j, 1] - z[j, 0]) for z in (student, teacher))
                total = total + (of_student - of_teacher) ** 2
    return total


# The loss.


def test_the_loss_by_hand() -> None:
    # Log odds of the student: 3, 1, 2 and 5; of the teacher: 1, 1, -1 and 0. The last pair is of another query.
    student = torch.tensor([[0.0, 3.0], [1.0, 2.0], [-1.0, 1.0], [0.0, 5.0]])
    teacher = torch.tensor([[0.0, 1.0], [2.0, 3.0], [1.0, 0.0], [0.0, 0.0]])
    labels, queries = torch.tensor([1, 0, 0, 0]), torch.tensor([7, 7, 7, 4])
    # Margins of the student: 3 - 1 = 2 and 3 - 2 = 1; of the teacher: 1 - 1 = 0 and 1 + 1 = 2.
    assert margin_loss(student, teacher, labels, queries, torch.tensor(2.0)).item() == (2**2 + 1**2) / 2


@pytest.mark.parametrize("seed", range(20))
def test_the_loss_and_its_gradient_are_those_of_a_double_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(13, 2, generator=generator) * 3 for _ in range(2))
    labels, queries = (torch.randint(high, (13,), generator=generator) for high in (2, 4))
    found, expected = student.clone().requires_grad_(), student.double().requires_grad_()
    loss = margin_loss(found, teacher, labels, queries, torch.tensor(5.0))
    wanted = sum_by_loops(expected, teacher.double(), labels.tolist(), queries.tolist()) / 5
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-5)


def test_the_mean_over_parts_is_the_mean_over_the_margins_of_the_batch() -> None:
    queries, generator = random_queries(1), torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(60, 2, generator=generator) for _ in range(2))
    examples = queries.order(5, 0, 8)[:24]
    losses, total, count = [], 0.0, 0
    for part in np.split(examples, 3):
        batch = {name: torch.from_numpy(a) for name, a in queries.of_part(part, examples, 3).items()}
        labels = torch.from_numpy(queries.labels[part])
        losses.append(margin_loss(student[part], teacher[part], labels, **batch).item())
        total += sum_by_loops(student[part], teacher[part], labels.tolist(), batch["queries"].tolist()).item()
        same = batch["queries"][:, None] == batch["queries"]
        count += int((same & (labels[:, None] > labels)).sum())
    assert len(set(losses)) == 3
    assert np.mean(losses) == pytest.approx(total / count, rel=1e-5)


def test_a_batch_without_margins_has_the_loss_zero() -> None:
    queries = Queries(np.array([0, 0, 1, 2]), np.array([1, 0, 0, 1], np.int8))
    batch = {name: torch.from_numpy(a) for name, a in queries.of_part(np.array([2, 3]), np.array([2, 3]), 1).items()}
    logits = torch.randn(2, 2, requires_grad=True)
    loss = margin_loss(logits, torch.randn(2, 2), torch.tensor([0, 1]), **batch)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


# The order.


@pytest.mark.parametrize("part_size", [2, 4, 7, 60, 99])
@pytest.mark.parametrize("seed", range(5))
def test_every_pair_is_seen_once_an_epoch_in_an_order_of_its_own(seed: int, part_size: int) -> None:
    queries = random_queries(seed)
    orders = [queries.order(*key, part_size).tolist() for key in ((1, 0), (1, 1), (2, 0))]
    assert all(sorted(order) == list(range(60)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == queries.order(1, 0, part_size).tolist()


def test_queries_stay_whole_where_they_fit() -> None:
    sizes = [3, 5, 2, 6, 4, 4, 8, 1, 7]  # parts of 8 that leave no query split: 8, 7+1, 6+2, 5+3, 4+4
    numbers = np.repeat(np.arange(9), sizes)
    labels = np.concatenate([np.arange(size) % 2 for size in sizes]).astype(np.int8)
    for seed in range(20):
        parts = Queries(numbers, labels).order(seed, 0, 8).reshape(5, 8)
        for query in range(9):
            assert sum(query in numbers[part] for part in parts) == 1


def test_a_large_query_is_split_into_parts_with_both_labels() -> None:
    labels = (np.arange(40) < 10).astype(np.int8)
    for part in Queries(np.zeros(40, np.int64), labels).order(3, 0, 8).reshape(5, 8):
        assert labels[part].sum() == 2


def test_pairs_without_a_margin_fill_the_parts() -> None:
    numbers = np.repeat(np.arange(10), 6)
    labels = ((np.arange(60) % 6 == 0) & (numbers < 7)).astype(np.int8)  # 3 queries without a relevant pair
    parts = Queries(numbers, labels).order(3, 0, 8)
    split = [len({place // 8 for place in np.flatnonzero(numbers[parts] == query)}) > 1 for query in range(7)]
    assert sum(split) <= 1  # the 4 pairs after the last part can be of one of them


def test_the_pairs_after_the_last_part_are_those_of_any_query() -> None:
    numbers = np.repeat(
        np.arange(103), [8] * 100 + [4] * 3
    )  # 812 pairs: 25 parts of 32, and 12 pairs that are left out
    queries = Queries(numbers, np.arange(len(numbers)) % 4 == 0)
    times = np.bincount(np.concatenate([queries.order(1, epoch, 32)[: 25 * 32] for epoch in range(50)]), minlength=812)
    assert times.min() >= 40


def test_a_resumed_run_has_the_batches_of_one_without_a_stop() -> None:
    queries = random_queries(3)
    whole = list(steps_from(1, 20, 42, 60, 8, 2, queries))
    for first in range(1, 21):
        for found, expected in zip(steps_from(first, 20, 42, 60, 8, 2, queries), whole[first - 1 :], strict=True):
            assert found.step == expected.step and found.examples.tolist() == expected.examples.tolist()


def test_without_margins_the_order_is_that_of_epoch_order() -> None:
    batches = [step.examples for step in steps_from(1, 14, 42, 60, 8, 2)]
    expected = [epoch_order(42, epoch, 60)[:56] for epoch in (0, 1)]
    assert np.concatenate(batches).tolist() == np.concatenate(expected).tolist()


# The script.


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "teacher", TEACHER, teacher_weights())
    write_published(directory / "general", STUDENT, student_weights())
    write_tiny_features(directory / "features", count=PAIRS, pairs_per_query=3)  # the last query has two pairs
    return directory


def distil(inputs: Path, output: Path, *more: object) -> Finished:
    return run_main(
        "distill.py", "--features_file", inputs / "features", "--teacher_model", inputs / "teacher",
        "--general_student_model", inputs / "general", "--output_student_dir", output, "--train_batch_size", BATCH,
        "--train_loss_step", 1, "--num_train_epochs", 1, "--device", "cpu", "--no_teacher_check", *more,
    )  # fmt: skip


def test_the_first_loss_of_a_training_is_that_of_a_double_loop(inputs: Path, tmp_path: Path) -> None:
    done = distil(inputs, tmp_path / "out", "--distill_model", "margin_mse")
    assert done.status == 0, done
    assert "margins: 8 of 8 queries have relevant and not relevant pairs; the 0 pairs of" in done.stderr
    line = json.loads((tmp_path / "out" / "train_loss.jsonl").read_text().splitlines()[0])
    features = Features(inputs / "features")
    queries = read_queries(features)
    assert queries.numbers.tolist() == [i // 3 for i in range(PAIRS)]
    examples = queries.order(42, 0, BATCH)[:BATCH]
    batch = {name: torch.from_numpy(array) for name, array in features.batch(examples).items()}
    labels = batch.pop("labels").tolist()
    student, teacher = (load_ranker(inputs / name)[0].eval()(**batch).logits for name in ("general", "teacher"))
    numbers = queries.numbers[examples].tolist()
    count = sum(
        numbers[i] == numbers[j] and labels[i] > labels[j] for i in range(len(labels)) for j in range(len(labels))
    )
    assert count > 0
    expected = sum_by_loops(student, teacher, labels, numbers).item() / count
    assert line["margin_loss"] == line["cls_loss"] == line["loss"] == pytest.approx(expected, rel=1e-5)
    assert line["soft_loss"] == line["att_loss"] == 0
    assert "MarginMSE" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("distill_model", ["simplified", "tinybert"])
def test_margins_are_added_to_another_method(inputs: Path, tmp_path: Path, distill_model: str) -> None:
    assert distil(inputs, tmp_path / "out", "--distill_model", distill_model, "--margin_weight", 0.5).status == 0
    line = json.loads((tmp_path / "out" / "train_loss.jsonl").read_text().splitlines()[0])
    assert line["margin_loss"] > 0
    assert line["cls_loss"] == pytest.approx(line["soft_loss"] + line["hard_loss"] + 0.5 * line["margin_loss"])
    if distill_model == "tinybert":
        first = json.loads((tmp_path / "out_intermediate" / "train_loss.jsonl").read_text().splitlines()[0])
        assert first["margin_loss"] == 0


@pytest.mark.parametrize("distill_model", ["margin_mse", "tinybert"])
def test_ids_without_a_query_are_refused_before_the_training(inputs: Path, tmp_path: Path, distill_model: str) -> None:
    write_tiny_features(tmp_path / "features", count=PAIRS)
    more = ["--features_file", tmp_path / "features", "--distill_model", distill_model, "--margin_weight", 1]
    done = distil(inputs, tmp_path / "out", *more)
    says = "example id 'e0' has no '#'", "--margin_weight needs the query of each pair"
    assert_refused(done, f"{tmp_path / 'features'} block 0 example 0", *says)
    assert not list(tmp_path.glob("out*/*.json*"))


def test_queries_without_a_margin_are_counted_and_refused_if_there_are_no_others(inputs: Path, tmp_path: Path) -> None:
    path = write_tiny_features(tmp_path / "features", count=PAIRS, pairs_per_query=1)
    more = ["--features_file", path, "--distill_model", "margin_mse"]
    says = f"--margin_weight: no query of {path} has both a relevant and a not relevant pair"
    assert_refused(distil(inputs, tmp_path / "out", *more), says)
    queries = Queries(np.array([0, 0, 1, 1, 1, 2]), np.array([1, 0, 0, 0, 0, 1], np.int8))
    assert "1 of 3 queries have relevant and not relevant pairs; the 4 pairs of the other" in queries.summary()
    unlabelled = write_tiny_features(tmp_path / "unlabelled", count=PAIRS, set_name="test")
    done = distil(inputs, tmp_path / "out", "--features_file", unlabelled, "--distill_model", "margin_mse")
    assert_refused(done, "has no labels")
