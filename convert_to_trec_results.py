"""Turns passage scores into a TREC run of documents."""

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import sys
import time

from evaluation.aggregation import aggregation_function, first_p
from evaluation.interpolation import interpolate, tune
from evaluation.measures import Run, canonical_name, retrieves_relevant
from evaluation.tables import text_table
from formats.lines import OnMalformed, RejectedLines, refuse_line
from formats.scores import read_numbered_scores, split_passage_id
from formats.trec import read_qrels_with_note, read_run, write_run
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.progress import ProgressBar
from runtime.script import refuse_existing, report, run_script

DESCRIPTION = """Aggregates the scores of a document's passages into one score and ranks the documents of each query.

  python convert_to_trec_results.py --scores_file scores.tsv --output_results_file run.txt --aggregation MaxP

In:  lines `query_id, passage_id, score` (tab-separated). passage_id is doc_id, "_" and the passage number, such as
     D12_3 or D12_passage-3.
Out: a TREC run, `query_id Q0 doc_id rank score run_name`, in trec_eval's order: score, then document id, both
     descending.

--interpolate_with mixes the scores with those of the first stage: w z(logit of the document's score) + (1 - w) z(score
in the candidates' run), w from 0 to 1. z is over the re-ranked documents of a query. Candidates that were not re-ranked
follow in their order. Choose w with dev queries: --tune_on prints a measure for each w of 0, 0.1, ..., 1 and writes the
run of the best w (of equal ones the lowest). Then use it for the test queries: --interpolation_weight.

A malformed line is an error that names it. With --skip_malformed it is skipped, and OUTPUT_RESULTS_FILE.rejected.tsv
lists it with the reason."""


def read_documents(
    scores_file: str, first_only: bool, on_malformed: OnMalformed | None = None
) -> tuple[dict[str, dict[str, list[float]]], int]:
    """Returns `{query_id: {doc_id: passage scores}}`, all in order of appearance, and the number of passages.

    With `first_only`, each list holds only the score of passage 0.

    Raises InputError, or calls `on_malformed`, for a passage id without document id or number, and for a second passage
    0. Raises InputError for a document without passage 0.
    """
    documents: dict[str, dict[str, list[float]]] = {}
    count = 0
    for number, row in ProgressBar(read_numbered_scores(scores_file, on_malformed), unit=" passages"):
        try:
            doc_id, passage_number = split_passage_id(row.passage_id)
            scores = documents.get(row.query_id, {}).get(doc_id, [])
            if first_only and passage_number == 0 and scores:
                raise ValueError(f"document {doc_id} has a passage 0 already")
        except ValueError as error:
            refuse_line(scores_file, number, str(error), on_malformed)
            continue
        count += 1
        documents.setdefault(row.query_id, {}).setdefault(doc_id, scores)
        if not first_only or passage_number == 0:
            scores.append(row.score)
    if not documents:
        raise InputError(f"{scores_file} has no usable line")
    for query_id, scores_of in documents.items():
        for doc_id, scores in scores_of.items():
            if not scores:
                raise InputError(
                    f"{scores_file}: document {doc_id} of query {query_id} has no passage 0, which FirstP needs; "
                    "score it, or use another --aggregation"
                )
    return documents, count


def parse_args() -> argparse.Namespace:
    parser = Parser(DESCRIPTION)
    parser.add_argument("--scores_file", required=True, help="passage scores, as rerank.py writes them")
    parser.add_argument("--output_results_file", required=True, help="the run to write")
    parser.add_argument(
        "--aggregation",
        default="MaxP",
        metavar="{MaxP,FirstP,SumP,AvgP,k-Max&AvgP}",
        help="the score of a document: its best passage, passage 0, the sum, the mean, or the mean of the k best "
        "passages (in quotes for the shell: '3-Max&AvgP') (default: MaxP)",
    )
    parser.add_argument(
        "--run_name",
        help="the last column of the run (default: bert_ and the aggregation; with --interpolate_with also "
        "_interpolated)",
    )
    mixture = parser.add_argument_group("interpolation with the first stage")
    mixture.add_argument("--interpolate_with", metavar="RUN", help="the run of the first stage, which was re-ranked")
    mixture.add_argument("--interpolation_weight", type=float, metavar="W", help="weight of the ranker, from 0 to 1")
    mixture.add_argument("--tune_on", metavar="QRELS", help="relevance judgments of dev queries, to choose the weight")
    mixture.add_argument("--tune_measure", metavar="MEASURE", help="the measure of --tune_on (default: MRR@10)")
    parser.add_argument("--skip_malformed", action="store_true", help="skip malformed lines and list them")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Sets `aggregate`, the aggregation function, and the defaults. Raises InputError for a wrong flag."""
    try:
        args.aggregate = aggregation_function(args.aggregation)
    except ValueError as error:
        raise InputError(f"--aggregation: {error}") from None
    if args.run_name is None:
        args.run_name = f"bert_{args.aggregation}{'_interpolated' if args.interpolate_with else ''}"
    if not args.run_name or not args.run_name.isprintable() or " " in args.run_name:
        raise InputError(f"--run_name: {args.run_name!r} is empty or has white space, so it cannot be a column")
    check_interpolation_args(args)
    inputs = [args.scores_file, *filter(None, (args.interpolate_with, args.tune_on))]
    for output in (args.output_results_file, RejectedLines(args.output_results_file).path):
        refuse_existing(output, "--output_results_file", args.overwrite, inputs)


def check_interpolation_args(args: argparse.Namespace) -> None:
    weight = args.interpolation_weight
    if args.interpolate_with and (weight is None) == (args.tune_on is None):
        raise InputError("--interpolate_with: needs either --interpolation_weight or --tune_on")
    for name, needed in (("interpolation_weight", "interpolate_with"), ("tune_on", "interpolate_with"),
                         ("tune_measure", "tune_on")):  # fmt: skip
        if getattr(args, name) is not None and getattr(args, needed) is None:
            raise InputError(f"--{name}: has no use without --{needed}; leave it out")
    if weight is not None and not 0 <= weight <= 1:
        raise InputError(f"--interpolation_weight: {weight} is not from 0 to 1")
    args.tune_measure = args.tune_measure or "MRR@10"
    try:
        canonical_name(args.tune_measure)
    except ValueError as error:
        raise InputError(f"--tune_measure: {error}") from None


def interpolated(args: argparse.Namespace, run: Run) -> dict[str, dict[str, float]]:
    """Returns the run interpolated with `--interpolate_with`, with the weight that is given or tuned."""
    candidates, weight = read_run(args.interpolate_with), args.interpolation_weight
    try:
        mixed = interpolate(run, candidates, 1.0 if weight is None else weight)
    except ValueError as error:
        raise InputError(
            f"--interpolate_with: {error}; name the run that was re-ranked, and scores of rerank.py"
        ) from None
    if weight is None:
        mixed = interpolate(run, candidates, tuned_weight(args, run, candidates))
    if left_out := len(candidates.keys() - run.keys()):
        print(f"note: {args.scores_file} lacks {left_out} queries of {args.interpolate_with}", file=sys.stderr)
    return mixed


def tuned_weight(args: argparse.Namespace, run: Run, candidates: Run) -> float:
    """Prints the measure of each weight on `--tune_on`. Returns the best weight, the lowest of equal ones."""
    qrels = read_qrels_with_note(args.tune_on)
    if not retrieves_relevant(qrels, {query_id: candidates[query_id] for query_id in run}):
        raise InputError(
            f"--tune_on: no document of {args.interpolate_with} is relevant in {args.tune_on}; name its qrels"
        )
    try:
        values = tune(run, candidates, qrels, args.tune_measure)
    except ValueError as error:
        raise InputError(f"--tune_on: {args.tune_on}: {error}") from None
    rows = [("weight", args.tune_measure), *((str(weight), f"{value:.4f}") for weight, value in values.items())]
    best = max(values, key=values.get)
    print(f"{text_table(rows)}best weight: {best}")
    return best


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    with RejectedLines(args.output_results_file) as rejected:
        on_malformed = rejected if args.skip_malformed else None
        documents, num_passages = read_documents(args.scores_file, args.aggregate is first_p, on_malformed)
        run = {
            query_id: {doc_id: args.aggregate(scores) for doc_id, scores in scores_of.items()}
            for query_id, scores_of in documents.items()
        }
        if args.interpolate_with:
            run = interpolated(args, run)
        num_documents = write_run(args.output_results_file, run, args.run_name)
    seconds = time.perf_counter() - start
    read = f"; {rejected.counts(taken=num_passages)}" if args.skip_malformed else ""
    report(
        f"{args.output_results_file}: {args.aggregation} of {num_passages:,} passages, {num_documents:,} documents, "
        f"{len(run):,} queries, in {seconds:.1f} s ({num_passages / seconds:,.0f} passages/s){read}",
        args.output_results_file,
        log=False,
    )


if __name__ == "__main__":
    run_script(main)
