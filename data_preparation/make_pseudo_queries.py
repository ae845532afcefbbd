"""A collection in; pseudo-queries, their relevance judgments, and the collection without their texts out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import contextlib
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from data_preparation.pseudo_queries import (
    PhraseFinder,
    PseudoQuery,
    Unsuitable,
    Wanted,
    normalize,
    take_sentence,
    take_title,
)
from data_preparation.reports import beside, refuse_outputs, write_report
from data_preparation.sources import Collection, add_collection_arguments, input_files, open_collection
from formats.atomic import atomic_files, atomic_write
from formats.documents import Document, document_line
from formats.queries import query_line, read_queries
from formats.trec import qrel_line
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import report, run_script

MIN_WORDS = {"title": 4, "sentence": 6}
SPARE = 4  # candidates for each query that is asked for, because some stand elsewhere in the collection
OUTPUTS = ("output_queries_file", "output_qrels_file", "output_collection_file")
Take = Callable[[Document], PseudoQuery]


class Candidate(NamedTuple):
    """A possible pseudo-query. Candidates are sorted by `order`, a hash of the seed and the document's id."""

    order: bytes
    number: int  # of the document in the collection, from 1
    doc_id: str
    phrase: str  # the normalised text


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Makes queries and relevance judgments for a collection that has none.

  python data_preparation/make_pseudo_queries.py --collection scifact/ --kind title --num 4000 \\
      --output_queries_file pseudo/queries.tsv --output_qrels_file pseudo/qrels.tsv \\
      --output_collection_file pseudo/corpus.jsonl

In:  a collection. Its queries and relevance judgments are not read.
Out: pseudo-queries, each a title or a sentence of a document; relevance judgments, in which this document is relevant;
     and the collection (_id, title, text) without these texts, for make_candidates.py and make_train_pairs.py. Counts
     in OUTPUT_QUERIES_FILE.report.json, a line in OUTPUT_QUERIES_FILE.log.
A text that stands anywhere else in the collection is never a query: only its words count, without case and punctuation.
A title is also removed from the start of the body. A document gives one query at most. The seed and the ids of the
documents decide which documents give one.""",
    )
    add_collection_arguments(parser, queries=False)
    queries = parser.add_argument_group("pseudo-queries")
    queries.add_argument(
        "--kind", choices=tuple(MIN_WORDS), default="title", help="what becomes a query (default title)"
    )
    queries.add_argument("--num", type=int, default=4000, help="most queries (default 4000)")
    queries.add_argument(
        "--min_words", type=int, help="fewest words of a query (default: 4 of a title, 6 of a sentence)"
    )
    queries.add_argument("--max_words", type=int, default=30, help="most words of a query (default 30)")
    queries.add_argument(
        "--first_words", type=int, help="take sentences only from so many first words of a body (default: from all)"
    )
    queries.add_argument(
        "--remove_all_titles",
        action="store_true",
        help="also remove the titles of all other documents: a model that is trained with negatives from them would "
        "learn that a passage without a title is relevant",
    )
    queries.add_argument(
        "--not_in",
        type=Path,
        action="append",
        default=[],
        metavar="QUERIES",
        help="queries that no pseudo-query may equal, such as those of the test; can be given several times",
    )
    queries.add_argument("--seed", type=int, default=42, help="of the sampling (default 42)")
    output = parser.add_argument_group("output")
    output.add_argument("--output_queries_file", type=Path, required=True, help="the queries to write, packed if .gz")
    output.add_argument("--output_qrels_file", type=Path, required=True, help="the relevance judgments to write")
    output.add_argument(
        "--output_collection_file", type=Path, required=True, help="the collection to write, .jsonl or .jsonl.gz"
    )
    output.add_argument("--overwrite", action="store_true", help="replace the output files if they exist")
    args = parser.parse_args()
    args.min_words = MIN_WORDS[args.kind] if args.min_words is None else args.min_words
    for name in ("num", "min_words", "first_words"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}: {value} is below 1")
    if args.max_words < args.min_words:
        raise InputError(f"--max_words: {args.max_words} is below --min_words, {args.min_words}")
    if args.kind == "title" and args.first_words is not None:
        raise InputError("--first_words: has no use with --kind title; leave it out")
    if args.kind == "sentence" and args.remove_all_titles:
        raise InputError("--remove_all_titles: has no use with --kind sentence; leave it out")
    check_outputs(args)
    return args


def check_outputs(args: argparse.Namespace) -> None:
    """Raises InputError for an output that exists, is an input or another output, or has the wrong suffix."""
    if not args.output_collection_file.name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError("--output_collection_file: the name has to end in .jsonl or .jsonl.gz")
    outputs = [(f"--{name}", getattr(args, name)) for name in OUTPUTS]
    outputs.append((outputs[0][0], beside(outputs[0][1], ".report.json")))
    refuse_outputs(outputs, args.overwrite, [*input_files(args), *args.not_in])


def sample_candidates(
    collection: Collection, take: Take, count: int, seed: int
) -> tuple[list[Candidate], int, Counter[str]]:
    """Reads the collection and returns the `count` first candidates in their order, whatever the order of documents.

    Also returns the number of documents, and how many of the documents that were tried gave no query, by reason.

    Raises InputError if a document occurs twice among the candidates.
    """
    candidates: list[Candidate] = []
    unsuitable: Counter[str] = Counter()
    number = 0
    last = b"\xff" * 32  # once there are `count` candidates, later ones are not needed
    for number, document in enumerate(collection.documents(), start=1):
        order = hashlib.sha256(f"{seed} {document.doc_id}".encode()).digest()
        if order > last:
            continue
        try:
            phrase = normalize(take(document).text)
        except Unsuitable as error:
            unsuitable[str(error)] += 1
            continue
        candidates.append(Candidate(order, number, document.doc_id, phrase))
        if len(candidates) >= 2 * count:
            candidates = sorted(candidates)[:count]
            last = candidates[-1].order
    candidates = sorted(candidates)[:count]
    for first, second in itertools.pairwise(candidates):
        if first.doc_id == second.doc_id:
            raise InputError(f"{collection.place} {second.number}: document {second.doc_id} occurs twice")
    return candidates, number, unsuitable


def phrases_elsewhere(collection: Collection, candidates: list[Candidate]) -> set[str]:
    """Reads the collection and returns the candidates' texts that stand in a document other than their own."""
    owner: dict[str, int] = {}
    for candidate in candidates:
        owner.setdefault(candidate.phrase, candidate.number)
    finder = PhraseFinder(owner)
    found: set[str] = set()
    for number, document in enumerate(collection.documents(), start=1):
        phrases = finder.find(f"{document.title} {document.body}")
        found.update(phrase for phrase in phrases if owner[phrase] != number)
    return found


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    collection = open_collection(args)
    excluded = frozenset(normalize(text) for path in args.not_in for text in read_queries(path).values())
    wanted = Wanted(args.min_words, args.max_words, excluded)

    def take(document: Document) -> PseudoQuery:
        if args.kind == "title":
            return take_title(document, wanted)
        return take_sentence(document, wanted, args.seed, args.first_words)

    candidates, documents, unsuitable = sample_candidates(collection, take, SPARE * args.num, args.seed)
    if not candidates:
        reasons = ", ".join(f"{count} {reason}" for reason, count in unsuitable.most_common())
        raise InputError(
            f"--kind {args.kind}: no document of {args.collection} gives a query ({reasons}); name the other kind, or "
            "set --min_words and --max_words; in a recipe, set pseudo_kind, or pseudo_queries=0"
        )
    elsewhere = phrases_elsewhere(collection, candidates)
    unique = [candidate for candidate in candidates if candidate.phrase not in elsewhere]
    chosen = {candidate.number: candidate for candidate in unique[: args.num]}
    if not chosen:
        raise InputError(
            f"--kind {args.kind}: each of the {len(candidates)} texts stands in several documents of "
            f"{args.collection}; name the other kind, or set --min_words and --max_words; in a recipe, set "
            "pseudo_kind, or pseudo_queries=0"
        )

    outputs = [*(getattr(args, name) for name in OUTPUTS), beside(args.output_queries_file, ".report.json")]
    with atomic_files(*outputs) as files:
        with contextlib.ExitStack() as stack:
            queries_file, qrels_file, collection_file = (stack.enter_context(atomic_write(file)) for file in files[:3])
            for number, document in enumerate(collection.documents(), start=1):
                if number in chosen:
                    query_id = f"{args.kind}-{number}"
                    text, document = take(document)
                    queries_file.write(query_line(query_id, text))
                    qrels_file.write(qrel_line(query_id, document.doc_id, 1))
                elif args.remove_all_titles:
                    document = document._replace(title="")
                collection_file.write(document_line(document))
        seconds = time.monotonic() - start
        write_report(
            files[-1],
            {
                "settings": vars(args),
                "documents": documents,
                "queries": len(chosen),
                "queries_asked_for": args.num,
                "candidates": len(candidates),
                "candidates_that_stand_elsewhere": len(candidates) - len(unique),
                "documents_tried_without_a_candidate": dict(unsuitable.most_common()),
                "seconds": round(seconds, 1),
                "documents_per_second": round(documents / seconds),
            },
        )
    report(
        f"wrote {args.output_queries_file}: {len(chosen)} of {args.num} queries from {documents} documents; of "
        f"{len(candidates)} candidates {len(candidates) - len(unique)} stand elsewhere; {seconds:.1f} s, "
        f"{documents / seconds:.0f} documents/s",
        args.output_queries_file,
    )


if __name__ == "__main__":
    run_script(main)
