"""A collection, judgements and candidates in, labelled pairs out."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preparation.needed import read_needed
from data_preparation.passages import add_passage_arguments, check_passage_arguments, split_into_passages
from data_preparation.reports import refuse_with_report, write_report
from data_preparation.sources import add_collection_arguments, input_files, open_collection
from data_preparation.training_examples import draw_documents, needed_by, negative_pairs, relevant_pairs
from formats.pairs import NO_LABEL, Pair, write_pairs
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import report, run_script


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Makes the pairs to train with: every passage of relevant documents, and drawn passages of others.

  python data_preparation/make_train_pairs.py --collection msmarco/msmarco-docs.tsv.gz \\
      --queries msmarco/msmarco-doctrain-queries.tsv.gz --qrels msmarco/msmarco-doctrain-qrels.tsv.gz \\
      --candidates msmarco/msmarco-doctrain-top100.gz --output_pairs_file msmarco/train_pairs.tsv.gz \\
      --output_positives_file msmarco/train_positives.tsv.gz

In:  a collection, queries, judgements, and a run with the candidates of each query.
Out: pairs, tab-separated: query_id#doc_id_passage-N, query, passage, label, for each query of the judgements that has a
     text and a relevant document the positives, label 1, then the negatives, label 0. With --output_positives_file the
     positives again without label, for the teacher to score (tokenize_to_features.py --set_name test, rerank.py) and
     filter_positives.py to choose from. Figures in OUTPUT_PAIRS_FILE.report.json, and a line in OUTPUT_PAIRS_FILE.log.
The same seed draws the same pairs, whatever the order of lines in the files. Documents that the collection lacks, or
that have no body, are left out and counted. A query none of whose relevant documents is left keeps its negatives.""",
    )
    add_collection_arguments(parser, qrels=True, candidates=True)
    add_passage_arguments(parser)
    parser.add_argument(
        "--min_relevance", type=int, default=1, help="relevance from which a document is a positive (default 1)"
    )
    parser.add_argument(
        "--max_positive_passages", type=int, help="first passages of a relevant document to take (default: all)"
    )
    parser.add_argument(
        "--num_negatives",
        type=int,
        default=4,
        help="documents drawn from each query's candidates, one passage of each; more than the one positive that "
        "filter_positives.py leaves of a document, as most of what is re-ranked is not relevant (default 4)",
    )
    parser.add_argument("--negatives_from_rank", type=int, default=1, help="best rank to draw from (default 1)")
    parser.add_argument("--negatives_to_rank", type=int, default=100, help="last rank to draw from (default 100)")
    parser.add_argument(
        "--num_random_negatives",
        type=int,
        default=0,
        help="further documents drawn for each query, from those relevant to or drawn for others (default 0)",
    )
    parser.add_argument("--seed", type=int, default=42, help="of the draws (default 42)")
    parser.add_argument("--output_pairs_file", type=Path, required=True, help="the pairs to write, packed if .gz")
    parser.add_argument("--output_positives_file", type=Path, help="the positives without label, packed if .gz")
    parser.add_argument("--overwrite", action="store_true", help="replace the output files if they exist")
    args = parser.parse_args()
    for name, least in (
        ("min_relevance", 1),
        ("max_positive_passages", 1),
        ("num_negatives", 0),
        ("negatives_from_rank", 1),
        ("num_random_negatives", 0),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name}: {value} is below {least}")
    if args.negatives_to_rank < args.negatives_from_rank:
        raise InputError(
            f"--negatives_to_rank: {args.negatives_to_rank} is below --negatives_from_rank, {args.negatives_from_rank}"
        )
    check_passage_arguments(args)
    inputs = input_files(args)
    refuse_with_report(args.output_pairs_file, "--output_pairs_file", args.overwrite, inputs)
    if args.output_positives_file:
        refuse_with_report(args.output_positives_file, "--output_positives_file", args.overwrite, inputs, suffixes=())
        if args.output_positives_file.resolve() == args.output_pairs_file.resolve():
            raise InputError("--output_positives_file: is --output_pairs_file too; name another")
    return args


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    collection = open_collection(args)
    for name in ("qrels", "candidates"):
        if not getattr(collection, name):
            raise InputError(f"--{name}: {args.collection} comes without {name}; name a file of them")
    queries = collection.queries
    judged = {query_id: grades for query_id, grades in collection.qrels.items() if query_id in queries}
    drawn = draw_documents(
        judged,
        collection.candidates,
        min_relevance=args.min_relevance,
        ranks=(args.negatives_from_rank, args.negatives_to_rank),
        num_negatives=args.num_negatives,
        num_random_negatives=args.num_random_negatives,
        seed=args.seed,
    )
    if not drawn:
        raise InputError(
            f"--qrels: no query has both a text and a document of relevance {args.min_relevance} or more; "
            "name judgements of these queries"
        )
    left_out = {"no text": len(collection.qrels) - len(judged), "no relevant document": len(judged) - len(drawn)}
    without_candidates = len(drawn.keys() - collection.candidates.keys())
    # At MS MARCO's size the candidates are gigabytes, which the documents need.
    collection = collection._replace(qrels=None, candidates=None)
    needed = read_needed(collection, needed_by(drawn), "--qrels and --candidates")
    relevant = [doc_id for documents in drawn.values() for doc_id in documents.relevant]
    negative = [doc_id for documents in drawn.values() for doc_id in documents.negative]
    if needed.documents.keys().isdisjoint(relevant):
        raise InputError(f"--qrels: none of their relevant documents, such as {relevant[0]}, is in the collection")

    def split(doc_id: str) -> list[str]:
        document = needed.documents.get(doc_id)
        if document is None:
            return []
        return split_into_passages(document.title, document.body, args.window, args.stride, args.max_passages)

    def positives() -> Iterator[Pair]:
        for query_id, documents in drawn.items():
            yield from relevant_pairs(query_id, queries[query_id], documents, split, args.max_positive_passages)

    count = [0, 0]

    def pairs() -> Iterator[Pair]:
        for query_id, documents in tqdm(drawn.items(), desc="writing pairs", unit=" queries", disable=None):
            text = queries[query_id]
            for pair in (
                *relevant_pairs(query_id, text, documents, split, args.max_positive_passages),
                *negative_pairs(query_id, text, documents, split, args.seed),
            ):
                count[pair.label] += 1
                yield pair

    write_pairs(args.output_pairs_file, pairs())
    if args.output_positives_file:
        write_pairs(args.output_positives_file, (pair._replace(label=NO_LABEL) for pair in positives()))

    dropped = {"relevant": needed.dropped(relevant), "negative": needed.dropped(negative)}
    seconds = time.monotonic() - start
    write_report(
        args.output_pairs_file,
        {
            "settings": vars(args),
            "queries": len(drawn),
            "queries_left_out": left_out,
            "queries_without_candidates": without_candidates,
            "queries_without_positives": sum(
                needed.documents.keys().isdisjoint(documents.relevant) for documents in drawn.values()
            ),
            "relevant": len(relevant),
            "relevant_dropped": dropped["relevant"],
            "negatives_asked_for": len(drawn) * (args.num_negatives + args.num_random_negatives),
            "negatives_drawn": len(negative),
            "negatives_dropped": dropped["negative"],
            **needed.figures(),
            "passages": sum(count),
            "positives": count[1],
            "negatives": count[0],
            "seconds": round(seconds, 1),
            "passages_per_second": round(sum(count) / seconds),
        },
    )
    report(
        f"wrote {args.output_pairs_file}: {count[1]} positives and {count[0]} negatives of {len(drawn)} queries and "
        f"{len(needed.documents)} documents; the collection lacks {len(needed.missing)} more, "
        f"{len(needed.empty)} have no body; {seconds:.1f} s, {sum(count) / seconds:.0f} passages/s",
        args.output_pairs_file,
    )


if __name__ == "__main__":
    run_script(main)
