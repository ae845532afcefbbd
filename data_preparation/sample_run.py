"""A run in; the same run with some of its queries out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import re

from data_preparation.reports import refuse_outputs
from data_preparation.split_queries import sample_queries
from formats.atomic import atomic_write
from formats.lines import read_lines
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import report, run_script


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Takes a sample of the queries of a run: those of a file, or a number of them. Without both: all.

  python data_preparation/sample_run.py --run msmarco/msmarco-docdev-top100.gz --query_ids sampled_queries.tsv \\
      --output_run_file data/dev_top100

In:  a TREC run, such as candidates. A file of query ids, one per line; what follows an id after white space or a comma,
     such as the text of the query, is not read.
Out: the lines of these queries, and a line in OUTPUT_RUN_FILE.log. The ids and --seed decide which queries are in a
     sample; their order has no effect.""",
    )
    parser.add_argument("--run", type=Path, required=True, help="the run")
    parser.add_argument("--query_ids", type=Path, help="take only the queries of this file")
    parser.add_argument("--num_queries", type=int, help="take so many queries of those")
    parser.add_argument("--seed", type=int, default=42, help="of the sampling (default 42)")
    parser.add_argument("--output_run_file", type=Path, required=True, help="the run to write, packed if .gz")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    if args.num_queries is not None and args.num_queries < 1:
        raise InputError(f"--num_queries: {args.num_queries} is below 1")
    inputs = [args.run, *filter(None, [args.query_ids])]
    refuse_outputs([("--output_run_file", args.output_run_file)], args.overwrite, inputs)


def query_id_of(line: str) -> str:
    """The first column of a line."""
    return re.split(r"[\s,]", line.strip(), maxsplit=1)[0]


def main(args: argparse.Namespace) -> None:
    of_run = dict.fromkeys(query_id_of(line) for _, line in read_lines(args.run))
    chosen = set(of_run)
    if args.query_ids:
        chosen &= {query_id_of(line) for _, line in read_lines(args.query_ids)}
        if not chosen:
            raise InputError(f"--query_ids: {args.query_ids} and {args.run} share no query; name another file")
    if args.num_queries is not None:
        if args.num_queries > len(chosen):
            raise InputError(f"--num_queries: there are only {len(chosen)} queries to choose {args.num_queries} from")
        chosen = sample_queries([query_id for query_id in of_run if query_id in chosen], args.num_queries, args.seed)
    with atomic_write(args.output_run_file) as file:
        file.writelines(f"{line}\n" for _, line in read_lines(args.run) if query_id_of(line) in chosen)
    report(f"wrote {args.output_run_file}: {len(chosen)} of {len(of_run)} queries of {args.run}", args.output_run_file)


if __name__ == "__main__":
    run_script(main, parse_args())
