"""A collection, relevance judgments and candidates in; labelled pairs out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import time
from collections.abc import Iterator

from data_preparation.needed import read_needed
from data_preparation.passages import add_passage_arguments, check_passage_arguments, split_into_passages
from data_preparation.reports import beside, refuse_outputs, write_report
from data_preparation.sources import add_collection_arguments, input_files, open_collection
from data_preparation.training_examples import all_ids, negative_pairs, relevant_pairs, sample_documents
from formats.atomic import atomic_files
from formats.pairs import NO_LABEL, Pair, write_pairs
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.progress import ProgressBar
from runtime.script import report, run_script


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Makes pairs to train with: all passages of relevant documents, and sampled negatives.

  python data_preparation/make_train_pairs.py --collection msmarco/msmarco-docs.tsv.gz \\
      --queries msmarco/msmarco-doctrain-queries.tsv.gz --qrels msmarco/msmarco-doctrain-qrels.tsv.gz \\
      --candidates msmarco/msmarco-doctrain-top100.gz --output_pairs_file msmarco/train_pairs.tsv.gz \\
      --output_positives_file msmarco/train_positives.tsv.gz

In:  a collection, queries, relevance judgments, and a run with the candidates of each query.
Out: pairs, tab-separated: query_id#doc_id_passage-N, query, passage, label. For each query that has a text and a
     relevant document first the positives, label 1, then the negatives, label 0. With --output_positives_file also the
     positives without labels: the teacher scores them (tokenize_to_features.py --set_name test, rerank.py), and
     filter_positives.py chooses from them. Counts in OUTPUT_PAIRS_FILE.report.json, a line in OUTPUT_PAIRS_FILE.log.
The same seed samples the same pairs; the order of lines in the files has no effect. Documents that are not in the
collection, or have no body, are skipped and counted. A query without remaining positives keeps its negatives.""",
    )
    add_collection_arguments(parser, qrels=True, candidates=True)
    add_passage_arguments(parser)
    positives = parser.add_argument_group("positives")
    positives.add_argument(
        "--min_relevance", type=int, default=1, help="least relevance of a relevant document (default 1)"
    )
    positives.add_argument(
        "--max_positive_passages", type=int, help="take only so many first passages of a relevant document"
    )
    negatives = parser.add_argument_group("negatives")
    negatives.add_argument(
        "--num_negatives",
        type=int,
        default=4,
        help="documents to sample from each query's candidates, one passage of each (default 4: more than the one "
        "positive that filter_positives.py keeps, because most candidates are not relevant)",
    )
    negatives.add_argument("--negatives_from_rank", type=int, default=1, help="best rank to sample from (default 1)")
    negatives.add_argument("--negatives_to_rank", type=int, default=100, help="last rank to sample from (default 100)")
    negatives.add_argument(
        "--num_random_negatives",
        type=int,
        default=0,
        help="more documents to sample for each query, from those that all queries have so far (default 0)",
    )
    negatives.add_argument("--seed", type=int, default=42, help="of the sampling (default 42)")
    output = parser.add_argument_group("output")
    output.add_argument("--output_pairs_file", type=Path, required=True, help="the pairs to write, packed if .gz")
    output.add_argument("--output_positives_file", type=Path, help="positives without labels to write, packed if .gz")
    output.add_argument("--overwrite", action="store_true", help="replace the output files if they exist")
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
    outputs = [
        ("--output_pairs_file", args.output_pairs_file),
        ("--output_pairs_file", beside(args.output_pairs_file, ".report.json")),
    ]
    if args.output_positives_file:
        outputs.append(("--output_positives_file", args.output_positives_file))
    refuse_outputs(outputs, args.overwrite, input_files(args))
    return args


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    collection = open_collection(args)
    for name in ("qrels", "candidates"):
        if not getattr(collection, name):
            raise InputError(f"--{name}: {args.collection} has no {name}; name a file of them")
    queries = collection.queries
    judged = {query_id: grades for query_id, grades in collection.qrels.items() if query_id in queries}
    sampled = sample_documents(
        judged,
        collection.candidates,
        min_relevance=args.min_relevance,
        ranks=(args.negatives_from_rank, args.negatives_to_rank),
        num_negatives=args.num_negatives,
        num_random_negatives=args.num_random_negatives,
        seed=args.seed,
    )
    if not sampled:
        raise InputError(
            f"--qrels: no query has both a text and a document of relevance {args.min_relevance} or more; "
            "name relevance judgments of these queries"
        )
    left_out = {"no text": len(collection.qrels) - len(judged), "no relevant document": len(judged) - len(sampled)}
    without_candidates = len(sampled.keys() - collection.candidates.keys())
    # MS MARCO's candidates take gigabytes. Free them before the documents are read.
    collection = collection._replace(qrels=None, candidates=None)
    needed = read_needed(collection, all_ids(sampled), "--qrels and --candidates")
    relevant = [doc_id for documents in sampled.values() for doc_id in documents.relevant]
    negative = [doc_id for documents in sampled.values() for doc_id in documents.negative]
    if needed.documents.keys().isdisjoint(relevant):
        raise InputError(
            f"--qrels: no relevant document, such as {relevant[0]}, is in the collection; name those of --collection"
        )

    def split(doc_id: str) -> list[str]:
        document = needed.documents.get(doc_id)
        if document is None:
            return []
        return split_into_passages(document.title, document.body, args.window, args.stride, args.max_passages)

    def positives() -> Iterator[Pair]:
        for query_id, documents in sampled.items():
            yield from relevant_pairs(query_id, queries[query_id], documents, split, args.max_positive_passages)

    count = [0, 0]

    def pairs() -> Iterator[Pair]:
        for query_id, documents in ProgressBar(sampled.items(), desc="writing pairs", unit=" queries"):
            text = queries[query_id]
            for pair in (
                *relevant_pairs(query_id, text, documents, split, args.max_positive_passages),
                *negative_pairs(query_id, text, documents, split, args.seed),
            ):
                count[pair.label] += 1
                yield pair

    dropped = {"relevant": needed.dropped(relevant), "negative": needed.dropped(negative)}
    outputs = [args.output_positives_file] if args.output_positives_file else []
    outputs += [args.output_pairs_file, beside(args.output_pairs_file, ".report.json")]
    with atomic_files(*outputs) as files:
        if args.output_positives_file:
            write_pairs(files[0], (pair._replace(label=NO_LABEL) for pair in positives()))
        write_pairs(files[-2], pairs())
        seconds = time.monotonic() - start
        figures = {
            "settings": vars(args),
            "queries": len(sampled),
            "queries_left_out": left_out,
            "queries_without_candidates": without_candidates,
            "queries_without_positives": sum(
                needed.documents.keys().isdisjoint(documents.relevant) for documents in sampled.values()
            ),
            "relevant": len(relevant),
            "relevant_dropped": dropped["relevant"],
            "negatives_asked_for": len(sampled) * (args.num_negatives + args.num_random_negatives),
            "negatives_drawn": len(negative),
            "negatives_dropped": dropped["negative"],
            **needed.figures(),
            "passages": sum(count),
            "positives": count[1],
            "negatives": count[0],
            "seconds": round(seconds, 1),
            "passages_per_second": round(sum(count) / seconds),
        }
        write_report(files[-1], figures)
    report(
        f"wrote {args.output_pairs_file}: {count[1]} positives and {count[0]} negatives of {len(sampled)} queries and "
        f"{len(needed.documents)} documents; {len(needed.missing)} more are missing from the collection, "
        f"{len(needed.empty)} have no body; {seconds:.1f} s, {sum(count) / seconds:.0f} passages/s",
        args.output_pairs_file,
    )


if __name__ == "__main__":
    run_script(main)
