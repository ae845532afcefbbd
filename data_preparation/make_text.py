"""A collection in; its plain text for general distillation out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import itertools
import time

from data_preparation.sentences import sentence_spans
from data_preparation.sources import add_collection_arguments, input_files, open_collection
from formats.atomic import atomic_write
from formats.documents import Document
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import refuse_existing, report, run_script


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Writes the documents of a collection as plain text, for general distillation.

  python data_preparation/make_text.py --collection scifact/ --output_text_file scifact/text.txt

In:  a collection. Its queries and relevance judgments are not read.
Out: the title and then one sentence per line, with a blank line between documents, as tokenize_to_features.py
     --set_name general reads it. A sentence ends at a period, question mark or exclamation mark before white space and
     a capital letter or digit, but not after some abbreviations, and at a blank line and an item of a list. Documents
     without text are skipped. OUTPUT_TEXT_FILE.log gets a line with counts.""",
    )
    add_collection_arguments(parser, queries=False)
    parser.add_argument("--output_text_file", type=Path, required=True, help="the text to write, packed if .gz")
    parser.add_argument("--max_documents", type=int, help="read only so many documents (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="replace the text if it exists")
    args = parser.parse_args()
    if args.max_documents is not None and args.max_documents < 1:
        raise InputError("--max_documents: needs to be 1 or more")
    refuse_existing(args.output_text_file, "--output_text_file", args.overwrite, input_files(args), beside=[".log"])
    return args


def paragraph(document: Document) -> list[str]:
    """A document's lines: its title and its sentences. White space becomes one space, and no line is empty."""
    sentences = (document.body[start:end] for start, end in sentence_spans(document.body))
    return [line for text in (document.title, *sentences) if (line := " ".join(text.split()))]


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    collection = open_collection(args)
    documents = sentences = words = empty = 0
    with atomic_write(args.output_text_file) as file:
        for document in itertools.islice(collection.documents(), args.max_documents):
            lines = paragraph(document)
            if not lines:
                empty += 1
                continue
            file.write(("\n" if documents else "") + "\n".join(lines) + "\n")
            documents += 1
            sentences += len(lines)
            words += sum(line.count(" ") + 1 for line in lines)
        if not documents:
            raise InputError(f"--collection: {args.collection} has no document with text; name another")
    seconds = time.monotonic() - start
    report(
        f"wrote {args.output_text_file}: {documents} documents, {sentences} lines, {words} words; skipped {empty} "
        f"documents without text; {seconds:.1f} s, {documents / seconds:.0f} documents/s",
        args.output_text_file,
    )


if __name__ == "__main__":
    run_script(main)
