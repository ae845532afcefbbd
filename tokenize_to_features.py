"""Pairs in, pickled features out."""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from formats.features import Example, FeaturesHeader, write_features
from formats.files import InputError, refuse_existing, report, run_script
from formats.pairs import read_pairs
from modeling.vocabulary import (
    VocabularyError,
    encode_pairs,
    load_vocabulary,
    vocabulary_sha256,
    wordpiece_tokenizer,
)

# Enough to keep every core of the tokenizer busy, small against the memory of any machine.
PAIRS_AT_A_TIME = 4096


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""Tokenizes (query, passage) pairs with a model's WordPiece vocabulary.

  python tokenize_to_features.py --set_name train --raw_data_file train.tsv \\
      --output_features_file train.features --bert_model_dir teacher/

In:  tab-separated UTF-8 lines, `.gz` or not: example_id, query, passage, and with --set_name train a label, 0 or 1.
     Ids of dev and test pairs are query_id#passage_id.
Out: pickled features, which distill.py and rerank.py read, and a line about them in OUTPUT_FEATURES_FILE.log.""",
    )
    parser.add_argument(
        "--set_name", choices=("train", "dev", "test"), required=True, help="train pairs have labels, dev and test none"
    )
    parser.add_argument("--raw_data_file", type=Path, required=True, help="the pairs")
    parser.add_argument("--output_features_file", type=Path, required=True, help="the features to write")
    parser.add_argument(
        "--bert_model_dir", type=Path, required=True, help="a model directory: its vocab.txt or tokenizer.json is used"
    )
    parser.add_argument(
        "--max_seq_length",
        type=int,
        default=256,
        help="longest example in tokens, [CLS] and [SEP] counted (default 256)",
    )
    parser.add_argument(
        "--do_lower_case",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="for an uncased vocabulary; the default",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the features file if it exists")
    args = parser.parse_args()
    if not 5 <= args.max_seq_length <= 1 << 20:
        raise InputError("--max_seq_length: needs to be from 5 (3 control tokens, 2 words) to 1048576")
    refuse_existing(args.output_features_file, "--output_features_file", args.overwrite, [args.raw_data_file])
    return args


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    tokens = load_vocabulary(args.bert_model_dir)
    tokenizer = wordpiece_tokenizer(tokens, args.do_lower_case)
    header = FeaturesHeader(
        args.max_seq_length, len(tokens), args.do_lower_case, args.set_name, vocabulary_sha256(tokens)
    )

    def examples() -> Iterator[Example]:
        pairs = read_pairs(args.raw_data_file, labelled=args.set_name == "train")
        with tqdm(desc="tokenizing", unit=" pairs", disable=None) as progress:
            while batch := list(itertools.islice(pairs, PAIRS_AT_A_TIME)):
                encoded = encode_pairs(tokenizer, ((pair.query, pair.passage) for pair in batch), args.max_seq_length)
                for pair, (input_ids, first_segment_length) in zip(batch, encoded, strict=True):
                    yield Example(pair.example_id, input_ids, first_segment_length, pair.label)
                progress.update(len(batch))

    count = write_features(args.output_features_file, header, examples())
    seconds = time.monotonic() - start
    report(
        f"wrote {args.output_features_file}: {count} {args.set_name} examples of at most {args.max_seq_length} tokens "
        f"from {args.raw_data_file} in {seconds:.1f} s, {count / seconds:.0f} pairs/s",
        args.output_features_file,
    )


if __name__ == "__main__":
    run_script(main, VocabularyError)
