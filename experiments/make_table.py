"""Runs the rows of a recipe and makes a table and a plot of their results."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import os
from typing import Any

from benchmarks.machine import describe_machine
from experiments.recipe import Recipe, leave_out_missing, load_recipe, parse_recipe
from experiments.report import latex, markdown
from experiments.results import SETTINGS_FILE, read_json, read_results, write_json
from experiments.rows import (
    Paths,
    check_inputs_stay,
    check_teacher_stays,
    check_test_sets,
    is_done,
    remove_row,
    run_job,
    shared_variables,
    today,
)
from experiments.shell import check_environment, recipe_variables, run_shell
from experiments.timing import is_timed, measure_speeds
from formats.atomic import atomic_write
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import lock_directory, report, run_script

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Runs the rows of a recipe with distill.sh and reranker.sh and makes a table of their results.

  python experiments/make_table.py experiments/python_docs.toml

In:  a recipe; experiments/python_docs.toml explains its keys. The variables device, num_processes and python come from
     the environment, and so do the variables of the recipe's own preparation.
Out: results/NAME/ with settings.json, rows/ROW.SEED.json (variables, measures per query, costs), rows/speed.json,
     logs/, table.md, table.tex and table.png; models in models/NAME/rows/, runs in runs/NAME/.

Finished parts are not run again. So after a stop the same command resumes, also within a training. A row that was made
with other variables than those of the recipe is an error; --redo runs it again.""",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a .toml file")
    parser.add_argument("--only_table", action="store_true", help="run nothing; make the table from the existing data")
    parser.add_argument("--timing", action="store_true", help="measure the speeds again")
    parser.add_argument("--no_timing", action="store_true", help="do not measure speeds")
    parser.add_argument(
        "--redo", nargs="+", default=[], metavar="ROW", help="remove the results of these rows and run them again"
    )
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that contradict each other."""
    if args.timing + args.no_timing + args.only_table > 1:
        raise InputError("--timing, --no_timing and --only_table contradict each other; give one of them")
    if args.only_table and args.redo:
        raise InputError("--redo: has no use with --only_table; leave it out")


def run_recipe(args: argparse.Namespace, recipe: Recipe, settings: dict[str, Any]) -> None:
    """Runs the jobs that are not done, then measures the speeds. Writes settings.json first."""
    paths = Paths(recipe)
    for name in args.redo:
        if name not in [row.name for row in recipe.rows]:
            raise InputError(f"--redo: {args.recipe} has no row {name}")
    check_environment()
    for name in args.redo:
        remove_row(recipe, paths, recipe.row(name))
    missing = [job for job in recipe.jobs() if not is_done(recipe, paths, job)]
    check_teacher_stays(recipe, paths, missing)
    settings_file = paths.results / SETTINGS_FILE
    if missing or not settings_file.exists():
        write_json(settings_file, settings)
    else:
        write_json(settings_file, read_json(settings_file) | {"recipe": settings["recipe"]})
    if not missing and (args.no_timing or (is_timed(recipe, paths) and not args.timing)):
        return
    if recipe.prepare:
        run_shell(["-euo", "pipefail", "-c", recipe.prepare], shared_variables(recipe), "prepare")
    for queries in recipe.query_sets:
        for key in ("pairs", "candidates", "qrels"):
            if not os.access(path := getattr(queries, key), os.R_OK):
                raise InputError(f"{args.recipe}: test_sets.{queries.name}.{key}: there is no file {path}")
    for number, job in enumerate(missing, start=1):
        seed = "" if job.seed is None else f", seed {job.seed}"
        print(f"row {number} of {len(missing)} to run: {job.row.label}{seed}", flush=True)
        run_job(recipe, paths, job, settings["machine"])
    if not args.no_timing and (args.timing or not is_timed(recipe, paths)):
        measure_speeds(recipe, paths, settings["machine"])


def write_table(directory: Path) -> None:
    """Writes table.md, table.tex and table.png from the data in a folder of results; needs no models."""
    results = read_results(directory)
    for name, text in (("table.md", markdown(results)), ("table.tex", latex(results))):
        with atomic_write(directory / name) as file:
            file.write(text)
    picture = directory / "table.png"
    if results.speed is None:
        picture.unlink(missing_ok=True)
    else:
        from experiments.picture import write_picture  # here, because matplotlib takes long to import

        write_picture(picture, results)


def main() -> None:
    args = parse_args()
    data = load_recipe(args.recipe)
    recipe = parse_recipe(data, args.recipe, recipe_variables())
    os.chdir(ROOT)  # the paths in the recipe, and all outputs, are relative to the project's folder
    paths = Paths(recipe)
    settings_file = paths.results / SETTINGS_FILE
    before = read_json(settings_file)["recipe"]["test_sets"] if settings_file.exists() else {}
    for note in list(leave_out_missing(data, recipe, before)):
        print(note, flush=True)
    recipe = parse_recipe(data, args.recipe, recipe_variables())
    check_inputs_stay(recipe, paths)
    check_test_sets(recipe, paths, args.redo)
    if args.only_table:
        if not settings_file.exists():
            raise InputError(f"--only_table: there is no {settings_file}; run the recipe without --only_table")
        write_json(settings_file, read_json(settings_file) | {"recipe": data})
    else:
        settings = {
            "recipe": data,
            "date": today(),
            "machine": describe_machine("torch"),
            "environment": {name: os.environ[name] for name in ("device", "num_processes") if name in os.environ},
        }
        with lock_directory(paths.results, "RECIPE"):
            run_recipe(args, recipe, settings)
    write_table(paths.results)
    jobs = recipe.jobs()
    done = sum(paths.data(job).exists() for job in jobs)
    report(f"wrote {paths.results}/table.md with {done} of {len(jobs)} runs", paths.results / "table")


if __name__ == "__main__":
    run_script(main)
