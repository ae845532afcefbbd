"""The rows of a recipe: where their files are, whether they are done, and how to run them."""

import datetime
import re
import shutil
from pathlib import Path
from typing import Any

from evaluation.measures import measure_per_query
from experiments.costs import (
    first_step_directory,
    flops_per_pair,
    num_parameters,
    read_sizes,
    rerank_speed,
    training_seconds,
)
from experiments.recipe import Job, QuerySet, Recipe, Row, Variable
from experiments.results import SETTINGS_FILE, read_json, write_json
from experiments.shell import run_shell, script_variables
from formats.atomic import atomic_write
from formats.run_file import RUN_FILE, read_run_file
from formats.trec import read_qrels_with_note, read_run
from runtime.errors import InputError
from runtime.script import same_files


class Paths:
    """Where the files of a recipe are, relative to the project's folder."""

    def __init__(self, recipe: Recipe) -> None:
        self.results = Path("results") / recipe.name
        self.models = Path("models") / recipe.name / "rows"
        self.runs = Path("runs") / recipe.name

    def data(self, job: Job) -> Path:
        return self.results / "rows" / f"{job.name}.json"

    def student(self, job: Job) -> Path:
        return self.models / job.name

    def student_variables(self, job: Job) -> Path:
        """The variables that the student is trained with, written before the training."""
        return self.models / f"{job.name}.json"

    def run(self, queries: QuerySet, job: Job) -> Path:
        """reranker.sh names a run after its model."""
        return self.runs / queries.name / f"{'teacher' if job.row.kind == 'teacher' else job.name}.run"


def today() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"


def shared_variables(recipe: Recipe) -> dict[str, Variable]:
    """Returns the variables of all rows. Each shell script uses those that it knows."""
    return {"collection": recipe.name} | recipe.variables


def teacher_model(recipe: Recipe) -> Path:
    variables = shared_variables(recipe)
    return Path(str(variables.get("teacher_model", f"models/{variables['collection']}/teacher")))


def variables_of(recipe: Recipe, job: Job) -> dict[str, Variable]:
    """Returns the variables that a job's data depend on.

    These are all variables for a student, those of reranker.sh for the teacher, and none for the candidates.
    """
    if job.row.kind == "candidates":
        return {}
    shared = shared_variables(recipe)
    if job.row.kind == "teacher":
        known = script_variables("reranker.sh")
        return {name: value for name, value in shared.items() if name in known}
    return shared | job.row.variables | {"seed": job.seed}


def is_done(recipe: Recipe, paths: Paths, job: Job) -> bool:
    """Returns whether a job's data exist, with all measures of the recipe.

    Raises InputError if the data, or the student, were made with other variables.
    """
    variables = variables_of(recipe, job)
    data = paths.data(job)
    for path in (data, paths.student_variables(job)):
        if path.exists() and (used := read_json(path)["variables"]) != variables:
            name = next(name for name in [*variables, *used] if used.get(name) != variables.get(name))
            raise InputError(
                f"{path} was made with {name}={used.get(name, '')}, the recipe has {name}={variables.get(name, '')}; "
                f"pass --redo {job.row.name}, or change it back"
            )
    if not data.exists():
        return False
    found = read_json(data)
    parts = [found["test_sets"]]
    if is_interpolated(recipe, job):
        parts.append(found["interpolated"] if found.get("interpolation_weight") == recipe.interpolation_weight else {})
    return all(set(queries.measures) <= set(of.get(queries.name, {})) for of in parts for queries in recipe.query_sets)


def is_interpolated(recipe: Recipe, job: Job) -> bool:
    """Returns whether the job also has a run that is interpolated with the candidates."""
    return recipe.interpolation_weight is not None and job.row.kind != "candidates"


def check_test_sets(recipe: Recipe, paths: Paths, redo: list[str]) -> None:
    """Raises InputError if the files of a test set changed after rows, except those in `redo`, were measured on it."""
    kept = [paths.data(job) for job in recipe.jobs() if job.row.name not in redo]
    measured = {name for path in kept if path.exists() for name in read_json(path)["test_sets"]}
    settings_file = paths.results / SETTINGS_FILE
    before = read_json(settings_file)["recipe"]["test_sets"] if settings_file.exists() else {}
    for queries in recipe.query_sets:
        for key in ("pairs", "candidates", "qrels"):
            used, path = before.get(queries.name, {}).get(key), getattr(queries, key)
            if queries.name in measured and used not in (None, path):
                raise InputError(
                    f"{paths.results} was made with test_sets.{queries.name}.{key} {used}, the recipe has {path}; "
                    "give the test set another name, pass --redo with all rows, or change it back"
                )


def check_teacher_stays(recipe: Recipe, paths: Paths, missing: list[Job]) -> None:
    """Raises InputError if rows exist, and rows to run would get another teacher, because that of the rows is gone."""
    model = teacher_model(recipe)
    if not {job.row.kind for job in missing} & {"teacher", "student"} or not recipe.prepare or model.exists():
        return
    for job in recipe.jobs():
        if job.row.kind != "candidates" and job not in missing:
            raise InputError(
                f"{paths.data(job)} was made with a teacher that is not in {model} any more; new rows would have "
                f"another teacher. Move {paths.results} away to make all rows again, or pass --only_table"
            )


def check_inputs_stay(recipe: Recipe, paths: Paths) -> None:
    """Raises InputError if a file of a test set is a file that make_table.py writes or removes."""
    outputs = [paths.results / name for name in ("table.md", "table.tex", "table.png", "table.log", SETTINGS_FILE)]
    outputs += [paths.results / "rows" / "speed.json", paths.runs / "timing_pairs.tsv"]
    students = []
    for job in recipe.jobs():
        outputs += [paths.data(job), paths.student_variables(job)]
        if job.row.kind != "candidates":
            outputs += [paths.run(queries, job) for queries in recipe.query_sets]
        students += [paths.student(job).resolve(), first_step_directory(paths.student(job)).resolve()]
    for queries in recipe.query_sets:
        for key in ("pairs", "candidates", "qrels"):
            file = getattr(queries, key)
            in_student = any(Path(file).resolve().is_relative_to(student) for student in students)
            if in_student or same_files([file], outputs):
                raise InputError(
                    f"test_sets.{queries.name}.{key}: {file} is also an output of this recipe; copy it to another place"
                )


def remove_row(recipe: Recipe, paths: Paths, row: Row) -> None:
    """Removes the data, students and runs of a row."""
    for job in row.jobs():
        runs = [paths.run(queries, job) for queries in recipe.query_sets]
        for path in (paths.data(job), paths.student_variables(job), *runs):
            path.unlink(missing_ok=True)
        for path in (paths.student(job), first_step_directory(paths.student(job))):
            shutil.rmtree(path, ignore_errors=True)


def run_job(recipe: Recipe, paths: Paths, job: Job, machine: str) -> None:
    """Trains, re-ranks and measures, without the parts that are done, and writes the job's data.

    Raises InputError if a script fails or the model is missing.
    """
    variables = variables_of(recipe, job)
    what = f"row {job.name}"
    data: dict[str, Any] = {"row": job.row.name, "seed": job.seed, "variables": variables}
    data |= {"machine": machine, "date": today()}
    if job.row.kind == "candidates":
        runs = {queries.name: Path(queries.candidates) for queries in recipe.query_sets}
    else:
        is_teacher = job.row.kind == "teacher"
        model = teacher_model(recipe) if is_teacher else paths.student(job)
        runs = {queries.name: paths.run(queries, job) for queries in recipe.query_sets}
        if not is_teacher:
            write_json(paths.student_variables(job), {"variables": variables})
            if not is_finished(model):
                run_shell(["distill.sh"], variables | {"output_student_dir": str(model)}, what)
        if not (model / "config.json").exists() and not (model / "bert_config.json").exists():
            raise InputError(f"{what}: {model} has no model; the recipe's `prepare` needs to make it")
        for queries in recipe.query_sets:
            if not runs[queries.name].exists():
                variables_of_run = rerank_variables(queries, model, is_teacher, runs[queries.name].parent)
                run_shell(["reranker.sh"], variables | variables_of_run, what)
        data |= costs_of(model, runs[recipe.query_sets[0].name], int(variables["max_seq_length"]))
        keep_logs(model, paths.results / "logs", job.name)
    data["test_sets"] = {queries.name: measure(queries, runs[queries.name]) for queries in recipe.query_sets}
    if is_interpolated(recipe, job):
        data["interpolation_weight"] = recipe.interpolation_weight
        data["interpolated"] = {
            queries.name: measure(queries, interpolated_run(recipe, queries, runs[queries.name], variables, what))
            for queries in recipe.query_sets
        }
    write_json(paths.data(job), data)


def interpolated_run(recipe: Recipe, queries: QuerySet, run: Path, variables: dict[str, Variable], what: str) -> Path:
    """Interpolates a run with the candidates, as reranker.sh does, from the scores beside it. Returns the new run."""
    output = run.with_suffix(".interpolated.run")
    flags = {
        "scores_file": run.with_suffix(".scores.tsv"),
        "output_results_file": output,
        "aggregation": variables.get("aggregation", ""),
        "run_name": output.stem,
        "interpolate_with": queries.candidates,
        "interpolation_weight": recipe.interpolation_weight,
    }
    command = ["convert_to_trec_results.py", "--overwrite", *(f"--{name}={value}" for name, value in flags.items())]
    run_shell(["-c", 'exec "$python" "$@"', "bash", *command], {}, what)
    return output


def is_finished(student: Path) -> bool:
    """Returns whether the training is finished; distill.sh resumes one that is not."""
    is_run = (student / RUN_FILE).exists()
    return (student / "config.json").exists() and (not is_run or read_run_file(student)["finished"])


def rerank_variables(queries: QuerySet, model: Path, is_teacher: bool, runs_dir: Path) -> dict[str, Variable]:
    """Returns the variables with which reranker.sh re-ranks one test set with one model."""
    return {
        "test_pairs": queries.pairs,
        "candidates_run": queries.candidates,
        "qrels": queries.qrels,
        "runs_dir": str(runs_dir),
        "teacher_model": str(model) if is_teacher else "",
        "student_model": "" if is_teacher else str(model),
    }


def costs_of(model: Path, run: Path, tokens: int) -> dict[str, Any]:
    sizes = read_sizes(model)
    speed, where = rerank_speed(run)
    return {
        "model": sizes,
        "parameters": num_parameters(sizes),
        "flops_per_pair": flops_per_pair(sizes, tokens),
        "training_seconds": training_seconds(model),
        "pairs_per_second": speed,  # of this run alone; the table shows rows/speed.json
        "where": where,
    }


def measure(queries: QuerySet, run_file: Path) -> dict[str, dict[str, Any]]:
    """Returns each measure of a run over the judged queries of the candidates. A query that the run lacks counts 0."""
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


def keep_logs(model: Path, logs: Path, name: str) -> None:
    """Copies the losses of a training, and its log without the lines of steps, which repeat the losses."""
    logs.mkdir(parents=True, exist_ok=True)
    for directory, stem in ((first_step_directory(model), f"{name}.intermediate"), (model, name)):
        if (log := directory / "distill.log").exists():
            lines = log.read_text("utf-8").splitlines(keepends=True)
            with atomic_write(logs / f"{stem}.distill.log") as file:
                file.writelines(line for line in lines if not re.search(r" INFO step \d+ of \d+:", line))
        if (losses := directory / "train_loss.jsonl").exists():
            shutil.copyfile(losses, logs / f"{stem}.train_loss.jsonl")
