"""MRR and MRR@10, or other measures, of TREC runs, and significance tests against a baseline."""

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from evaluation.baseline import Evaluated, compare_with_baseline
from evaluation.measures import (
    Qrels,
    Run,
    canonical_name,
    is_mean,
    measure_per_query,
    official_msmarco,
    published_mrr,
    retrieves_relevant,
)
from evaluation.output import FORMATS, format_runs
from formats.atomic import atomic_write
from formats.lines import OnMalformed
from formats.trec import read_qrels_with_note, read_ranked_run, read_run
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import already_complete, print_text, refuse_existing, run_script

DESCRIPTION = """Prints the number of queries of a run (query_num) with MRR and MRR@10, or other measures. For several
runs it prints a table.
In:  relevance judgments (TREC qrels), `query_id 0 doc_id relevance`, where a relevance above 0 means relevant; and TREC
     runs, `query_id Q0 doc_id rank score run_name`. Documents are ranked by score, as in trec_eval; the rank column has
     no effect.
Out: lines `name: value` for one run, a table with four digits for several runs, or the --format.
Call: python msmarco_mrr_eval.py qrels.txt run.txt
      python msmarco_mrr_eval.py qrels.txt student.run --baseline teacher.run --measures NDCG@10 MAP MRR@10

Queries that count:
- without --measures: the queries of the run. A query without a relevant document or without judgments counts 0.
- with --measures: the queries in both the run and the judgments, as in trec_eval.
- in --official_msmarco: the queries of the judgments. A query that is not in the run counts 0.
- with --queries_of: the judged queries of that run, for every run. A query that is not in a run counts 0 for it.
- in the comparison with --baseline: the judged queries of at least one run (with --official_msmarco: all judged
  queries; with --queries_of: those). A query that is not in a run counts 0 for it.

A malformed line is an error that names it. With --skip_malformed it is skipped and named on stderr."""

OFFICIAL = "official_MRR@100"


def parse_args() -> argparse.Namespace:
    parser = Parser(DESCRIPTION)
    parser.add_argument("qrels", metavar="QRELS", help="relevance judgments, four columns")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="runs, six columns")
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="MEASURE",
        help="the measures to print instead of MRR and MRR@10: trec_eval's measures by its names (ndcg_cut.10), the "
        "usual ones (NDCG@10, MAP, P@5, Recall@100, ...) or those of ir_measures (nDCG@10, AP, RR@10, ...), MRR, "
        "MRR@k, and Judged@k, the share of the first k documents that have a judgment. Give the flag after the runs; "
        "blanks or commas separate measures",
    )
    parser.add_argument(
        "--official_msmarco",
        action="store_true",
        help=f"also print {OFFICIAL}, the measure of the MS MARCO document ranking task: cut-off 100, documents "
        "ordered by the rank column (integers), then by id",
    )
    parser.add_argument(
        "--baseline",
        metavar="RUN",
        help="compare the other runs with this run: paired t-test and randomization test (two-sided; 100,000 random "
        "sign flips, or all if there are fewer), p-values with Holm's correction over the runs of each measure, effect "
        "size (Cohen's d of the differences), number of queries that a run wins, ties and loses",
    )
    parser.add_argument(
        "--queries_of",
        metavar="RUN",
        help="measure every run over the judged queries of this run, such as the candidates that the others re-rank",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="output format (default: text)")
    parser.add_argument(
        "--per_query", metavar="FILE", help="write a TSV with the columns run, measure, query_id, value"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --per_query file")
    parser.add_argument("--skip_malformed", action="store_true", help="skip malformed lines and name them on stderr")
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that contradict each other. Adds the baseline to the runs."""
    if args.measures is not None:
        try:
            args.measures = [canonical_name(name) and name for names in args.measures for name in names.split(",")]
        except ValueError as error:
            raise InputError(f"--measures: {error}") from None
        refuse_repeated("--measures", [canonical_name(name) for name in args.measures])
        no_mean = [name for name in args.measures if not is_mean(name)]
        if args.baseline and no_mean:
            raise InputError(f"--baseline: {no_mean[0]} is not a mean over queries, so it has no test; leave it out")
        if args.queries_of and no_mean:
            raise InputError(f"--queries_of: {no_mean[0]} is not a mean over queries; leave it out")
    if args.queries_of and args.official_msmarco:
        raise InputError("--queries_of: --official_msmarco always counts all judged queries; leave one of them out")
    if args.overwrite and not args.per_query:
        raise InputError("--overwrite: replaces only a --per_query file; give --per_query, or leave it out")
    if args.per_query:
        inputs = [args.qrels, *args.runs, *filter(None, (args.baseline, args.queries_of))]
        refuse_existing(args.per_query, "--per_query", args.overwrite, inputs)
    refuse_repeated("RUN", [os.path.realpath(path) for path in args.runs])
    if args.baseline:
        same = [path for path in args.runs if os.path.realpath(path) == os.path.realpath(args.baseline)]
        args.baseline = same[0] if same else args.baseline
        if not same:
            args.runs.insert(0, args.baseline)
        if len(args.runs) == 1:
            raise InputError("--baseline: there is no other run to compare it with; give one more RUN")


def refuse_repeated(flag: str, values: list[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise InputError(f"{flag}: {repeated[0]} is given twice")


def run_names(paths: list[str]) -> dict[str, str]:
    """Returns `{path: name}`. The names are the file names, or the paths if two files have the same name."""
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        names = paths
    names = [name if name.isprintable() else ascii(name)[1:-1] for name in names]
    return dict(zip(paths, names, strict=True))


def read_queries_of(path: str, qrels: Qrels, on_malformed: OnMalformed | None) -> list[str]:
    """Returns the judged queries of a run. Raises InputError if there is none."""
    run = read_run(path, on_malformed)
    queries = [query_id for query_id in run if query_id in qrels]
    if not queries:
        raise InputError(f"--queries_of: {path} and the judgments share no query; are they of the same collection?")
    if len(queries) < len(run):
        print(f"note: {path}: {len(run) - len(queries)} queries have no judgments and do not count", file=sys.stderr)
    if missing := len(qrels) - len(queries):
        print(f"note: {missing} judged queries are not in {path} and do not count", file=sys.stderr)
    return queries


def read_and_evaluate(
    path: str, qrels: Qrels, counted: list[str] | None, on_malformed: OnMalformed | None, args: argparse.Namespace
) -> Evaluated:
    """Reads and measures a run. `counted`: the queries of --queries_of, None without this flag."""
    ranks: dict[str, dict[str, int]] = {}
    if args.official_msmarco:
        ranked = read_ranked_run(path, on_malformed)
        run = {query_id: {doc_id: score for doc_id, (_, score) in docs.items()} for query_id, docs in ranked.items()}
        ranks = {query_id: {doc_id: rank for doc_id, (rank, _) in docs.items()} for query_id, docs in ranked.items()}
    else:
        run = read_run(path, on_malformed)
    note_queries(path, qrels, run, counted, args)
    if args.measures is None:
        values = published_mrr(qrels, run)
        num_queries = len(run)
    else:
        try:
            values = {name: measure_per_query(name, qrels, run) for name in args.measures}
        except ValueError as error:
            raise InputError(f"{args.qrels}: {error}") from None
        num_queries = len(run.keys() & qrels.keys())
    if args.official_msmarco:
        values[OFFICIAL] = official_msmarco(qrels, ranks)
    if counted is None:
        return Evaluated(num_queries, values)
    return Evaluated(
        len(counted),
        {name: {query_id: of.get(query_id, 0.0) for query_id in counted} for name, of in values.items()},
    )


def note_queries(path: str, qrels: Qrels, run: Run, counted: list[str] | None, args: argparse.Namespace) -> None:
    """Tells on stderr which queries have no measure or count 0. Raises InputError if `qrels` and `run` share no query.

    It also warns of a run without relevant documents.
    """
    of_run = f"{path}: " if len(args.runs) > 1 else ""
    unjudged = sum(query_id not in qrels for query_id in run)
    if unjudged == len(run):
        raise InputError(f"{args.qrels} and {path} share no query; are they of the same collection?")
    if not retrieves_relevant(qrels, run):
        print(
            f"WARNING: no document of {path} is relevant in {args.qrels} (relevance above 0), so measures of relevance "
            "are 0; are they of the same collection?",
            file=sys.stderr,
        )
    if counted is not None:
        if missing := sum(query_id not in run for query_id in counted):
            lacks = f"{path} lacks {missing} of the {len(counted)} judged queries of {args.queries_of}"
            print(f"WARNING: {lacks}; they count 0", file=sys.stderr)
        return
    if unjudged:
        count = "count 0" if args.measures is None else "do not count"
        print(f"note: {of_run}{unjudged} of {len(run)} queries have no judgments and {count}", file=sys.stderr)
    if missing := sum(query_id not in run for query_id in qrels):
        places = [OFFICIAL] * args.official_msmarco + ["the comparison"] * bool(args.baseline)
        but = f", but count 0 in {' and '.join(places)}" if places else ""
        print(f"note: {of_run}{missing} judged queries are not in the run and do not count{but}", file=sys.stderr)


def write_per_query(path: str, evaluated: dict[str, Evaluated]) -> None:
    with atomic_write(path) as file:
        file.write("run\tmeasure\tquery_id\tvalue\n")
        for name, results in evaluated.items():
            for measure, values in results.values.items():
                file.writelines(f"{name}\t{measure}\t{query_id}\t{value!r}\n" for query_id, value in values.items())


def main() -> None:
    args = parse_args()
    skipped: Counter[str] = Counter()

    def skip(path: str, number: int, reason: str) -> None:
        print(f"{path} line {number}: {reason}", file=sys.stderr)
        skipped[path] += 1

    def on_malformed(path: str) -> OnMalformed | None:
        return partial(skip, path) if args.skip_malformed else None

    qrels = read_qrels_with_note(args.qrels, on_malformed(args.qrels))
    names = run_names(args.runs)
    counted = read_queries_of(args.queries_of, qrels, on_malformed(args.queries_of)) if args.queries_of else None
    evaluated = {names[path]: read_and_evaluate(path, qrels, counted, on_malformed(path), args) for path in args.runs}
    for path, count in skipped.items():
        print(f"note: {count} lines of {path} are malformed and were skipped", file=sys.stderr)
    baseline = names[args.baseline] if args.baseline else None
    try:
        tests = compare_with_baseline(baseline, evaluated, qrels) if baseline else {}
    except ValueError as error:
        raise InputError(f"--baseline: {error}") from None
    if args.per_query:
        write_per_query(args.per_query, evaluated)
    with already_complete(args.per_query):
        print_text(format_runs(args.format, evaluated, baseline, tests))


if __name__ == "__main__":
    run_script(main)
