"""Relevance judgments in; those of held-out queries, and those of the other queries, out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import hashlib

from data_preparation.reports import refuse_outputs
from formats.atomic import atomic_files
from formats.trec import read_qrels, write_qrels
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import report, run_script


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Holds out some queries as dev queries, for early stopping and for the choice of settings.

  python data_preparation/split_queries.py --qrels scifact/qrels.train.txt --num_dev 159 \\
      --output_train_qrels scifact/qrels.fit.txt --output_dev_qrels scifact/qrels.dev.txt

In:  relevance judgments, TREC's four columns or BEIR's three.
Out: two files of relevance judgments (TREC), in the order of the input, and a line in OUTPUT_TRAIN_QRELS.log. The ids
     and --seed decide which queries are held out; their order has no effect.""",
    )
    parser.add_argument("--qrels", type=Path, required=True, help="the relevance judgments")
    parser.add_argument("--num_dev", type=int, required=True, help="number of queries to hold out")
    parser.add_argument("--seed", type=int, default=42, help="of the sampling (default 42)")
    parser.add_argument("--output_train_qrels", type=Path, required=True, help="to write: those of the other queries")
    parser.add_argument("--output_dev_qrels", type=Path, required=True, help="to write: those of the held-out queries")
    parser.add_argument("--overwrite", action="store_true", help="replace the outputs if they exist")
    args = parser.parse_args()
    outputs = [(f"--{name}", getattr(args, name)) for name in ("output_train_qrels", "output_dev_qrels")]
    refuse_outputs(outputs, args.overwrite, [args.qrels])
    return args


def sample_queries(query_ids: list[str], count: int, seed: int) -> set[str]:
    """Samples `count` of the ids: those with the lowest SHA-256 of seed and id. Their order has no effect."""
    return set(sorted(query_ids, key=lambda query_id: hashlib.sha256(f"{seed} {query_id}".encode()).digest())[:count])


def main() -> None:
    args = parse_args()
    qrels = read_qrels(args.qrels)
    if not 1 <= args.num_dev < len(qrels):
        raise InputError(f"--num_dev: {args.qrels} has {len(qrels)} queries; hold out 1 to {len(qrels) - 1}")
    held_out = sample_queries(list(qrels), args.num_dev, args.seed)
    with atomic_files(args.output_train_qrels, args.output_dev_qrels) as (train_file, dev_file):
        train = write_qrels(train_file, {name: qrels[name] for name in qrels if name not in held_out})
        dev = write_qrels(dev_file, {name: qrels[name] for name in qrels if name in held_out})
    report(
        f"wrote {args.output_train_qrels}: {train} judgments of {len(qrels) - args.num_dev} queries, and "
        f"{args.output_dev_qrels}: {dev} of {args.num_dev}, out of {args.qrels} with seed {args.seed}",
        args.output_train_qrels,
    )


if __name__ == "__main__":
    run_script(main)
