"""Re-ranking: the script against the reference implementation, its output, and its errors."""

import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from tiny import (
    STUDENT,
    TOKENS,
    assert_refused,
    random_weights,
    run_main,
    student_weights,
    write_published,
    write_tiny_features,
    write_transformers,
)

from benchmarks import reference
from benchmarks.child import run_in_process
from formats.features import (
    BLOCK_EXAMPLES,
    Example,
    Features,
    FeaturesHeader,
    check_pairs,
    read_blocks,
    write_features,
)
from formats.scores import PassageScore, read_scores
from runtime.errors import InputError
from tokenization.vocabulary import vocabulary_sha256

EXAMPLES = 23


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_published(directory / "model", STUDENT, student_weights())
    write_tiny_features(directory / "features", count=EXAMPLES, set_name="test")
    return directory


def arguments(inputs: Path, output: Path, *more: object) -> list[object]:
    flags = ["--model_dir", inputs / "model", "--features_file", inputs / "features"]
    return [*flags, "--output_scores_file", output, "--device", "cpu", *more]


def scored(inputs: Path, output: Path, *more: object) -> list[PassageScore]:
    done = run_main("rerank.py", *arguments(inputs, output, *more))
    assert (done.status, done.stderr) == (0, ""), done
    return list(read_scores(output))


def reference_scores(features_file: Path, pooled_activation: str = "none", weights: dict | None = None) -> list[float]:
    """The scores of the reference implementation, one example at a time, in float64."""
    weights = {name: tensor.double() for name, tensor in (weights or student_weights()).items()}
    features = Features(features_file)
    scores = []
    for i in range(len(features)):
        batch = {name: torch.from_numpy(array) for name, array in features.batch([i]).items()}
        logits = reference.bert(weights, STUDENT.heads, batch, pooled_activation)[0]
        scores.append(torch.softmax(logits, dim=-1)[0, 1].item())
    return scores


def test_scores_agree_with_the_reference_implementation_in_input_order(inputs: Path, tmp_path: Path) -> None:
    lengths = Features(inputs / "features").lengths
    assert len(set(lengths.tolist())) > 3
    expected = reference_scores(inputs / "features")
    assert max(expected) - min(expected) > 0.05
    ids = [example_id for block in read_blocks(inputs / "features") for example_id in block.example_ids]
    for batch_size in (1, 2, 7, EXAMPLES, 1000):
        rows = scored(inputs, tmp_path / str(batch_size), "--eval_batch_size", batch_size)
        assert [f"{row.query_id}#{row.passage_id}" for row in rows] == ids
        assert [row.score for row in rows] == pytest.approx(expected, abs=1e-6)


def test_the_scores_file_is_as_documented(inputs: Path, tmp_path: Path) -> None:
    done = run_main("rerank.py", *arguments(inputs, tmp_path / "scores"))
    assert f"{EXAMPLES} passages" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    lines = (tmp_path / "scores").read_text().split("\n")
    assert lines.pop() == ""
    for i, line in enumerate(lines):
        query_id, passage_id, score = line.split("\t")
        assert (query_id, passage_id) == (f"q{i % 3}", f"D{i % 7}_{i}")
        assert 0 < float(score) < 1
        assert repr(float(score)) == score
    assert sorted(os.listdir(tmp_path)) == ["scores", "scores.log", "scores.speed.json"]


def test_examples_of_several_blocks_keep_their_order(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as small_blocks:
        small_blocks.setattr("formats.features.BLOCK_EXAMPLES", 5)
        write_tiny_features(tmp_path / "features", count=EXAMPLES, set_name="test")
    assert len(list(read_blocks(tmp_path / "features"))) == 5
    rows = scored(inputs, tmp_path / "scores", "--features_file", tmp_path / "features")
    assert [row.score for row in rows] == pytest.approx(reference_scores(inputs / "features"), abs=1e-6)
    assert [row.passage_id for row in rows] == [f"D{i % 7}_{i}" for i in range(EXAMPLES)]


def test_the_head_in_the_models_config_is_used(inputs: Path, tmp_path: Path) -> None:
    write_transformers(tmp_path / "relu", STUDENT, random_weights(STUDENT, seed=2), pooled_activation="relu")
    both = {head: reference_scores(inputs / "features", head) for head in ("none", "relu")}
    assert max(abs(a - b) for a, b in zip(*both.values(), strict=True)) > 0.01

    def found(name: str, *more: object) -> list[float]:
        return [row.score for row in scored(inputs, tmp_path / name, *more)]

    assert found("1", "--model_dir", tmp_path / "relu") == pytest.approx(both["relu"], abs=1e-6)
    assert found("2") == pytest.approx(both["none"], abs=1e-6)
    assert found("3", "--pooled_activation", "relu") == pytest.approx(both["relu"], abs=1e-6)
    more = ["--model_dir", tmp_path / "relu", "--pooled_activation", "none"]
    assert found("4", *more) == pytest.approx(both["none"], abs=1e-6)


def test_high_scores_stay_different(inputs: Path, tmp_path: Path) -> None:
    weights = student_weights()
    weights["classifier.bias"] = torch.tensor([-11.0, 11.0])  # a margin of about 22: in float32 the score is 1.0
    write_published(tmp_path / "model", STUDENT, weights)
    scores = [row.score for row in scored(inputs, tmp_path / "scores", "--model_dir", tmp_path / "model")]
    expected = reference_scores(inputs / "features", weights=weights)
    assert min(scores) > 1 - 1e-7
    assert max(scores) < 1
    assert len(set(scores)) == EXAMPLES
    order = sorted(range(EXAMPLES), key=expected.__getitem__)
    assert sorted(range(EXAMPLES), key=scores.__getitem__) == order


def test_mixed_precision_is_close(inputs: Path, tmp_path: Path) -> None:
    scores = [row.score for row in scored(inputs, tmp_path / "scores", "--fp16")]
    assert scores == pytest.approx(reference_scores(inputs / "features"), abs=0.02)


def test_a_model_as_saved_by_the_distillation_is_read(inputs: Path, tmp_path: Path) -> None:
    write_tiny_features(tmp_path / "train", count=4)
    more = ["--distill_model", "hard", "--features_file", tmp_path / "train", "--train_batch_size", 4]
    more += ["--general_student_model", inputs / "model", "--output_student_dir", tmp_path / "student"]
    assert run_main("distill.py", *more, "--learning_rate", 0, "--device", "cpu").status == 0
    rows = scored(inputs, tmp_path / "scores", "--model_dir", tmp_path / "student")
    assert rows == scored(inputs, tmp_path / "before")


# Errors.


def refused(inputs: Path, tmp_path: Path, *more: object, says: tuple[object, ...]) -> None:
    before = sorted(os.listdir(tmp_path))
    done = run_main("rerank.py", *arguments(inputs, tmp_path / "scores", *more))
    assert_refused(done, *says)
    assert done.stdout == ""
    assert sorted(os.listdir(tmp_path)) == before


def test_features_that_cannot_be_scored_are_refused(inputs: Path, tmp_path: Path) -> None:
    def features(path: Path, *says: str) -> None:
        refused(inputs, tmp_path, "--features_file", path, says=(path, *says))

    features(write_tiny_features(tmp_path / "train", 5), "block 0 example 0", "has no '#'", "--set_name test")
    features(write_tiny_features(tmp_path / "text_only", 5, "general"), "plain text without queries", "--set_name test")
    features(write_tiny_features(tmp_path / "long", 5, "test", max_seq_length=20), "up to 20 tokens, 19 positions")
    other = [*TOKENS[:-1], "new"]
    features(write_tiny_features(tmp_path / "other", 5, "test", tokens=other), "another vocabulary")
    features(write_tiny_features(tmp_path / "more", 5, "test", tokens=[*TOKENS, "new"]), "tokens and 2 segments")
    features(tmp_path / "missing")
    (tmp_path / "text").write_text("q1#D1_0\tquery\tpassage\n")
    features(tmp_path / "text", "tokenize_to_features.py")
    features(inputs, "is a directory")


def test_features_that_were_cut_leave_no_scores(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as small_blocks:
        small_blocks.setattr("formats.features.BLOCK_EXAMPLES", 5)
        write_tiny_features(tmp_path / "whole", count=EXAMPLES, set_name="test")
    content = (tmp_path / "whole").read_bytes()
    for kept in (len(content) // 2, len(content) * 9 // 10, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:kept])
        refused(inputs, tmp_path, "--features_file", tmp_path / "cut", says=(tmp_path / "cut", "block"))


@pytest.mark.parametrize(
    ("place", "row", "says"),
    [
        (1, {"input_ids": [2, len(TOKENS), 3]}, "token id 46 is beyond the vocabulary of 46"),
        (0, {"input_ids": [2, 5, 65_535]}, "token id 65535 is beyond the vocabulary of 46"),
        (2, {"first_segment_length": 5}, "first segment is shorter than 2 tokens or longer than the example"),
        (1, {"first_segment_length": 1}, "first segment is shorter than 2 tokens"),
        (2, {"label": 2}, "its label is none of -1, 0, 1"),
        (0, {"label": -2}, "its label is none of -1, 0, 1"),
        (1, {"input_ids": [2, 3]}, "its length is not from 3 to 17"),
        (1, {"input_ids": [2] * 18}, "its length is not from 3 to 17"),
        (2, {"example_id": "q#d\0"}, "white space"),
        (2, {"example_id": ""}, "its id is empty"),
    ],
)
def test_examples_that_are_wrong_are_named_and_leave_no_scores(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, row: dict, says: str
) -> None:
    header = FeaturesHeader(17, len(TOKENS), True, "test", vocabulary_sha256(TOKENS))
    examples = [Example(f"q#d_{i}", [2, 5 + i, 3, 3], 3, -1) for i in range(6)]
    examples[3 + place] = examples[3 + place]._replace(**row)
    with monkeypatch.context() as small_blocks:
        small_blocks.setattr("formats.features.BLOCK_EXAMPLES", 3)
        write_features(tmp_path / "f", header, examples)
    (tmp_path / "older").write_text("older")
    more = ["--features_file", tmp_path / "f", "--output_scores_file", tmp_path / "older", "--overwrite"]
    refused(inputs, tmp_path, *more, says=(f"{tmp_path / 'f'} block 1 example {place}", says))
    refused(inputs, tmp_path, *more[:2], says=(f"{tmp_path / 'f'} block 1 example {place}", says))
    assert (tmp_path / "older").read_text() == "older"


def test_features_cut_at_any_byte_leave_no_scores(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the check at the start of `main` for every byte, and the whole script for some."""
    with monkeypatch.context() as small_blocks:
        small_blocks.setattr("formats.features.BLOCK_EXAMPLES", 3)
        write_tiny_features(tmp_path / "whole", count=7, set_name="test")
    content, cut = (tmp_path / "whole").read_bytes(), tmp_path / "cut"
    for kept in range(len(content)):
        cut.write_bytes(content[:kept])
        with pytest.raises(InputError) as caught:
            check_pairs(cut, "--features_file")
        assert str(cut) in str(caught.value) and (kept < 500 or " block " in str(caught.value))
        if kept % 97 == 0:
            refused(inputs, tmp_path, "--features_file", cut, says=(cut,))


def test_an_id_that_a_run_cannot_contain_is_refused(inputs: Path, tmp_path: Path) -> None:
    header = FeaturesHeader(17, len(TOKENS), True, "test", vocabulary_sha256(TOKENS))
    for example_id in ("q1", "#D1_0", "q1#", "q 1#D1_0", "q1#D1 0"):
        write_features(
            tmp_path / "f", header, [Example("q#d", [2, 5, 3, 3], 3, -1), Example(example_id, [2, 3, 3], 2, -1)]
        )
        refused(inputs, tmp_path, "--features_file", tmp_path / "f", says=("block 0 example 1", repr(example_id)))


def test_features_without_examples_are_refused(inputs: Path, tmp_path: Path) -> None:
    for set_name in ("test", "dev", "train"):
        path = write_tiny_features(tmp_path / set_name, 0, set_name)
        refused(inputs, tmp_path, "--features_file", path, says=(path, "has no examples"))


@pytest.mark.parametrize("set_name", ["test", "dev"])
def test_repeated_ids_are_refused_and_both_examples_named(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_name: str
) -> None:
    """MaxP would take the higher of their scores."""
    header = FeaturesHeader(17, len(TOKENS), True, set_name, vocabulary_sha256(TOKENS))
    for first, second in ((0, 1), (0, 8), (2, 3), (4, 7), (7, 8)):
        examples = [Example(f"q#d_{i}", [2, 5 + i, 3, 3], 3, -1) for i in range(9)]
        examples[second] = examples[second]._replace(example_id=f"q#d_{first}")
        with monkeypatch.context() as small_blocks:
            small_blocks.setattr("formats.features.BLOCK_EXAMPLES", 3)
            write_features(tmp_path / "f", header, examples)
        places = [f"block {i // 3} example {i % 3}" for i in (first, second)]
        says = (f"{tmp_path / 'f'} {places[1]}: example id 'q#d_{first}' is already that of {places[0]}",)
        refused(inputs, tmp_path, "--features_file", tmp_path / "f", says=says)


def test_different_ids_with_the_same_hash_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("formats.features.hash", len, raising=False)
    assert check_pairs(write_tiny_features(tmp_path / "f", 30, "test"), "--features_file")[1] == 30
    header = FeaturesHeader(17, len(TOKENS), True, "test", vocabulary_sha256(TOKENS))
    write_features(tmp_path / "f", header, [Example(f"q#d_{i}", [2, 5, 3, 3], 3, -1) for i in (1, 2, 3, 2)])
    with pytest.raises(InputError, match="block 0 example 3: example id 'q#d_2' is already that of block 0 example 1"):
        check_pairs(tmp_path / "f", "--features_file")


def test_repeated_ids_are_found_in_little_memory(tmp_path: Path) -> None:
    """16 bytes for each example, and a block."""
    header = FeaturesHeader(17, len(TOKENS), True, "test", vocabulary_sha256(TOKENS))

    def peak(count: int) -> int:
        write_features(tmp_path / "f", header, (Example(f"q#d_{i}", [2, 5, 3, 3], 3, -1) for i in range(count)))
        tracemalloc.start()
        try:
            assert check_pairs(tmp_path / "f", "--features_file")[1] == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    blocks = 2 * BLOCK_EXAMPLES
    assert peak(2 * blocks) - peak(blocks) < 20 * blocks


def test_models_that_cannot_be_used_are_refused(inputs: Path, tmp_path: Path) -> None:
    def model(path: Path, *says: str) -> None:
        refused(inputs, tmp_path, "--model_dir", path, says=(path, *says))

    model(tmp_path / "missing", "is not a directory")
    without = {name: tensor for name, tensor in student_weights().items() if name != "classifier.weight"}
    model(write_published(tmp_path / "general", STUDENT, without), "classifier.weight is missing")
    sizes = STUDENT._replace(vocabulary=len(TOKENS) - 1)
    model(write_published(tmp_path / "small", sizes, random_weights(sizes, 1)), "tokens and 2 segments")


def test_a_model_whose_numbers_overflow_writes_no_scores(inputs: Path, tmp_path: Path) -> None:
    weights = student_weights()
    weights["classifier.weight"] = torch.full((2, STUDENT.hidden), 3e38)
    write_published(tmp_path / "model", STUDENT, weights)
    refused(inputs, tmp_path, "--model_dir", tmp_path / "model", says=(tmp_path / "model", "not finite"))


def test_flags_that_cannot_work_are_refused(inputs: Path, tmp_path: Path) -> None:
    for flag, *values in (
        ("--eval_batch_size", "0", "-1", "x"),
        ("--max_seq_length", "16", "18"),
        ("--pooled_activation", "gelu"),
        ("--device", "tpu", "cuda:99"),
        ("--output_scores_file", tmp_path, tmp_path / "missing" / "scores"),
    ):
        for value in values:
            refused(inputs, tmp_path, flag, value, says=(flag,))


def test_features_are_not_overwritten_by_scores(inputs: Path, tmp_path: Path) -> None:
    features = tmp_path / "features"
    features.write_bytes((inputs / "features").read_bytes())
    (tmp_path / "link").symlink_to(features)
    for output in (features, tmp_path / "link"):
        done = run_main("rerank.py", *arguments(inputs, output, "--features_file", features, "--overwrite"))
        assert_refused(done, "--output_scores_file", "is also an input")
    assert features.read_bytes() == (inputs / "features").read_bytes()


def test_scores_go_through_a_link_and_into_no_pipe(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    rows = scored(inputs, tmp_path / "link", "--overwrite")
    assert (tmp_path / "link").is_symlink() and len(list(read_scores(tmp_path / "target"))) == len(rows) > 0
    os.mkfifo(tmp_path / "pipe")
    assert_refused(run_main("rerank.py", *arguments(inputs, tmp_path / "pipe", "--overwrite")), "is not a regular file")


def test_existing_scores_are_kept_without_overwrite(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("mine")
    refused(inputs, tmp_path, says=("--output_scores_file", tmp_path / "scores", "--overwrite"))
    refused(inputs, tmp_path, "--overwrite", "--features_file", tmp_path / "none", says=(tmp_path / "none",))
    assert (tmp_path / "scores").read_text() == "mine"
    assert len(scored(inputs, tmp_path / "scores", "--overwrite")) == EXAMPLES


def test_attention_is_computed_without_cudnn_in_this_script_alone(inputs: Path, tmp_path: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    run_in_process(["rerank.py", *arguments(inputs, tmp_path / "scores")])
    assert torch.backends.cuda.cudnn_sdp_enabled()
    scored(inputs, tmp_path / "more_scores")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.gpu
@pytest.mark.parametrize("more", [(), ("--fp16",)], ids=["float32", "float16"])
def test_a_gpu_gives_the_same_scores(inputs: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    rows = scored(inputs, tmp_path / "scores", "--device", 0, *more)
    tolerance = 0.01 if more else 1e-5
    assert [row.score for row in rows] == pytest.approx(reference_scores(inputs / "features"), abs=tolerance)
