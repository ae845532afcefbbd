"""Pairs or plain text in; pickled features out."""

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from formats.checksums import file_sha256
from formats.features import SET_NAMES, Example, FeaturesHeader, read_header, write_features
from formats.lines import OnMalformed, RejectedLines
from formats.pairs import NO_LABEL, read_pairs
from formats.text import TextLine, read_text
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.hub import model_directory, model_files
from runtime.progress import ProgressBar
from runtime.script import refuse_existing, report, run_script
from tokenization.packing import pack_text
from tokenization.pair_encoding import encode_pairs, useful_processes
from tokenization.vocabulary import load_vocabulary, vocabulary_sha256
from tokenization.wordpiece import WordPiece

DEFAULT_SEED = 42


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Tokenizes (query, passage) pairs, or plain text, with a model's WordPiece vocabulary.

  python tokenize_to_features.py --set_name train --raw_data_file train.tsv \\
      --output_features_file train.features --bert_model_dir teacher/

In:  tab-separated UTF-8 lines, `.gz` or not: example_id, query, passage, and with --set_name train a label, 0 or 1.
     Ids of dev and test pairs are query_id#passage_id.
     With --set_name general plain text, UTF-8, `.gz` or not: a sentence or a paragraph a line, blank lines between
     documents.
Out: pickled features for distill.py and rerank.py, and a line about them in OUTPUT_FEATURES_FILE.log.
     With --set_name general examples without labels, for general distillation: the whole text in order, as examples
     [CLS] A [SEP] B [SEP] of --max_seq_length tokens. The last example may be shorter; a single remaining token is
     dropped. B begins with a document. If no document begins inside the example, B begins with a line; if no line
     begins there, B begins at any token.
A malformed line is an error that names it. With --skip_malformed such a line is skipped, and listed with the reason in
OUTPUT_FEATURES_FILE.rejected.tsv.
The features record the name and the SHA-256 of --raw_data_file. For this the file is read once more, at about 1 GB in a
second.""",
    )
    files = parser.add_argument_group("data and model")
    files.add_argument(
        "--set_name",
        choices=SET_NAMES,
        required=True,
        help="train pairs have labels, dev and test pairs have none; general is plain text",
    )
    files.add_argument("--raw_data_file", type=Path, required=True, help="the pairs, or the plain text")
    files.add_argument("--output_features_file", type=Path, required=True, help="the features to write")
    files.add_argument(
        "--bert_model_dir",
        required=True,
        help="the model with the vocabulary: a directory, or an id of the Hugging Face Hub",
    )
    parser.add_argument(
        "--max_seq_length",
        type=int,
        default=256,
        help="most tokens of an example, with [CLS] and [SEP]; with general the length of all (default 256)",
    )
    parser.add_argument(
        "--do_lower_case",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="for an uncased vocabulary; the default",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help=f"with general: samples where B begins if there are several places (default {DEFAULT_SEED})",
    )
    parser.add_argument(
        "--skip_malformed",
        action="store_true",
        help="skip malformed pairs, and list them; not for general, where it would join the lines before and after",
    )
    files.add_argument("--overwrite", action="store_true", help="replace the features file if it exists")
    only = files.add_mutually_exclusive_group()
    only.add_argument(
        "--if_stale",
        action="store_true",
        help="do nothing if the features file was made from this input with these settings. Time stamps do not count; "
        "the SHA-256 of the input does. Replacing another file needs --overwrite",
    )
    only.add_argument(
        "--if_missing",
        action="store_true",
        help="do nothing if the features file exists; warn if it was made from another input",
    )
    args = parser.parse_args()
    if not 5 <= args.max_seq_length <= 1 << 20:
        raise InputError("--max_seq_length: needs to be from 5 (3 control tokens, 2 words) to 1048576")
    if args.seed is not None and args.set_name != "general":
        raise InputError(f"--seed: has no effect with --set_name {args.set_name}; leave it out")
    if args.seed is not None and args.if_stale:
        raise InputError("--seed: features do not record it, so --if_stale cannot compare it; leave out one of them")
    if args.seed is None:
        args.seed = DEFAULT_SEED
    if args.seed < 0:
        raise InputError("--seed: needs to be 0 or more")
    if args.skip_malformed and args.set_name == "general":
        raise InputError("--skip_malformed: is for pairs; leave it out with --set_name general, and correct the text")
    return args


def check_outputs(args: argparse.Namespace) -> None:
    """Raises InputError if an output exists already, without --overwrite, or cannot be written there."""
    inputs = [args.raw_data_file, *model_files(args.bert_model_dir)]
    for output in (args.output_features_file, RejectedLines(args.output_features_file).path):
        refuse_existing(output, "--output_features_file", args.overwrite, inputs, beside=[".log"])


def name_and_sha256(path: Path) -> tuple[str, str] | tuple[None, None]:
    """Returns the base name and the SHA-256 of an input; twice None for a pipe or stdin, which are read only once."""
    if not path.is_file() or path.parent in (Path("/dev"), Path("/dev/fd")):
        return None, None
    return os.fsencode(path.name).decode("utf-8", "replace"), file_sha256(path)


def why_stale(features_file: Path, wanted: FeaturesHeader) -> str | None:
    """Returns why existing features are not those that `wanted` describes. None: they are."""
    try:
        found = read_header(features_file)
    except InputError as error:
        return str(error)
    if found.raw_data_sha256 is None:
        return "it is of unknown origin"
    for name in ("max_seq_length", "do_lower_case", "set_name"):
        if getattr(found, name) != getattr(wanted, name):
            return f"it has {name} {getattr(found, name)}, not {getattr(wanted, name)}"
    if (found.vocab_size, found.vocab_sha256) != (wanted.vocab_size, wanted.vocab_sha256):
        return "it was made with another vocabulary"
    if found.raw_data_sha256 != wanted.raw_data_sha256:
        return f"it was {found.origin()}"
    return None


def warn_of_another_input(features_file: Path, raw_data_file: Path) -> None:
    """Prints a warning if features are known to be made from another input."""
    header = read_header(features_file)
    name, sha256 = name_and_sha256(raw_data_file)
    if None not in (sha256, header.raw_data_sha256) and sha256 != header.raw_data_sha256:
        print(
            f"{os.path.basename(sys.argv[0])}: warning: {features_file} was {header.origin()}, not from "
            f"{name!r:.100} (SHA-256 {sha256}); it is used all the same",
            file=sys.stderr,
        )


def while_unchanged(path: Path, before: os.stat_result, examples: Iterable[Example]) -> Iterator[Example]:
    """Yields the examples. At the end, raises InputError if the file that they are read from changed since `before`."""
    yield from examples
    after = os.stat(path)
    if any(getattr(before, name) != getattr(after, name) for name in ("st_ino", "st_size", "st_mtime_ns")):
        raise InputError(f"{path} was changed while it was read; run the script again")


def pair_examples(
    args: argparse.Namespace, tokenizer: WordPiece, on_malformed: OnMalformed | None
) -> Iterator[Example]:
    """Yields the tokenized pairs of the input."""
    pairs, texts = itertools.tee(read_pairs(args.raw_data_file, args.set_name == "train", on_malformed))
    texts = ((pair.query, pair.passage) for pair in texts)
    encoded = encode_pairs(tokenizer, texts, args.max_seq_length, useful_processes())
    pairs = ProgressBar(pairs, desc="tokenizing", unit=" pairs")
    for (input_ids, first_segment_length), pair in zip(encoded, pairs, strict=True):
        yield Example(pair.example_id, input_ids, first_segment_length, pair.label)


def text_examples(args: argparse.Namespace, tokenizer: WordPiece, seen: Counter) -> Iterator[Example]:
    """Yields examples packed from the text of the input. Counts its documents, lines and tokens in `seen`.

    Raises InputError if the text has fewer than two tokens.
    """

    def lines() -> Iterator[TextLine]:
        for line in read_text(args.raw_data_file):
            seen["documents"] += line.begins_document
            seen["lines"] += 1
            yield line

    with ProgressBar(desc="tokenizing", unit=" tokens", unit_scale=True) as progress:
        packed = pack_text(tokenizer, lines(), args.max_seq_length, args.seed)
        for number, (input_ids, first_segment_length) in enumerate(packed):
            yield Example(f"general_{number}", input_ids, first_segment_length, NO_LABEL)
            seen["tokens"] += len(input_ids) - 3
            progress.update(len(input_ids) - 3)
    if not seen["tokens"]:
        raise InputError(f"{args.raw_data_file} has no words, or a single one; name another file")


def main() -> None:
    args = parse_args()
    exists = args.output_features_file.exists()
    if exists and args.if_missing:
        warn_of_another_input(args.output_features_file, args.raw_data_file)
        return
    if not (exists and args.if_stale):
        check_outputs(args)
    start = time.monotonic()
    tokens = load_vocabulary(model_directory(args.bert_model_dir, weights=False))
    tokenizer = WordPiece(tokens, args.do_lower_case)
    state = os.stat(args.raw_data_file)
    header = FeaturesHeader(
        args.max_seq_length,
        len(tokens),
        args.do_lower_case,
        args.set_name,
        vocabulary_sha256(tokens),
        *name_and_sha256(args.raw_data_file),
    )
    if exists and args.if_stale:
        reason = why_stale(args.output_features_file, header)
        if reason is None:
            return
        check_outputs(args)
        report(f"{args.output_features_file} is made again: {reason}", args.output_features_file)
    seen = Counter()
    general = args.set_name == "general"
    with RejectedLines(args.output_features_file) as rejected:
        if general:
            examples = text_examples(args, tokenizer, seen)
        else:
            examples = pair_examples(args, tokenizer, rejected if args.skip_malformed else None)
        if header.raw_data_sha256 is not None:
            examples = while_unchanged(args.raw_data_file, state, examples)
        count = write_features(args.output_features_file, header, examples)
    seconds = time.monotonic() - start
    read, rate = "", f"{count / seconds:.0f} pairs/s"
    if general:
        read = f" ({seen['documents']} documents, {seen['lines']} lines, {seen['tokens']} tokens)"
        rate = f"{seen['tokens'] / seconds:.0f} tokens/s"
    elif args.skip_malformed:
        read = f", {rejected.counts(taken=count)},"
    report(
        f"wrote {args.output_features_file}: {count} {args.set_name} examples of at most {args.max_seq_length} tokens "
        f"from {args.raw_data_file}{read} in {seconds:.1f} s, {rate}",
        args.output_features_file,
    )


if __name__ == "__main__":
    run_script(main)
