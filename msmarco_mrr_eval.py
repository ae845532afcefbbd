"""MRR and MRR@10, or other measures, of TREC runs, and whether they differ from a baseline's by more than chance."""

import argparse
import json
import math
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from evaluation.measures import (
    Qrels,
    Run,
    canonical_name,
    first_relevant_rank,
    is_mean,
    measure_per_query,
    official_msmarco,
    reciprocal_rank,
    summarize,
)
from evaluation.significance import Comparison, compare, holm
from evaluation.tables import escape_latex, latex_table, markdown_table, text_table
from formats.atomic import atomic_write
from formats.lines import OnMalformed
from formats.trec import read_qrels_with_note, read_ranked_run, read_run
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import refuse_existing, run_script

DESCRIPTION = """Prints the number of queries of a run (query_num), MRR and MRR@10 over them, or other measures; of
several runs a table.
In: TREC judgements, `query_id 0 doc_id relevance`, of which a relevance above 0 is relevant, and TREC runs,
`query_id Q0 doc_id rank score run_name`, ranked by score as trec_eval does (the rank column is not looked at).
Out: lines `name: value` for one run, a table of four digits for several, or what --format says.
Call: python msmarco_mrr_eval.py qrels.txt run.txt
      python msmarco_mrr_eval.py qrels.txt student.run --baseline teacher.run --measures NDCG@10 MAP MRR@10

Which queries count: without --measures those of the run, 0 where there is no relevant document or no judgement at all;
with --measures those that are in the run and in the judgements, as in trec_eval; with --official_msmarco those in the
judgements, 0 where the run lacks one. The runs are compared with --baseline over the judged queries that at least one
of them has (with --official_msmarco: over all judged ones), and a query that one lacks counts 0 for it.

A line that does not fit is an error that names it; with --skip_malformed it is left out and named on stderr."""

OFFICIAL = "official_MRR@100"
FORMATS = ("text", "tsv", "json", "latex", "markdown")


class Evaluated(NamedTuple):
    """What a run is worth: how many queries count, and `{measure: {query_id: value}}`."""

    num_queries: int
    values: dict[str, dict[str, float]]


class Tested(NamedTuple):
    """A run's measure against the baseline's over `queries` queries; p-values corrected over the runs."""

    queries: int
    comparison: Comparison
    t_test_p_holm: float
    randomization_p_holm: float


# of each run that is no baseline: {run: {measure: what came out}}
Tests = dict[str, dict[str, Tested]]


def parse_args() -> argparse.Namespace:
    parser = Parser(DESCRIPTION)
    parser.add_argument("qrels", metavar="QRELS", help="judgements, four columns")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="runs, six columns")
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="MEASURE",
        help="instead of MRR and MRR@10: trec_eval's measures by its names (ndcg_cut.10) or the field's (NDCG@10, MAP, "
        "P@5, Recall@100, ...), MRR, MRR@k, and Judged@k, the share of the first k documents, or of all where there "
        "are fewer, that have a judgement. To be given after the runs; commas between them will do as well",
    )
    parser.add_argument(
        "--official_msmarco",
        action="store_true",
        help=f"{OFFICIAL} too, as the MS MARCO document ranking task has it: cut-off 100, documents in the order of "
        "the rank column (which must hold integers) and for equal ranks of their ids",
    )
    parser.add_argument(
        "--baseline",
        metavar="RUN",
        help="compare the other runs with this one, one of RUN or another: paired t-test and randomization test (two-"
        "sided; 100,000 random sign flips, or all where there are fewer), p-values with Holm's correction over the "
        "runs of each measure, effect size (Cohen's d of the differences), how many queries a run wins, ties, loses",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="of what is printed (default: text)")
    parser.add_argument("--per_query", metavar="FILE", help="write the columns run, measure, query_id, value; a TSV")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --per_query file")
    parser.add_argument("--skip_malformed", action="store_true", help="leave out lines that do not fit, and name them")
    args = parser.parse_args()
    if args.measures is not None:
        try:
            args.measures = [canonical_name(name) and name for names in args.measures for name in names.split(",")]
        except ValueError as error:
            raise InputError(f"--measures: {error}") from None
        _refuse_repeated("--measures", [canonical_name(name) for name in args.measures])
        no_mean = [name for name in args.measures if not is_mean(name)]
        if args.baseline and no_mean:
            raise InputError(f"--baseline: {no_mean[0]} is no mean over queries, which alone is tested; leave it out")
    if args.overwrite and not args.per_query:
        raise InputError("--overwrite: only a --per_query file is written; name one, or leave it out")
    if args.per_query:
        inputs = [args.qrels, *args.runs, *([args.baseline] if args.baseline else [])]
        refuse_existing(args.per_query, "--per_query", args.overwrite, inputs)
    _refuse_repeated("RUN", [os.path.realpath(path) for path in args.runs])
    if args.baseline:
        same = [path for path in args.runs if os.path.realpath(path) == os.path.realpath(args.baseline)]
        args.baseline = same[0] if same else args.baseline
        if not same:
            args.runs.insert(0, args.baseline)
        if len(args.runs) == 1:
            raise InputError("--baseline: there is no other run to compare with it; name one more RUN")
    return args


def run_names(paths: list[str]) -> dict[str, str]:
    """`{path: name}` of runs: the names of their files, or the paths where two files have the same name."""
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        names = paths
    names = [name if name.isprintable() else ascii(name)[1:-1] for name in names]
    return dict(zip(paths, names, strict=True))


def read_and_evaluate(path: str, qrels: Qrels, on_malformed: OnMalformed | None, args: argparse.Namespace) -> Evaluated:
    ranks: dict[str, dict[str, int]] = {}
    if args.official_msmarco:
        ranked = read_ranked_run(path, on_malformed)
        run = {query_id: {doc_id: score for doc_id, (_, score) in docs.items()} for query_id, docs in ranked.items()}
        ranks = {query_id: {doc_id: rank for doc_id, (rank, _) in docs.items()} for query_id, docs in ranked.items()}
    else:
        run = read_run(path, on_malformed)
    note_queries(path, qrels, run, args)
    if args.measures is None:
        values = released_measures(qrels, run)
        num_queries = len(run)
    else:
        try:
            values = {name: measure_per_query(name, qrels, run) for name in args.measures}
        except ValueError as error:
            raise InputError(f"{args.qrels}: {error}") from None
        num_queries = len(run.keys() & qrels.keys())
    if args.official_msmarco:
        values[OFFICIAL] = official_msmarco(qrels, ranks)
    return Evaluated(num_queries, values)


def note_queries(path: str, qrels: Qrels, run: Run, args: argparse.Namespace) -> None:
    """Says on stderr which queries are in only one of the two. Raises InputError where all are."""
    of_run = f"{path}: " if len(args.runs) > 1 else ""
    unjudged = sum(query_id not in qrels for query_id in run)
    if unjudged == len(run):
        raise InputError(f"{args.qrels} and {path} share no query; are they of the same collection?")
    if unjudged:
        count = "count 0" if args.measures is None else "do not count"
        print(f"note: {of_run}{unjudged} of {len(run)} queries have no judgements and {count}", file=sys.stderr)
    if missing := sum(query_id not in run for query_id in qrels):
        places = [OFFICIAL] * args.official_msmarco + ["the comparison"] * bool(args.baseline)
        but = f", but 0 in {' and '.join(places)}" if places else ""
        print(f"note: {of_run}{missing} judged queries are not in the run and do not count{but}", file=sys.stderr)


def released_measures(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """MRR and MRR@10 of every query of the run, judged or not, as published."""
    ranks = {query_id: first_relevant_rank(scores, qrels.get(query_id, {})) for query_id, scores in run.items()}
    return {
        "MRR": {query_id: reciprocal_rank(rank) for query_id, rank in ranks.items()},
        "MRR@10": {query_id: reciprocal_rank(rank, cutoff=10) for query_id, rank in ranks.items()},
    }


def compare_with_baseline(baseline: str, evaluated: dict[str, Evaluated], qrels: Qrels) -> Tests:
    """Compares every other run with the baseline, by every measure.

    Raises InputError where there are fewer than two queries to compare.
    """
    others = [name for name in evaluated if name != baseline]
    tests: Tests = {name: {} for name in others}
    with tqdm(total=len(others) * len(evaluated[baseline].values), unit=" comparisons", disable=None) as progress:
        for measure in evaluated[baseline].values:
            of_runs = {name: results.values[measure] for name, results in evaluated.items()}
            queries = [query_id for query_id in qrels if any(query_id in values for values in of_runs.values())]
            if len(queries) < 2:
                raise InputError(f"--baseline: {len(queries)} query is too few to compare runs, two are needed")
            paired = {name: [values.get(query_id, 0.0) for query_id in queries] for name, values in of_runs.items()}
            compared = []
            for name in others:
                compared.append(compare(paired[name], paired[baseline]))
                progress.update()
            t_test_holm = holm([comparison.t_test_p for comparison in compared])
            randomization_holm = holm([comparison.randomization_p for comparison in compared])
            for name, *results in zip(others, compared, t_test_holm, randomization_holm, strict=True):
                tests[name][measure] = Tested(len(queries), *results)
    return tests


def as_lines(evaluated: Evaluated) -> str:
    """One run as published."""
    lines = [f"query_num: {evaluated.num_queries}"]
    lines += [f"{measure}: {_figure(measure, values)!r}" for measure, values in evaluated.values.items()]
    return "".join(f"{line}\n" for line in lines)


def as_tables(kind: str, evaluated: dict[str, Evaluated], baseline: str | None, tests: Tests) -> str:
    """A table of the runs' measures and, with a baseline, one of the comparisons."""
    table = {"text": text_table, "markdown": markdown_table, "latex": latex_table}[kind]
    measures = list(next(iter(evaluated.values())).values)
    rows = [["run", "query_num", *measures]]
    for name, results in evaluated.items():
        figures = [_figure(measure, results.values[measure]) for measure in measures]
        rows.append([name, str(results.num_queries), *map(_four_digits, figures)])
    printed = table(rows)
    if baseline is None:
        return printed
    head = ["run", "measure", "queries", "difference", "t-test p", "Holm", "randomization p", "Holm", "effect size"]
    rows = [[*head, "wins/ties/losses"]]
    for measure in measures:
        for name in tests:
            tested = tests[name][measure]
            found = tested.comparison
            p_values = (found.t_test_p, tested.t_test_p_holm, found.randomization_p, tested.randomization_p_holm)
            rows.append([name, measure, str(tested.queries), _four_digits(found.difference), *map(_p_value, p_values)])
            rows[-1] += [f"{found.effect_size:.2f}", f"{found.wins}/{found.ties}/{found.losses}"]
    title = escape_latex(f"Against {baseline}:") if kind == "latex" else f"Against {baseline}:"
    return f"{printed}\n{title}\n\n{table(rows)}"


def as_tsv(evaluated: dict[str, Evaluated], tests: Tests) -> str:
    """A line for each run and measure; the columns of a comparison are empty for the baseline."""
    head = ["run", "measure", "queries", "value"]
    columns = list(_tested_columns(next(iter(next(iter(tests.values())).values())))) if tests else []
    lines = [[*head, *columns]]
    for name, results in evaluated.items():
        for measure, values in results.values.items():
            tested = tests.get(name, {}).get(measure)
            more = [repr(value) for value in _tested_columns(tested).values()] if tested else [""] * len(columns)
            num_queries = len(values)
            lines.append([name, measure, str(num_queries), repr(_figure(measure, values)), *more])
    return "".join("\t".join(line) + "\n" for line in lines)


def as_json(evaluated: dict[str, Evaluated], baseline: str | None, tests: Tests) -> str:
    """As TSV, but nested; an infinite effect size is null."""
    runs = []
    for name, results in evaluated.items():
        run = {"run": name, "query_num": results.num_queries}
        run["measures"] = {measure: _figure(measure, values) for measure, values in results.values.items()}
        if name in tests:
            run["against_baseline"] = {
                measure: {column: value if math.isfinite(value) else None for column, value in columns.items()}
                for measure, columns in ((measure, _tested_columns(tested)) for measure, tested in tests[name].items())
            }
        runs.append(run)
    return json.dumps({"baseline": baseline, "runs": runs}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_per_query(path: str, evaluated: dict[str, Evaluated]) -> None:
    with atomic_write(path) as file:
        file.write("run\tmeasure\tquery_id\tvalue\n")
        for name, results in evaluated.items():
            for measure, values in results.values.items():
                file.writelines(f"{name}\t{measure}\t{query_id}\t{value!r}\n" for query_id, value in values.items())


def main() -> None:
    args = parse_args()
    rejected: Counter[str] = Counter()

    def reject(path: str, number: int, reason: str) -> None:
        print(f"{path} line {number}: {reason}", file=sys.stderr)
        rejected[path] += 1

    def on_malformed(path: str) -> OnMalformed | None:
        return partial(reject, path) if args.skip_malformed else None

    qrels = read_qrels_with_note(args.qrels, on_malformed(args.qrels))
    names = run_names(args.runs)
    evaluated = {names[path]: read_and_evaluate(path, qrels, on_malformed(path), args) for path in args.runs}
    for path, count in rejected.items():
        print(f"note: {count} lines of {path} do not fit and were left out", file=sys.stderr)
    baseline = names[args.baseline] if args.baseline else None
    tests = compare_with_baseline(baseline, evaluated, qrels) if baseline else {}
    if args.format == "tsv":
        printed = as_tsv(evaluated, tests)
    elif args.format == "json":
        printed = as_json(evaluated, baseline, tests)
    elif args.format == "text" and len(evaluated) == 1:
        printed = as_lines(*evaluated.values())
    else:
        printed = as_tables(args.format, evaluated, baseline, tests)
    if args.per_query:
        write_per_query(args.per_query, evaluated)
    print(printed, end="")


def _refuse_repeated(flag: str, values: list[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise InputError(f"{flag}: {repeated[0]} is given twice")


def _figure(measure: str, values: dict[str, float]) -> float | int:
    """A measure of a run; a count as an integer, as trec_eval prints it."""
    figure = summarize(measure, values)
    return round(figure) if measure.startswith("num_") else figure


def _four_digits(figure: float | int) -> str:
    return str(figure) if isinstance(figure, int) else f"{figure:.4f}"


def _p_value(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _tested_columns(tested: Tested) -> dict[str, float]:
    found = tested.comparison
    return {
        "compared_queries": tested.queries,
        "difference": found.difference,
        "t_test_p": found.t_test_p,
        "t_test_p_holm": tested.t_test_p_holm,
        "randomization_p": found.randomization_p,
        "randomization_p_holm": tested.randomization_p_holm,
        "effect_size": found.effect_size,
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
    }


if __name__ == "__main__":
    run_script(main)
