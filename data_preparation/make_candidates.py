"""A collection and queries in; a run of each query's best documents by BM25 out."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preparation.candidates import K1, B, bm25_candidates
from data_preparation.sources import Collection, add_collection_arguments, input_files, open_collection
from formats.trec import write_qrels, write_run
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import refuse_existing, report, run_script


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description=f"""Ranks the documents of a collection that comes without candidates, by BM25 (k1 {K1}, b {B}).

  python data_preparation/make_candidates.py --collection scifact/ --split train --output_run_file scifact/top100.train

In:  documents and queries. Where judgements are known, by --qrels or from the folder or dataset, only the queries that
     they judge are ranked.
Out: a TREC run of the documents that share a word with the query, --depth at most; a query without any has no line.
     OUTPUT_RUN_FILE.log gets a line with counts and the recall of relevant documents. With --output_qrels_file also
     the judgements of these queries, in TREC's layout, wherever they come from.

Titles and bodies are indexed whole, as stems of English words without stop words. The index is made in memory: 4 bytes
for each word of the collection, about 40 for each different word of a document.""",
    )
    add_collection_arguments(parser, qrels=True)
    parser.add_argument("--depth", type=int, default=100, help="documents of a query at most (default 100)")
    parser.add_argument("--output_run_file", type=Path, required=True, help="the run to write")
    parser.add_argument("--output_qrels_file", type=Path, help="the judgements of the ranked queries, as TREC has them")
    parser.add_argument("--overwrite", action="store_true", help="replace the output files if they exist")
    args = parser.parse_args()
    if args.depth < 1:
        raise InputError("--depth: needs to be 1 or more")
    refuse_existing(args.output_run_file, "--output_run_file", args.overwrite, input_files(args))
    if args.output_qrels_file:
        inputs = [*input_files(args), args.output_run_file]
        refuse_existing(args.output_qrels_file, "--output_qrels_file", args.overwrite, inputs)
        if args.output_qrels_file.resolve() == args.output_run_file.resolve():
            raise InputError("--output_qrels_file: is --output_run_file too; name another")
    return args


def ids_and_texts(collection: Collection) -> Iterator[tuple[str, str]]:
    """Streams what is indexed of each document.

    Raises InputError for an id that occurs twice.
    """
    seen: set[str] = set()
    for number, document in enumerate(collection.documents(), start=1):
        if document.doc_id in seen:
            raise InputError(f"{collection.place} {number}: document {document.doc_id} was there before")
        seen.add(document.doc_id)
        yield document.doc_id, f"{document.title} {document.body}"


def recall(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]]) -> str:
    """How many of the relevant documents (a relevance above 0) of a run's queries the run holds, in words."""
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
                f"--qrels: none of the {len(collection.queries)} queries is judged; are they of one split?"
            )
    elif args.output_qrels_file:
        raise InputError(f"--output_qrels_file: {args.collection} comes without judgements; name them with --qrels")
    run = bm25_candidates(ids_and_texts(collection), queries, args.depth)
    without = sum(not scores for scores in run.values())
    if without == len(run):
        raise InputError(f"--queries: none shares a word with a document of {args.collection}")
    if args.output_qrels_file:
        write_qrels(args.output_qrels_file, {query_id: qrels[query_id] for query_id in queries})
    count = write_run(args.output_run_file, run, "bm25")
    seconds = time.monotonic() - start
    report(
        f"wrote {args.output_run_file}: {count} candidates for {len(run)} of {len(collection.queries)} queries, "
        f"{without} without any; {'unjudged' if qrels is None else recall(run, qrels)}; {seconds:.1f} s, "
        f"{len(run) / seconds:.0f} queries/s",
        args.output_run_file,
    )


if __name__ == "__main__":
    run_script(main)
