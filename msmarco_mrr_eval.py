"""MRR and MRR@10 of a TREC run."""

import argparse
import sys
from collections import Counter
from functools import partial

from evaluation.measures import first_relevant_rank, mean_reciprocal_rank
from formats.files import InputError, run_script
from formats.trec import read_qrels_with_note, read_run

DESCRIPTION = """Prints the number of queries of a run (query_num), MRR and MRR@10 over them. Reads TREC judgements,
`query_id 0 doc_id relevance`, of which a relevance above 0 is relevant, and a TREC run,
`query_id Q0 doc_id rank score run_name`, which it ranks by score as trec_eval does (the rank column is not looked at).
A query of the run without a relevant document counts 0; a query that the run lacks does not count. A line that does not
fit is an error that names it; with --skip_malformed it is left out and named on stderr.
Call: python msmarco_mrr_eval.py qrels.txt run.txt"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=DESCRIPTION)
    parser.add_argument("qrels", metavar="QRELS", help="judgements, four columns")
    parser.add_argument("run", metavar="RUN", help="run, six columns")
    parser.add_argument("--skip_malformed", action="store_true", help="leave out lines that do not fit, and name them")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rejected: Counter[str] = Counter()

    def reject(path: str, number: int, reason: str) -> None:
        print(f"{path} line {number}: {reason}", file=sys.stderr)
        rejected[path] += 1

    of_qrels, of_run = (partial(reject, path) if args.skip_malformed else None for path in (args.qrels, args.run))
    qrels = read_qrels_with_note(args.qrels, of_qrels)
    run = read_run(args.run, of_run)
    for path, count in rejected.items():
        print(f"note: {count} lines of {path} do not fit and were left out", file=sys.stderr)
    unjudged = sum(query_id not in qrels for query_id in run)
    if unjudged == len(run):
        raise InputError(f"{args.qrels} and {args.run} share no query; are they of the same collection?")
    if unjudged:
        print(f"note: {unjudged} of {len(run)} queries have no judgements and count 0", file=sys.stderr)
    if missing := sum(query_id not in run for query_id in qrels):
        print(f"note: {missing} judged queries are not in the run and do not count", file=sys.stderr)
    ranks = [first_relevant_rank(scores, qrels.get(query_id, {})) for query_id, scores in run.items()]
    print(f"query_num: {len(ranks)}")
    print(f"MRR: {mean_reciprocal_rank(ranks)!r}")
    print(f"MRR@10: {mean_reciprocal_rank(ranks, cutoff=10)!r}")


if __name__ == "__main__":
    run_script(main)
