"""Pairs or plain text in; pickled features out."""

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from formats.features import SET_NAMES, Example, FeaturesHeader, write_features
from formats.lines import OnMalformed, RejectedLines
from formats.pairs import NO_LABEL, read_pairs
from formats.text import TextLine, read_text
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.hub import model_directory
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
OUTPUT_FEATURES_FILE.rejected.tsv.""",
    )
    parser.add_argument(
        "--set_name",
        choices=SET_NAMES,
        required=True,
        help="train pairs have labels, dev and test pairs have none; general is plain text",
    )
    parser.add_argument("--raw_data_file", type=Path, required=True, help="the pairs, or the plain text")
    parser.add_argument("--output_features_file", type=Path, required=True, help="the features to write")
    parser.add_argument(
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
    parser.add_argument("--overwrite", action="store_true", help="replace the features file if it exists")
    args = parser.parse_args()
    if not 5 <= args.max_seq_length <= 1 << 20:
        raise InputError("--max_seq_length: needs to be from 5 (3 control tokens, 2 words) to 1048576")
    if args.seed is not None and args.set_name != "general":
        raise InputError(f"--seed: has no effect with --set_name {args.set_name}; leave it out")
    if args.seed is None:
        args.seed = DEFAULT_SEED
    if args.seed < 0:
        raise InputError("--seed: needs to be 0 or more")
    if args.skip_malformed and args.set_name == "general":
        raise InputError("--skip_malformed: is for pairs; leave it out with --set_name general, and correct the text")
    for output in (args.output_features_file, RejectedLines(args.output_features_file).path):
        refuse_existing(output, "--output_features_file", args.overwrite, [args.raw_data_file])
    return args


def pair_examples(
    args: argparse.Namespace, tokenizer: WordPiece, on_malformed: OnMalformed | None
) -> Iterator[Example]:
    """Yields the tokenized pairs of the input."""
    pairs, texts = itertools.tee(read_pairs(args.raw_data_file, args.set_name == "train", on_malformed))
    texts = ((pair.query, pair.passage) for pair in texts)
    encoded = encode_pairs(tokenizer, texts, args.max_seq_length, useful_processes())
    pairs = tqdm(pairs, desc="tokenizing", unit=" pairs", disable=None)
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

    with tqdm(desc="tokenizing", unit=" tokens", unit_scale=True, disable=None) as progress:
        packed = pack_text(tokenizer, lines(), args.max_seq_length, args.seed)
        for number, (input_ids, first_segment_length) in enumerate(packed):
            yield Example(f"general_{number}", input_ids, first_segment_length, NO_LABEL)
            seen["tokens"] += len(input_ids) - 3
            progress.update(len(input_ids) - 3)
    if not seen["tokens"]:
        raise InputError(f"{args.raw_data_file} has no words, or a single one; name another file")


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    tokens = load_vocabulary(model_directory(args.bert_model_dir, weights=False))
    tokenizer = WordPiece(tokens, args.do_lower_case)
    header = FeaturesHeader(
        args.max_seq_length, len(tokens), args.do_lower_case, args.set_name, vocabulary_sha256(tokens)
    )
    seen = Counter()
    general = args.set_name == "general"
    with RejectedLines(args.output_features_file) as rejected:
        if general:
            examples = text_examples(args, tokenizer, seen)
        else:
            examples = pair_examples(args, tokenizer, rejected if args.skip_malformed else None)
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
