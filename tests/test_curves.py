"""Training curves: the plot, the speed file, and TensorBoard."""

import json
import signal
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch.utils
from matplotlib.figure import Figure
from matplotlib.image import imread
from test_resume import at_step, send
from tiny import STUDENT, assert_refused, run_forked, run_main, student_weights, write_published, write_tiny_features

from training.curves import read_lines_until, used_losses, write_training_curves
from training.terms import LOSSES, TERMS


def line(step: int, **losses: float) -> dict:
    """A line of `train_loss.jsonl`, with the losses named without `_loss`. The others are 0."""
    named = {"loss" if name == "total" else f"{name}_loss": value for name, value in losses.items()}
    return {"global_step": step, **dict.fromkeys(LOSSES, 0.0), **named, "learning_rate": step * 1e-5}


def skipped_line(step: int) -> dict:
    """A line of steps that float16 skipped."""
    return line(step) | dict.fromkeys(LOSSES)


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (saved.append(figure), save(figure, *a, **k)))
    return saved


def test_the_picture_shows_what_the_files_hold(tmp_path: Path, figures: list[Figure]) -> None:
    losses = [
        line(3, total=6.0, cls=2.0, att=4.0, soft=1.5, hard=0.5),
        skipped_line(6),
        line(8, total=3.0, cls=1.0, att=2.0, soft=0.5, hard=0.5),
    ]
    write_lines(tmp_path / "train_loss.jsonl", losses)
    values = {2: 0.25, 4: 0.75, 6: 0.5, 8: 0.75}
    write_lines(
        tmp_path / "dev_eval.jsonl",
        [{"global_step": step, "measure": "P@5", "value": v, "best_step": 4} for step, v in values.items()],
    )
    write_lines(tmp_path / "speed.jsonl", [{"global_step": 3, "examples_per_second": 7.5}])
    assert write_training_curves(tmp_path)
    height, width, _ = imread(tmp_path / "training_curves.png").shape
    assert height > width > 500
    of_losses, of_rate, of_dev, of_speed = figures[0].axes
    curves = {curve.get_label(): curve.get_xydata().tolist() for curve in of_losses.get_lines()}
    assert list(curves)[:4] == ["total", "attention scores", "soft labels", "hard labels"]  # hidden states are not used
    assert (curves["total"][0], curves["soft labels"][2]) == ([3, 6.0], [8, 0.5])
    assert of_losses.get_yscale() == "log"
    assert of_rate.get_lines()[0].get_xydata().tolist() == [
        [row["global_step"], row["learning_rate"]] for row in losses
    ]
    assert of_dev.get_lines()[0].get_xydata().tolist() == [[2, 0.25], [4, 0.75], [6, 0.5], [8, 0.75]]
    assert of_dev.get_ylabel() == "dev P@5"
    assert [text.get_text() for text in of_dev.get_legend().get_texts()] == ["best: 0.7500 after step 4"]
    assert of_speed.get_lines()[0].get_xydata().tolist() == [[3, 7.5]]

    # again without the optional files
    (tmp_path / "dev_eval.jsonl").unlink()
    (tmp_path / "speed.jsonl").unlink()
    write_lines(tmp_path / "train_loss.jsonl", losses[:2])  # float16 skipped the steps of the second line
    assert write_training_curves(tmp_path)
    assert [axes.get_ylabel() for axes in figures[1].axes] == ["loss", "learning rate"]
    labels = [curve.get_label() for curve in figures[1].axes[0].get_lines()]
    assert labels == ["total", "attention scores", "soft labels", "hard labels"]


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_the_legend_fits_however_many_terms_there_are(
    tmp_path: Path, figures: list[Figure], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    terms = [TERMS[i % len(TERMS)]._replace(name=f"term{i}") for i in range(count)]
    more = {f"{term.name}_loss": (term.meaning, term.color) for term in terms}
    monkeypatch.setattr("training.curves._LOSSES", {"loss": ("total", "black")} | more)
    write_lines(tmp_path / "train_loss.jsonl", [line(3, total=6.0) | dict.fromkeys(more, 2.0)] * 2)
    assert write_training_curves(tmp_path)
    (figure,) = figures
    axes = figure.axes[0]
    legend, title = axes.get_legend().get_window_extent(), axes.title.get_window_extent()
    assert len(axes.get_legend().get_texts()) == count + 1
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1
    assert legend.y1 <= title.y0 + 3 and title.y1 <= figure.bbox.y1


def test_one_line_is_no_curve(tmp_path: Path) -> None:
    assert not write_training_curves(tmp_path)
    write_lines(tmp_path / "train_loss.jsonl", [line(3, total=6.0, cls=2.0, att=4.0, soft=1.5, hard=0.5)])
    assert not write_training_curves(tmp_path)
    assert not (tmp_path / "training_curves.png").exists()


def test_a_total_of_one_term_is_that_term() -> None:
    assert used_losses([line(1, total=0.5, cls=0.5, hard=0.5), skipped_line(2)]) == ["hard_loss"]
    assert used_losses([line(1, total=0.25, cls=0.25, hard=0.5)]) == ["loss", "hard_loss"]  # of weight 0.5
    assert used_losses([line(1, total=3.0, cls=1.0, att=2.0, soft=1.0)]) == ["loss", "att_loss", "soft_loss"]


def test_lines_are_read_up_to_a_step_or_to_a_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "speed.jsonl"
    assert read_lines_until(path) == []
    write_lines(path, [{"global_step": step} for step in (2, 4, 6)])
    assert [row["global_step"] for row in read_lines_until(path, 4)] == [2, 4]
    for fault in ('{"global_st', "[]", "{}", '{"global_step": "8"}', "\ud800"):
        path.write_bytes(b'{"global_step": 2}\n' + fault.encode("utf-8", "surrogatepass") + b"\n")
        assert [row["global_step"] for row in read_lines_until(path, 9)] in ([2], [])


# In a training run.


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "general", STUDENT, student_weights())
    write_tiny_features(directory / "features", count=21)
    write_tiny_features(directory / "dev", count=30, set_name="dev")
    (directory / "qrels").write_text("q0 0 D4 1\nq1 0 D2 1\n")
    return directory


def arguments(inputs: Path, output: Path, *more: object) -> list[object]:
    flags = ["--features_file", inputs / "features", "--general_student_model", inputs / "general", "--device", "cpu"]
    flags += ["--output_student_dir", output, "--train_batch_size", 4, "--distill_model", "hard", "--train_loss_step"]
    return [*flags, 3, "--dev_features_file", inputs / "dev", "--dev_qrels", inputs / "qrels", *more]


def test_a_run_ends_with_its_curves(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.curves.write_training_curves", write_training_curves)
    output = tmp_path / "out"
    done = run_main("distill.py", *arguments(inputs, output))
    assert done.status == 0 and f"drew {output / 'training_curves.png'}" in done.stderr
    assert imread(output / "training_curves.png").size > 0
    steps = [row["global_step"] for row in read_lines_until(output / "train_loss.jsonl")]
    speeds = read_lines_until(output / "speed.jsonl")
    assert [row["global_step"] for row in speeds] == steps == [3, 6, 9, 10]
    assert all(row["examples_per_second"] > 0 for row in speeds)


def test_without_matplotlib_a_run_ends_with_a_warning(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.curves.write_training_curves", write_training_curves)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out"))
    assert done.status == 0
    assert "WARNING no training curves: ModuleNotFoundError" in done.stderr
    assert json.loads((tmp_path / "out" / "training.json").read_text())["finished"]
    assert not (tmp_path / "out" / "training_curves.png").exists()


def test_without_tensorboard_its_flag_is_refused(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    done = run_main("distill.py", *arguments(inputs, tmp_path / "out", "--tensorboard_dir", tmp_path / "board"))
    assert_refused(done, "--tensorboard_dir: TensorBoard is not installed")
    assert not (tmp_path / "out").exists() and not (tmp_path / "board").exists()


def test_a_tensorboard_that_cannot_be_imported_costs_no_earlier_run(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    assert run_main("distill.py", *arguments(inputs, output)).status == 0
    before = (output / "training.json").read_bytes()
    broken = ModuleType("tensorboard")
    broken.__spec__ = ModuleSpec("tensorboard", None)  # it is found
    monkeypatch.setitem(sys.modules, "tensorboard", broken)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    more = ["--overwrite", "--tensorboard_dir", tmp_path / "board"]
    assert_refused(run_main("distill.py", *arguments(inputs, output, *more)), "--tensorboard_dir: TensorBoard is not")
    assert (output / "training.json").read_bytes() == before


@pytest.mark.tensorboard
def test_tensorboard_shows_the_lines_also_of_a_run_that_is_resumed(inputs: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, board = tmp_path / "out", tmp_path / "board"
    flags = arguments(inputs, output, "--tensorboard_dir", board, "--eval_model_step", 2, "--save_model_step", 4)
    prepare = at_step(8, send(signal.SIGKILL))  # after loss lines and an evaluation at step 6
    assert run_forked(tmp_path, "distill.py", *flags, prepare=prepare).status == -signal.SIGKILL
    done = run_forked(tmp_path, "distill.py", *flags, "--resume")
    assert done.status == 0, done
    events = EventAccumulator(str(board)).Reload()

    def curve(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(name)]

    losses = read_lines_until(output / "train_loss.jsonl")
    for name in ("hard_loss", "learning_rate"):
        assert curve(name) == [(row["global_step"], pytest.approx(row[name])) for row in losses]
    dev = read_lines_until(output / "dev_eval.jsonl")
    assert curve("dev MRR@10") == [(row["global_step"], pytest.approx(row["value"])) for row in dev]
    assert [step for step, _ in curve("examples_per_second")] == [3, 6, 9, 10]
    assert set(events.Tags()["scalars"]) == {"hard_loss", "learning_rate", "dev MRR@10", "examples_per_second"}
