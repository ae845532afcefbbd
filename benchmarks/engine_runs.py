"""Runs of engines in child processes, on the files of one directory."""

import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.child import last_json, reranking_seconds, run, tokenizing_seconds
from benchmarks.engine_models import PREPARE
from formats.scores import read_scores

Key = tuple[str, str]  # engine, precision


class Run(NamedTuple):
    """One run of an engine over all pairs: scores (n,), seconds, and the peak memory in bytes."""

    scores: list[float]
    tokenizing: float
    scoring: float
    start_up: float
    peak_bytes: int


class EngineRuns:
    """Prepares and measures engines in `directory`, which has the files of pairs.

    `script`: benchmarks/engines.py and its flags, for the children. `model_dir`: the ranker; None makes one.
    """

    def __init__(self, script: list, directory: Path, model_dir: Path | None, max_seq_length: int, threads: int):
        self._script = [*script, "--threads", threads, "--child"]
        self._directory = directory
        self._model_dir = model_dir or directory / "model"
        self._has_model = model_dir is not None
        self._max_seq_length = max_seq_length
        self._threads = threads

    def prepare(self, engines: list[str]) -> None:
        """Makes the model if none is given, the exported cross-encoder, and the model files of each engine."""
        if not self._has_model:
            run([*self._script, "model", self._directory])
        flags = ["--model_dir", self._model_dir, "--output_dir", self._directory / "export"]
        flags += ["--max_seq_length", self._max_seq_length]
        if {"onnxruntime", "openvino"} & set(engines):
            flags.append("--onnx")
        run(["model_tools/export_student.py", *flags])
        for engine in engines:
            if engine in PREPARE:
                run([*self._script, "prepare", self._directory, engine])

    def measure(self, engine: str, precision: str) -> Run:
        """Scores all pairs by an engine in a new process."""
        if engine == "ours":
            return self._measure_ours(precision)
        start = time.monotonic()
        printed, peak = run([*self._script, "measure", self._directory, engine, precision], self._threads)
        said = last_json(printed)
        return Run(said["scores"], said["tokenizing"], said["scoring"], said["first_score"] - start, peak)

    def whole_process(self, engine: str, precision: str, size: int) -> float:
        """The seconds of all processes from the file of `size` pairs to a file of scores."""
        start = time.monotonic()
        if engine == "ours":
            self._rerank(str(size), precision)
        else:
            run([*self._script, "whole", self._directory, precision, f"{size}.tsv"], self._threads)
        return time.monotonic() - start

    def _measure_ours(self, precision: str) -> Run:
        start = time.monotonic()
        self._rerank("one", precision)
        start_up = time.monotonic() - start
        tokenizing, peak = self._rerank("pairs", precision)
        scores_file = self._directory / "pairs.scores"
        scores = [row.score for row in read_scores(scores_file)]
        return Run(scores, tokenizing, reranking_seconds(scores_file), start_up, peak)

    def _rerank(self, name: str, precision: str) -> tuple[float, int]:
        """Runs tokenize_to_features.py and rerank.py on NAME.tsv, as a user does.

        Returns the seconds of tokenization, and the larger peak memory of both processes in bytes.
        """
        pairs, features, scores = (self._directory / f"{name}.{suffix}" for suffix in ("tsv", "features", "scores"))
        flags = ["--set_name", "test", "--raw_data_file", pairs, "--output_features_file", features, "--overwrite"]
        flags += ["--bert_model_dir", self._model_dir, "--max_seq_length", self._max_seq_length]
        printed, tokenizing_peak = run(["tokenize_to_features.py", *flags], self._threads)
        flags = ["--model_dir", self._model_dir, "--features_file", features, "--output_scores_file", scores]
        flags += ["--precision", precision, "--device", "cpu", "--overwrite"]
        peak = run(["rerank.py", *flags], self._threads).peak_bytes
        return tokenizing_seconds(printed) if name == "pairs" else 0.0, max(tokenizing_peak, peak)
