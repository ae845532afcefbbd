"""The cost of a BERT ranker: parameters and FLOPs from its config.json, time and speed from what the scripts wrote."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from experiments.results import read_json
from formats.run_file import RUN_FILE, read_run_file
from runtime.errors import InputError
from training.curves import SPEED_FILE, read_lines_until

# The keys of config.json that the costs depend on.
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
CLASSES = 2


def read_sizes(model: Path) -> dict[str, int]:
    """Returns `SIZES` of a model directory."""
    path = next(path for name in ("config.json", "bert_config.json") if (path := model / name).exists())
    config = {"type_vocab_size": 2, "max_position_embeddings": 512} | read_json(path)
    return {name: config[name] for name in SIZES}


def num_parameters(config: Mapping[str, int]) -> int:
    """Returns the number of parameters: embeddings, layers, pooler, and the classifier of two classes.

    With hidden size d and inner size i, a layer has 4 maps d x d (queries, keys, values, output), 2 maps d x i, all
    with biases, and 2 LayerNorms of 2d parameters.
    """
    d, inner = config["hidden_size"], config["intermediate_size"]
    embeddings = (config["vocab_size"] + config["max_position_embeddings"] + config["type_vocab_size"]) * d + 2 * d
    layer = 4 * (d * d + d) + (d * inner + inner) + (inner * d + d) + 2 * 2 * d
    heads = d * d + d + CLASSES * d + CLASSES
    return embeddings + config["num_hidden_layers"] * layer + heads


def flops_per_pair(config: Mapping[str, int], tokens: int) -> int:
    """Returns the floating-point operations that score one pair of T tokens. A multiply-add counts as two.

    A map from m to n numbers takes 2mn per token. So a layer takes 2T * 4d^2 for queries, keys, values and output,
    2T * 2di for the two maps of its inner size i, and 2T^2 d each for the scores Q K^T and the matmul with V, with any
    number of heads. Pooler and classifier read one token: 2d^2 + 4d. Only matmuls count, as in torch's
    FlopCounterMode: no embeddings, LayerNorm, softmax, activation or biases.
    """
    d, inner = config["hidden_size"], config["intermediate_size"]
    layer = 2 * tokens * (4 * d * d + 2 * d * inner) + 2 * 2 * tokens * tokens * d
    return config["num_hidden_layers"] * layer + 2 * d * d + 2 * CLASSES * d


def first_step_directory(model: Path) -> Path:
    """Returns where distill.py trains TinyBERT's first step."""
    return model.with_name(f"{model.name}_intermediate")


def training_seconds(model: Path) -> float | None:
    """Returns the seconds of all optimization steps of a model, TinyBERT's first step included.

    None if distill.py did not train the model, or if its files are incomplete.
    """
    directories = [path for path in (first_step_directory(model), model) if (path / RUN_FILE).exists()]
    try:
        return round(sum(map(_seconds_of_steps, directories)), 3) or None
    except (LookupError, TypeError, ZeroDivisionError):
        return None


def _seconds_of_steps(directory: Path) -> float:
    """From speed.jsonl, whose lines tell the examples per second since the line before."""
    batch_size = read_run_file(directory)["settings"]["train_batch_size"]
    lines = read_lines_until(directory / SPEED_FILE)
    steps = [0, *(line["global_step"] for line in lines)]
    speeds = [line["examples_per_second"] for line in lines]
    if not lines:
        raise LookupError(f"{directory} has no speeds")
    return sum(
        (last - first) * batch_size / speed for (first, last), speed in zip(pairwise(steps), speeds, strict=True)
    )


def rerank_speed(run: Path) -> tuple[float, str]:
    """Returns pairs per second, and precision and device, of the re-ranking that made a run.

    Raises InputError if rerank.py's `.speed.json` is missing or damaged.
    """
    path = run.with_suffix(".scores.tsv.speed.json")
    try:
        speed = read_json(path)
        return round(float(speed["passages_per_second"]), 1), f"{speed['precision']} on {speed['device']}"
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"{path} is missing or damaged; remove {run} to re-rank again") from None
