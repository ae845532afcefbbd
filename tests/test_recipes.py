"""The recipes, with a synthetic collection and tiny models: from the collection to the runs; resumed after a stop."""

import gzip
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bash_runner import Ran, only_record, run_bash, run_python
from tiny import STUDENT, TEACHER, WORDS, Finished, copy_project, random_weights, teacher_weights, write_transformers

from formats.pairs import read_pairs
from formats.trec import read_qrels, read_run
from modeling.model_files import load_ranker

DOCUMENTS = {f"d{i}": " ".join(random.Random(i).choices(WORDS, k=6 + i)) for i in range(14)}
QUERIES = {f"q{i}": " ".join(random.Random(f"q{i}").choices(WORDS, k=3)) for i in range(7)}
RELEVANT = {query_id: f"d{i * 2}" for i, query_id in enumerate(QUERIES)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, since recipes write into data/, models/ and runs/ of it."""
    return copy_project(tmp_path / "project")


def run_recipe(project: Path, recipe: str, answer: Callable[..., Finished] = run_python, **variables: str) -> Ran:
    tiny = {"train_batch_size": "4", "train_loss_step": "99", "max_seq_length": "19"}
    environment = {"precision": "fp32", "device": "cpu"} | tiny | variables
    return run_bash(project / "experiments" / recipe, environment, project, answer)


def write_training_queries(folder: Path) -> Path:
    """Writes a BEIR folder without a test split, and returns it."""
    folder.mkdir()
    rows = [{"_id": doc_id, "title": "the mat", "text": text} for doc_id, text in DOCUMENTS.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.train.tsv").write_text("".join(f"{query_id}\t{text}\n" for query_id, text in QUERIES.items()))
    (folder / "qrels.train.txt").write_text("".join(f"{query_id} 0 {doc} 1\n" for query_id, doc in RELEVANT.items()))
    return folder


def test_a_beir_collection(project: Path, tmp_path: Path) -> None:
    folder = write_training_queries(tmp_path / "my beir")
    write_transformers(tmp_path / "encoder", TEACHER, teacher_weights())
    variables = {
        "name": "tiny", "source": str(folder), "num_held_out": "2", "encoder": str(tmp_path / "encoder"), "window": "5",
        "stride": "4", "threshold": "0", "best_positives": "1", "rerank_depth": "5", "methods": "hard tinybert",
        "pseudo_queries": "0", "general_documents": "13", "teacher_batch_size": "2",
    }  # fmt: skip
    done = run_recipe(project, "beir.sh", **variables)
    assert done.returncode == 0, done.stderr
    # without pseudo-queries: the encoder is fine-tuned, and the general student learns from the encoder on plain text
    teacher, general, *students = flags_of(done.calls, "distill.py")
    encoder, models = str(tmp_path / "encoder"), "models/tiny"
    wanted = {"distill_model": "hard", "learning_rate": "3e-5", "general_student_model": encoder, "teacher_model": "",
              "output_student_dir": f"{models}/teacher", "features_file": "data/tiny/all_pairs.19.features",
              "train_batch_size": "2", "num_train_epochs": "2"}  # fmt: skip
    assert wanted.items() <= teacher.items()
    wanted = {"distill_model": "intermediate", "teacher_model": encoder, "general_student_model": f"{models}/layers",
              "output_student_dir": f"{models}/general_student", "features_file": "data/tiny/text.19.general.features",
              "learning_rate": "1e-4", "num_train_epochs": "1", "train_batch_size": "4"}  # fmt: skip
    assert wanted.items() <= general.items()
    assert [student["train_batch_size"] for student in students] == ["4", "4"]
    assert {student["general_student_model"] for student in students} == {f"{models}/general_student"}
    (text,) = (call for call in done.calls if call[0].endswith("make_text.py"))
    assert text[text.index("--max_documents") + 1] == "13"
    assert not list(project.glob("*/tiny/pseudo*"))
    data, models = project / "data" / "tiny", project / "models" / "tiny"
    train, test = (read_qrels(data / f"qrels.{split}.tsv") for split in ("train", "test"))
    assert (len(train), len(test)) == (5, 2) and sorted({**train, **test}) == sorted(QUERIES)
    pairs = list(read_pairs(data / "train_pairs.tsv", labelled=True))
    positives = [pair.example_id for pair in pairs if pair.label == 1]
    assert sorted(example_id.partition("_")[0] for example_id in positives) == sorted(
        f"{query_id}#{RELEVANT[query_id]}" for query_id in train
    )
    assert load_ranker(models / "general_student", initialise_missing_with_seed=1)[0].config.num_hidden_layers == 3
    table = done.stdout.split("\n\n")[-1].splitlines()
    assert [line.split()[0] for line in table] == ["run", "top100.test", "teacher", "student_hard", "student_tinybert"]
    assert all(re.fullmatch(r"\S+ +1 +[01]\.\d{4} +[01]\.\d{4}", line) for line in table[1:])
    assert "note: 1 judged queries are not in data/tiny/top100.test and do not count" in done.stderr
    for name in ("teacher", "student_hard", "student_tinybert"):
        assert read_run(project / "runs" / "tiny" / f"{name}.run").keys() <= test.keys()

    # nothing is made twice, and a stopped run is finished
    data_files = project / "data" / "tiny"
    before = {path: path.read_bytes() for path in data_files.iterdir() if path.suffix in (".tsv", ".features")}
    for name in ("positives.tsv", "all_pairs.tsv.report.json", "test_pairs.tsv.report.json", "train_pairs.tsv.png",
                 "train_pairs.tsv.report.json"):  # fmt: skip
        (data_files / name).unlink()
    student = project / "models" / "tiny" / "student_tinybert"
    weights = (student / "model.safetensors").read_bytes()
    (student / "config.json").unlink()
    (student / "training.json").write_text((student / "training.json").read_text().replace("true", "false"))
    (project / "runs" / "tiny" / "student_tinybert.run").unlink()
    kept = [models / "teacher" / "model.safetensors", models / "student_tinybert_intermediate" / "model.safetensors",
            models / "student_hard" / "model.safetensors", project / "runs" / "tiny" / "student_hard.run"]  # fmt: skip
    times = [path.stat().st_mtime_ns for path in kept]
    done = run_recipe(project, "beir.sh", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n\n")[-1].splitlines() == table
    assert (student / "model.safetensors").read_bytes() == weights
    assert {path: path.read_bytes() for path in before} == before
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_a_test_on_the_training_queries_is_refused(project: Path, tmp_path: Path) -> None:
    folder = write_training_queries(tmp_path / "beir")
    for split in ("", "train"):
        done = run_recipe(project, "beir.sh", only_record, source=str(folder), train_split=split, test_split=split)
        assert done.returncode == 2 and "train_split and test_split are the same" in done.stderr
        assert not done.calls


def test_files_of_other_settings_are_not_used(project: Path, tmp_path: Path) -> None:
    folder = write_training_queries(tmp_path / "beir")
    variables = {"name": "tiny", "source": str(folder), "num_held_out": "2"}

    def stopped(*_: str) -> Finished:
        return Finished(3, "", "")

    assert run_recipe(project, "beir.sh", stopped, **variables).returncode == 3
    assert run_recipe(project, "beir.sh", stopped, **variables).returncode == 3
    done = run_recipe(project, "beir.sh", stopped, **variables | {"num_held_out": "3"})
    assert done.returncode == 2 and "num_held_out=2" in done.stderr and not done.calls
    done = run_recipe(project, "beir.sh", stopped, **variables, window="9")
    assert done.returncode == 2 and "window=75" in done.stderr and not done.calls
    settings = project / "data" / "tiny" / "settings.txt"
    lines = settings.read_text().splitlines(keepends=True)
    settings.write_text("".join(line for line in lines if not line.startswith("threshold=")))  # an earlier version
    done = run_recipe(project, "beir.sh", stopped, **variables)
    assert done.returncode == 2 and "are of an earlier version of this recipe" in done.stderr and not done.calls


def test_queries_of_an_earlier_test_are_never_held_out_again(project: Path, tmp_path: Path) -> None:
    folder = write_training_queries(tmp_path / "beir")
    data = project / "data" / "tiny"

    def answer(script: str, *arguments: str) -> Finished:
        known = "make_candidates" in script or "split_queries" in script
        return run_python(script, *arguments) if known else Finished(3, "", "")

    def split(**variables: str) -> tuple[dict, dict]:
        """Runs the recipe until the qrels are there, and returns those to train with and those of the test."""
        done = run_recipe(project, "beir.sh", answer, name="tiny", source=str(folder), **variables)
        assert done.returncode == 3, done.stderr
        return read_qrels(data / "qrels.train.tsv"), read_qrels(data / "qrels.test.tsv")

    _, earlier = split(num_held_out="3")
    shutil.rmtree(data)
    train, test = split(num_held_out="2", not_held_out="3")
    assert (len(train), len(test), len(earlier)) == (5, 2, 3)
    assert earlier.items() <= train.items() and not earlier.keys() & test.keys()
    assert train | test == read_qrels(folder / "qrels.train.txt")

    # a stop after either split, or between the second one and what is added to it, changes nothing
    for lost in (["qrels.test.tsv"], ["qrels.test.tsv", "qrels.before.tsv", "qrels.rest.tsv"]):
        for name in lost:
            (data / name).unlink()
        assert split(num_held_out="2", not_held_out="3") == (train, test)


def flags_of(calls: list[list[str]], script: str) -> list[dict[str, str]]:
    """The flags of each call of a script."""
    return [
        dict(argument.removeprefix("--").split("=", 1) for argument in call[1:] if "=" in argument)
        for call in calls
        if call[0].endswith(script)
    ]


def test_a_mistake_in_a_recipe_is_told_before_anything_is_made(project: Path, tmp_path: Path) -> None:
    (tmp_path / "my beir").mkdir()
    (tmp_path / "other").mkdir()
    source = tmp_path / "my beir"
    done = run_recipe(project, "beir.sh", only_record, name="x", source=str(source), encoder=str(tmp_path / "none"))
    assert (done.returncode, done.calls) == (2, [])
    assert done.stderr == f"beir.sh: encoder={tmp_path}/none does not exist; make it first, or set encoder\n"
    assert not (project / "data").exists()

    # another collection under the same name would get the first one's files
    data = project / "data" / "x"
    data.mkdir(parents=True)
    (data / "source.txt").write_text(f"{source}\n")
    done = run_recipe(project, "beir.sh", only_record, name="x", source=str(tmp_path / "other"), methods="")
    assert (done.returncode, done.calls) == (2, [])
    assert done.stderr.startswith(f"beir.sh: data/x was made from {source}, not from source={tmp_path}/other; ")
    for same in (str(source), f"{source}/"):
        done = run_recipe(project, "beir.sh", only_record, name="x", source=same, methods="")
        assert "was made from" not in done.stderr and "=== candidates: BM25 of" in done.stdout

    done = run_bash(project / "experiments/beir.sh", {}, project, only_record, ["name=x", "teacher_check=no"])
    assert (done.returncode, done.calls) == (2, [])
    assert done.stderr == (
        "beir.sh: teacher_check is a variable of distill.sh, which this script calls; set it before the command: "
        "teacher_check=... bash experiments/beir.sh\n"
    )


def test_teacher_and_general_student_learn_from_pseudo_queries_first(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    folder.mkdir()
    titles = {doc_id: f"cat {i} ran fast on mat {i}" for i, doc_id in enumerate(DOCUMENTS)}
    rows = [{"_id": doc_id, "title": titles[doc_id], "text": text} for doc_id, text in DOCUMENTS.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = QUERIES | {"q6": titles["d0"]}  # a title, so that it is no pseudo-query
    (folder / "queries.train.tsv").write_text("".join(f"{name}\t{queries[name]}\n" for name in list(queries)[:5]))
    (folder / "queries.test.tsv").write_text("".join(f"{name}\t{queries[name]}\n" for name in list(queries)[5:]))
    for split, names in (("train", list(queries)[:5]), ("test", list(queries)[5:])):
        (folder / f"qrels.{split}.txt").write_text("".join(f"{name} 0 {RELEVANT[name]} 1\n" for name in names))
    write_transformers(tmp_path / "encoder", TEACHER, teacher_weights())
    variables = {
        "name": "tiny", "source": str(folder), "encoder": str(tmp_path / "encoder"), "threshold": "0", "methods": "",
        "pseudo_queries": "12", "pseudo_examples": "37", "teacher_batch_size": "5",
        "teacher_epochs": "1",
    }  # fmt: skip
    data, models = project / "data" / "tiny", project / "models" / "tiny"

    done = run_recipe(project, "beir.sh", **variables)
    assert done.returncode == 0, done.stderr
    assert not [call for call in done.calls if call[0].endswith("make_text.py")]
    first, second, third = flags_of(done.calls, "distill.py")
    # 36 pairs are 37 examples in two epochs
    wanted = {"distill_model": "hard", "teacher_model": "", "learning_rate": "5e-5", "num_train_epochs": "2",
              "train_batch_size": "5",
              "general_student_model": str(tmp_path / "encoder"), "output_student_dir": "models/tiny/pseudo_teacher",
              "features_file": "data/tiny/pseudo_pairs.19.features"}  # fmt: skip
    assert wanted.items() <= first.items()
    wanted = {"distill_model": "hard", "learning_rate": "3e-5", "general_student_model": "models/tiny/pseudo_teacher",
              "output_student_dir": "models/tiny/teacher", "train_batch_size": "5", "num_train_epochs": "1",
              "features_file": "data/tiny/all_pairs.19.features"}  # fmt: skip
    assert wanted.items() <= second.items()
    # the general student learns from the teacher of the pseudo-queries, on their pairs
    wanted = {"distill_model": "intermediate", "teacher_model": "models/tiny/pseudo_teacher", "num_train_epochs": "2",
              "general_student_model": "models/tiny/layers", "output_student_dir": "models/tiny/general_student",
              "features_file": "data/tiny/pseudo_pairs.19.features", "train_batch_size": "5",
              "learning_rate": "1e-4"}  # fmt: skip
    assert wanted.items() <= third.items()
    general = (models / "general_student" / "model.safetensors").read_bytes()
    assert general != (models / "layers" / "model.safetensors").read_bytes()
    # the first teacher has a classifier, which the second one keeps
    weights = [load_ranker(models / name)[0].classifier.weight for name in ("pseudo_teacher", "teacher")]
    assert 0 < (weights[0] - weights[1]).abs().max() < 1e-3
    assert "classifier" not in (models / "teacher" / "distill.log").read_text()
    # one positive and two negatives of each query; no query is that of the test, and no passage has a title
    pairs = list(read_pairs(data / "pseudo_pairs.tsv", labelled=True))
    assert [pair.label for pair in pairs] == [1, 0, 0] * 12
    assert {pair.query for pair in pairs} < set(titles.values()) - {titles["d0"]}
    assert {pair.passage for pair in pairs} <= set(DOCUMENTS.values())

    # nothing is made twice, and each stopped step is finished
    kept = {path: path.read_bytes() for path in data.iterdir() if path.name.startswith("pseudo_pairs")}
    for path in (models / "teacher", models / "pseudo_teacher", models / "general_student"):
        (path / "config.json").unlink()
        (path / "training.json").write_text((path / "training.json").read_text().replace("true", "false"))
    for name in ("pseudo_queries.tsv.report.json", "pseudo_top100", "pseudo_pairs.tsv.report.json"):
        (data / name).unlink()
    done = run_recipe(project, "beir.sh", **variables)
    assert done.returncode == 0, done.stderr
    assert (models / "general_student" / "model.safetensors").read_bytes() == general
    assert load_ranker(models / "teacher")[0].classifier.weight.equal(weights[1])
    assert (data / "pseudo_pairs.tsv").read_bytes() == kept[data / "pseudo_pairs.tsv"]
    done = run_recipe(project, "beir.sh", **variables)
    assert (done.returncode, done.calls) == (0, [])


def test_documents_without_titles_need_another_kind_of_pseudo_queries(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    folder.mkdir()
    rows = [{"_id": doc_id, "text": f"The dog {i} ran on a fast mat. {text}."} for i, (doc_id, text)
            in enumerate(DOCUMENTS.items())]  # fmt: skip
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.tsv").write_text("".join(f"{query_id}\t{text}\n" for query_id, text in QUERIES.items()))
    for split in ("train", "test"):
        (folder / f"qrels.{split}.txt").write_text("q0 0 d0 1\n")
    write_transformers(tmp_path / "encoder", TEACHER, teacher_weights())

    def answer(script: str, *arguments: str) -> Finished:
        return run_python(script, *arguments) if script.startswith("data_preparation/") else Finished(3, "", "")

    own = {"name": "tiny", "source": str(folder), "encoder": str(tmp_path / "encoder")}
    done = run_recipe(project, "beir.sh", answer, **own)
    assert done.returncode == 2
    assert "--kind title: no document of" in done.stderr and "in a recipe, set pseudo_kind" in done.stderr
    done = run_recipe(project, "beir.sh", answer, **own, pseudo_kind="sentence")
    assert done.returncode == 3 and (project / "data" / "tiny" / "pseudo_pairs.tsv").stat().st_size > 0


def test_the_examples_teacher_on_pseudo_queries_first(project: Path) -> None:
    data, models = project / "data" / "python_docs", project / "models" / "python_docs"

    def answer(script: str, *arguments: str) -> Finished:
        if script.startswith("data_preparation/"):
            return run_python(script, *arguments)
        flags = flags_of([[script, *arguments]], script)[0]
        if script.endswith("build_collection.py"):
            bodies = [
                "Glaciers flow downhill under their weight. Heavy ice.",
                "Bees build combs of pure soft wax. Heavy wax.",
                "Winds carry sand over wide dunes. Heavy sand.",
            ]
            (data / "docs.tsv").write_text("".join(f"D{i}\tu\ta.B\t{body}\n" for i, body in enumerate(bodies)))
            (data / "queries.dev.tsv").write_text("1\tBees build combs of pure, soft wax\n")
            (data / "queries.test.tsv").write_text("2\tReturns a list\n")
            (data / "train_pairs.tsv").touch()
            (data / "report.json").touch()
        elif "output_features_file" in flags:
            (project / flags["output_features_file"]).touch()
        else:
            model = project / flags.get("output_dir", flags.get("output_student_dir"))
            model.mkdir()
            (model / "config.json").touch()
        return Finished(0, "", "")

    done = run_recipe(project, "python_docs/prepare.sh", answer, pseudo_queries="50", teacher_epochs="3")
    assert done.returncode == 0, done.stderr
    wanted = [("pseudo_pairs", "encoder", "pseudo_teacher", "3e-5", "1"),
              ("train_pairs", "pseudo_teacher", "teacher", "3e-5", "3")]  # fmt: skip
    for call, (pairs, start, output, learning_rate, epochs) in zip(
        flags_of(done.calls, "distill.py"), wanted, strict=True
    ):
        assert call["distill_model"] == "hard" and call["features_file"] == f"data/python_docs/{pairs}.19.features"
        assert call["general_student_model"] == f"models/python_docs/{start}"
        assert call["output_student_dir"] == f"models/python_docs/{output}"
        assert (call["learning_rate"], call["num_train_epochs"]) == (learning_rate, epochs)
    texts = [pair.query for pair in read_pairs(data / "pseudo_pairs.tsv", labelled=True) if pair.label]
    # the sentence of a dev query is left out
    assert sorted(texts) == ["Glaciers flow downhill under their weight", "Winds carry sand over wide dunes"]
    (call,) = (call for call in done.calls if call[0].endswith("make_train_pairs.py"))
    assert call[call.index("--num_negatives") + 1] == "1"
    (models / "teacher" / "config.json").unlink()
    done = run_recipe(project, "python_docs/prepare.sh", only_record, pseudo_queries="50")
    assert [call[0] for call in done.calls] == ["tokenize_to_features.py", "distill.py"]


@pytest.mark.parametrize("recipe", ["beir.sh", "msmarco_doc.sh"])
def test_what_is_prepared_is_not_prepared_again_for_no_methods(project: Path, tmp_path: Path, recipe: str) -> None:
    made = {"data": ["top100.train", "top100.test", "test_pairs.tsv.report.json", "all_pairs.tsv.report.json",
                     "all_pairs.tsv.gz.report.json", "positives.19.features", "positives.scores.tsv", "text.txt",
                     "train_pairs.tsv.report.json", "dev_pairs.tsv.report.json", "trec_pairs.tsv.report.json",
                     "dev_top100"],
            "models": [f"{name}/config.json" for name in
                       ("teacher", "layers", "general_student", "scratch_3_384", "general_3_384")]}  # fmt: skip
    for folder, names in made.items():
        for name in names:
            path = project / folder / "tiny" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    done = run_recipe(project, recipe, name="tiny", source="x", encoder="x", methods="", python="/no/such")
    assert done.returncode == 0, done.stderr
    done = run_recipe(project, recipe, name="tiny", source="x", encoder="x", methods="hard", python="/no/such")
    assert done.returncode != 0


def test_the_source_of_a_beir_collection_has_to_be_named(project: Path) -> None:
    done = run_recipe(project, "beir.sh")
    assert done.returncode == 2 and done.stderr.startswith("beir.sh: set source")


def test_a_value_is_no_expression_of_the_shell(project: Path) -> None:
    expression = "a[$(touch${IFS}hacked)]"
    own = {"name": "tiny", "source": "x"} | dict.fromkeys(
        ("num_held_out", "num_negatives", "window", "pseudo_queries", "pseudo_kind"), expression
    )
    done = run_recipe(project, "beir.sh", lambda *arguments: Finished(0, "", ""), **own, methods="")
    assert expression in next(call for call in done.calls if call[0].endswith("split_queries.py"))
    for value in (expression, "0", "1e4"):
        done = run_recipe(project, "beir.sh", only_record, name="tiny", source="x", pseudo_examples=value)
        assert done.returncode == 2 and done.stderr == f"beir.sh: pseudo_examples={value} is not a number from 1\n"
    own = {"name": "tiny", "students": expression, "train_qrels": expression}
    done = run_recipe(project, "msmarco_doc.sh", lambda *arguments: Finished(0, "", ""), **own)
    assert expression in next(call for call in done.calls if call[0].endswith("make_train_pairs.py"))
    for path in ("data/tiny/positives.tsv.gz", "models/tiny/teacher/config.json", "data/tiny/text.txt",
                 "models/tiny/general_3_384/config.json"):  # fmt: skip
        (project / path).parent.mkdir(exist_ok=True)
        (project / path).touch()
    done = run_recipe(project, "msmarco_doc.sh", lambda *arguments: Finished(0, "", ""), **own)
    assert done.returncode == 2 and done.stderr.endswith("is neither 6_768 nor 3_384\n")
    assert not list(project.rglob("hacked"))


def test_the_split_of_a_source_is_named_as_it_has_to_be(project: Path) -> None:
    def answer(script: str, *arguments: str) -> Finished:
        return Finished(0 if "make_candidates" in script else 3, "", "")

    def first_calls(**variables: str) -> list[list[str]]:
        done = run_recipe(project, "beir.sh", answer, name=f"{len(variables)} {variables['source'][:4]}", **variables)
        assert done.returncode == 3, done.stderr
        return [call[1 : call.index("--output_run_file")] for call in done.calls if "--output_run_file" in call]

    assert first_calls(source="my beir") == [
        ["--collection", "my beir", "--split", "train"],
        ["--collection", "my beir", "--split", "test"],
    ]
    assert first_calls(source="ir_datasets:beir/x") == [
        ["--collection", "ir_datasets:beir/x/train"],
        ["--collection", "ir_datasets:beir/x/test"],
    ]
    assert first_calls(source="ir_datasets:beir/x", train_split="", num_held_out="2") == [
        ["--collection", "ir_datasets:beir/x"]  # the split of its queries is next
    ]


def test_the_papers_setting(project: Path, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()

    def put(name: str, lines: list[str]) -> None:
        data = "".join(f"{line}\r\n" for line in lines).encode()
        (downloads / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    put("msmarco-docs.tsv.gz", [f"{doc_id}\thttp://x/{doc_id}\tmat\t{text}" for doc_id, text in DOCUMENTS.items()])
    split = {"doctrain": list(QUERIES)[:4], "docdev": list(QUERIES)[4:6], "test2019": list(QUERIES)[6:]}
    for name, query_ids in split.items():
        put(f"msmarco-{name}-queries.tsv.gz", [f"{query_id}\t{QUERIES[query_id]}" for query_id in query_ids])
        put(f"msmarco-{name}-qrels.tsv.gz", [f"{query_id} 0 {RELEVANT[query_id]} 1" for query_id in query_ids])
        candidates = [
            f"{query_id} Q0 {doc_id} {rank} {-rank} x"
            for query_id in query_ids
            for rank, doc_id in enumerate(DOCUMENTS, start=1)
        ]
        put("msmarco-doctest2019-top100.gz" if name == "test2019" else f"msmarco-{name}-top100.gz", candidates)
    put("2019qrels-docs.txt", [f"q6 Q0 {RELEVANT['q6']} 2", "q6 Q0 d1 0"])
    # as the converter and the Hub give them
    write_transformers(project / "models" / "tiny" / "teacher", TEACHER, teacher_weights())
    sizes = TEACHER._replace(heads=12)
    write_transformers(tmp_path / "pretrained", sizes, random_weights(sizes, 5))
    write_transformers(tmp_path / "general", STUDENT, random_weights(STUDENT, 2))
    done = run_recipe(
        project, "msmarco_doc.sh", name="tiny", downloads=str(downloads), pretrained=str(tmp_path / "pretrained"),
        general_6_768=str(tmp_path / "general"), methods="simplified", students="6_768", threshold="0",
        window="6", stride="4", num_train_epochs="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = load_ranker(project / "models" / "tiny" / "general_3_384", initialise_missing_with_seed=1)[0]
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.num_attention_heads) == (384, 3, 12)
    for queries, query_ids in (("dev", split["docdev"]), ("trec", split["test2019"])):
        for name in ("teacher", "6_768_simplified"):
            run = read_run(project / "runs" / "tiny" / queries / f"{name}.run")
            assert {query_id: sorted(scores) for query_id, scores in run.items()} == {
                query_id: sorted(DOCUMENTS) for query_id in query_ids
            }
    assert "trec_eval -m ndcg_cut.10 -m map" in done.stdout


def test_a_sample_of_the_dev_queries_and_a_test_set_that_can_be_missing(project: Path, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    docs = "".join(f"{doc_id}\thttp://x\tmat\t{text}\n" for doc_id, text in DOCUMENTS.items())
    (downloads / "msmarco-docs.tsv.gz").write_bytes(gzip.compress(docs.encode()))
    texts = "".join(f"{query_id}\t{text}\n" for query_id, text in QUERIES.items())
    top = "".join(f"{query_id} Q0 d{i} {i + 1} {-i} x\n" for query_id in QUERIES for i in range(3))
    for name in ("docdev", "test2019", "test2020"):
        (downloads / f"msmarco-{name}-queries.tsv.gz").write_bytes(gzip.compress(texts.encode()))
    for name in ("docdev", "doctest2019"):
        (downloads / f"msmarco-{name}-top100.gz").write_bytes(gzip.compress(top.encode()))
    (downloads / "msmarco-docdev-qrels.tsv.gz").write_bytes(gzip.compress(b"q1 0 d1 1\n"))
    (downloads / "2019qrels-docs.txt").write_text("q1 0 d1 1\n")
    for model in ("teacher", "6_768_simplified"):
        (project / "models" / "tiny" / model).mkdir(parents=True)
        (project / "models" / "tiny" / model / "config.json").touch()
    data = project / "data" / "tiny"
    data.mkdir(parents=True)
    for name in ("positives.tsv.gz", "positives.scores.tsv", "train_pairs.tsv.report.json", "text.txt"):
        (data / name).touch()

    def run(**variables: str) -> Ran:
        def answer(script: str, *arguments: str) -> Finished:
            is_real = script.endswith(("sample_run.py", "make_rerank_pairs.py"))
            return run_python(script, *arguments) if is_real else Finished(0, "", "")

        own = {"name": "tiny", "downloads": str(downloads), "students": "6_768", "methods": "simplified"}
        return run_recipe(project, "msmarco_doc.sh", answer, **own, **variables)

    def queries_of(name: str) -> set[str]:
        return {pair.example_id.partition("#")[0] for pair in read_pairs(data / f"{name}_pairs.tsv", labelled=False)}

    # as the authors released samples: ids, with or without the text
    (tmp_path / "ids").write_text("q1\tthe text\nq4\nq5,the text\nq99\n")
    sample = {"dev_query_ids": str(tmp_path / "ids"), "num_dev_queries": "2"}
    done = run(**sample)
    assert done.returncode == 0, done.stderr
    missing = "TREC 2020 DL is left out, because there is no "
    assert done.stdout.count(missing) == 1 and f"{missing}{downloads}/2020qrels-docs.txt\n" in done.stdout
    assert len(queries_of("dev")) == 2 and queries_of("dev") < {"q1", "q4", "q5"}
    assert read_run(data / "dev_top100").keys() == queries_of("dev")
    assert queries_of("trec") == set(QUERIES) and not (data / "trec2020_pairs.tsv").exists()
    measured = [call[1:] for call in done.calls if call[0] == "msmarco_mrr_eval.py"]
    assert any(flags[0] == "--queries_of=data/tiny/dev_top100" for flags in measured)

    # another sample under this name is refused, the same one resumes; the second test set is added
    done = run(num_dev_queries="3")
    assert done.returncode == 2 and "has another sample of the dev queries ('the queries of " in done.stderr
    (downloads / "msmarco-doctest2020-top100.gz").write_bytes(gzip.compress(top.encode()))
    (downloads / "2020qrels-docs.txt").write_text("q2 0 d1 1\n")
    done = run(**sample)
    assert done.returncode == 0 and missing not in done.stdout, done.stderr
    assert [call[0] for call in done.calls if call[0].endswith("sample_run.py")] == []
    assert queries_of("trec2020") == set(QUERIES)
    runs = {flags["output_results_file"] for flags in flags_of(done.calls, "convert_to_trec_results.py")}
    assert "runs/tiny/trec2020/6_768_simplified.run" in runs
