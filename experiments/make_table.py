"""A recipe in; its rows run, measured and put into a table and a picture."""

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from evaluation.measures import measure_per_query
from experiments.costs import SIZES, flops_per_pair, num_parameters
from experiments.picture import write_picture
from experiments.recipe import QuerySet, Recipe, Row, Variable, load_recipe, parse_recipe
from experiments.table import file_name, latex, markdown, read_results, shape_of
from formats.atomic import atomic_write
from formats.lines import read_lines
from formats.trec import read_qrels_with_note, read_run
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import lock_directory, report, run_script

ROOT = Path(__file__).resolve().parents[1]
STOPPED = 75  # exit status of distill.py: stopped by a signal and saved, to be gone on with
# Where a row runs, not what it computes: these may come from the environment, and may change between rows.
OF_THE_MACHINE = {"device", "num_processes", "python"}
# Set by this script for each row.
OWN = {
    *("seed", "overwrite", "features_file", "output_student_dir", "student_model", "runs_dir"),
    *("test_pairs", "candidates_run", "qrels"),
}


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Runs the rows of a recipe by distill.sh and reranker.sh and makes a table of them.

  python experiments/make_table.py experiments/python_docs.toml

In:  a recipe. experiments/python_docs.toml says what stands in one. device, num_processes and python are taken from the
     environment, and variables of the recipe's own preparation.
Out: results/NAME/ with settings.json, rows/ROW.SEED.json (variables, measures per query, costs), rows/speed.json,
     logs/, table.md, table.tex and table.png; models in models/NAME/rows/, runs in runs/NAME/.

What is done is not done again, so after a stop the same command goes on, also within a training. A row that was made
with other variables than the recipe has is refused; --redo runs it again.""",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a .toml file")
    parser.add_argument(
        "--only_table", action="store_true", help="run nothing: make the table of the rows that are there"
    )
    parser.add_argument("--timing", action="store_true", help="measure the speeds anew")
    parser.add_argument("--no_timing", action="store_true", help="do not measure speeds")
    parser.add_argument(
        "--redo", nargs="+", default=[], metavar="ROW", help="remove what these rows have, and run them again"
    )
    args = parser.parse_args()
    if args.timing + args.no_timing + args.only_table > 1:
        raise InputError("--timing, --no_timing and --only_table contradict each other; give one of them")
    if args.only_table and args.redo:
        raise InputError("--redo: has no use with --only_table, leave it out")
    return args


def script_variables(script: str) -> set[str]:
    """The variables that a shell script takes from the environment."""
    return set(re.findall(r"^(\w+)=\$\{\1:?-", ROOT.joinpath(script).read_text("utf-8"), flags=re.M))


def as_text(variables: Mapping[str, Variable]) -> dict[str, str]:
    """Variables as the shell scripts take them: true is yes."""
    return {
        name: {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        for name, value in variables.items()
    }


def run_shell(arguments: list[str], variables: Mapping[str, Variable], what: str) -> None:
    """Runs bash with these variables, from the project's folder.

    Ctrl-C and SIGTERM reach all of its processes as SIGINT, and it is waited for: distill.py then saves a checkpoint.
    Raises InputError where it fails, KeyboardInterrupt where it was stopped.
    """
    environment = {"python": sys.executable} | os.environ | as_text(variables)
    child = subprocess.Popen(["bash", *arguments], env=environment, stdin=subprocess.DEVNULL, process_group=0)
    is_stopped = False

    def stop(*_: object) -> None:
        nonlocal is_stopped
        is_stopped = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if is_stopped or status == STOPPED:
        raise KeyboardInterrupt
    if status:
        raise InputError(f"{what}: bash ended with status {status}, for the reason above; the same command goes on")


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        json.dump(data, file, indent=1, ensure_ascii=False)
        file.write("\n")


class Places:
    """Where a recipe's files are, from the project's folder."""

    def __init__(self, recipe: Recipe) -> None:
        self.results = Path("results") / recipe.name
        self.models = Path("models") / recipe.name / "rows"
        self.runs = Path("runs") / recipe.name

    def data(self, row: Row, seed: int | None) -> Path:
        return self.results / "rows" / f"{file_name(row.name, seed)}.json"

    def student(self, row: Row, seed: int | None) -> Path:
        return self.models / file_name(row.name, seed)

    def record(self, row: Row, seed: int | None) -> Path:
        """The variables that a student was, or is being, trained with."""
        return self.models / f"{file_name(row.name, seed)}.json"

    def run(self, queries: QuerySet, row: Row, seed: int | None) -> Path:
        """reranker.sh names runs by their model."""
        name = "teacher" if row.kind == "teacher" else file_name(row.name, seed)
        return self.runs / queries.name / f"{name}.run"


def shared_variables(recipe: Recipe) -> dict[str, Variable]:
    """The recipe's variables, of which distill.sh and reranker.sh take what they know."""
    return {"collection": recipe.name} | recipe.variables


def teacher_model(recipe: Recipe) -> str:
    variables = shared_variables(recipe)
    return str(variables.get("teacher_model", f"models/{variables['collection']}/teacher"))


def variables_of(recipe: Recipe, row: Row, seed: int | None) -> dict[str, Variable]:
    """What makes a row what it is. None for the candidates; for the teacher, who is there already, re-ranking's."""
    if row.kind == "candidates":
        return {}
    shared = shared_variables(recipe)
    if row.kind == "teacher":
        known = script_variables("reranker.sh")
        return {name: value for name, value in shared.items() if name in known}
    return shared | row.variables | {"seed": seed}


def is_done(recipe: Recipe, places: Places, row: Row, seed: int | None) -> bool:
    """Whether a row's data are there, with all measures of the recipe.

    Raises InputError where they, or a student without data yet, were made with other variables.
    """
    variables = variables_of(recipe, row, seed)
    data = places.data(row, seed)
    for path in (data, places.record(row, seed)):
        if path.exists() and (made := read_json(path)["variables"]) != variables:
            name = next(name for name in [*variables, *made] if made.get(name) != variables.get(name))
            raise InputError(
                f"{path} was made with {name}={made.get(name, '')}, the recipe has {name}={variables.get(name, '')}; "
                f"pass --redo {row.name}, or change it back"
            )
    if not data.exists():
        return False
    measured = read_json(data)["test_sets"]
    return all(set(queries.measures) <= set(measured.get(queries.name, {})) for queries in recipe.query_sets)


def check_test_sets(recipe: Recipe, places: Places, redo: list[str]) -> None:
    """Refuses other files for a test set that rows, but for those in `redo`, were measured on."""
    kept = [places.data(row, seed) for row, seed in jobs(recipe) if row.name not in redo]
    measured = {name for path in kept if path.exists() for name in read_json(path)["test_sets"]}
    settings_file = places.results / "settings.json"
    before = read_json(settings_file)["recipe"]["test_sets"] if settings_file.exists() else {}
    for queries in recipe.query_sets:
        for key in ("pairs", "candidates", "qrels"):
            made, path = before.get(queries.name, {}).get(key), getattr(queries, key)
            if queries.name in measured and made not in (None, path):
                raise InputError(
                    f"{places.results} was made with test_sets.{queries.name}.{key} {made}, the recipe has {path}; "
                    "give the test set another name, --redo all rows, or change it back"
                )


def forget(places: Places, recipe: Recipe, row: Row) -> None:
    """Removes what a row has: data, students, runs."""
    for seed in row.seeds or [None]:
        for path in (places.data(row, seed), places.record(row, seed)):
            path.unlink(missing_ok=True)
        for queries in recipe.query_sets:
            places.run(queries, row, seed).unlink(missing_ok=True)
        student = places.student(row, seed)
        for path in (student, student.with_name(f"{student.name}_intermediate")):
            shutil.rmtree(path, ignore_errors=True)


def run_row(recipe: Recipe, places: Places, row: Row, seed: int | None, machine: str) -> None:
    """Distils, re-ranks and measures a row, as far as that is not done, and writes its data."""
    variables = variables_of(recipe, row, seed)
    student = places.student(row, seed)
    model = {"candidates": None, "teacher": Path(teacher_model(recipe)), "student": student}[row.kind]
    what = f"row {file_name(row.name, seed)}"
    if row.kind == "student":
        write_json(places.record(row, seed), {"variables": variables})
        if not is_finished(student):
            run_shell(["distill.sh"], variables | {"output_student_dir": str(student)}, what)
    if model is not None:
        if not (model / "config.json").exists() and not (model / "bert_config.json").exists():
            raise InputError(f"{what}: {model} holds no model; the recipe's preparation needs to make it")
        for queries in recipe.query_sets:
            run = places.run(queries, row, seed)
            if not run.exists():
                models = {"student_model": "" if row.kind == "teacher" else str(student)}
                models |= {"teacher_model": str(model) if row.kind == "teacher" else ""}
                run_shell(["reranker.sh"], variables | files_of(queries) | {"runs_dir": str(run.parent)} | models, what)
    data: dict[str, Any] = {"row": row.name, "seed": seed, "variables": variables, "machine": machine, "date": today()}
    if model is not None:
        config = read_config(model)
        speed, where = speed_of(places.run(recipe.query_sets[0], row, seed))
        data |= {
            "model": config,
            "parameters": num_parameters(config),
            "flops_per_pair": flops_per_pair(config, int(variables["max_seq_length"])),
            "training_seconds": training_seconds(model),
            "pairs_per_second": speed,  # of the whole run, at whatever load the machine had then
            "where": where,
        }
        keep_logs(model, places.results / "logs", file_name(row.name, seed))
    data["test_sets"] = {
        queries.name: measure(queries, places.run(queries, row, seed) if model else Path(queries.candidates))
        for queries in recipe.query_sets
    }
    write_json(places.data(row, seed), data)


def is_finished(student: Path) -> bool:
    """Whether a training has ended; one that was stopped distill.sh goes on with."""
    training = student / "training.json"
    is_unfinished = training.exists() and '"finished": false' in training.read_text("utf-8")
    return (student / "config.json").exists() and not is_unfinished


def files_of(queries: QuerySet) -> dict[str, Variable]:
    return {"test_pairs": queries.pairs, "candidates_run": queries.candidates, "qrels": queries.qrels}


def measure(queries: QuerySet, run_file: Path) -> dict[str, dict[str, Any]]:
    """Each measure of a run, over the judged queries of the candidates; one that the run lacks counts 0."""
    qrels, run = read_qrels_with_note(queries.qrels), read_run(run_file)
    query_ids = sorted(qrels.keys() & read_run(queries.candidates).keys())
    if not query_ids:
        raise InputError(f"{queries.qrels} and {queries.candidates} share no query; are they of the same collection?")
    found: dict[str, dict[str, Any]] = {}
    for name in queries.measures:
        values = measure_per_query(name, qrels, run)
        per_query = {query_id: values.get(query_id, 0.0) for query_id in query_ids}
        found[name] = {"mean": sum(per_query.values()) / len(query_ids), "per_query": per_query}
    return found


def read_config(model: Path) -> dict[str, int]:
    """The sizes that a model directory's config names."""
    path = next(path for name in ("config.json", "bert_config.json") if (path := model / name).exists())
    config = {"type_vocab_size": 2, "max_position_embeddings": 512} | read_json(path)
    return {name: config[name] for name in SIZES}


def training_seconds(model: Path) -> float | None:
    """The seconds that a model's training took, TinyBERT's two steps together; None where nobody knows.

    Of a training that was stopped and gone on with, the log's last part is taken for the whole's speed.
    """
    total = 0.0
    for directory in (model.with_name(f"{model.name}_intermediate"), model):
        if not (directory / "distill.log").exists():
            continue
        log = (directory / "distill.log").read_text("utf-8")
        ends = re.findall(r"(\d+) examples in ([\d.]+) s, [\d.]+ examples/s$", log, flags=re.M)
        updates, batch_sizes = re.findall(r"update (\d+) of \d+", log), re.findall(r"train_batch_size=(\d+)", log)
        if not ends or not updates or not batch_sizes or not int(ends[-1][0]):
            return None
        total += float(ends[-1][1]) * int(updates[-1]) * int(batch_sizes[-1]) / int(ends[-1][0])
    return round(total, 1) or None


def speed_of(run: Path) -> tuple[float, str]:
    """Pairs per second of the last re-ranking behind a run, and its precision and device, out of its log."""
    log = run.with_suffix(".scores.tsv.log")
    lines = re.findall(r" ([\d.]+) passages/s, \S.* in (\w+ on .*)$", log.read_text("utf-8"), flags=re.M)
    if not lines:
        raise InputError(f"{log} names no speed; remove {run} to re-rank again")
    return float(lines[-1][0]), lines[-1][1]


def keep_logs(model: Path, logs: Path, name: str) -> None:
    """Copies a training's log and losses. Updates stand in the losses, so the log is kept without them."""
    logs.mkdir(parents=True, exist_ok=True)
    for directory, step in ((model.with_name(f"{model.name}_intermediate"), ".intermediate"), (model, "")):
        if (log := directory / "distill.log").exists():
            lines = log.read_text("utf-8").splitlines(keepends=True)
            with atomic_write(logs / f"{name}{step}.distill.log") as file:
                file.writelines(line for line in lines if not re.search(r" INFO update \d+ of \d+:", line))
        if (losses := directory / "train_loss.jsonl").exists():
            shutil.copyfile(losses, logs / f"{name}{step}.train_loss.jsonl")


def measure_speeds(recipe: Recipe, places: Places, machine: str) -> None:
    """Re-ranks one sample of pairs with the teacher and with a student of each shape, in turn, in several rounds."""
    queries = recipe.query_sets[0]
    sample = places.runs / "timing_pairs.tsv"
    count = write_sample(Path(queries.pairs), sample, recipe.timing_pairs)
    models: dict[str, tuple[Row, Path]] = {}
    if teacher := recipe.row_of("teacher"):
        models["teacher"] = teacher, Path(teacher_model(recipe))
    for row in recipe.rows:
        for seed in row.seeds:
            if (student := places.student(row, seed) / "config.json").exists():
                models.setdefault(shape_of(read_config(student.parent)), (row, student.parent))
    if gone := to_be_timed(recipe, places) - models.keys():
        raise InputError(
            f"{places.models} has no student of {min(gone)} (layers/hidden/inner) to time; pass --no_timing, or --redo "
            "a row with one"
        )
    rounds: list[dict[str, float]] = []
    where: set[str] = set()
    for number in range(1, recipe.timing_rounds + 1):
        rounds.append({})
        for key, (row, model) in models.items():
            what = f"timing of {key}, round {number} of {recipe.timing_rounds}"
            print(what, flush=True)
            variables = variables_of(recipe, row, row.seeds[0] if row.seeds else None) | files_of(queries)
            variables |= {"test_pairs": str(sample), "runs_dir": str(places.runs / "timing")}
            is_teacher = row.kind == "teacher"
            variables |= {
                "teacher_model": str(model) if is_teacher else "",
                "student_model": "" if is_teacher else str(model),
            }
            run_shell(["reranker.sh"], variables, what)
            name = "teacher" if is_teacher else model.name
            rounds[-1][key], device = speed_of(places.runs / "timing" / f"{name}.run")
            where.add(device)
    write_json(
        places.results / "rows" / "speed.json",
        {
            "test_set": queries.name,
            "pairs": count,
            "asked_for": recipe.timing_pairs,
            "rounds": rounds,
            "where": ", ".join(sorted(where)),
            "machine": machine,
            "date": today(),
        },
    )


def write_sample(pairs: Path, sample: Path, count: int) -> int:
    """Writes so many of the pairs' lines, evenly spread, or all where there are fewer; returns how many."""
    total = sum(1 for _ in read_lines(pairs))
    chosen = {i * total // count + 1 for i in range(count)} if count < total else range(1, total + 1)
    lines = [f"{line}\n" for number, line in read_lines(pairs) if number in chosen]
    text = "".join(lines)
    if not sample.exists() or sample.read_text("utf-8") != text:  # reranker.sh tokenizes what is newer
        sample.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(sample) as file:
            file.write(text)
    return len(lines)


def is_timed(recipe: Recipe, places: Places) -> bool:
    """Whether the speeds of all shapes in the table were measured as the recipe asks."""
    path = places.results / "rows" / "speed.json"
    if not path.exists():
        return False
    speed, needed = read_json(path), to_be_timed(recipe, places)
    return (
        speed["asked_for"] == recipe.timing_pairs
        and len(speed["rounds"]) == recipe.timing_rounds
        and all(needed <= speeds.keys() for speeds in speed["rounds"])
    )


def to_be_timed(recipe: Recipe, places: Places) -> set[str]:
    """What the table needs the speeds of: the teacher, and the shapes of the students that were measured."""
    results = read_results(places.results)
    shapes = {shape_of(data["model"]) for row in recipe.rows for data in results.of(row) if row.kind == "student"}
    return shapes | ({"teacher"} if recipe.row_of("teacher") else set())


def write_table(results: Path) -> None:
    """Makes table.md, table.tex and table.png of the data in a folder of results; needs no models."""
    found = read_results(results)
    for name, text in (("table.md", markdown(found)), ("table.tex", latex(found))):
        with atomic_write(results / name) as file:
            file.write(text)
    picture = results / "table.png"
    if found.speed is None:
        picture.unlink(missing_ok=True)
    else:
        write_picture(picture, found)


def today() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"


def check_environment() -> None:
    """Refuses variables of the shell scripts in the environment: they would change all rows, and stand nowhere."""
    known = script_variables("distill.sh") | script_variables("reranker.sh")
    for name in sorted(known - OF_THE_MACHINE):
        if name in os.environ:
            raise InputError(f"the variable {name} is set in the environment; set it in the recipe, and unset it here")


def jobs(recipe: Recipe) -> Iterator[tuple[Row, int | None]]:
    """All rows, with each of their seeds."""
    return ((row, seed) for row in recipe.rows for seed in (row.seeds or [None]))


def run_recipe(args: argparse.Namespace, recipe: Recipe, settings: dict[str, Any]) -> None:
    """Runs what is not done, and measures the speeds."""
    places = Places(recipe)
    for name in args.redo:
        if name not in [row.name for row in recipe.rows]:
            raise InputError(f"--redo: {args.recipe} has no row {name}")
    check_environment()
    for name in args.redo:
        forget(places, recipe, recipe.row(name))
    missing = [job for job in jobs(recipe) if not is_done(recipe, places, *job)]
    settings_file = places.results / "settings.json"
    if missing or not settings_file.exists():
        write_json(settings_file, settings)
    else:
        write_json(settings_file, read_json(settings_file) | {"recipe": settings["recipe"]})
    if not missing and (args.no_timing or (is_timed(recipe, places) and not args.timing)):
        return
    if recipe.prepare:
        run_shell(["-euo", "pipefail", "-c", recipe.prepare], shared_variables(recipe), "prepare")
    for queries in recipe.query_sets:
        for key in ("pairs", "candidates", "qrels"):
            if not os.access(path := getattr(queries, key), os.R_OK):
                raise InputError(f"{args.recipe}: test_sets.{queries.name}.{key}: {path} is not there")
    for number, (row, seed) in enumerate(missing, start=1):
        print(f"row {number} of the {len(missing)} to run: {row.label}, seed {seed}".removesuffix(", seed None"))
        sys.stdout.flush()
        run_row(recipe, places, row, seed, settings["machine"])
    if not args.no_timing and (args.timing or not is_timed(recipe, places)):
        measure_speeds(recipe, places, settings["machine"])


def main() -> None:
    args = parse_args()
    known = (script_variables("distill.sh") | script_variables("reranker.sh")) - OWN - OF_THE_MACHINE
    data = load_recipe(args.recipe)
    recipe = parse_recipe(data, args.recipe, known)
    os.chdir(ROOT)
    results = Path("results") / recipe.name
    settings_file = results / "settings.json"
    check_test_sets(recipe, Places(recipe), args.redo)
    if args.only_table:
        if not settings_file.exists():
            raise InputError(f"--only_table: there is no {settings_file}; run the recipe without it")
        write_json(settings_file, read_json(settings_file) | {"recipe": data})
    else:
        settings = {
            "recipe": data,
            "date": today(),
            "machine": describe_machine("torch", "transformers"),
            "environment": {name: os.environ[name] for name in ("device", "num_processes") if name in os.environ},
        }
        with lock_directory(results, "RECIPE"):
            run_recipe(args, recipe, settings)
    write_table(results)
    done = sum(Places(recipe).data(*job).exists() for job in jobs(recipe))
    report(f"wrote {results}/table.md of {done} of {len(list(jobs(recipe)))} runs", results / "table")


if __name__ == "__main__":
    run_script(main)
