"""A collection in; its plain text for general distillation out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import itertools
import re
import time

from data_preparation.sources import add_collection_arguments, input_files, open_collection
from formats.atomic import atomic_write
from formats.documents import Document
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import refuse_existing, report, run_script

# A sentence ends at white space after ., ! or ? (and perhaps a closing quote or bracket), and before a capital letter
# or a digit (and perhaps an opening quote or bracket). It does not end after an initial ("J. Doe") or an abbreviation.
# The pattern starts with the white space, which the regex engine finds fast. Look-behinds check the text before it.
_ABBREVIATIONS = ("Dr", "Mr", "Mrs", "Ms", "St", "Prof", "Fig", "Figs", "No", "vs", "cf", "al", "e.g", "i.e")
_SENTENCE_END = re.compile(
    r"\s(?:(?<=[.!?]\s)|(?<=[.!?][\"')\]\u201d\u2019]\s))(?<!\b[A-Z]\.\s)"
    + "".join(rf"(?<!\b{re.escape(word)}\.\s)" for word in _ABBREVIATIONS)
    + r"\s*(?=[\"'(\[\u201c\u2018]?[A-Z0-9])"
)


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Writes the documents of a collection as plain text, for general distillation.

  python data_preparation/make_text.py --collection scifact/ --output_text_file scifact/text.txt

In:  a collection. Its queries and relevance judgments are not read.
Out: the title and then one sentence per line, with a blank line between documents, as tokenize_to_features.py
     --set_name general reads it. A sentence ends at a period, question mark or exclamation mark before white space and
     a capital letter or digit, but not after some abbreviations. Documents without text are skipped.
     OUTPUT_TEXT_FILE.log gets a line with counts.""",
    )
    add_collection_arguments(parser, queries=False)
    parser.add_argument("--output_text_file", type=Path, required=True, help="the text to write, packed if .gz")
    parser.add_argument("--max_documents", type=int, help="read only so many documents (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="replace the text if it exists")
    args = parser.parse_args()
    if args.max_documents is not None and args.max_documents < 1:
        raise InputError("--max_documents: needs to be 1 or more")
    refuse_existing(args.output_text_file, "--output_text_file", args.overwrite, input_files(args))
    return args


def paragraph(document: Document) -> list[str]:
    """A document's lines: its title and its sentences. White space becomes one space, and no line is empty."""
    sentences = _SENTENCE_END.split(document.body)
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
