# ruff: noqa: E402
"""Features and a ranker in; a score for each passage out."""

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
from pathlib import Path

from runtime.errors import InputError
from runtime.flags import Parser
from runtime.hub import model_directory, model_files
from runtime.ranks import rank, world_size
from runtime.script import refuse_existing


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Scores the passages of tokenized (query, passage) pairs with a ranker, teacher or student.

  python rerank.py --model_dir student/ --features_file test.features --output_scores_file test.scores

In:  features of pairs whose ids are query_id#passage_id (tokenize_to_features.py --set_name test), and a model
     directory.
Out: one line per pair, in input order, tab-separated: query_id, passage_id, score. The score is the probability of
     "relevant", from 0 to 1. OUTPUT_SCORES_FILE.log gets a line with the number of passages and the speed;
     OUTPUT_SCORES_FILE.speed.json has the same as JSON.

torchrun --nproc_per_node N rerank.py ... splits the batches over N processes; each process uses one GPU, if there are
GPUs. The scores are the same.""",
        is_distributed=True,
    )
    parser.add_argument(
        "--model_dir", required=True, help="the ranker's model directory, or its id on the Hugging Face Hub"
    )
    parser.add_argument("--features_file", type=Path, required=True, help="tokenized pairs")
    parser.add_argument("--output_scores_file", type=Path, required=True, help="the scores to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the scores file if it exists")
    parser.add_argument(
        "--eval_batch_size",
        type=int,
        help="pairs of full length in a batch; a batch of shorter pairs has more (default 16 on a CPU, 512 on a GPU)",
    )
    parser.add_argument("--max_seq_length", type=int, help="must be that of the features, which is the default")
    parser.add_argument(
        "--pooled_activation", choices=("none", "relu"), help="before the classifier (default: as the model says)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, or a GPU number")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
        default="fp32",
        help="of matmuls (default fp32). fp16 needs a GPU, int8 (8-bit weights) needs a CPU; auto: fp16 on a GPU, bf16 "
        "on a CPU with bfloat16 matmuls, else fp32",
    )
    precision.add_argument("--fp16", action="store_true", help="old name of --precision: fp16 on a GPU, bf16 on a CPU")
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for values that cannot work, before anything is loaded."""
    if args.eval_batch_size is not None and args.eval_batch_size < 1:
        raise InputError("--eval_batch_size: needs to be 1 or more")
    inputs = [args.features_file, *model_files(args.model_dir)]
    beside = [".log", ".speed.json"]
    if rank() == 0:
        refuse_existing(args.output_scores_file, "--output_scores_file", args.overwrite, inputs, beside)


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import collections
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from formats.atomic import atomic_write
from formats.checksums import file_sha256
from formats.features import check_pairs, read_blocks
from formats.pairs import split_example_ids
from formats.run_file import trained_length
from formats.scores import PassageScore, write_scores
from modeling.frozen import FrozenRanker
from modeling.model_files import check_reads_features, fingerprint, load_ranker
from modeling.scoring import pairs_at_a_time, relevance_scores
from runtime.device import (
    choose_device,
    choose_precision,
    is_out_of_memory,
    keep_freed_memory,
    turn_off_cudnn_attention,
)
from runtime.distributed import barrier, check_same, devices_name, local_device, process_reports, rank_zero_only
from runtime.progress import ProgressBar
from runtime.script import already_complete, buffered_log, log_line, report, run_script

logger = logging.getLogger("rerank")
Item = TypeVar("Item")


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yields each item after the next one has been made."""
    waiting: list[Item] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting


def main(args: argparse.Namespace) -> None:
    device = local_device(choose_device(args.device))
    precision = choose_precision(args.precision, args.fp16, device)
    with buffered_log() as records:
        header, count = check_pairs(args.features_file, "--features_file")
        if args.max_seq_length not in (None, header.max_seq_length):
            raise InputError(
                f"--max_seq_length: {args.features_file} was made with {header.max_seq_length}; tokenize again"
            )
        args.model_dir = model_directory(args.model_dir)
        ranker, _ = load_ranker(args.model_dir, args.pooled_activation)
        check_reads_features(args.model_dir, ranker, args.features_file, header)
        length = trained_length(args.model_dir)
        if length not in (None, header.max_seq_length):
            logger.warning(
                "%s has max_seq_length %d, but the model %s was trained at %d and may rank differently; tokenize with "
                "--max_seq_length %d",
                *(args.features_file, header.max_seq_length, args.model_dir, length, length),
            )
        if world_size() > 1:  # hashes take time
            check_same(
                {
                    "model_dir": fingerprint(ranker),
                    "features_file": file_sha256(args.features_file),
                    "eval_batch_size": args.eval_batch_size,
                    "pooled_activation": ranker.pooled_activation,
                    "precision": precision,
                    "device": device.type,
                },
                contents=("model_dir", "features_file"),
            )
        model = FrozenRanker(ranker.to(device), precision)
        del ranker
    logging.basicConfig(format="%(levelname)s %(message)s")
    for record in records:
        logger.handle(record)
    keep_freed_memory()
    turn_off_cudnn_attention()
    batch_tokens = (args.eval_batch_size or pairs_at_a_time(device)) * header.max_seq_length
    barrier(device)
    start = time.monotonic()
    scored = 0

    def scored_blocks() -> Iterator[tuple[list[str], Callable[[], np.ndarray]]]:
        """Yields the example ids of each block, and its `relevance_scores`."""
        nonlocal scored
        with ProgressBar(total=count, desc="re-ranking", unit=" passages") as progress:
            for block in read_blocks(args.features_file):
                arrays = block.input_ids, block.offsets, block.first_segment_lengths
                scores, own = relevance_scores(model, *arrays, batch_tokens, progress)
                scored += own
                yield block.example_ids, scores

    def rows() -> Iterator[PassageScore]:
        # While a GPU scores a block, the CPU writes the scores of the block before it.
        blocks = scored_blocks() if device.type == "cpu" else one_behind(scored_blocks())
        try:
            for example_ids, scores in blocks:
                values = scores()
                if not np.isfinite(values).all():
                    raise InputError(
                        f"--model_dir: {args.model_dir} gives a score that is not finite in {precision}; try "
                        "--precision fp32, or another model"
                    )
                for ids, score in zip(split_example_ids(example_ids), values.tolist(), strict=True):
                    yield PassageScore(*ids, score)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError("out of memory; lower --eval_batch_size") from None

    if rank() == 0:
        write_scores(args.output_scores_file, rows())
    else:
        collections.deque(rows(), maxlen=0)
    seconds = time.monotonic() - start
    lines = process_reports(scored, "passages", seconds, device)
    if rank() > 0:
        return
    for record in records:
        log_line(f"{record.levelname} {record.getMessage()}", args.output_scores_file)
    for line in lines:
        report(line, args.output_scores_file)
    speed = {"passages": count, "seconds": round(seconds, 3), "passages_per_second": round(count / seconds, 1)}
    speed |= {"model_dir": str(args.model_dir), "precision": precision, "device": devices_name(device)}
    speed_file = f"{args.output_scores_file}.speed.json"
    with already_complete(args.output_scores_file), atomic_write(speed_file) as file:
        file.write(json.dumps(speed) + "\n")
    report(
        f"wrote {args.output_scores_file}: {count} passages in {seconds:.1f} s, {count / seconds:.1f} passages/s, "
        f"features {header.origin()}, {args.model_dir} in {precision} on {devices_name(device)}",
        args.output_scores_file,
    )


if __name__ == "__main__":
    run_script(rank_zero_only(main), ARGS)
