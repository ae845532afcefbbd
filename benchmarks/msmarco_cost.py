"""What experiments/msmarco_doc.sh takes on all of MS MARCO: time and disk, computed from measured rates."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import json
from typing import Any, NamedTuple

from formats.atomic import atomic_write
from runtime.flags import Parser
from runtime.script import print_text, run_script

RATES_FILE = Path(__file__).with_name("msmarco_rates.json")
PROCESSES = 8

# Counts of the published files, as ir_datasets lists them.
DOCUMENTS = 3_213_835
TRAIN_QUERIES = 367_013  # one relevant document each
DEV_QUERIES = 5_193
TREC_QUERIES = 2 * 200  # TREC 2019 and 2020 DL
CANDIDATES = 100  # of each query
DOWNLOADED_GB = 9.0  # documents 8.5, training candidates 0.4

# Assumptions about the text.
WORDS_PER_DOCUMENT = 1_131
TOKENS_PER_WORD = 1.35
BYTES_PER_WORD = 6
QUERY_TOKENS = 12  # with [CLS] and two [SEP]
GZIP = 3  # how many times smaller the packed files are

# The defaults of experiments/msmarco_doc.sh.
WINDOW, STRIDE = 150, 75
MAX_SEQ_LENGTH = 256
NEGATIVES = 4
EPOCHS = 2
GENERAL_DOCUMENTS = 200_000
METHODS = 3  # standard, tinybert, simplified
TRAININGS = 4  # tinybert has two steps

PASSAGES_PER_DOCUMENT = 1 + (WORDS_PER_DOCUMENT - WINDOW) / STRIDE
POSITIVES = TRAIN_QUERIES * PASSAGES_PER_DOCUMENT
SAMPLED = TRAIN_QUERIES * NEGATIVES
TRAIN_PAIRS = TRAIN_QUERIES + SAMPLED  # at most: one passage of each relevant document
TEST_PAIRS = (DEV_QUERIES + TREC_QUERIES) * CANDIDATES * PASSAGES_PER_DOCUMENT
GENERAL_EXAMPLES = GENERAL_DOCUMENTS * WORDS_PER_DOCUMENT * TOKENS_PER_WORD / MAX_SEQ_LENGTH
TOKENS_PER_PAIR = WINDOW * TOKENS_PER_WORD + QUERY_TOKENS

INTRODUCTION = """# What MS MARCO takes

`python benchmarks/msmarco_cost.py` computes this page from measured rates. Nothing here was run on all of MS MARCO.
The last table says where each rate was measured; they are in `benchmarks/msmarco_rates.json`. The parts are those of
`experiments/msmarco_doc.sh` with its default settings.
"""

NOTES = """- **One process** was measured. **Eight GPUs**, one process for each, is a linear extrapolation: an
  eighth of the time of one process. No run of eight processes was measured. In distilling, processes also wait for each
  other's gradients at each step, so it takes longer than this. In re-ranking, processes send nothing to each other.
- On 2 cores, two processes were measured: they have 0.8 to 0.9 of the speed of one process in distilling, and 1.3 times
  its speed in re-ranking. Eight processes on 2 cores were not measured.
- Data preparation uses no GPU, so its time is the same in all columns. Tokenization uses all cores of a machine; the
  other scripts use one process.
- "At most": the rate is a lower bound, or the amount is an upper bound.

What grows linearly, and what does not:

- **Linear:** reading, with the documents and with the number of scripts that read them; pairs and tokenization, with
  the passages; distilling, with pairs x epochs; re-ranking, with queries x candidates x passages.
- **Not linear:** attention grows with the square of the sequence length, the rest of a model linearly. Longer documents
  do not give more training pairs, because one passage of each relevant document is kept.
- **Constant:** the start of each script, 1 to 5 seconds. Memory is constant in the size of the collection: it grows
  with the documents that are needed, and with the training candidates.
"""


class Part(NamedTuple):
    """A part of the recipe: so many `units`, at the rate of the given name. `at_most`: there can be fewer."""

    what: str
    count: float
    units: str
    rate: str
    grows_with: str
    at_most: bool = False


def parts() -> list[Part]:
    tokenized = POSITIVES + TRAIN_PAIRS + TEST_PAIRS + GENERAL_EXAMPLES
    written = 2 * POSITIVES + SAMPLED + TEST_PAIRS  # the positives are in two files
    trained = TRAIN_PAIRS * EPOCHS
    again = f"{METHODS} methods, {TRAININGS} trainings"
    return [
        Part("read the documents, 4 times", 4 * DOCUMENTS, "documents", "read", "documents"),
        Part("write pairs", written, "passages", "write", "queries, passages"),
        Part("tokenize", tokenized, "pairs", "tokenize", "passages"),
        Part("teacher scores the positives", POSITIVES, "passages", "rerank_12_768", "queries, passages"),
        Part("filter positives", POSITIVES + SAMPLED, "pairs", "filter", "pairs"),
        Part("general distillation, 3/384", GENERAL_EXAMPLES, "examples", "distil_3_384", "text"),
        Part("distil Simplified TinyBERT, 3/384", trained, "examples", "distil_3_384", "pairs, epochs", True),
        Part("distil Simplified TinyBERT, 6/768", trained, "examples", "distil_6_768", "pairs, epochs", True),
        Part(f"3/384, {again}", TRAININGS * trained, "examples", "distil_3_384", "methods, seeds", True),
        Part(f"6/768, {again}", TRAININGS * trained, "examples", "distil_6_768", "methods, seeds", True),
        Part("re-rank with a student of 3/384", TEST_PAIRS, "passages", "rerank_3_384", "queries, passages"),
        Part("re-rank with a student of 6/768", TEST_PAIRS, "passages", "rerank_6_768", "queries, passages"),
        Part("re-rank with BERT-Base", TEST_PAIRS, "passages", "rerank_12_768", "queries, passages"),
    ]


# The parts, by their place, of the shortest way to a result.
ONE_STUDENT = (0, 1, 2, 3, 4, 5, 6, 10, 12)


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Prints what MS MARCO takes, in Markdown, from the rates in benchmarks/msmarco_rates.json.

  python benchmarks/msmarco_cost.py > docs/msmarco_cost.md
  python benchmarks/msmarco_cost.py --measure              measures the rates of data preparation first, in a minute

The rates of distilling and re-ranking are those of benchmarks/README.md and benchmarks/gpu.sh. The exit status is
2 if a script fails while it is measured.""",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="first measure reading, writing, tokenizing and filtering on synthetic data, and write the rates",
    )
    return parser.parse(lambda args: None)


def duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def count(number: float) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,.0f}"


def seconds_of(part: Part, rates: dict[str, dict[str, Any]]) -> float | None:
    """Returns the seconds that a part takes in one process; None if its rate was not measured."""
    rate = rates.get(part.rate)
    return rate and part.count / rate["per_second"]


def time_cell(part: Part, rates: dict[str, dict[str, Any]], processes: int = 1) -> str:
    seconds = seconds_of(part, rates)
    if seconds is None:
        return "not measured"
    if processes > 1:  # an extrapolation is no bound
        return f"about {duration(seconds / processes)}"
    is_bound = part.at_most or rates[part.rate].get("is_bound")
    return f"{'at most ' if is_bound else ''}{duration(seconds)}"


def time_table(rates: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    cpu, gpu = rates["cpu"], rates["cpu"] | rates["gpu"]
    rows = [["part", "how much", "2 cores", "one GPU", f"{PROCESSES} GPUs, extrapolated", "grows with"]]
    for part in parts():
        processes = PROCESSES if part.rate in rates["gpu"] else 1  # the rest does not use the GPUs
        rows.append([
            part.what, f"{'at most ' if part.at_most else ''}{count(part.count)} {part.units}", time_cell(part, cpu),
            time_cell(part, gpu), time_cell(part, gpu, processes), part.grows_with,
        ])  # fmt: skip
    chosen = [parts()[place] for place in ONE_STUDENT]
    on_one = duration(sum(seconds_of(part, gpu) or 0 for part in chosen))
    on_eight = duration(
        sum((seconds_of(part, gpu) or 0) / (PROCESSES if part.rate in rates["gpu"] else 1) for part in chosen)
    )
    on_cpu = duration(sum(seconds_of(part, cpu) or 0 for part in chosen))
    what = "**all for one student**: Simplified TinyBERT, 3/384, beside BERT-Base"
    return [*rows, [what, "", f"about {on_cpu}", f"about {on_one}", f"about {on_eight}", ""]]


def disk_table() -> list[list[str]]:
    pair = (WINDOW + QUERY_TOKENS) * BYTES_PER_WORD / 1e9
    features = (2 * TOKENS_PER_PAIR + 30) / 1e9
    general_text = GENERAL_DOCUMENTS * WORDS_PER_DOCUMENT * BYTES_PER_WORD / 1e9
    models, score = 2 * METHODS + 1, 45 / 1e9
    sizes = {
        "downloads, packed": DOWNLOADED_GB,
        "pairs to filter, and positives, packed": (2 * POSITIVES + SAMPLED) * pair / GZIP,
        "pairs to train with": TRAIN_PAIRS * pair,
        "pairs to re-rank": TEST_PAIRS * pair,
        "general text": general_text,
        "features, 2 bytes a token": (POSITIVES + TRAIN_PAIRS + TEST_PAIRS) * features
        + GENERAL_EXAMPLES * 2 * MAX_SEQ_LENGTH / 1e9,
        f"scores of {models} models, and of the positives": (models * TEST_PAIRS + POSITIVES) * score,
    }
    rows = [["files", "GB"], *([name, f"{size:.1f}"] for name, size in sizes.items())]
    return [*rows, ["**sum**, without models and checkpoints", f"{sum(sizes.values()):.0f}"]]


def page(rates: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Returns the page in Markdown."""
    assumed = f"""- Passages: {WINDOW} words, every {STRIDE} words, cut to {MAX_SEQ_LENGTH} tokens with the query.
- Assumed: {WORDS_PER_DOCUMENT:,} words in a document, so {PASSAGES_PER_DOCUMENT:.1f} passages; {TOKENS_PER_WORD} tokens
  in a word, so {TOKENS_PER_PAIR:.0f} tokens in a pair; {BYTES_PER_WORD} bytes in a word; gzip makes a third of text.
- Counts of the published files: {DOCUMENTS:,} documents, {TRAIN_QUERIES:,} training queries, {DEV_QUERIES:,} dev
  queries and {TREC_QUERIES} of TREC 2019 and 2020; {CANDIDATES} candidates for each query.
"""
    measured = [["rate", "machine", "per second", "where it was measured"]]
    for machine, of_machine in rates.items():
        for name, rate in of_machine.items():
            measured.append([name, machine, f"{rate['per_second']:,}", rate["where"]])
    sections = [
        INTRODUCTION, "## Time\n", table(time_table(rates)), NOTES, "## Disk\n", table(disk_table()), assumed,
        "## Rates\n", table(measured),
    ]  # fmt: skip
    return "\n".join(sections)


def table(rows: list[list[str]]) -> str:
    """A Markdown table. Its cells hold no text of a stranger, so that `**` and `_` can stay."""
    lines = [" | ".join(row) for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    return "".join(f"| {line} |\n" for line in lines)


def main(args: argparse.Namespace) -> None:
    rates = json.loads(RATES_FILE.read_text("utf-8"))
    if args.measure:
        from benchmarks.preparation_rates import measure_rates  # late: only this needs its imports

        rates["cpu"] = measure_rates() | {name: of for name, of in rates["cpu"].items() if "_" in name}
        with atomic_write(RATES_FILE) as file:
            file.write(json.dumps(rates, indent=2) + "\n")
    print_text(page(rates))


if __name__ == "__main__":
    run_script(main, parse_args())
