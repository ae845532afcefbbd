"""Re-ranking speeds side by side: the teacher and a student of each shape re-rank the same pairs, in turn."""

from pathlib import Path

from experiments.costs import read_sizes, rerank_speed
from experiments.recipe import Job, Recipe
from experiments.results import read_json, read_results, shape_of, write_json
from experiments.rows import Paths, rerank_variables, teacher_model, today, variables_of
from experiments.shell import run_shell
from formats.atomic import atomic_write
from formats.lines import read_lines
from runtime.errors import InputError


def measure_speeds(recipe: Recipe, paths: Paths, machine: str) -> None:
    """Times each model once in each round, and writes rows/speed.json.

    Raises InputError if a student is missing or reranker.sh fails.
    """
    queries = recipe.query_sets[0]
    sample = paths.runs / "timing_pairs.tsv"
    num_pairs = write_sample(Path(queries.pairs), sample, recipe.timing_pairs)
    models = models_to_time(recipe, paths)
    if missing := keys_to_time(recipe, paths) - models.keys():
        raise InputError(
            f"{paths.models} has no student of {min(missing)} (layers/hidden/inner) to time; pass --no_timing, or "
            "--redo with a row of such students"
        )
    rounds: list[dict[str, float]] = []
    where: set[str] = set()
    for number in range(1, recipe.timing_rounds + 1):
        speeds: dict[str, float] = {}
        for key, (job, model) in models.items():
            what = f"timing of {key}, round {number} of {recipe.timing_rounds}"
            print(what, flush=True)
            is_teacher = job.row.kind == "teacher"
            of_run = rerank_variables(queries, model, is_teacher, paths.runs / "timing") | {"test_pairs": str(sample)}
            run_shell(["reranker.sh"], variables_of(recipe, job) | of_run, what)
            name = "teacher" if is_teacher else model.name
            speeds[key], device = rerank_speed(paths.runs / "timing" / f"{name}.run")
            where.add(device)
        rounds.append(speeds)
    speed = {"test_set": queries.name, "pairs": num_pairs, "asked_for": recipe.timing_pairs, "rounds": rounds}
    speed |= {"where": ", ".join(sorted(where)), "machine": machine, "date": today()}
    write_json(paths.results / "rows" / "speed.json", speed)


def models_to_time(recipe: Recipe, paths: Paths) -> dict[str, tuple[Job, Path]]:
    """Returns `{"teacher" or shape: (job, model directory)}`: the teacher, and the first student of each shape."""
    models: dict[str, tuple[Job, Path]] = {}
    if teacher := recipe.row_of_kind("teacher"):
        models["teacher"] = Job(teacher, None), teacher_model(recipe)
    for job in recipe.jobs():
        student = paths.student(job)
        if job.row.kind == "student" and (student / "config.json").exists():
            models.setdefault(shape_of(read_sizes(student)), (job, student))
    return models


def keys_to_time(recipe: Recipe, paths: Paths) -> set[str]:
    """Returns the speeds that the table needs: the teacher's, and those of the shapes of the measured students."""
    results = read_results(paths.results)
    shapes = {shape_of(data["model"]) for row in recipe.rows for data in results.of(row) if row.kind == "student"}
    return shapes | ({"teacher"} if recipe.row_of_kind("teacher") else set())


def is_timed(recipe: Recipe, paths: Paths) -> bool:
    """Returns whether the speeds that the table needs were measured with the recipe's settings."""
    path = paths.results / "rows" / "speed.json"
    if not path.exists():
        return False
    speed, needed = read_json(path), keys_to_time(recipe, paths)
    return (
        speed["asked_for"] == recipe.timing_pairs
        and len(speed["rounds"]) == recipe.timing_rounds
        and all(needed <= speeds.keys() for speeds in speed["rounds"])
    )


def write_sample(pairs: Path, sample: Path, count: int) -> int:
    """Writes `count` evenly spread lines of the pairs, or all if there are fewer; returns their number."""
    total = sum(1 for _ in read_lines(pairs))
    chosen = {i * total // count + 1 for i in range(count)} if count < total else range(1, total + 1)
    lines = [f"{line}\n" for number, line in read_lines(pairs) if number in chosen]
    sample.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(sample) as file:
        file.writelines(lines)
    return len(lines)
