"""One engine in one precision scores pairs in a child process, and measures itself.

Imports nothing heavy at the top: the time to import an engine counts as its start-up.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from formats.pairs import read_pairs, split_example_id
from formats.scores import PassageScore, write_scores

if TYPE_CHECKING:
    from tokenizers import Encoding

WARM_UP_STEP = 8  # one batch of 8 is scored before the measurement, so that engines know batches of all lengths
Logits = Callable[[Sequence["Encoding"]], np.ndarray]  # the logits of one batch, (B,)


def read_texts(directory: Path, name: str = "pairs.tsv") -> list[tuple[str, str]]:
    """Returns the queries and passages of a file in `directory`."""
    return [(pair.query, pair.passage) for pair in read_pairs(directory / name, labelled=False)]


def encode(directory: Path, texts: list[tuple[str, str]], max_seq_length: int) -> "list[Encoding]":
    """Returns the tokens of pairs, without padding, by the tokenizer of the exported model."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "export" / "tokenizer.json"))
    tokenizer.enable_truncation(max_seq_length)
    return tokenizer.encode_batch(texts)


def padded(batch: "Sequence[Encoding]") -> dict[str, np.ndarray]:
    """Returns the inputs of BERT, (B, T) int64 each, padded to the longest pair of the batch."""
    shape = len(batch), max(len(encoding.ids) for encoding in batch)
    arrays = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for row, encoding in enumerate(batch):
        length = len(encoding.ids)
        arrays["input_ids"][row, :length] = encoding.ids
        arrays["attention_mask"][row, :length] = 1
        arrays["token_type_ids"][row, :length] = encoding.type_ids
    return arrays


def load_transformers(directory: Path, precision: str, threads: int) -> Logits:
    """BertForSequenceClassification. The number of threads is that of OMP_NUM_THREADS."""
    import torch
    from transformers import AutoModelForSequenceClassification

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = AutoModelForSequenceClassification.from_pretrained(directory / "export", dtype=dtype).eval()

    @torch.inference_mode()
    def logits(batch: "Sequence[Encoding]") -> np.ndarray:
        inputs = {name: torch.from_numpy(array) for name, array in padded(batch).items()}
        return model(**inputs).logits[:, 0].float().numpy()

    return logits


def load_onnxruntime(directory: Path, precision: str, threads: int) -> Logits:
    """The optimized graph in fp32, or the same with matmuls in int8."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = str(directory / "onnxruntime" / f"{precision}.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["logits"], padded(batch))[0][:, 0]


def load_openvino(directory: Path, precision: str, threads: int) -> Logits:
    """model.onnx in fp32 or bf16, or the model quantized by NNCF. Its other operators have OpenVINO's default
    precision, which is bf16 on a processor with bf16 matmuls."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads}
    if precision != "int8":
        options["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
    path = directory / ("openvino/int8.xml" if precision == "int8" else "export/model.onnx")
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    return lambda batch: request.infer(padded(batch))[0][:, 0].copy()  # the next batch overwrites the result


def load_ctranslate2(directory: Path, precision: str, threads: int) -> Logits:
    """The encoder and the pooler in fp32 or int8. CTranslate2 has no classifier, so that NumPy computes it."""
    import ctranslate2
    import safetensors.numpy

    compute_type = {"fp32": "float32", "int8": "int8"}[precision]
    encoder = ctranslate2.Encoder(str(directory / "ctranslate2"), compute_type=compute_type, intra_threads=threads)
    weights = safetensors.numpy.load_file(directory / "export" / "model.safetensors")
    weight, bias = weights["classifier.weight"][0], weights["classifier.bias"][0]  # (d,) and a number

    def logits(batch: "Sequence[Encoding]") -> np.ndarray:
        ids, segments = [encoding.ids for encoding in batch], [encoding.type_ids for encoding in batch]
        pooled = encoder.forward_batch(ids, token_type_ids=segments).pooler_output
        return np.array(pooled) @ weight + bias

    return logits


LOAD = {
    "transformers": load_transformers,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "ctranslate2": load_ctranslate2,
}


def measure_engine(
    engine: str, precision: str, directory: Path, max_seq_length: int, batch_size: int, threads: int
) -> None:
    """Scores the pairs in batches of similar length. Prints scores and times as JSON.

    Its keys: `scores`, those of the pairs; `first_score`, the monotonic clock when the first pair had its score;
    `tokenizing` and `scoring`, seconds for all pairs.
    """
    logits = LOAD[engine](directory, precision, threads)
    texts = read_texts(directory)
    logits(encode(directory, texts[:1], max_seq_length))
    first_score = time.monotonic()
    start = time.monotonic()
    encodings = encode(directory, texts, max_seq_length)
    tokenizing = time.monotonic() - start
    longest_first = sorted(range(len(texts)), key=lambda index: -len(encodings[index].ids))
    batches = [longest_first[first : first + batch_size] for first in range(0, len(texts), batch_size)]
    for batch in batches[::WARM_UP_STEP]:
        logits([encodings[index] for index in batch])
    found = np.zeros(len(texts))
    start = time.monotonic()
    for batch in batches:
        found[batch] = logits([encodings[index] for index in batch])
    scoring = time.monotonic() - start
    scores = (1 / (1 + np.exp(-found))).tolist()
    print(json.dumps({"scores": scores, "first_score": first_score, "tokenizing": tokenizing, "scoring": scoring}))


def load_crossencoder(directory: Path, precision: str, max_seq_length: int) -> Callable:
    """Returns the model of sentence-transformers, with batches and all else as by default."""
    import torch
    from sentence_transformers import CrossEncoder

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return CrossEncoder(
        str(directory / "export"), max_length=max_seq_length, device="cpu", model_kwargs={"torch_dtype": dtype}
    )


def measure_crossencoder(precision: str, directory: Path, max_seq_length: int) -> None:
    """As `measure_engine`. CrossEncoder.predict tokenizes each batch; this time is subtracted from that of scoring."""
    model = load_crossencoder(directory, precision, max_seq_length)
    texts = read_texts(directory)
    model.predict(texts[:1], show_progress_bar=False)
    first_score = time.monotonic()
    model.predict(texts[::WARM_UP_STEP], show_progress_bar=False)
    tokenizing = 0.0
    preprocess = model.preprocess

    def timed_preprocess(*args: object, **kwargs: object) -> object:
        nonlocal tokenizing
        start = time.monotonic()
        features = preprocess(*args, **kwargs)
        tokenizing += time.monotonic() - start
        return features

    model.preprocess = timed_preprocess
    start = time.monotonic()
    scores = model.predict(texts, show_progress_bar=False).tolist()
    scoring = time.monotonic() - start - tokenizing
    print(json.dumps({"scores": scores, "first_score": first_score, "tokenizing": tokenizing, "scoring": scoring}))


def rerank_by_crossencoder(precision: str, directory: Path, max_seq_length: int, name: str) -> None:
    """From pairs to scores, as a user's script: reads the file `name`, scores its pairs, writes NAME.scores."""
    model = load_crossencoder(directory, precision, max_seq_length)
    pairs = list(read_pairs(directory / name, labelled=False))
    scores = model.predict([(pair.query, pair.passage) for pair in pairs], show_progress_bar=False).tolist()
    rows = (PassageScore(*split_example_id(pair.example_id), score) for pair, score in zip(pairs, scores, strict=True))
    write_scores(directory / f"{name}.scores", rows)
