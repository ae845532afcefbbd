"""Labelled pairs and the teacher's scores of the positives in; labelled pairs with the better positives out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import time
from collections import Counter
from collections.abc import Iterator

from data_preparation.histogram import write_score_histogram
from data_preparation.reports import beside, refuse_outputs, write_report
from data_preparation.training_examples import choose_positives
from formats.atomic import atomic_files
from formats.pairs import Pair, read_pairs, split_example_id, write_pairs
from formats.scores import read_scores, split_passage_id
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.progress import ProgressBar
from runtime.script import report, run_script

# (query_id, doc_id)
RelevantDocument = tuple[str, str]


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Drops positives with low teacher scores.

  python data_preparation/filter_positives.py --pairs_file train_pairs.tsv.gz --scores_file positives_scores.tsv \\
      --output_pairs_file filtered_pairs.tsv.gz

In:  the pairs of make_train_pairs.py, and scores of rerank.py for all their positives.
Out: the pairs without the dropped positives; a plot of the scores in OUTPUT_PAIRS_FILE.png, counts in
     OUTPUT_PAIRS_FILE.report.json, and a line in OUTPUT_PAIRS_FILE.log.
Every passage of a relevant document has the label of the document, but only few answer the query. For each query and
relevant document, a positive stays if it is among the --best ones and its score is --threshold or more. Of equal scores
the lower passage number is better. A document can lose all its positives, and so can a query. Such a query keeps its
negatives; the report counts them.""",
    )
    parser.add_argument("--pairs_file", type=Path, required=True, help="labelled pairs")
    parser.add_argument("--scores_file", type=Path, required=True, help="query_id, passage_id, score of each positive")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="least score, a probability; 0 for no limit (default 0.5)"
    )
    parser.add_argument(
        "--best",
        type=int,
        default=1,
        help="most positives of a document; 0 for no limit (default 1, because MaxP ranks a document by its best "
        "passage alone)",
    )
    parser.add_argument(
        "--keep_best", action="store_true", help="keep the best passage of each document, also below --threshold"
    )
    parser.add_argument("--output_pairs_file", type=Path, required=True, help="the pairs to write, packed if .gz")
    parser.add_argument("--overwrite", action="store_true", help="replace the output files if they exist")
    args = parser.parse_args()
    if not 0 <= args.threshold <= 1:
        raise InputError(f"--threshold: {args.threshold} is not a probability from 0 to 1")
    if args.best < 0:
        raise InputError(f"--best: {args.best} is below 0")
    if args.threshold == 0 and args.best == 0:
        raise InputError("--threshold and --best: with both 0 nothing is filtered; set one of them")
    if args.keep_best and args.threshold == 0:
        raise InputError("--keep_best: has no effect with --threshold 0; leave it out")
    outputs = [("--output_pairs_file", path) for path in output_files(args)]
    refuse_outputs(outputs, args.overwrite, [args.pairs_file, args.scores_file])
    return args


def output_files(args: argparse.Namespace) -> list[Path]:
    """The pairs, the plot and the report."""
    pairs = args.output_pairs_file
    return [pairs, beside(pairs, ".png"), beside(pairs, ".report.json")]


def read_document_scores(path: Path) -> dict[RelevantDocument, dict[str, float]]:
    """Returns the scores of each query's documents, `{(query_id, doc_id): {passage_id: score}}`.

    Raises InputError as `read_scores` does, for a passage id without a document id, and for a score that is not a
    probability.
    """
    scores: dict[RelevantDocument, dict[str, float]] = {}
    for query_id, passage_id, score in ProgressBar(read_scores(path), desc="reading scores", unit=" scores"):
        if not 0 <= score <= 1:
            raise InputError(
                f"{path}: passage {passage_id} of query {query_id} has score {score}, which is not a probability "
                "from 0 to 1; name scores of rerank.py"
            )
        try:
            doc_id, _ = split_passage_id(passage_id)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        scores.setdefault((query_id, doc_id), {})[passage_id] = score
    return scores


def filtered(
    pairs_file: Path,
    scores_file: Path,
    scores: dict[RelevantDocument, dict[str, float]],
    chosen: dict[RelevantDocument, list[str]],
    negatives: Counter[str],
) -> Iterator[Pair]:
    """Yields the negatives and the chosen positives. Counts the negatives of each query. Empties `scores`.

    Raises InputError if positives and scores are not of the same passages.
    """
    for pair in ProgressBar(read_pairs(pairs_file, labelled=True), desc="writing pairs", unit=" pairs"):
        try:
            query_id, passage_id = split_example_id(pair.example_id)
            document = query_id, split_passage_id(passage_id)[0]
        except ValueError as error:
            raise InputError(f"{pairs_file}: {error}") from None
        if pair.label == 0:
            negatives[query_id] += 1
            yield pair
            continue
        # removed, so that only scores without a pair remain
        if scores.get(document, {}).pop(passage_id, None) is None:
            raise InputError(
                f"--scores_file: {scores_file} has no score for the positive {pair.example_id} of {pairs_file}, "
                "or the pair is there twice; score all positives of that file"
            )
        if passage_id in chosen[document]:
            yield pair
    for (query_id, _), unused in scores.items():
        for passage_id in unused:
            raise InputError(
                f"--scores_file: {scores_file} has a score for {query_id}#{passage_id}, which is not a positive of "
                f"{pairs_file}; name the scores of that file's positives"
            )


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    scores = read_document_scores(args.scores_file)
    chosen = {
        document: choose_positives(of_passages, args.threshold, args.best or None, args.keep_best)
        for document, of_passages in scores.items()
    }
    kept_scores = [scores[document][passage_id] for document in chosen for passage_id in chosen[document]]
    dropped_scores = [
        score
        for document, of_passages in scores.items()
        for passage_id, score in of_passages.items()
        if passage_id not in chosen[document]
    ]
    kept, dropped = len(kept_scores), len(dropped_scores)
    if not kept:
        raise InputError(
            f"--threshold: the teacher gives none of the {dropped} positives {args.threshold:g} or more, the best has "
            f"{max(dropped_scores):.3g}; lower it, pass --keep_best, or check the teacher"
        )
    negatives: Counter[str] = Counter()
    queries = {query_id for query_id, _ in chosen}
    lost = queries - {query_id for (query_id, _), passage_ids in chosen.items() if passage_ids}
    below = sum(score < args.threshold for score in dropped_scores)
    with atomic_files(*output_files(args)) as (pairs_file, plot, report_file):
        pairs = filtered(args.pairs_file, args.scores_file, scores, chosen, negatives)
        written = write_pairs(pairs_file, pairs)
        write_score_histogram(plot, kept_scores, dropped_scores, args.threshold)
        read = kept + dropped + negatives.total()
        seconds = time.monotonic() - start
        figures = {
            "settings": vars(args),
            "queries": len(queries | negatives.keys()),
            "queries_that_lost_all_positives": len(lost),
            "negatives_of_queries_that_lost_all_positives": sum(negatives[query_id] for query_id in lost),
            "relevant": len(chosen),
            "relevant_that_lost_all_positives": sum(not passage_ids for passage_ids in chosen.values()),
            "positives_read": kept + dropped,
            "positives": kept,
            "positives_dropped": {"below the threshold": below, "outside the best": dropped - below},
            "negatives": negatives.total(),
            "passages": written,
            "seconds": round(seconds, 1),
            "passages_per_second": round(read / seconds),
        }
        write_report(report_file, figures)
    report(
        f"wrote {args.output_pairs_file}: kept {kept} of {kept + dropped} positives, dropped {below} below the "
        f"threshold and {dropped - below} outside the best; {len(lost)} of {len(queries)} queries lost all; kept "
        f"{negatives.total()} negatives; {seconds:.1f} s, {read / seconds:.0f} pairs/s",
        args.output_pairs_file,
    )


if __name__ == "__main__":
    run_script(main)
