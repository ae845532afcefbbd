"""The inputs of a training run: features, models and batches. Checks that they match."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from formats.features import Features, FeaturesHeader
from modeling.bert import BertRanker
from modeling.frozen import FrozenRanker
from modeling.general_student import make_fit_dense
from modeling.losses import teacher_layers
from modeling.model_files import check_reads_features, load_ranker
from modeling.padding import pad, to_device
from runtime.distributed import rank, world_size
from runtime.errors import InputError
from training.queries import Queries

logger = logging.getLogger(__name__)

# With 128 examples of each label, the AUC of a random head is 0.5 +- 0.1 in 99 of 100 cases.
CHECKED_EXAMPLES = 128
MIN_CHECKED_EXAMPLES = 16
MIN_AUC = 0.6
# Training pairs usually have 1 to 10 negatives for each positive. A ratio beyond these is most likely a mistake.
MAX_POSITIVES_PER_NEGATIVE = 2
MAX_NEGATIVES_PER_POSITIVE = 50


class Models(NamedTuple):
    """`layer_map[m]` is the teacher layer that student layer m learns from, m = 0 (embeddings) to M.

    `teacher`, `fit_dense` and `layer_map` are None or empty if the loss does not use them.
    """

    student: BertRanker
    teacher: BertRanker | FrozenRanker | None
    fit_dense: nn.Linear | None  # student hidden size to teacher hidden size
    layer_map: list[int]
    vocabulary: list[str]  # of the student

    def trained(self) -> nn.ModuleDict:
        """The modules with parameters to train."""
        fit_dense = {} if self.fit_dense is None else {"fit_dense": self.fit_dense}
        return nn.ModuleDict({"student": self.student} | fit_dense)

    def to(self, device: torch.device) -> None:
        for model in (self.student, self.teacher, self.fit_dense):
            if model is not None:
                model.to(device)


def load_features(
    path: Path, max_seq_length: int | None, do_lower_case: bool | None, needs_labels: bool, batch_size: int
) -> Features:
    """Opens the training examples. Raises InputError if they are not what the flags say. Warns of an extreme ratio."""
    features = Features(path)
    for name, given in (("max_seq_length", max_seq_length), ("do_lower_case", do_lower_case)):
        made = getattr(features.header, name)
        if given not in (None, made):
            raise InputError(f"--{name}: {path} was made with {made}; tokenize again")
    if needs_labels and (features.labels < 0).any():
        raise InputError(f"--features_file: {path} has no labels; tokenize with --set_name train")
    if not len(features):
        raise InputError(f"--features_file: {path} has no examples; tokenize again")
    if len(features) < batch_size:
        raise InputError(f"--train_batch_size: {batch_size} is more than the {len(features)} examples of {path}")
    warn_of_label_ratio(path, features.labels)
    return features


def warn_of_label_ratio(path: Path, labels: np.ndarray) -> None:
    """Logs a warning if far too many of the labels `(examples,)` are 1, or 0. Examples without labels do not count."""
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if positives > MAX_POSITIVES_PER_NEGATIVE * negatives:
        advice = (
            "most passages of a relevant document do not answer its query; keep the best ones with "
            "data_preparation/filter_positives.py (--threshold, --best), or change --max_positive_passages or "
            "--num_negatives of data_preparation/make_train_pairs.py"
        )
    elif negatives > MAX_NEGATIVES_PER_POSITIVE * positives:
        advice = (
            "so few positives teach hardly anything about relevant passages; lower --num_negatives or "
            "--num_random_negatives of data_preparation/make_train_pairs.py, or keep more positives with "
            "data_preparation/filter_positives.py (--threshold, --best, --keep_best)"
        )
    else:
        return
    logger.warning("%s has %d positives and %d negatives: %s", path, positives, negatives, advice)


def load_models(
    student_dir: Path,
    teacher_dir: Path | None,
    features_file: Path,
    header: FeaturesHeader,
    compares: set[str],
    layer_map: str | None,
    pooled_activation: str | None,
    seed: int,
) -> Models:
    """Loads student and teacher. `compares`: as from `compared`; `layer_map`: as `--layer_map` gives it.

    Raises InputError if they do not fit the features or each other.
    """
    teacher = fit_dense = teacher_vocabulary = None
    layers: list[int] = []
    if teacher_dir is not None:
        # A pre-trained teacher has no classifier. It needs none if no soft labels are learned.
        teacher, _ = load_ranker(teacher_dir, pooled_activation, None if "logits" in compares else seed)
        teacher_vocabulary = check_reads_features(teacher_dir, teacher, features_file, header)
        teacher.requires_grad_(False)
        pooled_activation = teacher.pooled_activation  # one head for both
    student, saved_fit_dense = load_ranker(student_dir, pooled_activation, seed)
    vocabulary = check_reads_features(student_dir, student, features_file, header) or teacher_vocabulary
    if not compares.isdisjoint({"queries_keys", "hidden_states"}):
        layers = choose_layers(layer_map, student.config.num_hidden_layers, teacher.config.num_hidden_layers)
        if "queries_keys" in compares:
            check_heads(student.config.num_attention_heads, teacher.config.num_attention_heads)
    if "hidden_states" in compares:
        sizes = student.config.hidden_size, teacher.config.hidden_size
        fit_dense = make_fit_dense(*sizes, saved_fit_dense, seed, student.config.initializer_range)
    if vocabulary is None:
        raise InputError(f"--general_student_model: {student_dir} needs a vocab.txt for its student")
    return Models(student, teacher, fit_dense, layers, vocabulary)


def choose_layers(layer_map: str | None, depth: int, teacher_depth: int) -> list[int]:
    """Returns the teacher layer that each student layer m = 0 (embeddings) to M learns from.

    Raises InputError if `layer_map` does not fit, or if there is none and the depths do not divide.
    """
    if layer_map is None:
        try:
            return teacher_layers(depth, teacher_depth)
        except ValueError as error:
            raise InputError(
                f"--general_student_model: {error}; use a student whose depth divides it, or give --layer_map"
            ) from None
    layers = [0, *map(int, layer_map.split(","))]
    if len(layers) != depth + 1:
        raise InputError(f"--layer_map: names {len(layers) - 1} layers for the {depth} of the student")
    if not all(1 <= layer <= teacher_depth for layer in layers[1:]):
        raise InputError(f"--layer_map: the teacher has layers 1 to {teacher_depth}")
    return layers


def check_heads(heads: int, teacher_heads: int) -> None:
    """Raises InputError if attention scores cannot be compared head by head."""
    if heads != teacher_heads:
        raise InputError(
            f"--general_student_model: {heads} attention heads cannot learn from {teacher_heads}; use a student with "
            f"{teacher_heads} heads, --att_weight 0, or --distill_model standard"
        )


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the order of the examples in an epoch: a permutation keyed by seed and epoch, (count,) int64."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class StepExamples(NamedTuple):
    """The examples of an optimization step: all of them, and the parts of the batch that this process computes."""

    step: int  # from 1
    examples: np.ndarray  # (batch size,) int64
    own_parts: list[np.ndarray]


def steps_from(
    first: int, last: int, seed: int, num_examples: int, batch_size: int, num_parts: int, queries: Queries | None = None
) -> Iterator[StepExamples]:
    """Yields steps `first` to `last` with their examples. Every epoch has its own order and drops a partial batch.

    `num_parts`: the number of parts of a batch, over all processes. With `queries`, a query's pairs share a part.
    """
    steps_per_epoch = num_examples // batch_size
    order, order_epoch = None, None
    for step in range(first, last + 1):
        epoch, place = divmod(step - 1, steps_per_epoch)
        if order_epoch != epoch:
            order_epoch = epoch
            if queries is None:
                order = epoch_order(seed, epoch, num_examples)
            else:
                order = queries.order(seed, epoch, batch_size // num_parts)
        examples = order[place * batch_size :][:batch_size]
        yield StepExamples(step, examples, np.split(examples, num_parts)[rank() :: world_size()])


def load_batch(
    features: Features, examples: np.ndarray, pad_to: int | None, device: torch.device
) -> dict[str, torch.Tensor]:
    """Returns what `Features.batch` does, as tensors on a device. One copy goes there; padding is added there."""
    tokens, *columns = features.read(examples)  # columns: lengths, lengths of first segments, labels
    starts = np.cumsum(columns[0]) - columns[0]
    sent = np.concatenate([starts, *columns, tokens], dtype=np.int32, casting="unsafe")
    arrays = to_device(sent, device).split([len(examples)] * 4 + [len(tokens)])
    starts, lengths, first_segment_lengths, labels, tokens = arrays
    width = pad_to or int(columns[0].max())
    return pad(tokens, starts, lengths, first_segment_lengths, width) | {"labels": labels.long()}


@torch.inference_mode()
def check_teacher(
    name: str,
    teacher: BertRanker | FrozenRanker,
    features: Features,
    seed: int,
    device: torch.device,
    autocast: torch.autocast,
) -> str:
    """Checks that the teacher ranks relevant examples above not relevant ones, on some examples of each label.

    The measure is AUC: how often a relevant example has the higher score; equal scores count half. Returns a line for
    the log, or logs a warning and returns "" if there are fewer than `MIN_CHECKED_EXAMPLES` of a label. Raises
    InputError below `MIN_AUC`, as for a random head or for flipped labels. `name`: for the message.
    """
    order = epoch_order(seed, 0, len(features))
    scores = {}
    for label in (0, 1):
        chosen = order[features.labels[order] == label][:CHECKED_EXAMPLES]
        if len(chosen) < MIN_CHECKED_EXAMPLES:
            logger.warning(
                "teacher not checked: %d examples with label %d are too few (%d are needed), so a random teacher or "
                "flipped labels are not noticed; measure it first: rerank.py with %s, then msmarco_mrr_eval.py",
                *(len(chosen), label, MIN_CHECKED_EXAMPLES, name),
            )
            return ""
        parts = np.array_split(chosen, len(chosen) // MIN_CHECKED_EXAMPLES)
        scores[label] = np.concatenate([_margins(teacher, features, part, device, autocast) for part in parts])
    wins = scores[1][:, None] - scores[0][None, :]  # (relevant, not relevant)
    auc = np.mean((wins > 0) + 0.5 * (wins == 0))
    figure = f"AUC {auc:.3f} over {len(scores[1])} relevant and {len(scores[0])} not relevant examples"
    if auc < MIN_AUC:
        reason = "its labels are flipped" if auc < 1 - MIN_AUC else "it ranks them hardly better than chance"
        raise InputError(
            f"--teacher_model: {name} has {figure}: {reason}; use another teacher, or pass --no_teacher_check "
            "(shell scripts: teacher_check=no)"
        )
    return f"teacher checked: {figure}"


def _margins(
    teacher: BertRanker | FrozenRanker,
    features: Features,
    examples: np.ndarray,
    device: torch.device,
    autocast: torch.autocast,
) -> np.ndarray:
    """Returns the teacher's margins z_1 - z_0 of examples, (n,) float64."""
    batch = load_batch(features, examples, None, device)
    del batch["labels"]
    with autocast:
        logits = teacher(**batch).logits
    return logits.double().diff(dim=-1)[:, 0].cpu().numpy()
