"""Prints the results of gpu.sh as a table, with the goals."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import itertools
import json

from benchmarks.machine import Row
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import run_script


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Prints the results of benchmarks/gpu.sh as a table: each value with its unit and its goal, and
whether the goal is reached.

  python benchmarks/gpu_summary.py gpu_results

The exit status is 0, also where a check failed or a goal is missed: the table says so.""",
    )
    parser.add_argument("directory", type=Path, help="the directory with the results, `out` of gpu.sh")
    return parser.parse(lambda args: None)


def line_of(rows: list[Row]) -> str:
    """A line of the table: what was measured, the values with their units and goals."""
    return f"  {rows[0].what}: {', '.join(map(value_of, rows))}"


def value_of(row: Row) -> str:
    value = f"{row.value:,.0f}" if row.value >= 1000 or row.value == int(row.value) else f"{row.value:.2f}"
    if row.goal is None:
        return f"{value} {row.unit}"
    is_reached = row.value <= row.goal if row.at_most else row.value >= row.goal
    goal = f"goal: {'at most' if row.at_most else 'at least'} {row.goal:,g}"
    return f"{value} {row.unit} ({goal}{'' if is_reached else ', MISSED'})"


def main(args: argparse.Namespace) -> None:
    files = sorted(args.directory.glob("*.json"))
    students = sorted(args.directory.glob("recipe/*.speed.json"))
    if not files + students:
        raise InputError(f"{args.directory} has no results; run benchmarks/gpu.sh")
    machine = None
    for file in files:
        results = json.loads(file.read_text("utf-8"))
        if results["device"] != machine:
            machine = results["device"]
            versions = ", ".join(f"{name} {results[name]}" for name in ("torch", "transformers", "driver"))
            print(f"\n{machine}, {versions}, {results['date']}")
        verdict = {True: "passed", False: "FAILED", None: "not run"}[results["passed"]]
        print(f"{file.stem}: {verdict}")
        for _, rows in itertools.groupby((Row(**row) for row in results["rows"]), lambda row: row.what):
            print(line_of(list(rows)))
    for file in students:
        speed = json.loads(file.read_text("utf-8"))
        name = file.name.removesuffix(".scores.tsv.speed.json")
        print(line_of([Row(f"recipe/{name}", speed["passages_per_second"], "passages/s")]))


if __name__ == "__main__":
    run_script(main, parse_args())
