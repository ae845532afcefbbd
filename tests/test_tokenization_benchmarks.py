"""The benchmarks of tokenization and of features at small sizes."""

from pathlib import Path

from tiny import TOKENS, assert_refused, run_main

from benchmarks.reference_tokenization import padded_example, tokenize, write_csv


def test_the_reference_tokenizer_by_hand() -> None:
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    found = tokenize("Unable\tcaf\u00e9s? [SEP]\u4e2d zebra\0", vocabulary, True)
    assert " ".join(found) == "un ##able cafe ##s ? [ sep ] 中 [UNK]"
    assert tokenize("The cat", vocabulary, False) == ["[UNK]", "cat"]
    characters = {"[UNK]": 0, "e": 1, "##e": 2}
    assert tokenize("\u00e9" * 100 + " " + "e" * 101, characters, True) == ["e", *["##e"] * 99, "[UNK]"]
    cls, sep, the, cat, dog = (vocabulary[token] for token in ("[CLS]", "[SEP]", "the", "cat", "dog"))
    assert padded_example("the cat cat", "dog dog", vocabulary, True, 7) == (
        [cls, the, cat, sep, dog, dog, sep],
        [1] * 7,
        [0] * 4 + [1] * 3,
    )
    assert padded_example("the", "dog", vocabulary, True, 7).input_ids == [cls, the, sep, dog, sep, 0, 0]


def test_a_line_of_the_published_layout(tmp_path: Path) -> None:
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    with open(tmp_path / "csv", "w") as file:
        list(write_csv(file, [("q#d_0", "the", "cat", -1)], vocabulary, True, 6))
    ids = f"2 {vocabulary['the']} 3 {vocabulary['cat']} 3 0"
    assert (tmp_path / "csv").read_text() == f"q#d_0,{ids},1 1 1 1 1 0,0 0 0 1 1 0,-1\n"


def test_tokenization(tmp_path: Path, model_dir: Path) -> None:
    few = ["--num_plain_pairs=30", "--num_strings=200", "--max_seq_length=64"]
    done = run_main("benchmarks/tokenization.py", "--num_pairs=100", *few)
    assert done.status == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1] == "100 pairs of 4 distinct queries and 100 distinct passages"
    speed, size = (line.split() for line in lines if line.startswith(("pairs/s", "bytes per pair")))
    assert all(float(number.replace(",", "")) > 0 for number in speed[-3:])
    assert float(size[-1]) > 3
    assert "ids, masks, segments and labels of 30 pairs: the same" in lines
    assert lines[-1] == "ids of 200 random strings, in both cases: 0 differ"

    (tmp_path / "pairs").write_text("a\tthe cat\tdog ran\t1\nb\trun\tmat\t0\n")
    done = run_main("benchmarks/tokenization.py", "--pairs", tmp_path / "pairs", "--bert_model_dir", model_dir, *few)
    assert done.status == 0, done.stderr
    assert "2 pairs of 2 distinct queries and 2 distinct passages" in done.stdout


def test_features(tmp_path: Path) -> None:
    done = run_main("benchmarks/features.py", "--examples=600", "--plain_examples=50", "--work_dir", tmp_path)
    assert done.status == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.rsplit(maxsplit=4)[0] for line in lines[3:8]] == [
        "here", "here, two at once", "here, two at once", "here, few", "reference, few"
    ]  # fmt: skip
    assert [line.split()[-4] for line in lines[3:8]] == ["600", "600", "600", "50", "50"]
    assert all(float(number.replace(",", "")) >= 0 for line in lines[3:8] for number in line.split()[-3:])
    assert lines[-1] == "sums of all token ids: the same"
    assert (tmp_path / "first.csv").read_text().count("\n") == 50


def test_refusals(tmp_path: Path) -> None:
    assert_refused(run_main("benchmarks/tokenization.py", "--num_pairs=0"), "--num_pairs")
    assert_refused(run_main("benchmarks/tokenization.py", "--pairs", tmp_path / "none"), tmp_path / "none")
    assert_refused(run_main("benchmarks/features.py", "--examples=5"), "--plain_examples")
    assert_refused(run_main("benchmarks/features.py", "--work_dir", tmp_path / "none"), "--work_dir")
