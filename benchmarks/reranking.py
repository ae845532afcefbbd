"""Re-ranking: rerank.py against the reference implementation, and against CrossEncoder."""
# ruff: noqa: E402

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse

from benchmarks.synthetic import Shape, shape
from runtime.errors import InputError
from runtime.flags import Parser

# Of a score from 0 to 1, against the reference implementation in fp32.
TOLERANCES = {"fp32": 1e-5, "bf16": 0.02, "fp16": 0.02, "int8": 0.05}
# Goals on a GPU, in half precision.
SPEED_GOALS = {"fp32": 8, "fp16": 2}  # relative to the reference implementation in each precision of it
PAIRS_GOAL = 50_000  # of 256 tokens per second, by 3/384 on an H100, without tokenization


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Re-ranks synthetic pairs, of full length and of 15 to 150 words, with a student of random
weights: by tokenize_to_features.py and rerank.py in each precision, by the reference implementation (100 padded pairs
per batch), and by CrossEncoder if sentence-transformers is installed. Re-ranks some pairs with a teacher by rerank.py,
too. Prints pairs/s and ratios.

  python benchmarks/reranking.py

Each run is a separate process, one after the other; on a GPU all run in this process. The time of tokenization counts
for rerank.py and CrossEncoder, except with --scored; the time to load a model counts for none. The exit status is 1 if
scores differ from those of the reference implementation by more than the precision explains.""",
    )
    parser.add_argument("--student", type=shape, default=Shape(3, 384), help="LAYERS/HIDDEN (default 3/384)")
    parser.add_argument("--teacher", type=shape, default=Shape(12, 768), help="LAYERS/HIDDEN (default 12/768)")
    parser.add_argument("--max_seq_length", type=int, default=256, help="tokens (default 256)")
    parser.add_argument("--pairs", type=int, default=400, help="of each kind; a tenth for the teacher (default 400)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each; the fastest counts (default 2)")
    parser.add_argument(
        "--scored",
        type=int,
        default=0,
        help="full-length pairs to score without tokenization, too; a tenth for the teacher (default 0)",
    )
    runs = parser.add_argument_group("where and how it runs")
    runs.add_argument("--precisions", help="of rerank.py (default fp32,bf16,int8, on a GPU fp32,bf16,fp16)")
    runs.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    runs.add_argument("--one_process", action="store_true", help="run all in this process, as on a GPU")
    runs.add_argument("--results_file", type=Path, help="also write the results, as JSON")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # reference or crossencoder, file, precision
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for flags that cannot work, and splits --precisions."""
    for name, least in (("pairs", 10), ("rounds", 1), ("scored", 0), ("max_seq_length", 50)):
        if getattr(args, name) < least:
            raise InputError(f"--{name}: needs to be {least} or more")
    if 0 < args.scored < 10:
        raise InputError("--scored: needs to be 0, or 10 or more")
    if args.precisions is not None:
        args.precisions = args.precisions.split(",")
        if not {"fp32"} <= set(args.precisions) <= set(TOLERANCES):
            raise InputError(f"--precisions: takes fp32 and any of {', '.join(TOLERANCES)}, separated by commas")


if __name__ == "__main__":
    args = parse_args()  # before the imports below, which take seconds

import importlib.util
import json
import tempfile
import time

import numpy as np
import safetensors.torch
import torch

from benchmarks import reference
from benchmarks.child import Finished, last_json, reranking_seconds, run, run_in_process, tokenizing_seconds
from benchmarks.machine import Row, describe_torch_machine, write_results
from benchmarks.synthetic import HEADS, make_features, make_model, make_pairs
from formats.features import Features
from formats.pairs import read_pairs
from formats.scores import read_scores
from modeling.scoring import pairs_at_a_time
from runtime.device import choose_device, dtype_of
from runtime.script import run_script

REFERENCE_BATCH = 100
ALONE = "scoring alone"
WORDS = {"full": (260, 260), "mixed": (15, 150)}  # of a passage; a third of the words have two tokens


@torch.inference_mode()
def score_by_reference(args: argparse.Namespace, features_file: Path, precision: str) -> None:
    """In a child: prints scores and seconds of the reference implementation, without tokenization.

    It runs under autocast if not in fp32.
    """
    device = torch.device(args.device)
    loaded = safetensors.torch.load_file(features_file.with_name("student") / "model.safetensors")
    weights = {name: tensor.to(device) for name, tensor in loaded.items()}
    features = Features(features_file)

    def score(first: int) -> list[float]:
        arrays = features.batch(range(first, min(first + REFERENCE_BATCH, len(features))), args.max_seq_length)
        batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        with torch.autocast(device.type, dtype_of(precision), enabled=precision != "fp32"):
            logits = reference.bert(weights, HEADS, batch)[0]
        return torch.softmax(logits.float(), dim=-1)[:, 1].tolist()  # waits for the device

    if device.type == "cuda":
        score(0)  # libraries load their kernels
    scores: list[float] = []
    start = time.monotonic()
    for first in range(0, len(features), REFERENCE_BATCH):
        scores += score(first)
    print(json.dumps({"scores": scores, "seconds": time.monotonic() - start}))


def score_by_crossencoder(args: argparse.Namespace, pairs_file: Path, precision: str) -> None:
    """In a child: prints the seconds of CrossEncoder.predict: as its users call it, or on a GPU the faster of this and
    batches of rerank.py's size."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(
        str(pairs_file.with_name("student")),
        max_length=args.max_seq_length,
        device=args.device,
        model_kwargs={"torch_dtype": dtype_of(precision)},
    )
    pairs = [(pair.query, pair.passage) for pair in read_pairs(pairs_file, labelled=False)]
    seconds = []
    for batch_size in (32,) if args.device == "cpu" else (32, pairs_at_a_time(torch.device(args.device))):
        model.predict(pairs[:batch_size], batch_size=batch_size, show_progress_bar=False)
        start = time.monotonic()
        model.predict(pairs, batch_size=batch_size, show_progress_bar=False)  # its result is on the CPU
        seconds.append(time.monotonic() - start)
    print(json.dumps({"seconds": min(seconds)}))


def tokenize(args: argparse.Namespace, pairs_file: Path) -> tuple[Path, float]:
    """Runs tokenize_to_features.py. Returns the features file, and the seconds that it took."""
    features_file = pairs_file.with_suffix(".features")
    flags = ["--set_name", "test", "--raw_data_file", pairs_file, "--output_features_file", features_file]
    flags += ["--bert_model_dir", pairs_file.with_name("student"), "--max_seq_length", args.max_seq_length]
    printed, _ = run_side(args, ["tokenize_to_features.py", *flags, "--overwrite"])
    return features_file, tokenizing_seconds(printed)


def rerank(args: argparse.Namespace, model: str, features_file: Path, precision: str) -> tuple[np.ndarray, float]:
    """Runs rerank.py. Returns its scores (passages,), and its seconds."""
    output = features_file.with_suffix(".scores")
    flags = ["--model_dir", features_file.with_name(model), "--features_file", features_file, "--overwrite"]
    flags += ["--output_scores_file", output, "--precision", precision, "--device", args.device]
    run_side(args, ["rerank.py", *flags])
    return np.array([row.score for row in read_scores(output)]), reranking_seconds(output)


def run_side(args: argparse.Namespace, command: list) -> Finished:
    """Runs one side in a process of its own; on a GPU, or with --one_process, in this one."""
    return run_in_process(command) if args.one_process or args.device != "cpu" else run(command)


def rows_of(args: argparse.Namespace, precision: str, kind: str, speeds: dict[str, float]) -> list[Row]:
    """The speed of rerank.py in a precision on a kind of pairs. `speeds` in pairs/s by name."""
    what = f"rerank.py {precision}, {kind}"
    is_alone = kind == ALONE  # as the reference implementation, whose time has no tokenization
    has_goal = is_alone and args.device != "cpu" and precision != "fp32"
    rows = []
    if is_alone:
        goal = PAIRS_GOAL if has_goal and (args.student, args.max_seq_length) == (Shape(3, 384), 256) else None
        rows.append(Row(what, speeds[what], "pairs/s", goal))
    for other, unit in (("fp32", "x reference fp32"), ("fp16", "x reference under autocast")):
        if speed := speeds.get(f"reference {other}, {'full' if is_alone else kind}"):
            rows.append(Row(what, speeds[what] / speed, unit, SPEED_GOALS[other] if has_goal else None))
    if speed := speeds.get(f"CrossEncoder {precision}, {kind}"):
        rows.append(Row(what, speeds[what] / speed, f"x CrossEncoder {precision}"))
    if speed := speeds.get(f"teacher {precision}, {kind}"):
        rows.append(Row(what, speeds[what] / speed, f"x teacher {args.teacher}"))
    return rows


def main(args: argparse.Namespace) -> None:
    args.device = str(choose_device(args.device))
    on_gpu = args.device != "cpu"
    precisions = args.precisions or (["fp32", "bf16", "fp16"] if on_gpu else ["fp32", "bf16", "int8"])
    references = ("fp32", "fp16") if on_gpu else ("fp32",)
    if args.child:
        side, file, precision = args.child
        if side == "reference":
            score_by_reference(args, Path(file), precision)
        else:
            score_by_crossencoder(args, Path(file), precision)
        return
    if on_gpu:
        torch.cuda.set_device(torch.device(args.device).index or 0)
    print(describe_torch_machine())
    own = [__file__, *sys.argv[1:], "--child"]
    has_crossencoder = importlib.util.find_spec("sentence_transformers") is not None
    if not has_crossencoder:
        print("sentence-transformers is not installed, so CrossEncoder is not measured")
    speeds: dict[str, float] = {}
    worst: dict[str, float] = dict.fromkeys(precisions, 0.0)

    def note(name: str, count: int, seconds: float) -> None:
        speeds[name] = max(count / seconds, speeds.get(name, 0.0))
        print(f"    {name}: {count / seconds:.1f} pairs/s", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        make_model(directory / "student", args.student, 1)
        make_model(directory / "teacher", args.teacher, 2)
        files = {"few": directory / "few.tsv"}
        for kind, words in WORDS.items():
            lines = [f"q{i}#D{i}_0\t{q}\t{p}\n" for i, (q, p) in enumerate(make_pairs(args.pairs, words))]
            files[kind] = directory / f"{kind}.tsv"
            files[kind].write_text("".join(lines), "utf-8")
            if kind == "full":
                files["few"].write_text("".join(lines[: args.pairs // 10]), "utf-8")
        few, _ = tokenize(args, files["few"])
        scored = {}  # the features and their number
        for model, number in (("student", args.scored), ("teacher", args.scored // 10)) if args.scored else ():
            path = make_features(directory / f"{model}.scored", "test", number, args.max_seq_length, is_full=True)
            scored[model] = path, number
        for model in ("student", "teacher") if on_gpu else ():
            for precision in precisions:
                rerank(args, model, few, precision)  # not timed: libraries load their kernels
        for _ in range(args.rounds):
            for kind in WORDS:
                features_file, tokenizing = tokenize(args, files[kind])
                scores_of = {}
                for precision in references:
                    said = last_json(run_side(args, [*own, "reference", features_file, precision]).printed)
                    scores_of[precision] = said["scores"]
                    note(f"reference {precision}, {kind}", args.pairs, said["seconds"])
                for precision in precisions:
                    scores, seconds = rerank(args, "student", features_file, precision)
                    worst[precision] = max(worst[precision], float(np.abs(scores - scores_of["fp32"]).max()))
                    note(f"rerank.py {precision}, {kind}", args.pairs, tokenizing + seconds)
                    if has_crossencoder and precision != "int8":
                        said = last_json(run_side(args, [*own, "crossencoder", files[kind], precision]).printed)
                        note(f"CrossEncoder {precision}, {kind}", args.pairs, said["seconds"])
            for precision in precisions:
                note(f"teacher {precision}, full", args.pairs // 10, rerank(args, "teacher", few, precision)[1])
                for model, (path, number) in scored.items():
                    name = f"{'rerank.py' if model == 'student' else 'teacher'} {precision}, {ALONE}"
                    note(name, number, rerank(args, model, path, precision)[1])

    rows: list[Row] = []
    for precision in precisions:
        print(f"{precision}: scores differ from the reference by {worst[precision]:.1e} at most")
        for kind in (*WORDS, ALONE) if args.scored else WORDS:
            own_rows = rows_of(args, precision, kind, speeds)
            print(f"rerank.py {precision}, {kind}: {', '.join(f'{row.value:.2f} {row.unit}' for row in own_rows)}")
            rows += own_rows
    is_same = all(worst[precision] <= TOLERANCES[precision] for precision in precisions)
    if args.results_file is not None:
        write_results(args.results_file, args.device, is_same, rows, differences=worst, pairs_per_second=speeds)
    sys.exit(0 if is_same else 1)


if __name__ == "__main__":
    run_script(main, args)
