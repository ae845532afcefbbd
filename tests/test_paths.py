"""Every script with names of files that are not UTF-8, or have blanks and newlines, in the C locale and in UTF-8."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from locale_server import LocaleServer
from small_collection import random_collection, write_collection
from tiny import (
    MAX_SEQ_LENGTH,
    ONE_THREAD,
    ROOT,
    STUDENT,
    TEACHER,
    TOKENS,
    Finished,
    assert_refused,
    run_main,
    some_pairs,
    student_weights,
    teacher_weights,
    write_published,
    write_tiny_features,
)

NAMES = {"not UTF-8": b"\xff\xfe", "not ASCII": "é 国".encode(), "blanks and dollars": b" a b\nc\t$x$ %s {y} "}
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    "UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"},
}
Run = Callable[..., Finished]


def in_locale(name: str) -> Run:
    """Returns a function that runs a script in a process with this locale."""

    def run(*arguments: object) -> Finished:
        command = [sys.executable, *map(os.fsencode, map(str, arguments))]
        done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD | LOCALES[name], capture_output=True, timeout=300)
        return Finished(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))

    return run


@pytest.fixture(params=NAMES)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with one of the names. It holds pairs and models, whose names have the same end."""
    suffix = os.fsdecode(NAMES[request.param])
    home = tmp_path / f"home{suffix}"
    home.mkdir()
    write_published(home / f"teacher{suffix}", TEACHER, teacher_weights(), [*TOKENS[:-1], "é"])
    write_published(home / f"general{suffix}", STUDENT, student_weights(), [*TOKENS[:-1], "é"])
    rows = [(f"q{i % 3}#D{i % 4}_{i}", *pair) for i, pair in enumerate(some_pairs(12))]
    lines = {
        "train": ("\t".join((*row, str(i % 2))) for i, row in enumerate(rows)),
        "test": map("\t".join, rows),
        "text": (f"{passage}\n" for _, _, passage in rows),
        "qrels": (f"q{i} 0 D{i} 1" for i in range(3)),
    }
    for name, content in lines.items():
        (home / f"{name}{suffix}").write_text("".join(f"{line}\n" for line in content), "utf-8")
    return home


def run_the_five_scripts(home: Path, run: Run, *more: object) -> None:
    """From pairs to measures. Checks that each script succeeds, and the student of distill.py."""
    suffix = home.name.removeprefix("home")
    models = {name: home / f"{name}{suffix}" for name in ("teacher", "general", "student")}

    def path(name: str) -> Path:
        return home / f"{name}{suffix}"

    def succeed(*arguments: object) -> str:
        done = run(*arguments)
        assert done.status == 0, done
        return done.stdout

    for name, kind in (("train", "train"), ("test", "test"), ("text", "general")):
        flags = ["--output_features_file", path(f"{name}.features"), "--max_seq_length", MAX_SEQ_LENGTH]
        flags += ["--bert_model_dir", models["teacher"], "--set_name", kind, "--raw_data_file", path(name)]
        succeed("tokenize_to_features.py", *flags)
        assert "12 " in path(f"{name}.features").with_name(path(f"{name}.features").name + ".log").read_text("utf-8")
    flags = ["--features_file", path("train.features"), "--teacher_model", models["teacher"], "--device", "cpu"]
    flags += ["--general_student_model", models["general"], "--output_student_dir", models["student"]]
    flags += ["--train_batch_size", 4, "--train_loss_step", 1, "--save_model_step", 2, "--no_teacher_check", *more]
    succeed("distill.py", *flags)
    student = (models["student"] / "model.safetensors").read_bytes()
    assert "wrote " in (models["student"] / "distill.log").read_text("utf-8")
    for name in ("config.json", "tokenizer_config.json", "training.json", "tokenizer.json", "vocab.txt"):
        (models["student"] / name).read_text("utf-8")
    # resume from the checkpoint after step 2
    (models["student"] / "training.json").write_text('{"finished": false, "settings": {}}')
    for step in (4, 6):
        for file in (models["student"] / f"checkpoint-{step}").glob("*"):
            file.unlink()
    succeed("distill.py", *flags, "--resume")
    assert (models["student"] / "model.safetensors").read_bytes() == student
    flags = ["--model_dir", models["student"], "--features_file", path("test.features"), "--device", "cpu"]
    succeed("rerank.py", *flags, "--output_scores_file", path("scores"))
    speed = json.loads(path("scores").with_name(f"scores{suffix}.speed.json").read_text("utf-8"))
    assert os.fsencode(speed["model_dir"]) == os.fsencode(models["student"]) and speed["passages"] == 12
    succeed("convert_to_trec_results.py", "--scores_file", path("scores"), "--output_results_file", path("run"))
    assert "MRR" in succeed("msmarco_mrr_eval.py", path("qrels"), path("run"), "--per_query", path("per_query"))
    path("other").write_bytes(path("run").read_bytes())
    succeed("msmarco_mrr_eval.py", path("qrels"), path("run"), path("other"), "--baseline", path("other"))


def run_the_tools(home: Path, run: Run) -> None:
    """The scripts of data_preparation and model_tools. Checks that each succeeds."""
    suffix = home.name.removeprefix("home")
    collection = random_collection(3)
    words = dict.fromkeys(map(str, range(13)), "w1 w2 é")
    files = write_collection(home / f"collection{suffix}", collection._replace(queries=words))
    flags = {name: [f"--{name}", files[name]] for name in files}
    documents = flags["collection"]
    queries = documents + flags["queries"]

    def path(name: str) -> Path:
        return home / f"{name}{suffix}"

    for script, *more in (
        ("data_preparation/make_candidates.py", *queries, *flags["qrels"], "--output_run_file", path("bm25")),
        ("data_preparation/make_text.py", *documents, "--output_text_file", path("texts.gz")),
        ("data_preparation/make_rerank_pairs.py", *queries, *flags["candidates"], "--output_pairs_file", path("pairs")),
        ("data_preparation/split_queries.py", *flags["qrels"], "--num_dev", 2, "--output_train_qrels", path("train_q"),
         "--output_dev_qrels", path("dev_q")),
        ("data_preparation/make_train_pairs.py", *queries, *flags["qrels"], *flags["candidates"],
         "--output_pairs_file", path("all.gz"), "--output_positives_file", path("positives")),
        ("model_tools/make_general_student.py", "--model_dir", path("teacher"), "--layers", "2,4",
         "--output_dir", path("layers")),
    ):  # fmt: skip
        done = run(script, *more)
        assert done.status == 0, done
    rng = random.Random(4)
    ids = [line.split("\t")[0] for line in path("positives").read_text().splitlines()]
    path("scores").write_text("".join("\t".join([*i.split("#"), f"{rng.random()}\n"]) for i in ids))
    flags = ["--pairs_file", path("all.gz"), "--scores_file", path("scores"), "--output_pairs_file", path("filtered")]
    done = run("data_preparation/filter_positives.py", *flags)
    assert done.status == 0, done


def test_scripts_take_any_path(home: Path) -> None:
    run_the_five_scripts(home, run_main)
    run_the_tools(home, run_main)


@pytest.fixture(scope="module", params=LOCALES)
def run_in_locale(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """As `in_locale`, faster: a server of the locale forks a process for each call."""
    with LocaleServer(ONE_THREAD | LOCALES[request.param], tmp_path_factory.mktemp("streams")) as server:
        yield lambda *arguments: Finished(*server.run(*arguments))


@pytest.mark.slow
def test_scripts_take_any_path_in_any_locale(home: Path, run_in_locale: Run) -> None:
    run_the_five_scripts(home, run_in_locale)
    assert (home / f"student{home.name.removeprefix('home')}" / "training_curves.png").exists()
    run_the_tools(home, run_in_locale)


@pytest.mark.parametrize("locale", LOCALES)
def test_the_server_of_a_locale_is_as_a_new_process(locale: str, tmp_path: Path) -> None:
    """Its encodings, and what a script prints and decodes."""
    script = tmp_path / "show.py"
    script.write_text(
        "import sys\n"
        "names = [sys.getfilesystemencoding(), sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors]\n"
        "print(names, [ascii(part) for part in sys.argv[1:]])\n"
        "open(sys.argv[1], 'w').close()\n"
        "print('\\u00e9', file=sys.stderr)\n"
        "print('\\u00e9')\n"
    )
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff \xc3\xa9")
    expected = in_locale(locale)(script, name)
    os.unlink(name)
    with LocaleServer(ONE_THREAD | LOCALES[locale], tmp_path) as server:
        done = Finished(*server.run(script, name))
    assert os.path.exists(name)
    assert done.stdout == expected.stdout and (done.status == 0) == (expected.status == 0)
    assert done.stderr.splitlines()[0] == expected.stderr.splitlines()[0]


@pytest.mark.parametrize("home", ["not UTF-8"], indirect=True)
def test_a_training_in_the_c_locale_ends_with_all_its_files(home: Path) -> None:
    suffix = home.name.removeprefix("home")
    student = home / f"student{suffix}"
    features = write_tiny_features(home / f"features{suffix}", count=12, tokens=[*TOKENS[:-1], "é"])
    flags = ["--features_file", features, "--general_student_model", home / f"general{suffix}", "--device", "cpu"]
    flags += ["--output_student_dir", student, "--distill_model", "hard", "--train_batch_size", 4]
    done = in_locale("C")("distill.py", *flags, "--train_loss_step", 1)
    assert done.status == 0, done
    assert "é" in (student / "vocab.txt").read_text("utf-8")
    assert {"config.json", "model.safetensors", "tokenizer.json", "training_curves.png"} <= set(os.listdir(student))


@pytest.mark.parametrize("home", ["not UTF-8"], indirect=True)
@pytest.mark.parametrize("locale", LOCALES)
def test_a_path_that_is_not_text_can_be_printed(home: Path, locale: str) -> None:
    (home / "scores").write_text("q\tD_0\t1\n")
    done = in_locale(locale)(
        "convert_to_trec_results.py", "--scores_file", home / "scores", "--output_results_file", home / "run"
    )
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{home.parent}/home\\udcff\\udcfe/run: ")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "training_curves.png"])
def test_a_directory_in_the_place_of_a_file_is_named_before_the_training(tmp_path: Path, name: str) -> None:
    features = write_tiny_features(tmp_path / "features", count=12)
    write_published(tmp_path / "general", STUDENT, student_weights())
    (tmp_path / "student" / name).mkdir(parents=True)
    flags = ["--features_file", features, "--general_student_model", tmp_path / "general", "--device", "cpu"]
    flags += ["--output_student_dir", tmp_path / "student", "--distill_model", "hard", "--train_batch_size", 4]
    assert_refused(run_main("distill.py", *flags, "--overwrite"), f"{name} is a directory; remove it")
    assert os.listdir(tmp_path / "student") == [name]


def test_a_name_that_is_too_long_for_the_files_beside_it_is_refused(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "pairs").write_text("q#D_0\tthe\tcat\n")
    (tmp_path / "scores").write_text("q\tD_0\t1\n")
    tokenize = ["--set_name", "test", "--raw_data_file", tmp_path / "pairs", "--bert_model_dir", model_dir]
    for length, status in ((180, 0), (201, 2)):
        for script, *flags in (
            ("tokenize_to_features.py", *tokenize, "--output_features_file", tmp_path / ("f" * length)),
            ("convert_to_trec_results.py", "--scores_file", tmp_path / "scores", "--output_results_file",
             tmp_path / ("r" * length)),
        ):  # fmt: skip
            done = run_main(script, *flags)
            assert done.status == status, done
            assert status == 0 or "is longer than 200 bytes" in done.stderr
