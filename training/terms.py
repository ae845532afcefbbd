"""The terms of the loss. Flags, the keys of train_loss.jsonl and the curves follow from this one tuple."""

from typing import NamedTuple


class Term(NamedTuple):
    """A term of the loss: `--NAME_weight` is its weight, and `NAME_loss` its key in train_loss.jsonl."""

    name: str
    meaning: str  # for help and the legend of the curves
    color: str  # of its curve: distinct for color-blind readers too (Okabe and Ito 2008)
    learns_labels: bool  # a student that learns no labels is not a ranker yet


TERMS = (
    Term("att", "attention scores", "#0072b2", learns_labels=False),
    Term("rep", "hidden states", "#e69f00", learns_labels=False),
    Term("soft", "soft labels", "#009e73", learns_labels=True),
    Term("hard", "hard labels", "#cc79a7", learns_labels=True),
)
# The keys of a line of train_loss.jsonl: the total, the weighted sum of the terms that learn labels, and each term.
LOSSES = ("loss", "cls_loss", *(f"{term.name}_loss" for term in TERMS))
