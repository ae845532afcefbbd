"""A collection and queries in; a BM25 run of each query's best documents out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import math
import time
from collections.abc import Iterator

from data_preparation.candidates import K1, B, bm25_candidates
from data_preparation.reports import refuse_outputs
from data_preparation.sources import Collection, add_collection_arguments, input_files, open_collection
from formats.atomic import atomic_files
from formats.trec import write_qrels, write_run
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import report, run_script


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Ranks the documents of a collection by BM25, to get candidates.

  python data_preparation/make_candidates.py --collection scifact/ --split train --output_run_file scifact/top100.train

In:  documents and queries. If there are relevance judgments (--qrels, or those of the folder or dataset), only the
     queries with judgments are ranked.
Out: a TREC run of the documents that share a word with the query, --depth at most. A query without such documents has
     no line. OUTPUT_RUN_FILE.log gets a line with counts and the recall of relevant documents. With --output_qrels_file
     also the relevance judgments of these queries, in TREC's layout.

The index has the stems of the English words of titles and bodies, without stop words. It is built in memory: 4 bytes
per word of the collection, and about 40 bytes per distinct word of a document.""",
    )
    add_collection_arguments(parser, qrels=True)
    parser.add_argument("--depth", type=int, default=100, help="most documents of a query (default 100)")
    parser.add_argument(
        "--k1", type=float, default=K1, help=f"0 or more; a higher value favours repeated words (default {K1})"
    )
    parser.add_argument(
        "--b", type=float, default=B, help=f"0 to 1; a higher value lowers long documents (default {B})"
    )
    parser.add_argument("--output_run_file", type=Path, required=True, help="the run to write")
    parser.add_argument("--output_qrels_file", type=Path, help="the relevance judgments of the ranked queries to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output files if they exist")
    args = parser.parse_args()
    if args.depth < 1:
        raise InputError("--depth: needs to be 1 or more")
    if not 0 <= args.k1 < math.inf:
        raise InputError(f"--k1: {args.k1} is not a number from 0 up")
    if not 0 <= args.b <= 1:
        raise InputError(f"--b: {args.b} is not a number from 0 to 1")
    outputs = [("--output_run_file", args.output_run_file)]
    if args.output_qrels_file:
        outputs.append(("--output_qrels_file", args.output_qrels_file))
    refuse_outputs(outputs, args.overwrite, input_files(args))
    return args


def ids_and_texts(collection: Collection) -> Iterator[tuple[str, str]]:
    """Yields the id and the text of each document. Raises InputError for an id that occurs twice."""
    seen: set[str] = set()
    for number, document in enumerate(collection.documents(), start=1):
        if document.doc_id in seen:
            raise InputError(f"{collection.place} {number}: document {document.doc_id} occurs twice")
        seen.add(document.doc_id)
        yield document.doc_id, f"{document.title} {document.body}"


def recall(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]]) -> str:
    """A phrase: how many relevant documents (relevance above 0) of the run's queries are in the run."""
    relevant = [(query_id, doc_id) for query_id in run for doc_id, grade in qrels[query_id].items() if grade > 0]
    found = sum(doc_id in run[query_id] for query_id, doc_id in relevant)
    return f"{found} of {len(relevant)} relevant documents ({found / max(1, len(relevant)):.1%})"


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    collection = open_collection(args)
    queries, qrels = collection.queries, collection.qrels
    if qrels is not None:
        queries = {query_id: text for query_id, text in queries.items() if query_id in qrels}
        if not queries:
            raise InputError(
                f"--qrels: none of the {len(collection.queries)} queries has relevance judgments; name those of the "
                "same split"
            )
    elif args.output_qrels_file:
        raise InputError(f"--output_qrels_file: {args.collection} has no relevance judgments; name them with --qrels")
    run = bm25_candidates(ids_and_texts(collection), queries, args.depth, args.k1, args.b)
    without = sum(not scores for scores in run.values())
    if without == len(run):
        raise InputError(f"--queries: no query shares a word with a document of {args.collection}; name its queries")
    outputs = [args.output_qrels_file] if args.output_qrels_file else []
    with atomic_files(*outputs, args.output_run_file) as files:
        if args.output_qrels_file:
            write_qrels(files[0], {query_id: qrels[query_id] for query_id in queries})
        count = write_run(files[-1], run, "bm25")
    seconds = time.monotonic() - start
    report(
        f"wrote {args.output_run_file}: {count} candidates for {len(run)} of {len(collection.queries)} queries, "
        f"{without} without any; {'no judgments' if qrels is None else recall(run, qrels)}; "
        f"k1 {args.k1}, b {args.b}; {seconds:.1f} s, {len(run) / seconds:.0f} queries/s",
        args.output_run_file,
    )


if __name__ == "__main__":
    run_script(main)
