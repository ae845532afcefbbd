"""The model card, README.md, of a student and of its export: how it was trained, and how to use it. Loads no torch.

A card has no times, hosts or speeds, so a run that was resumed has the same card as one without a stop.
"""

import json
import logging
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from formats.features import Features
from training.terms import TERMS

logger = logging.getLogger(__name__)

FILE_NAME = "README.md"
MARK = "<!-- distill.py wrote this card and replaces it. To keep your changes, remove this line. -->"
_METHODS = {
    "standard": "standard knowledge distillation",
    "simplified": "Simplified TinyBERT ([arXiv 2009.07531](https://arxiv.org/abs/2009.07531))",
    "intermediate": "TinyBERT, first step ([arXiv 1909.10351](https://arxiv.org/abs/1909.10351))",
    "prediction": "TinyBERT, second step ([arXiv 1909.10351](https://arxiv.org/abs/1909.10351))",
    "hard": "fine-tuning with hard labels, without a teacher",
    "margin_mse": "MarginMSE ([arXiv 2010.02666](https://arxiv.org/abs/2010.02666))",
}


def training_facts(features: Features, general_student: str | Path) -> dict[str, Any]:
    """Returns what a card needs to know of a training beside its settings. `general_student`: directory or Hub id."""
    return {
        "max_seq_length": features.header.max_seq_length,
        "num_train_examples": len(features),
        "base_model": None if Path(general_student).is_dir() else str(general_student),
        "versions": {"Python": platform.python_version(), "torch": version("torch")},
    }


def write_model_card(model_dir: Path, run: dict[str, Any], measures: str = "", earlier: Path | None = None) -> None:
    """Writes the card of a model directory that has its config.json already.

    `run`: the content of the training.json of the student; without `settings`, the card does not speak of training.
    `measures`: a section in Markdown. `earlier`: the directory into which the files will move. If a user has put a
    README.md there, no card is written, and a warning is logged.
    """
    own = earlier and earlier / FILE_NAME
    if own and own.exists() and not (own.is_file() and MARK in own.read_text("utf-8", errors="replace")):
        logger.warning("%s is kept, because distill.py did not write it", own)
        return
    config = json.loads((model_dir / "config.json").read_text("utf-8"))
    model_dir.joinpath(FILE_NAME).write_text(_card(config, run, measures, marked=earlier is not None), "utf-8")


def _card(config: dict[str, Any], run: dict[str, Any], measures: str, marked: bool) -> str:
    is_ranker = "id2label" in config
    is_export = is_ranker and len(config["id2label"]) == 1
    lines = [
        "---",
        "# add here: license",
        f"library_name: {'sentence-transformers' if is_export else 'transformers'}",
        f"pipeline_tag: {'text-ranking' if is_ranker else 'feature-extraction'}",
        *([f"base_model: {run['base_model']}"] if run.get("base_model") else []),
        "tags:",
        *(["- cross-encoder", "- reranker"] if is_ranker else []),
        "- bert",
        *(["- knowledge-distillation"] if run.get("settings", {}).get("teacher_model") else []),
        "---",
        *([MARK] if marked else []),
        "",
        f"# {'BERT cross-encoder for re-ranking' if is_ranker else 'BERT encoder, a general student'}",
        "",
        f"{config['num_hidden_layers']} layers, hidden size {config['hidden_size']}. "
        + _purpose(is_ranker, config.get("pooled_activation")),
        "",
        *_usage(is_ranker, is_export, config.get("pooled_activation"), run.get("max_seq_length")),
    ]
    if run.get("settings"):
        lines += ["## Training", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _training(run))]
    if measures:
        lines += ["", "## Measures", "", measures.strip()]
    return "\n".join(lines).rstrip() + "\n"


def _purpose(is_ranker: bool, pooled_activation: str | None) -> str:
    if not is_ranker:
        return "It has no classifier: it is the start of another training, not a ranker."
    score = "It reads a query and a passage together. Its score is the probability that the passage is relevant."
    if pooled_activation == "relu":
        score += " Its `pooled_activation` is relu, which transformers does not know: use rerank.py, which reads it."
    return score


def _usage(is_ranker: bool, is_export: bool, pooled_activation: str | None, max_seq_length: int | None) -> list[str]:
    """Returns the section on usage; nothing for a model that transformers does not compute correctly."""
    if not is_ranker or pooled_activation == "relu":
        return []
    if is_export:
        code = [
            "from sentence_transformers import CrossEncoder",
            "",
            'model = CrossEncoder("DIRECTORY_OR_ID")',
            'model.rank("a query", ["a passage", "another passage"])',
        ]
        after = f"Longer pairs are truncated at {max_seq_length} tokens, the length of training."
    else:
        code = [
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            'model = AutoModelForSequenceClassification.from_pretrained("DIRECTORY_OR_ID")',
            'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY_OR_ID")',
            f'pair = tokenizer("a query", "a passage", truncation=True, max_length={max_seq_length}, '
            'return_tensors="pt")',
            "model(**pair).logits.softmax(-1)[:, 1]  # class 1 is relevant",
        ]
        after = "For `CrossEncoder.rank` and servers of rerankers, export it first: `model_tools/export_student.py`."
    return ["## Usage", "", "```python", *code, "```", "", after, ""]


def _training(run: dict[str, Any]) -> list[tuple[str, object]]:
    """Returns the rows of the table of a training: name and value. A fact that `run` does not have gives no row."""
    settings = run["settings"]
    weights = [(term.meaning, settings.get(f"{term.name}_weight", 0)) for term in TERMS]
    loss = " + ".join(f"{weight:g} * {meaning}" for meaning, weight in weights if weight)
    rows = [
        ("method", _METHODS.get(settings.get("distill_model"), settings.get("distill_model"))),
        ("loss", loss),
        ("temperature", f"{settings['temperature']:g}" if settings.get("soft_weight") else None),
        ("teacher's layers", ", ".join(map(str, (settings.get("layer_map") or ())[1:]))),
        ("maximum length", run.get("max_seq_length") and f"{run['max_seq_length']} tokens"),
        ("training examples", run.get("num_train_examples") and f"{run['num_train_examples']:,}"),
        ("epochs", settings.get("num_train_epochs")),
        ("batch size", settings.get("train_batch_size")),
        ("learning rate", settings.get("learning_rate")),
        ("precision", settings.get("precision")),
        ("seed", settings.get("seed")),
        ("dev measure", _dev_measure(run)),
        ("versions", ", ".join(f"{name} {number}" for name, number in run.get("versions", {}).items())),
    ]
    return [(name, value) for name, value in rows if value not in (None, "")]


def _dev_measure(run: dict[str, Any]) -> str | None:
    if run.get("best_value") is None:
        return None
    return (
        f"{run['settings'].get('dev_measure')} {run['best_value']:.4f}, step {run['best_step']} of {run['last_step']}"
    )
