"""experiments/make_table.py: costs, recipes, the table of synthetic data by hand, and the whole command."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from tiny import (
    ROOT,
    STUDENT,
    TEACHER,
    Finished,
    Sizes,
    assert_refused,
    bert_config,
    copy_project,
    run_main,
    some_pairs,
    student_weights,
    teacher_weights,
    write_published,
    write_transformers,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from evaluation.significance import compare, holm
from experiments.costs import flops_per_pair, num_parameters, rerank_speed, training_seconds
from experiments.picture import draw_points, write_picture
from experiments.recipe import load_recipe, parse_recipe
from experiments.report import latex, main_table, markdown, order_lines, significance_table
from experiments.results import read_results, write_json
from experiments.rows import is_finished
from experiments.shell import recipe_variables
from formats.run_file import read_run_file
from runtime.errors import InputError

RECIPES = sorted(ROOT.glob("experiments/*.toml"))
MADE = sorted(path.parent for path in ROOT.glob("results/*/rows"))


# --- costs


@pytest.mark.parametrize("sizes", [TEACHER, STUDENT], ids=["teacher", "student"])
def test_costs_are_those_that_torch_counts(sizes: Sizes) -> None:
    config = bert_config(sizes)
    model = BertForSequenceClassification(BertConfig(**config, num_labels=2, attn_implementation="eager")).eval()
    assert num_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    for tokens in (7, 13):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.ones((1, tokens), dtype=torch.long))
        assert flops_per_pair(config, tokens) == counter.get_total_flops()


def test_a_student_of_the_paper_takes_a_fifteenth_of_the_operations() -> None:
    base = bert_config(Sizes(layers=12, hidden=768, heads=12, intermediate=3072, positions=512, vocabulary=30522))
    small = bert_config(Sizes(layers=3, hidden=384, heads=12, intermediate=1536, positions=512, vocabulary=30522))
    assert num_parameters(base) == 109_483_778  # BERT-Base with two classes
    assert 15 < flops_per_pair(base, 256) / flops_per_pair(small, 256) < 16


def write_run(directory: Path, run_file: str, speeds: list[tuple[int, float]]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "training.json").write_text(run_file)
    lines = [{"global_step": step, "examples_per_second": speed} for step, speed in speeds]
    (directory / "speed.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return directory


def test_training_seconds_by_hand(tmp_path: Path) -> None:
    """20 steps of 8 examples at 80 examples/s and 10 at 40, and in TinyBERT's first step 30 of 4 at 60."""
    run_file = '{"finished": true, "settings": {"train_batch_size": %d}}'
    student = write_run(tmp_path / "s", run_file % 8, [(20, 80.0), (30, 40.0)])
    assert training_seconds(student) == 4.0
    write_run(tmp_path / "s_intermediate", run_file % 4, [(30, 60.0)])
    assert training_seconds(student) == 6.0
    assert training_seconds(tmp_path / "downloaded") is None
    write_run(student, run_file % 8, [])
    assert training_seconds(student) is None
    write_run(student, run_file % 8, [(20, 0.0)])
    assert training_seconds(student) is None
    write_run(student, '{"finished": true}', [(20, 80.0)])
    assert training_seconds(student) is None


def test_the_speed_of_a_re_ranking(tmp_path: Path) -> None:
    run, speed_file = tmp_path / "standard.42.run", tmp_path / "standard.42.scores.tsv.speed.json"
    speed_file.write_text('{"passages_per_second": 12.345, "precision": "bf16", "device": "cpu (2 threads)"}')
    assert rerank_speed(run) == (12.3, "bf16 on cpu (2 threads)")
    for damaged in ("{", "[]", '{"passages_per_second": 1}', '{"passages_per_second": "x"}'):
        speed_file.write_text(damaged)
        with pytest.raises(InputError, match=f"{speed_file} is missing or damaged; remove {run}"):
            rerank_speed(run)
    speed_file.unlink()
    with pytest.raises(InputError, match="missing or damaged"):
        rerank_speed(run)


def test_whether_a_training_is_finished(tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert is_finished(tmp_path)  # a model that distill.py did not train
    for text, finished in (
        ('{"finished": true, "settings": {"seed": 1}}', True),
        ('{"finished": false, "settings": {}}', False),
        ('{"finished": true, "settings": ', False),
        ('{"settings": {}}', False),
        ("[]", False),
    ):
        (tmp_path / "training.json").write_text(text)
        assert is_finished(tmp_path) == read_run_file(tmp_path)["finished"] == finished
    assert read_run_file(tmp_path) == {"finished": False, "settings": {}}
    (tmp_path / "config.json").unlink()
    (tmp_path / "training.json").write_text('{"finished": true, "settings": {"seed": 1}}')
    assert read_run_file(tmp_path) == {"finished": True, "settings": {"seed": 1}}
    assert not is_finished(tmp_path)


# --- recipes


def recipe_data(**changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "title": "A tiny table",
        "seeds": [42, 43],
        "standard_kd": "standard",
        "orders": [["simplified", "tinybert", "standard"]],
        "timing_pairs": 5,
        "timing_rounds": 2,
        "variables": {"max_seq_length": 19},
        "test_sets": {
            "test": {"pairs": "pairs.tsv", "candidates": "top", "qrels": "qrels", "measures": ["MRR@10", "MAP"]}
        },
        "rows": {
            "bm25": {"label": "BM25", "kind": "candidates"},
            "teacher": {"label": "Teacher", "kind": "teacher"},
            "standard": {"label": "Standard KD", "variables": {"distill_model_type": "standard"}},
            "tinybert": {"label": "TinyBERT", "variables": {"distill_model_type": "tinybert"}},
            "simplified": {"label": "Simplified", "variables": {"distill_model_type": "simplified"}},
        },
    } | changes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_are_in_order(path: Path) -> None:
    recipe = parse_recipe(load_recipe(path), path, recipe_variables())
    for script in re.findall(r"(?:bash|python\"?) (\S+\.(?:sh|py))", recipe.prepare):
        assert (ROOT / script).is_file()
    assert {row.kind for row in recipe.rows} == {"candidates", "teacher", "student"}
    assert all(recipe.row(row.standard_kd).variables["distill_model_type"] == "standard"
               for row in recipe.rows if row.standard_kd)  # fmt: skip
    for order in recipe.orders:
        kinds = [recipe.row(name).variables["distill_model_type"] for name in order]
        assert kinds == ["simplified", "tinybert", "standard"]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("colour", "red", "colour: is unknown"),
        ("seeds", 42, "seeds: needs a list [...], not 42"),
        ("seeds", [42, 42], "seeds: needs a list of different whole numbers, not [42, 42]"),
        ("title", None, "title: is missing"),
        ("timing_pairs", "many", "timing_pairs: needs a whole number, not 'many'"),
        ("interpolation_weight", "half", "interpolation_weight: needs a number, not 'half'"),
        ("interpolation_weight", True, "interpolation_weight: needs a number, not True"),
        ("interpolation_weight", 1.5, "interpolation_weight: needs to be from 0 to 1"),
        ("variables.interpolation_weight", 0.5, "variables.interpolation_weight: is not a variable"),
        ("timing_rounds", 0, "timing_rounds: needs to be 1 or more"),
        ("name", "../x", "name: '../x' is not a folder name"),
        ("orders", [["simplified", "bm25"]], "orders: needs to be a list of lists"),
        ("rows", {}, "rows: is empty"),
        ("variables.max_seq_length", None, "variables.max_seq_length: needs a whole number"),
        ("variables.atention", 1, "variables.atention: is not a variable of distill.sh"),
        ("variables.output_student_dir", "x", "variables.output_student_dir: is not a variable"),
        ("variables.learning_rate", [1], "variables.learning_rate: needs text, a number, true or false, not [1]"),
        ("test_sets.test.measures", ["NDGC@10"], "test_sets.test.measures: 'NDGC@10' is not a known measure"),
        ("test_sets.test.measures", ["num_rel_ret"], "test_sets.test.measures: 'num_rel_ret' is not a mean"),
        ("test_sets.test.qrels", None, "test_sets.test.qrels: is missing"),
        ("rows.standard.sedes", [1], "rows.standard.sedes: is unknown"),
        ("rows.standard.label", "TinyBERT", "label: 'TinyBERT' is the label of two rows"),
        ("rows.standard.kind", "pupil", "rows.standard.kind: 'pupil' is not one of"),
        ("rows.standard.kind", "teacher", "rows.standard.variables: has no use"),
        ("rows.standard.standard_kd", "no_such", "standard_kd: there is no student row no_such"),
        ("rows.standard.paper", {"dev": {"MAP": 0.5}}, "rows.standard.paper.dev: needs to be"),
        ("rows.standard.paper", {"test": {"MAP": "high"}}, "rows.standard.paper: needs numbers"),
        ("rows.second", {"label": "Again", "kind": "teacher"}, "rows: more than one row of kind teacher"),
        ("rows.a b", {"label": "x"}, "rows.a b: is part of file names"),
    ],
)
def test_a_faulty_recipe_is_refused(path: str, value: Any, says: str) -> None:
    data = json.loads(json.dumps(recipe_data()))
    *above, key = path.split(".")
    table = data
    for name in above:
        table = table[name]
    if value is None:
        del table[key]
    else:
        table[key] = value
    with pytest.raises(ValueError, match=re.escape("x.toml: ")) as refused:
        parse_recipe(data, "x.toml", recipe_variables())
    assert says in str(refused.value)


# --- the table, of synthetic data

SIZES_OF = {"teacher": TEACHER, "student": STUDENT}


def row_data(kind: str, values: dict[str, list[float]], seconds: float | None = None) -> dict[str, Any]:
    """The data of a row: values per query q0, q1... of each measure of the test set."""
    data: dict[str, Any] = {"variables": {}, "machine": "a machine", "date": "2026-11-22"}
    if kind != "candidates":
        config = bert_config(SIZES_OF[kind])
        data |= {"model": config, "parameters": 12_345_678, "flops_per_pair": 2_500_000_000}
        data |= {"training_seconds": seconds, "pairs_per_second": 1.0}
    measured = {
        name: {"mean": statistics.fmean(of), "per_query": {f"q{i:02}": value for i, value in enumerate(of)}}
        for name, of in values.items()
    }
    return data | {"test_sets": {"test": measured}}


def write_results(directory: Path, recipe: dict[str, Any], rows: dict[str, dict], speed: dict | None = None) -> Path:
    write_json(directory / "settings.json", {"recipe": recipe})
    for name, data in rows.items():
        write_json(directory / "rows" / f"{name}.json", data)
    if speed:
        write_json(directory / "rows" / "speed.json", speed)
    return directory


STUDENT_KEY = "3/12/28"
SPEED = {"pairs": 1100, "where": "bf16 on cpu (2 threads)", "machine": "a machine", "date": "2026-11-22"} | {
    "rounds": [{"teacher": 10.0, STUDENT_KEY: 25.0}, {"teacher": 12.0, STUDENT_KEY: 30.0}]
}
QUERIES = 20


def values_of(*pattern: float) -> dict[str, list[float]]:
    """MRR@10 and MAP of 20 queries, by a repeated pattern."""
    of = [pattern[i % len(pattern)] for i in range(QUERIES)]
    return {"MRR@10": of, "MAP": [value / 2 for value in of]}


def results_of(directory: Path, rows: dict[str, dict], speed: dict | None = SPEED, **changes: Any):
    return read_results(write_results(directory, recipe_data(**changes), rows, speed))


def in_order() -> dict[str, dict]:
    """Simplified above TinyBERT, TinyBERT above Standard KD on every query, in two seeds each."""
    return {
        "bm25": row_data("candidates", values_of(0.1, 0.2)),
        "teacher": row_data("teacher", values_of(0.5, 0.6), 200),
        "standard.42": row_data("student", values_of(0.3, 0.4), 50),
        "standard.43": row_data("student", values_of(0.32, 0.42), 70),
        "tinybert.42": row_data("student", values_of(0.4, 0.5)),
        "tinybert.43": row_data("student", values_of(0.4, 0.5)),
        "simplified.42": row_data("student", values_of(0.5, 0.6)),
        "simplified.43": row_data("student", values_of(0.5, 0.6)),
    }


def test_means_spreads_costs_and_speeds(tmp_path: Path) -> None:
    header, *rows = main_table(results_of(tmp_path, in_order()))
    assert header == ["row", "seeds", "MRR@10", "MAP", "parameters", "GFLOPs per pair of 19 tokens", "pairs/s",
                            "speed-up", "training"]  # fmt: skip
    lines = {cells[0]: cells[1:] for cells in rows}
    # means 0.35 and 0.37: their mean, and the deviation with n - 1
    assert lines["Standard KD"][:3] == ["2", "0.3600 ± 0.0141†", "0.1800 ± 0.0071†"]
    assert lines["Standard KD"][3:] == ["12.3 M", "2.5", "27.5", "2.50x", "60 s"]
    assert lines["Teacher"] == ["", "0.5500‡", "0.2750‡", "12.3 M", "2.5", "11.0", "", "200 s"]
    assert lines["BM25"] == ["", "0.1500†‡", "0.0750†‡", "", "", "", "", ""]
    assert lines["Simplified"][1] == "0.5500 ± 0.0000‡" and lines["TinyBERT"][1] == "0.4500 ± 0.0000†‡"


def test_rows_of_different_queries_are_refused(tmp_path: Path) -> None:
    rows = in_order()
    per_query = rows["simplified.43"]["test_sets"]["test"]["MAP"]["per_query"]
    per_query["q99"] = per_query.pop("q07")
    with pytest.raises(InputError, match=r"simplified\.43\.json and .*bm25\.json have MAP of different queries"):
        results_of(tmp_path, rows)


def test_interpolated_runs_are_a_second_line_of_each_model(tmp_path: Path) -> None:
    rows = in_order()
    plain = main_table(results_of(tmp_path / "plain", rows))
    for name, values in (("standard.42", (0.5, 0.6)), ("standard.43", (0.52, 0.62)), ("teacher", (0.7, 0.8))):
        interpolated = {"interpolated": row_data("student", values_of(*values))["test_sets"]}
        rows[name] = rows[name] | interpolated | {"interpolation_weight": 0.25}
    results = results_of(tmp_path / "interpolated", rows, interpolation_weight=0.25)
    table = main_table(results)
    assert [line for line in table if not line[0].endswith(" + first stage")] == plain
    assert [line[0] for line in table[2:6]] == ["Teacher", "Teacher + first stage", "Standard KD",
                                                "Standard KD + first stage"]  # fmt: skip
    assert table[3][1:] == ["", "0.7500§", "0.3750§", "", "", "", "", ""]
    assert table[5][1:] == ["", "0.5600 ± 0.0141§", "0.2800 ± 0.0071§", "", "", "", "", ""]
    assert table[7] == ["TinyBERT + first stage", *[""] * 8]  # not run yet
    assert len(table) == 1 + 1 + 2 * 4 and "with weight 0.25 for the model" in markdown(results)
    tests = [line for line in significance_table(results) if line[2] == "BM25 §"]
    assert [line[:2] + line[3:4] for line in tests] == [
        ["MRR@10", "Teacher + first stage", "+0.6000"], ["MRR@10", "Standard KD + first stage", "+0.4100"],
        ["MAP", "Teacher + first stage", "+0.3000"], ["MAP", "Standard KD + first stage", "+0.2050"],
    ]  # fmt: skip
    assert "§ differs from the candidates" in markdown(results)
    without = results._replace(recipe=results.recipe._replace(interpolation_weight=None))
    assert "§" not in markdown(without) and main_table(without) == plain
    # runs of another weight are not those of the table
    other = results._replace(recipe=results.recipe._replace(interpolation_weight=0.75))
    assert {tuple(line[2:]) for line in main_table(other) if line[0].endswith("first stage")} == {("",) * 7}
    # no candidates yet
    without = results._replace(data={name: data for name, data in results.data.items() if name != "bm25"})
    assert main_table(without)[3][2] == "0.7500" and "BM25" in markdown(without)


def test_tests_are_on_means_over_seeds_and_corrected_over_rows(tmp_path: Path) -> None:
    noise = [0.011 * (i % 7 - 3) for i in range(QUERIES)]
    rows = in_order() | {
        "tinybert.42": row_data("student", {"MRR@10": [0.36 + n for n in noise], "MAP": noise}),
        "tinybert.43": row_data("student", {"MRR@10": [0.36 - 2 * n for n in noise], "MAP": noise}),
    }
    results = results_of(tmp_path, rows)
    standard = [0.31, 0.41] * (QUERIES // 2)
    tinybert = [0.36 - n / 2 for n in noise]
    others = [[0.1, 0.2], [0.5, 0.6], [0.5, 0.6]]
    against = [compare(of * (QUERIES // 2), standard) for of in others] + [compare(tinybert, standard)]
    found = {(cells[0], cells[1], cells[2]): cells[3:] for cells in significance_table(results)[1:]}
    assert len(found) == 2 * (4 + 4)
    cells = found["MRR@10", "TinyBERT", "Standard KD ‡"]
    assert cells[:3] == [
        f"{against[-1].difference:+.4f}",
        f"{holm([one.t_test_p for one in against])[-1]:.4f}",
        f"{holm([one.randomization_p for one in against])[-1]:.4f}",
    ]
    assert cells[-1] == f"{against[-1].wins}/{against[-1].ties}/{against[-1].losses}"
    assert found["MRR@10", "BM25", "Teacher †"] == ["-0.4000", "<0.0001", "<0.0001", "-inf", "0/0/20"]


def test_the_order_of_the_paper_holds_or_does_not(tmp_path: Path) -> None:
    line, of_map = order_lines(results_of(tmp_path / "in_order", in_order()))
    assert line.startswith("MRR@10, Simplified over TinyBERT over Standard KD: the order holds, and each step of it is")
    assert "(Simplified 0.5500, TinyBERT 0.4500, Standard KD 0.3600)" in line
    assert "Simplified over TinyBERT +0.1000, p <0.0001 (significant); Simplified over Standard KD +0.1900" in line
    assert of_map.startswith("MAP, ") and "TinyBERT 0.2250" in of_map

    # better on two queries only
    slightly = [0.41, 0.5, 0.4, 0.5] + [0.4, 0.5] * 7 + [0.4, 0.51]
    better = row_data("student", {"MRR@10": slightly, "MAP": slightly})
    rows = in_order() | {f"simplified.{seed}": better for seed in (42, 43)}
    line, _ = order_lines(results_of(tmp_path / "slightly", rows))
    assert "the order holds in the means, but not each step of it is significant" in line
    assert "Simplified over TinyBERT +0.0010, p = 0.5000 (not significant)" in line

    rows = in_order() | {f"tinybert.{seed}": row_data("student", values_of(0.2, 0.3)) for seed in (42, 43)}
    line, _ = order_lines(results_of(tmp_path / "other", rows))
    assert "the order does NOT hold (Simplified 0.5500, TinyBERT 0.2500, Standard KD 0.3600)" in line
    assert "TinyBERT over Standard KD -0.1100, p <0.0001 (significant)" in line


def test_missing_data_are_empty_and_named(tmp_path: Path) -> None:
    rows = in_order()
    for name in ("tinybert.42", "tinybert.43", "simplified.43", "teacher"):
        del rows[name]
    results = results_of(tmp_path, rows, speed=None)
    lines = {cells[0]: cells[1:] for cells in main_table(results)}
    assert lines["TinyBERT"] == ["0", *[""] * 7]
    assert lines["Simplified"][:2] == ["1", "0.5500‡"]
    text = markdown(results)
    assert "Not run yet: Teacher, TinyBERT with seed 42, TinyBERT with seed 43, Simplified with seed 43." in text
    assert "over Standard KD: unknown, TinyBERT not run yet." in text
    assert "Speeds were not measured." in text


def test_the_papers_figures_are_in_brackets(tmp_path: Path) -> None:
    data = recipe_data()
    data["rows"]["simplified"]["paper"] = {"speed_up": 15, "test": {"MAP": 0.28}}
    data["rows"]["tinybert"]["paper"] = {"test": {"MAP": 0.25}}
    rows = in_order()
    del rows["tinybert.42"], rows["tinybert.43"]
    results = read_results(write_results(tmp_path, data, rows, SPEED))
    lines = {cells[0]: cells for cells in main_table(results)}
    assert lines["Simplified"][3] == "0.2750 ± 0.0000‡ [0.28]" and lines["Simplified"][7] == "2.50x [15x]"
    assert lines["TinyBERT"][2:4] == ["", "[0.25]"]
    assert "In brackets: the paper's figure." in markdown(results)
    assert r"& {[}0.25] &" in latex(results)


def test_latex_and_markdown_take_any_label(tmp_path: Path) -> None:
    data = recipe_data(title="50% & more_#1", notes=["a {note} of ~1 \\ ^2 | $"])
    data["rows"]["bm25"]["label"] = "BM25 | k_1 < 2"
    results = read_results(write_results(tmp_path, data, in_order(), SPEED))
    text = latex(results)
    assert r"\caption{50\% \& more\_\#1}" in text
    assert r"a \{note\} of \textasciitilde{}1 \textbackslash{} \textasciicircum{}2 $|$ \$" in text
    assert r"BM25 $|$ k\_1 $<$ 2 &  & 0.1500$^{\dagger}$$^{\ddagger}$ &" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert all(
        line.count("&") - line.count(r"\&") == 8 for line in text.splitlines()[7:] if line.endswith(r"x & 60 s \\")
    )
    assert r"| BM25 \| k\_1 \< 2 |" in markdown(results)


@pytest.mark.parametrize("directory", MADE, ids=lambda directory: directory.name)
def test_the_tables_in_results_are_made_of_their_data(directory: Path) -> None:
    results = read_results(directory)
    assert (directory / "table.md").read_text("utf-8") == markdown(results)
    assert (directory / "table.tex").read_text("utf-8") == latex(results)
    assert (directory / "table.png").exists() == (results.speed is not None)


def test_labels_in_the_picture_do_not_overlap(tmp_path: Path) -> None:
    data = recipe_data(orders=[])
    rows = in_order()
    for i in range(9):  # with the same speed and nearly the same measure
        data["rows"][f"more{i}"] = {"label": f"Simplified TinyBERT, ablation {i}", "seeds": [1]}
        rows[f"more{i}.1"] = row_data("student", values_of(0.4 + 0.001 * i, 0.5))
    results = read_results(write_results(tmp_path, data, rows, SPEED))
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    labels = draw_points(figure.subplots(), results, ("test", "MRR@10"))
    figure.draw_without_rendering()
    texts = [*labels, *(text for text in figure.axes[0].texts if text not in labels)]
    boxes = [Text.get_window_extent(text) for text in texts]
    assert len(labels) == 1 + 3 + 9 and [text.get_text() for text in texts[13:]] == ["BM25"]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), texts[i].get_text()
    write_picture(tmp_path / "table.png", results)
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


# --- the command, with a stub of bash that writes at once what the scripts write

STUB = """#!{python}
import json, os, pathlib, sys
script, env = sys.argv[1], os.environ
name = os.path.basename(env.get("student_model") or env.get("output_student_dir") or "teacher")
with open(env["CALLS"], "a") as file:
    file.write(f"{{'prepare' if script == '-euo' else script}} {{name}} {{env.get('learning_rate')}}\\n")
if name == env.get("FAIL"):
    sys.exit("out of luck")
if script == "distill.sh":
    student = pathlib.Path(env["output_student_dir"])
    student.mkdir(parents=True)
    (student / "train_loss.jsonl").write_text("{{}}\\n")
    (student / "distill.log").write_text("x INFO device: cpu\\nx INFO step 30 of 30: loss 1\\n")
    (student / "training.json").write_text('{{"finished": true, "settings": {{"train_batch_size": 8}}}}')
    (student / "speed.jsonl").write_text(
        '{{"global_step": 20, "examples_per_second": 80}}\\n{{"global_step": 30, "examples_per_second": 40}}\\n'
    )
    (student / "config.json").write_text({config!r})
elif script == "reranker.sh":
    runs = pathlib.Path(env["runs_dir"])
    runs.mkdir(parents=True, exist_ok=True)
    rank = {{"standard": 3, "tinybert": 2}}.get(name.partition(".")[0], 1)
    with open(runs / f"{{name}}.run", "w") as file:
        for query in range(6):
            for document in range(1, 5):
                score = 9.5 - rank if document == 4 else 9 - document
                file.write(f"q{{query}} Q0 D{{document}} 1 {{score}} x\\n")
    speed = {{"passages_per_second": 20 if name == "teacher" else 50, "precision": "fp32", "device": "cpu (1 threads)"}}
    (runs / f"{{name}}.scores.tsv.speed.json").write_text(json.dumps(speed))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with a collection. The command writes into its results/, models/ and runs/."""
    copy = copy_project(tmp_path / "project")
    data = copy / "data" / "tiny"
    data.mkdir(parents=True)
    ids = [f"q{query}#D{document}_0" for query in range(6) for document in range(1, 5)]
    rows = [(example_id, *pair) for example_id, pair in zip(ids, some_pairs(len(ids)), strict=True)]
    (data / "pairs.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (data / "train_pairs.tsv").write_text("".join("\t".join((*row, str(i % 2))) + "\n" for i, row in enumerate(rows)))
    (data / "qrels").write_text("".join(f"q{query} 0 D4 1\n" for query in range(6)))
    (data / "top").write_text("".join(f"q{q} Q0 D{d} {d} {9 - d} x\n" for q in range(6) for d in range(1, 5)))
    teacher = copy / "models" / "tiny" / "teacher"
    teacher.mkdir(parents=True)
    (teacher / "config.json").write_text(json.dumps(bert_config(TEACHER)))
    return copy


RECIPE = """
name = "tiny"
title = "A tiny table"
prepare = "true"
seeds = [42, 43]
standard_kd = "standard"
orders = [["simplified", "standard"]]
timing_pairs = 7
timing_rounds = 2
[variables]
max_seq_length = 19
learning_rate = 1e-4
[test_sets.test]
pairs = "data/tiny/pairs.tsv"
candidates = "data/tiny/top"
qrels = "data/tiny/qrels"
measures = ["MRR@10"]
[rows.bm25]
label = "BM25"
kind = "candidates"
[rows.teacher]
label = "Teacher"
kind = "teacher"
[rows.standard]
label = "Standard KD"
variables = { distill_model_type = "standard" }
[rows.simplified]
label = "Simplified"
seeds = [42]
variables = { distill_model_type = "simplified" }
"""


class Command:
    """Runs the command in a copy of the project and lists its calls of bash."""

    def __init__(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project, self.calls_file = project, project / "calls"
        self.results = project / "results" / "tiny"
        self.recipe = project / "tiny.toml"
        self.recipe.write_text(RECIPE)
        folder = project / "stub"
        folder.mkdir()
        (folder / "bash").write_text(STUB.format(python=sys.executable, config=json.dumps(bert_config(STUDENT))))
        (folder / "bash").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setenv("CALLS", str(self.calls_file))
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.chdir(project)  # the command changes the folder; this restores it

    def __call__(self, *flags: str) -> Finished:
        return run_main(str(self.project / "experiments" / "make_table.py"), self.recipe, *flags)

    def change(self, old: str, new: str) -> None:
        assert old in self.recipe.read_text()
        self.recipe.write_text(self.recipe.read_text().replace(old, new))

    def calls(self) -> list[str]:
        """Returns the calls since the last call of this method."""
        if not self.calls_file.exists():
            return []
        calls = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return calls


@pytest.fixture
def command(project: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(project, monkeypatch)


def test_rows_are_run_once(command: Command) -> None:
    done = command()
    assert done.status == 0, done
    timing = ["reranker.sh teacher None", "reranker.sh standard.42 0.0001"] * 2
    assert command.calls() == [
        "prepare teacher 0.0001", "reranker.sh teacher None",
        "distill.sh standard.42 0.0001", "reranker.sh standard.42 0.0001",
        "distill.sh standard.43 0.0001", "reranker.sh standard.43 0.0001",
        "distill.sh simplified.42 0.0001", "reranker.sh simplified.42 0.0001", *timing,
    ]  # fmt: skip
    table = (command.results / "table.md").read_text()
    assert "| Standard KD | 2 | 0.3333 ± 0.0000" in table and "| BM25 |  | 0.2500" in table
    assert "| 50.0 | 2.50x | 4 s |" in table  # steps of 8 examples: 20 * 8 / 80 s + 10 * 8 / 40 s
    data = json.loads((command.results / "rows" / "standard.43.json").read_text())
    assert data["variables"] == {"collection": "tiny", "max_seq_length": 19, "learning_rate": 1e-4,
                                 "distill_model_type": "standard", "seed": 43}  # fmt: skip
    assert data["test_sets"]["test"]["MRR@10"]["per_query"] == {f"q{i}": 1 / 3 for i in range(6)}
    assert "step 30" not in (command.results / "logs" / "standard.43.distill.log").read_text()
    assert len((command.project / "runs" / "tiny" / "timing_pairs.tsv").read_text().splitlines()) == 7
    assert json.loads((command.results / "settings.json").read_text())["recipe"]["timing_pairs"] == 7
    assert not list(command.results.rglob(".*"))

    before = {path: path.read_bytes() for path in command.results.rglob("*.*") if path.suffix != ".log"}
    assert command().status == 0 and command("--only_table").status == 0
    assert command.calls() == []
    assert {path: path.read_bytes() for path in before} == before

    students = command.project / "models" / "tiny" / "rows"
    students.rename(students.with_name("away"))
    assert_refused(command("--timing"), "models/tiny/rows has no student of 3/12/28 (layers/hidden/inner) to time")
    students.with_name("away").rename(students)
    command.calls()
    assert command("--timing").status == 0
    assert command.calls() == ["prepare teacher 0.0001", *timing]
    command.change('label = "Simplified"', 'label = "Another label"')
    assert command("--only_table").status == 0
    assert "| Another label | 1 | 1.0000" in (command.results / "table.md").read_text()
    command.change('measures = ["MRR@10"]', 'measures = ["MRR@10", "MAP"]')  # an old run has it
    assert command("--no_timing").status == 0
    assert command.calls() == ["prepare teacher 0.0001"]
    assert "| MRR@10 | MAP |" in (command.results / "table.md").read_text()
    # another weight needs no training and no re-ranking (the stub of bash writes no interpolated run)
    command.recipe.write_text(f"interpolation_weight = 0.5\n{command.recipe.read_text()}")
    for run in list((command.project / "runs" / "tiny" / "test").glob("*.run")):
        run.with_suffix(".interpolated.run").write_bytes(run.read_bytes())
    assert command("--no_timing").status == 0
    assert {call.split()[0] for call in command.calls()} == {"prepare", "-c"}
    assert "| Standard KD + first stage |  | 0.3333 ± 0.0000 |" in (command.results / "table.md").read_text()
    assert command("--no_timing").status == 0 and command.calls() == []


def test_rows_do_not_get_another_teacher_than_the_rows_before(command: Command) -> None:
    assert command("--no_timing").status == 0
    command.calls()
    shutil.rmtree(command.project / "models" / "tiny" / "teacher")
    assert command("--only_table").status == 0 and command("--no_timing").status == 0  # nothing is missing
    (command.results / "rows" / "simplified.42.json").unlink()
    assert_refused(
        command("--no_timing"), "rows/teacher.json was made with a teacher that is not in", "another teacher"
    )
    assert command.calls() == []


def test_other_variables_are_refused_and_redone_on_demand(command: Command) -> None:
    assert command("--no_timing").status == 0
    command.calls()
    command.change('"simplified" }', '"simplified", hard_weight = 0 }')
    assert_refused(command(), "simplified.42.json was made with hard_weight=, the recipe has hard_weight=0", "--redo")
    assert_refused(command("--redo", "no_such"), "--redo", "has no row no_such")
    assert command.calls() == []
    assert command("--no_timing", "--redo", "simplified").status == 0
    assert Counter(call.split()[0] for call in command.calls()) == {"prepare": 1, "distill.sh": 1, "reranker.sh": 1}

    for key in ("pairs", "top", "qrels"):  # with other files the rows would not be comparable
        command.change(f'"data/tiny/{key}', f'"data/other/{key}')
        for flags in ((), ("--only_table",)):
            assert_refused(
                command(*flags), "results/tiny was made with test_sets.test.", f"the recipe has data/other/{key}"
            )
        command.change(f'"data/other/{key}', f'"data/tiny/{key}')
    assert command.calls() == []

    # also for a student that was trained, but not re-ranked before a stop
    (command.results / "rows" / "simplified.42.json").unlink()
    command.change("hard_weight = 0", "hard_weight = 2")
    assert_refused(command(), "models/tiny/rows/simplified.42.json was made with hard_weight=0")


def test_a_failure_keeps_what_is_done(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "standard.43")
    assert_refused(command(), "row standard.43: bash ended with status 1")
    assert sorted(path.name for path in (command.results / "rows").iterdir()) == [
        "bm25.json", "standard.42.json", "teacher.json"
    ]  # fmt: skip
    command.calls()
    monkeypatch.delenv("FAIL")
    assert command("--no_timing").status == 0
    assert [call.rpartition(" ")[0] for call in command.calls()] == [
        "prepare teacher", "distill.sh standard.43", "reranker.sh standard.43",
        "distill.sh simplified.42", "reranker.sh simplified.42",
    ]  # fmt: skip
    assert not (command.results / "table.png").exists()


def test_an_optional_test_set_is_left_out_until_its_files_are_there(command: Command) -> None:
    more = "[test_sets.more]\noptional = true\n"
    for key in ("pairs", "candidates", "qrels"):
        more += f'{key} = "data/tiny/more.{key}"\n'
    command.recipe.write_text(RECIPE + more + 'measures = ["MRR@10"]\n')
    left_out = "test set more is left out, because there is no data/tiny/more.candidates\n"
    done = command()
    assert done.status == 0 and done.stdout.startswith(left_out), done
    assert "more" not in json.loads((command.results / "settings.json").read_text())["recipe"]["test_sets"]
    assert "more" not in (command.results / "table.md").read_text()
    assert command().stdout.startswith(left_out)
    command.calls()
    queries = parse_recipe(load_recipe(command.recipe), command.recipe).query_sets[0]
    for key in ("pairs", "candidates", "qrels"):
        shutil.copy(command.project / getattr(queries, key), command.project / f"data/tiny/more.{key}")
    done = command()
    assert done.status == 0 and "left out" not in done.stdout, done
    assert not any(call.startswith("distill.sh") for call in command.calls())
    found = json.loads((command.results / "rows" / "standard.42.json").read_text())["test_sets"]
    assert found["more"]["MRR@10"]["per_query"] == found["test"]["MRR@10"]["per_query"]
    # what was measured stays in the table
    (command.project / "data/tiny/more.qrels").unlink()
    done = command("--only_table")
    assert done.status == 0 and "left out" not in done.stdout
    assert "more" in json.loads((command.results / "settings.json").read_text())["recipe"]["test_sets"]


def test_what_cannot_be_run_is_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(command("--only_table"), "--only_table: there is no results/tiny/settings.json")
    assert_refused(command("--only_table", "--timing"), "contradict each other")
    monkeypatch.setenv("hard_weight", "0")
    assert_refused(command(), "the variable hard_weight is set in the environment")
    monkeypatch.delenv("hard_weight")
    command.change('"data/tiny/qrels"', '"data/tiny/no_such"')
    assert_refused(command(), "tiny.toml: test_sets.test.qrels: there is no file data/tiny/no_such")
    command.recipe.write_text(RECIPE + '[rows.teacher]\nlabel = "x"\n')
    assert_refused(command(), "tiny.toml: ", "'teacher'")
    command.recipe.unlink()
    assert_refused(command(), "tiny.toml: No such file")


def test_the_whole_command_on_a_tiny_collection(project: Path, tmp_path: Path) -> None:
    write_transformers(project / "models" / "tiny" / "teacher", TEACHER, teacher_weights())
    write_published(project / "models" / "tiny" / "general_student", STUDENT, student_weights())
    recipe = RECIPE.partition("[rows.simplified]")[0].replace("[42, 43]", "[42]").replace("orders", "# orders")
    variables = 'train_batch_size = 4\nteacher_check = false\nprecision = "fp32"\ntrain_loss_step = 2\n'
    recipe = recipe.replace("learning_rate", variables + "learning_rate")
    (tmp_path / "tiny.toml").write_text(f"interpolation_weight = 0\n{recipe}")
    done = subprocess.run(
        [sys.executable, project / "experiments" / "make_table.py", tmp_path / "tiny.toml", "--no_timing"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "device": "cpu"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = project / "results" / "tiny" / "rows"
    found = {path.stem: json.loads(path.read_text()) for path in rows.iterdir()}
    assert found.keys() == {"bm25", "teacher", "standard.42"}
    assert found["bm25"]["test_sets"]["test"]["MRR@10"]["mean"] == 0.25
    assert found["standard.42"]["model"]["num_hidden_layers"] == 3 and found["standard.42"]["training_seconds"] > 0
    assert found["teacher"]["where"] == "fp32 on cpu (1 threads)" and found["teacher"]["training_seconds"] is None
    assert len(found["teacher"]["test_sets"]["test"]["MRR@10"]["per_query"]) == 6
    losses = (project / "results" / "tiny" / "logs" / "standard.42.train_loss.jsonl").read_text().splitlines()
    assert len(losses) == 3
    for name in ("teacher", "standard.42"):  # with weight 0, the order of the candidates
        assert found[name]["interpolation_weight"] == 0
        assert found[name]["interpolated"]["test"] == found["bm25"]["test_sets"]["test"]
    assert "| Standard KD | 1 | " in (project / "results" / "tiny" / "table.md").read_text()
