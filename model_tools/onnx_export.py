"""An exported cross-encoder as an ONNX file, compared with torch. Needs onnx, onnxscript and onnxruntime."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from runtime.errors import InputError

FILE_NAME = "model.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 1e-5  # relative to the largest logit, or to 1 if all are smaller


def write_onnx(model_dir: Path, max_seq_length: int) -> float:
    """Writes model.onnx into a model directory of transformers, and compares it with torch.

    Its inputs are those of BERT, (B, T) int64, with any batch size B and length T; its output `logits` is (B, 1).
    Returns the largest difference of a logit on a few inputs, relative to the largest logit of its batch, or to 1 if
    all are smaller. Raises InputError if it is above `TOLERANCE`.
    """
    disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, attn_implementation="sdpa").eval()
    with _quiet_exporter():
        torch.onnx.export(
            model,
            (),
            model_dir / FILE_NAME,
            kwargs=_inputs(2, 7, model.config.vocab_size),
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in INPUTS},
            dynamo=True,
            external_data=False,  # weights and graph in one file
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(model_dir / FILE_NAME), providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch_size, length in ((1, max_seq_length), (3, 5), (5, max(5, max_seq_length // 2)), (2, 7)):
        inputs = _inputs(batch_size, length, model.config.vocab_size)
        with torch.no_grad():
            expected = model(**inputs).logits  # (B, 1)
        (found,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
        difference = (torch.from_numpy(found) - expected).abs().max() / expected.abs().max().clamp(min=1.0)
        largest = max(largest, difference.item())
    if not largest <= TOLERANCE:
        raise InputError(
            f"--onnx: the logits of model.onnx differ from torch by {largest:.2g}, which is above {TOLERANCE:g}, "
            "so nothing is written; leave --onnx out, or use the versions that --help names"
        )
    return largest


def _inputs(batch_size: int, length: int, vocab_size: int) -> dict[str, torch.Tensor]:
    """Random token ids of two segments, (B, T) int64. The last example is the shortest, with padding."""
    generator = torch.Generator().manual_seed(length)
    places = torch.arange(length).expand(batch_size, length)
    lengths = torch.linspace(length, (length + 1) // 2, batch_size).long()[:, None]  # (B, 1)
    values = (
        torch.randint(vocab_size, (batch_size, length), generator=generator),
        (places < lengths).long(),
        (places >= length // 3).long(),
    )
    return dict(zip(INPUTS, values, strict=True))


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Inside, torch's exporter does not print what a user cannot change, such as that torchvision is missing."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
