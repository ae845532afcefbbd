"""A collection and candidates in; pairs to re-rank out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import time
from collections.abc import Iterator
from itertools import islice

from data_preparation.needed import read_needed
from data_preparation.passages import add_passage_arguments, check_passage_arguments, split_into_passages
from data_preparation.reports import beside, refuse_outputs, write_report
from data_preparation.sources import add_collection_arguments, input_files, open_collection
from formats.atomic import atomic_files
from formats.pairs import Pair, make_example_id, write_pairs
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.progress import ProgressBar
from runtime.script import report, run_script


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Makes a pair of the query and every passage of its best candidates.

  python data_preparation/make_rerank_pairs.py --collection msmarco/msmarco-docs.tsv.gz \\
      --queries msmarco/msmarco-docdev-queries.tsv --candidates msmarco/msmarco-docdev-top100 \\
      --output_pairs_file msmarco/dev_pairs.tsv.gz

In:  a collection, queries, and a run with the candidates of each query.
Out: pairs, tab-separated: query_id#doc_id_passage-N, query, passage (the title, and words of the body), in the run's
     order of queries and ranks; counts in OUTPUT_PAIRS_FILE.report.json, and a line in OUTPUT_PAIRS_FILE.log.
A passage has --window words, and a passage begins every --stride words. The last passage ends with the document.
Documents without a body, and candidates that are not in the collection, are skipped and counted.""",
    )
    add_collection_arguments(parser, candidates=True)
    parser.add_argument("--depth", type=int, default=100, help="best candidates of each query to take (default 100)")
    add_passage_arguments(parser)
    parser.add_argument("--output_pairs_file", type=Path, required=True, help="the pairs to write, packed if .gz")
    parser.add_argument("--overwrite", action="store_true", help="replace the output files if they exist")
    args = parser.parse_args()
    if args.depth < 1:
        raise InputError(f"--depth: {args.depth} is below 1")
    check_passage_arguments(args)
    outputs = [args.output_pairs_file, beside(args.output_pairs_file, ".report.json")]
    refuse_outputs([("--output_pairs_file", path) for path in outputs], args.overwrite, input_files(args))
    return args


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    collection = open_collection(args)
    if not collection.candidates:
        raise InputError(f"--candidates: {args.collection} has no candidates; name a run")
    ranked = {query_id: list(islice(scores, args.depth)) for query_id, scores in collection.candidates.items()}
    for query_id in ranked:
        if query_id not in collection.queries:
            raise InputError(f"--queries: query {query_id} of the candidates has no text; name a file with all texts")
    needed = read_needed(collection, {doc_id for doc_ids in ranked.values() for doc_id in doc_ids}, "--candidates")

    def pairs() -> Iterator[Pair]:
        for query_id, doc_ids in ProgressBar(ranked.items(), desc="writing pairs", unit=" queries"):
            for doc_id in doc_ids:
                if document := needed.documents.get(doc_id):
                    passages = split_into_passages(
                        document.title, document.body, args.window, args.stride, args.max_passages
                    )
                    for number, passage in enumerate(passages):
                        yield Pair(make_example_id(query_id, doc_id, number), collection.queries[query_id], passage)

    candidates = [doc_id for doc_ids in ranked.values() for doc_id in doc_ids]
    dropped = needed.dropped(candidates)
    outputs = args.output_pairs_file, beside(args.output_pairs_file, ".report.json")
    with atomic_files(*outputs) as (pairs_file, report_file):
        passages = write_pairs(pairs_file, pairs())
        seconds = time.monotonic() - start
        figures = {
            "settings": vars(args),
            "queries": len(ranked),
            "queries_without_passages": sum(needed.documents.keys().isdisjoint(doc_ids) for doc_ids in ranked.values()),
            "candidates": len(candidates),
            "candidates_dropped": dropped,
            **needed.figures(),
            "passages": passages,
            "seconds": round(seconds, 1),
            "passages_per_second": round(passages / seconds),
        }
        write_report(report_file, figures)
    report(
        f"wrote {args.output_pairs_file}: {passages} passages of {len(needed.documents)} documents for {len(ranked)} "
        f"queries; of {len(candidates)} candidates dropped {dropped['document missing']} missing from the collection, "
        f"{dropped['document empty']} without a body; {seconds:.1f} s, {passages / seconds:.0f} passages/s",
        args.output_pairs_file,
    )


if __name__ == "__main__":
    run_script(main)
