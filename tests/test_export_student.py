"""Exported students: other tools load them, and give the scores and the order of rerank.py."""

import importlib.util
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import (
    ROOT,
    STUDENT,
    TEACHER,
    TOKENS,
    Finished,
    assert_refused,
    random_weights,
    run_main,
    some_pairs,
    student_weights,
    teacher_weights,
    write_published,
    write_tiny_features,
    write_transformers,
)

from formats.scores import read_scores
from modeling.model_files import load_ranker, save_ranker
from tokenization.pair_encoding import truncated_lengths
from tokenization.vocabulary import saved_lower_case

SCRIPT = "model_tools/export_student.py"
LENGTH = 17
PAIRS = [(query, f"{passage} {number}") for number, (query, passage) in enumerate(some_pairs(30))]
QUERY, PASSAGES = "the cat", [passage for _, passage in PAIRS]
OPEN = ("open a file", "The open() function returns a file object.")  # the pair in docs/serving.md
MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a student that distill.py has trained, `student`, and its `export`."""
    directory = tmp_path_factory.mktemp("directory")
    write_published(directory / "teacher", TEACHER, teacher_weights())
    weights = random_weights(STUDENT, seed=2, std=1.0)  # so large that the scores differ
    write_transformers(directory / "general", STUDENT, weights)
    write_tiny_features(directory / "features", 24, max_seq_length=LENGTH)
    succeeded(distil(directory, directory / "student"))
    succeeded(export(directory / "student", directory / "export"))
    return directory


def succeeded(done: Finished) -> str:
    assert done.status == 0, done
    return done.stdout


def distil(inputs: Path, output: Path, *more: object) -> Finished:
    return run_main(
        "distill.py", "--features_file", inputs / "features", "--general_student_model", inputs / "general",
        "--output_student_dir", output, "--train_batch_size", 4, "--num_train_epochs", 1, "--device", "cpu",
        *([] if "hard" in more else ["--teacher_model", inputs / "teacher"]),
        *([] if {"hard", "intermediate"} & set(more) else ["--no_teacher_check"]), *more,
    )  # fmt: skip


def export(model_dir: Path, output_dir: Path, *more: object) -> Finished:
    return run_main(SCRIPT, "--model_dir", model_dir, "--output_dir", output_dir, *more)


def rerank(model_dir: Path, pairs: list[tuple[str, str]], tmp_path: Path, ids: list[str] | None = None) -> np.ndarray:
    """The scores of pairs, (n,) float64, by tokenize_to_features.py and rerank.py."""
    ids = ids or [f"q#D{number}_0" for number in range(len(pairs))]
    rows = ["\t".join((name, *pair)) + "\n" for name, pair in zip(ids, pairs, strict=True)]
    (tmp_path / "pairs.tsv").write_text("".join(rows))
    features, scores = tmp_path / "pairs.features", tmp_path / "scores"
    succeeded(
        run_main(
            "tokenize_to_features.py", "--set_name", "test", "--raw_data_file", tmp_path / "pairs.tsv",
            "--output_features_file", features, "--bert_model_dir", model_dir, "--max_seq_length", LENGTH,
            "--overwrite",
        )
    )  # fmt: skip
    flags = ["--features_file", features, "--output_scores_file", scores, "--device", "cpu", "--overwrite"]
    succeeded(run_main("rerank.py", "--model_dir", model_dir, *flags))
    return np.array([row.score for row in read_scores(scores)])


def assert_equal_scores(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.ptp(expected) > 0.01  # they differ, so the order means something
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.argsort(-found, kind="stable").tolist() == np.argsort(-expected, kind="stable").tolist()


def code_of(heading: str) -> str:
    """The Python code in a section of docs/serving.md."""
    page = (ROOT / "docs" / "serving.md").read_text()
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, flags=re.M | re.S)[1]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    return code


@pytest.fixture
def documented(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the export under its name in the documentation."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "export").symlink_to(directory / "export")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Scores.


def test_rerank_gives_the_export_the_scores_of_the_student(directory: Path, tmp_path: Path) -> None:
    assert_equal_scores(rerank(directory / "export", PAIRS, tmp_path), rerank(directory / "student", PAIRS, tmp_path))


@pytest.mark.parametrize("cased", [False, True])
def test_transformers_gives_the_scores_of_rerank(directory: Path, tmp_path: Path, cased: bool) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, _ = load_ranker(directory / "student")
    (tmp_path / "model").mkdir()
    save_ranker(model, TOKENS, not cased, tmp_path / "model")
    succeeded(export(tmp_path / "model", tmp_path / "export", "--max_seq_length", LENGTH))
    assert saved_lower_case(tmp_path / "export") is not cased
    pairs = [(query.title(), passage) for query, passage in PAIRS]
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    encoded = tokenizer(*zip(*pairs, strict=True), truncation=True, padding=True, return_tensors="pt")
    assert encoded["input_ids"].shape == (len(pairs), LENGTH)
    with torch.no_grad():
        logits = loaded.eval()(**encoded).logits
    assert logits.shape == (len(pairs), 1)
    flags = [] if not cased else ["--no-do_lower_case"]
    (tmp_path / "pairs.tsv").write_text("".join(f"q#D{i}_0\t{q}\t{p}\n" for i, (q, p) in enumerate(pairs)))
    succeeded(
        run_main(
            "tokenize_to_features.py", "--set_name", "test", "--raw_data_file", tmp_path / "pairs.tsv",
            "--output_features_file", tmp_path / "f", "--bert_model_dir", tmp_path / "model",
            "--max_seq_length", LENGTH, *flags,
        )
    )  # fmt: skip
    names = ["--features_file", tmp_path / "f", "--output_scores_file", tmp_path / "s", "--device", "cpu"]
    succeeded(run_main("rerank.py", "--model_dir", tmp_path / "model", *names))
    expected = np.array([row.score for row in read_scores(tmp_path / "s")])
    np.testing.assert_allclose(logits[:, 0].double().sigmoid().numpy(), expected, rtol=0, atol=1e-6)


def test_a_pipeline_gives_the_scores_of_rerank(directory: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    classifier = pipeline("text-classification", model=str(directory / "export"), device="cpu")
    found = classifier([{"text": query, "text_pair": passage} for query, passage in PAIRS], truncation=True)
    assert {one["label"] for one in found} == {"relevant"}
    assert_equal_scores(np.array([one["score"] for one in found]), rerank(directory / "student", PAIRS, tmp_path))


def test_a_cross_encoder_gives_the_scores_and_the_order_of_rerank(directory: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.CrossEncoder(str(directory / "export"), device="cpu")
    assert isinstance(model.activation_fn, torch.nn.Sigmoid)
    assert_equal_scores(model.predict(PAIRS), rerank(directory / "student", PAIRS, tmp_path))

    expected = rerank(directory / "student", [(QUERY, passage) for passage in PASSAGES], tmp_path)
    ranked = model.rank(QUERY, PASSAGES)
    assert [one["corpus_id"] for one in ranked] == np.argsort(-expected, kind="stable").tolist()
    np.testing.assert_allclose([one["score"] for one in ranked], np.sort(expected)[::-1], rtol=0, atol=1e-6)


def test_the_reranking_evaluator_gives_the_reciprocal_ranks_of_rerank(directory: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

    model = sentence_transformers.CrossEncoder(str(directory / "export"), device="cpu")
    samples = [
        {"query": query, "positive": PASSAGES[first : first + 1], "negative": PASSAGES[first + 1 : first + 8]}
        for query, first in (("the cat", 0), ("dog ran", 8), ("what is deep", 16))
    ]
    reciprocal_ranks = []
    for sample in samples:
        pairs = [(sample["query"], passage) for passage in sample["positive"] + sample["negative"]]
        scores = rerank(directory / "student", pairs, tmp_path)
        reciprocal_ranks.append(1 / (1 + np.sum(scores[1:] > scores[0])))
    found = CrossEncoderRerankingEvaluator(samples, at_k=10, write_csv=False)(model)
    assert found["mrr@10"] == pytest.approx(np.mean(reciprocal_ranks))


def test_tokenizers_truncate_as_rerank_unless_both_texts_are_longer_than_half(directory: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory / "export")
    differences = set()
    for length in (LENGTH - 1, LENGTH):
        for query in range(1, 25):
            for passage in range(1, 25):
                texts = " ".join(["cat"] * query), " ".join(["dog"] * passage)
                ids = tokenizer(*texts, truncation=True, max_length=length)["input_ids"]
                found = ids.count(TOKENS.index("cat")), ids.count(TOKENS.index("dog"))
                if found != truncated_lengths(query, passage, length - 3):
                    assert length % 2 == 0 and min(query, passage) > (length - 3) / 2
                    differences.add((*found, *truncated_lengths(query, passage, length - 3)))
    assert differences == {(6, 7, 7, 6)}


# What is written.


def test_the_files_of_an_export(directory: Path) -> None:
    output = directory / "export"
    assert set(os.listdir(output)) == MODEL_FILES | {"README.md", "sentence_bert_config.json"}
    config = json.loads((output / "config.json").read_text())
    assert (config["id2label"], config["label2id"]) == ({"0": "relevant"}, {"relevant": 0})
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    assert json.loads((output / "tokenizer_config.json").read_text())["model_max_length"] == LENGTH
    assert json.loads((output / "sentence_bert_config.json").read_text())["max_seq_length"] == LENGTH


def test_the_model_card_of_an_export(directory: Path, tmp_path: Path) -> None:
    card = pytest.importorskip("huggingface_hub").ModelCard
    (tmp_path / "measures.md").write_text("| MRR@10 |\n|---|\n| 0.7 |\n")
    done = export(directory / "student", tmp_path / "export", "--measures_file", tmp_path / "measures.md")
    assert succeeded(done).count("\n") == 1
    assert f"wrote {tmp_path / 'export'}" in done.stdout and f"at most {LENGTH} tokens" in done.stdout
    loaded = card.load(tmp_path / "export" / "README.md")
    assert (loaded.data.library_name, loaded.data.pipeline_tag) == ("sentence-transformers", "text-ranking")
    assert {"cross-encoder", "knowledge-distillation"} <= set(loaded.data.tags)
    assert loaded.data.base_model is None and loaded.data.license is None  # its general student has no Hub id
    for part in (
        "## Usage", "CrossEncoder(", "| method | Simplified TinyBERT", "| training examples | 24 |",
        "| loss | 1 * attention scores + 1 * hidden states + 1 * soft labels + 1 * hard labels |",
        "| teacher's layers | 2, 4, 6 |", f"| maximum length | {LENGTH} tokens |", f"torch {torch.__version__}",
        "## Measures\n\n| MRR@10 |\n",
    ):  # fmt: skip
        assert part in loaded.content
    assert str(directory) not in loaded.content and "## Measures" not in (directory / "export/README.md").read_text()


def test_a_model_that_distill_did_not_train_needs_its_length(tmp_path: Path) -> None:
    write_published(tmp_path / "model", STUDENT, student_weights())
    refused = export(tmp_path / "model", tmp_path / "export")
    assert_refused(refused, "--max_seq_length: needed", tmp_path / "model")
    succeeded(export(tmp_path / "model", tmp_path / "export", "--max_seq_length", STUDENT.positions))
    card = (tmp_path / "export" / "README.md").read_text()
    assert f"truncated at {STUDENT.positions} tokens" in card and "## Training" not in card


def test_a_checkpoint_can_be_exported(directory: Path, tmp_path: Path) -> None:
    succeeded(distil(directory, tmp_path / "out", "--save_model_step", 2))
    assert_refused(export(tmp_path / "out" / "checkpoint-2", tmp_path / "export"), "--max_seq_length: needed")
    succeeded(export(tmp_path / "out" / "checkpoint-2", tmp_path / "export", "--max_seq_length", LENGTH))
    assert load_ranker(tmp_path / "export")[0].classifier.out_features == 2


# Mistakes.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_seq_length", LENGTH + 1], f"--max_seq_length: STUDENT was trained with {LENGTH}; leave it out"),
        (["--max_seq_length", 4], "--max_seq_length: needs to be 5 or more"),
        (["--measures_file", "none.md"], "none.md: No such file or directory"),
        (["--measures_file", "FEATURES"], "--measures_file: FEATURES is not UTF-8 text"),
        (["--output_dir", "STUDENT"], "--output_dir: STUDENT exists already"),
        (["--model_dir", "FEATURES"], "is not a directory"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    directory: Path, tmp_path: Path, flags: list, message: str
) -> None:
    def filled(text: object) -> str:
        return str(text).replace("STUDENT", str(directory / "student")).replace("FEATURES", str(directory / "features"))

    done = export(directory / "student", tmp_path / "export", *map(filled, flags))
    assert_refused(done, filled(message))
    assert os.listdir(tmp_path) == []


def test_models_that_cannot_be_exported_are_refused(directory: Path, tmp_path: Path) -> None:
    relu = write_transformers(tmp_path / "relu", STUDENT, student_weights(), pooled_activation="relu")
    flags = "--max_seq_length", LENGTH
    assert_refused(export(relu, tmp_path / "export", *flags), "--model_dir: its pooled_activation is relu")
    weights = {name: tensor for name, tensor in student_weights().items() if not name.startswith("classifier.")}
    encoder = write_transformers(tmp_path / "encoder", STUDENT, weights)
    assert_refused(export(encoder, tmp_path / "export", *flags), "classifier.weight is missing")
    more = "--max_seq_length", STUDENT.positions + 1
    refused = export(write_transformers(tmp_path / "m", STUDENT, student_weights()), tmp_path / "export", *more)
    assert_refused(refused, f"has {STUDENT.positions} positions")
    unfinished = write_transformers(tmp_path / "unfinished", STUDENT, student_weights())
    (unfinished / "training.json").write_text('{"finished": false, "settings": {}}')
    assert_refused(export(unfinished, tmp_path / "export", *flags), f"the training in {unfinished} is not finished")
    damaged = write_transformers(tmp_path / "damaged", STUDENT, student_weights())
    for run in ('{"settings": {"soft_weight": 1}', '{"settings": {"hard_weight": "x"}, "max_seq_length": "17"'):
        (damaged / "training.json").write_text(run + ', "finished": true}')
        assert_refused(export(damaged, tmp_path / "export", *flags), "training.json is not as distill.py writes it")
    (damaged / "training.json").unlink()
    os.mkfifo(damaged / "training.json")
    assert_refused(export(damaged, tmp_path / "export", *flags), f"the training in {damaged} is not finished")
    assert sorted(os.listdir(tmp_path)) == ["damaged", "encoder", "m", "relu", "unfinished"]


def test_without_the_packages_onnx_is_refused_before_torch_is_loaded(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "onnxruntime" else find_spec(name, *more)
    )
    done = export(directory / "student", tmp_path / "export", "--onnx")
    assert_refused(done, "--onnx: a package is not installed; pip install", "onnxruntime==")
    assert os.listdir(tmp_path) == []


# Tools that are not in requirements.txt.


def onnx_inputs(model_dir: Path, pairs: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    encoded = tokenizer(*zip(*pairs, strict=True), truncation=True, padding=True, return_tensors="np")
    return {name: array.astype(np.int64) for name, array in encoded.items()}


@pytest.mark.extras
def test_an_onnx_file_gives_the_scores_of_rerank_with_any_batch_size_and_length(
    directory: Path, documented: Path
) -> None:
    import onnx
    import onnxruntime

    output = documented / "models" / "export_onnx"
    done = export(directory / "student", output, "--onnx")
    assert "model.onnx differs from torch by at most " in succeeded(done)
    assert done.stderr == ""
    onnx.checker.check_model(str(output / "model.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(output / "model.onnx"), providers=["CPUExecutionProvider"])
    shapes = {one.name: one.shape for one in session.get_inputs()}
    assert shapes == {name: ["batch", "length"] for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert [one.shape for one in session.get_outputs()] == [["batch", 1]]
    expected = rerank(directory / "student", PAIRS, documented)
    for first, last in ((0, 1), (1, 4), (4, len(PAIRS))):
        (logits,) = session.run(["logits"], onnx_inputs(output, PAIRS[first:last]))
        found = 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))
        np.testing.assert_allclose(found, expected[first:last], rtol=0, atol=1e-6)

    names = {}
    exec(code_of("ONNX"), names)
    expected = rerank(directory / "student", [OPEN], documented)
    np.testing.assert_allclose(1 / (1 + np.exp(-names["logits"][0])), expected, rtol=0, atol=1e-6)


@pytest.mark.extras
def test_an_onnx_file_that_differs_from_torch_is_not_written(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    run = onnxruntime.InferenceSession.run

    def altered(self, *args) -> list[np.ndarray]:
        return [array + 2e-5 * max(1.0, abs(array).max()) for array in run(self, *args)]

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", altered)
    done = export(directory / "student", tmp_path / "export", "--onnx")
    assert_refused(done, "--onnx: the logits of model.onnx differ from torch by", "which is above 1e-05")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("heading", "name"), [("sentence-transformers", "scores"), ("transformers", "score")])
def test_the_code_of_the_documentation_runs(documented: Path, directory: Path, heading: str, name: str) -> None:
    pytest.importorskip("sentence_transformers")
    names = {}
    exec(code_of(heading), names)
    expected = rerank(directory / "student", [OPEN], documented)
    np.testing.assert_allclose(names[name], expected[0], rtol=0, atol=1e-6)
    if heading == "sentence-transformers":
        assert len(names["ranked"]) == 2


@pytest.mark.extras
def test_pyterrier_ranks_documents_by_their_best_passages(documented: Path, directory: Path) -> None:
    import pandas

    names = {}
    exec(code_of("PyTerrier").replace("length=100, stride=50", "length=6, stride=3"), names)
    texts = {f"D{i}": " ".join(PASSAGES[3 * i : 3 * i + 3]) for i in range(5)}
    rows = [
        (f"q{number}", query, *one) for number, query in enumerate(("the cat", "what is deep")) for one in texts.items()
    ]
    candidates = pandas.DataFrame(rows, columns=["qid", "query", "docno", "text"])
    passages = names["passages"](candidates)
    assert len(passages) > 3 * len(candidates)
    scores = rerank(directory / "student", passages[["query", "text"]].values.tolist(), documented)
    expected = passages.assign(score=scores, document=passages["docno"].str.split("%p").str[0])
    expected = expected.groupby(["qid", "document"])["score"].max()
    found = names["rerank"](candidates).sort_values(["qid", "rank"]).set_index(["qid", "docno"])["score"]
    assert set(found.index) == set(expected.index)
    np.testing.assert_allclose(found.to_numpy(), expected.loc[list(found.index)].to_numpy(), rtol=0, atol=1e-6)
    for qid in ("q0", "q1"):
        assert list(found[qid]) == sorted(found[qid], reverse=True)


@pytest.mark.extras
def test_the_rerankers_package_ranks_as_rerank(directory: Path, tmp_path: Path) -> None:
    from rerankers import Reranker

    ranker = Reranker(str(directory / "export"), model_type="cross-encoder", device="cpu", verbose=0)
    expected = rerank(directory / "student", [(QUERY, passage) for passage in PASSAGES], tmp_path)
    ranked = ranker.rank(QUERY, PASSAGES).results
    assert [one.document.doc_id for one in ranked] == np.argsort(-expected, kind="stable").tolist()
    found = 1 / (1 + np.exp(-np.array([one.score for one in ranked])))
    np.testing.assert_allclose(found, np.sort(expected)[::-1], rtol=0, atol=1e-6)
