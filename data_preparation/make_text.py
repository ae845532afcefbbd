"""A collection in; its text, for general distillation, out."""

import argparse
import itertools
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_preparation.sources import add_collection_arguments, input_files, open_collection
from formats.atomic import atomic_write
from formats.documents import Document
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import refuse_existing, report, run_script

# White space behind ., ! or ?, with or without a closing quote or bracket, and before a capital, a digit or an opening
# one; but not behind an initial ("J. Doe") or an abbreviation that a sentence goes on from. It begins with the white
# space, which the regex engine finds fast, and looks back from behind it.
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

In:  a collection; its queries and judgements play no part.
Out: a paragraph per document, with a blank line between two: the title, then a sentence a line, as
     tokenize_to_features.py --set_name general reads it. A sentence ends at a period, question or exclamation mark
     before white space and a capital or a digit; a few abbreviations are known. Documents without text are left out.
     OUTPUT_TEXT_FILE.log gets a line with counts.""",
    )
    add_collection_arguments(parser, queries=False)
    parser.add_argument("--output_text_file", type=Path, required=True, help="the text to write, packed if .gz")
    parser.add_argument("--max_documents", type=int, help="take only the first so many")
    parser.add_argument("--overwrite", action="store_true", help="replace the text if it exists")
    args = parser.parse_args()
    if args.max_documents is not None and args.max_documents < 1:
        raise InputError("--max_documents: needs to be 1 or more")
    refuse_existing(args.output_text_file, "--output_text_file", args.overwrite, input_files(args))
    return args


def paragraph(document: Document) -> list[str]:
    """A document's lines: its title and its sentences, each with single blanks, none empty."""
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
            raise InputError(f"--collection: {args.collection} has no document with text")
    seconds = time.monotonic() - start
    report(
        f"wrote {args.output_text_file}: {documents} documents, {sentences} lines, {words} words; {empty} documents "
        f"without text left out; {seconds:.1f} s, {documents / seconds:.0f} documents/s",
        args.output_text_file,
    )


if __name__ == "__main__":
    run_script(main)
