"""The terms of the loss. Flags, the keys of train_loss.jsonl, the curves and the needs of the models follow from it."""

from typing import Literal, NamedTuple


class Term(NamedTuple):
    """A term of the loss: `--NAME_weight` is its weight, and `NAME_loss` its key in train_loss.jsonl."""

    name: str
    meaning: str  # for help and the legend of the curves
    color: str  # of its curve: distinct for color-blind readers too (Okabe and Ito 2008)
    # of student and teacher; the labels are compared with the student alone
    compares: Literal["queries_keys", "hidden_states", "logits", "labels"]

    @property
    def learns_labels(self) -> bool:
        """Whether the classifier learns. A student that learns no labels is not a ranker yet."""
        return self.compares in ("logits", "labels")


TERMS = (
    Term("att", "attention scores", "#0072b2", compares="queries_keys"),
    Term("rep", "hidden states", "#e69f00", compares="hidden_states"),
    Term("soft", "soft labels", "#009e73", compares="logits"),
    Term("hard", "hard labels", "#cc79a7", compares="labels"),
    Term("margin", "margins", "#56b4e9", compares="logits"),
)
# The keys of a line of train_loss.jsonl: the total, the weighted sum of the terms that learn labels, and each term.
LOSSES = ("loss", "cls_loss", *(f"{term.name}_loss" for term in TERMS))
