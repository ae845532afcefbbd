"""The files that the authors released, as synthetic files in their layout: what is accepted, and the whole recipe."""

import csv
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from bash_runner import only_record, run_bash
from test_recipes import DOCUMENTS, QUERIES, RELEVANT, flags_of
from tiny import (
    STUDENT,
    TEACHER,
    Finished,
    assert_refused,
    copy_project,
    random_weights,
    run_main,
    student_weights,
    teacher_weights,
    write_published,
    write_transformers,
)

from formats.pairs import Pair, read_pairs
from formats.trec import read_run
from modeling.model_files import load_ranker

SCRIPT = "data_preparation/take_released.py"
EXAMPLES = [Pair(str(i), f"the cat {i}", f'a dog, "{i}" sat', i % 2) for i in range(6)]
TEST_PAIRS = [Pair(f"q{i}#d{i}_passage-{i}", "what is", f"mat, {i}") for i in range(5)]


def columns_of(pair: Pair) -> list[str]:
    fields = [pair.example_id, pair.query, pair.passage]
    return fields if pair.label == -1 else [*fields, str(pair.label)]


def table(pairs: list[Pair], separator: str, header: list[str] | None = None) -> str:
    rows = [*([header] if header else []), *map(columns_of, pairs)]
    if separator == "\t":
        return "".join("\t".join(row) + "\r\n" for row in rows)
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Writes a zip or tar archive, with the files that a Mac adds."""
    files = files | {"__MACOSX/x/._data": b"\0", "x/.DS_Store": b"\0"}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def pack_folder(path: Path, folder: Path, inside: str) -> Path:
    return pack(path, {f"{inside}/{file.name}": file.read_bytes() for file in folder.iterdir()})


def take(kind: str, source: Path, output: Path, *flags: object) -> Finished:
    return run_main(SCRIPT, "--kind", kind, "--source", source, "--output", output, *flags)


def test_an_empty_first_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "examples.csv").write_text("\n1,a query,a passage,1\n")
    done = take("train_pairs", tmp_path / "examples.csv", tmp_path / "pairs.tsv")
    assert_refused(done, "line 1", "0 columns where 4 are needed")


@pytest.mark.parametrize("separator", ["\t", ","])
@pytest.mark.parametrize("has_header", [False, True])
@pytest.mark.parametrize("suffix", [".tsv", ".zip", ".tar.gz", ".tar", ".zip.zip"])
def test_pairs_in_every_form(tmp_path: Path, separator: str, has_header: bool, suffix: str) -> None:
    for kind, pairs, header in (
        ("train_pairs", EXAMPLES, ["index", "query_text", "passage_text", "label_id"]),
        ("test_pairs", TEST_PAIRS, ["example_id", "query_text", "passage_text"]),
    ):
        data = table(pairs, separator, header if has_header else None).encode()
        download = tmp_path / f"{kind}{suffix}"
        if suffix == ".tsv":
            download.write_bytes(b"\xef\xbb\xbf" + data)
        elif suffix == ".zip.zip":
            inner = pack(tmp_path / "inner.zip", {"deep/pairs.txt": data})
            pack(download, {"folder/inner.zip": inner.read_bytes()})
        else:
            pack(download, {"folder/pairs.txt": data})
        output = tmp_path / f"{kind}.out"
        done = take(kind, tmp_path / kind, output)  # without its suffix
        assert done.status == 0, done.stderr
        assert list(read_pairs(output, labelled=kind == "train_pairs")) == pairs
        assert done.stdout == f"wrote {output} from {download}: {len(pairs)} pairs\n"
        assert not list(tmp_path.glob(".unpacked.*"))


def test_malformed_pairs_are_named_or_skipped_and_listed(tmp_path: Path) -> None:
    lines = ["0\tthe\tcat\t1", "1\t\tcat\t1", "2\tthe\tcat\t2", "3\tthe\tcat", "4\tthe\t a  cat \t0"]
    pack(tmp_path / "examples.zip", {"x/examples.tsv": "".join(f"{line}\n" for line in lines).encode()})
    output = tmp_path / "out"
    done = take("train_pairs", tmp_path / "examples", output)
    assert_refused(done, f"{tmp_path}/examples.zip: ", "x/examples.tsv line 2: the query_text is empty")
    assert not output.exists()
    done = take("train_pairs", tmp_path / "examples", output, "--skip_malformed")
    assert done.status == 0 and f"2 pairs, skipped 3 lines (listed in {output}.rejected.tsv)" in done.stdout
    assert list(read_pairs(output, labelled=True)) == [Pair("0", "the", "cat", 1), Pair("4", "the", "a cat", 0)]
    rejected = Path(f"{output}.rejected.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in rejected] == ["2", "3", "4"]
    for text, says in (
        ("1,a,b,c,0\n", "line 1: 5 columns"),
        ('1,a,b,0\n2,"a,b,0\n', "line 2: no CSV"),
        ("q1,a,b\n", "example id 'q1' has no '#'"),
        ("example_id\tquery_text\tpassage_text\n", "has no usable line"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        kind = "test_pairs" if text[0] in "qe" else "train_pairs"
        assert_refused(take(kind, tmp_path / "bad.csv", tmp_path / "none"), "bad.csv", says)


@pytest.mark.parametrize("suffix", ["", ".zip", ".tar.gz"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_model_in_every_form(tmp_path: Path, suffix: str, prefix: str) -> None:
    weights = {f"{prefix}{name}": tensor for name, tensor in student_weights().items()}
    folder = write_published(tmp_path / "made" / "student", STUDENT, weights)
    if suffix:
        pack_folder(tmp_path / f"download{suffix}", folder, "checkpoints/student")
    else:
        shutil.copytree(tmp_path / "made", tmp_path / "download")
    done = take("model", tmp_path / "download", tmp_path / "model")
    assert done.status == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "bert_config.json", "pytorch_model.bin", "vocab.txt",
    ]  # fmt: skip
    model, fit_dense = load_ranker(tmp_path / "model")
    assert model.classifier.weight.equal(student_weights()["classifier.weight"])
    assert fit_dense["weight"].equal(student_weights()["fit_dense.weight"])


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(take("model", tmp_path / "none", out), "--source", "there is no", "download it")
    for name in ("two.zip", "two.tar"):
        pack(tmp_path / name, {"a.txt": b"x", "b.txt": b"x"})
    assert_refused(take("model", tmp_path / "two", out), "--source", "two.tar or two.zip")
    assert_refused(take("text", tmp_path / "two.zip", out), "has 2 files (a.txt, b.txt), one is needed")
    assert_refused(take("model", tmp_path / "two.zip", out), "has 0 directories with a config")
    assert_refused(take("runs", tmp_path / "two.zip", out), "has no run")
    (tmp_path / "damaged.zip").write_bytes((tmp_path / "two.zip").read_bytes()[:-30])
    (tmp_path / "damaged.tar.gz").write_bytes(b"\x1f\x8b\x08")
    for name in ("damaged.zip", "damaged.tar.gz"):
        assert_refused(take("text", tmp_path / name, out), name, "cannot be unpacked")
    pack(tmp_path / "evil.tar", {"../../evil": b"x"})
    assert_refused(take("text", tmp_path / "evil.tar", out), "evil.tar", "cannot be unpacked")
    pack(tmp_path / "evil.zip", {"../../evil": b"x\n"})
    assert take("text", tmp_path / "evil.zip", out).status == 0
    assert not list(tmp_path.parent.glob("evil*")) and not (tmp_path / "evil").exists()
    assert_refused(take("text", tmp_path / "evil.zip", out), "--output", "exists already")
    assert_refused(take("text", tmp_path / "evil.zip", out, "--qrels=x"), "--qrels", "no use")
    assert_refused(take("runs", tmp_path / "evil.zip", out, "--skip_malformed"), "--skip_malformed", "no use")
    assert_refused(take("model", tmp_path / "evil.zip", out), "--output", "exists already")


def run_lines(query_ids: list[str], name: str) -> bytes:
    return "".join(
        f"{query_id} Q0 {doc_id} {rank} {-rank} {name}\n"
        for query_id in query_ids
        for rank, doc_id in enumerate(DOCUMENTS, start=1)
    ).encode()


def test_runs_of_the_judged_queries_are_taken(tmp_path: Path) -> None:
    qrels = tmp_path / "qrels"
    qrels.write_text("q1 0 d1 1\n")
    pack(tmp_path / "runs.zip", {
        "runs/a/L3.txt": run_lines(["q1"], "x"), "runs/b/L3.run": run_lines(["q1", "q2"], "x"),
        "runs/dev.tsv": run_lines(["q2"], "x"), "runs/README.md": b"# Runs\n", "runs/x.bin": b"\0\xff",
    })  # fmt: skip
    done = take("runs", tmp_path / "runs.zip", tmp_path / "all")
    assert done.stdout.endswith(
        "L3.run, b.L3.run, dev.tsv.run; left out 0 runs of other queries and 2 files that are no runs\n"
    )
    done = take("runs", tmp_path / "runs", tmp_path / "judged", "--qrels", qrels)
    assert sorted(path.name for path in (tmp_path / "judged").iterdir()) == ["L3.run", "b.L3.run"]
    assert "left out 1 runs of other queries" in done.stdout
    assert list(read_run(tmp_path / "judged" / "b.L3.run")) == ["q1", "q2"]
    qrels.write_text("q9 0 d1 1\n")
    assert_refused(take("runs", tmp_path / "runs", tmp_path / "x", "--qrels", qrels), "--qrels", "shares a query")


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """What was released, in different forms, and the files of TREC 2019 and of the dev queries."""
    folder = tmp_path / "released"
    folder.mkdir()
    with_module = {f"module.{name}": tensor for name, tensor in teacher_weights().items()}
    pack_folder(folder / "teacher.zip", write_published(tmp_path / "t", TEACHER, with_module), "bert_base")
    pack_folder(folder / "6_768.tar.gz", write_published(tmp_path / "s6", STUDENT, student_weights()), "L6_H768")
    small = {name: tensor / 2 for name, tensor in random_weights(STUDENT, 4).items()}
    write_published(folder / "3_384" / "L3_H384", STUDENT, small)
    trec, dev = ["q0", "q1", "q2"], ["q5", "q6"]
    examples = [
        Pair(str(i), QUERIES["q4"], text, i % 2) for i, text in enumerate(list(DOCUMENTS.values())[:9])
    ]  # fmt: skip
    header = ["index", "query_text", "passage_text", "label_id"]
    (folder / "train_examples.csv").write_text(table(examples, ",", header))
    pairs = [
        Pair(f"{query_id}#{doc_id}_passage-{number}", QUERIES[query_id], text)
        for query_id in trec
        for doc_id, text in DOCUMENTS.items()
        for number in range(2)
    ]
    pack(folder / "test_pairs.tgz", {"trec/pairs.tsv": table(pairs, "\t").encode()})
    pack(folder / "runs.zip", {"runs/L3_trec.txt": run_lines(trec, "L3"), "runs/L3_dev.txt": run_lines(dev, "L3")})
    (folder / "wikipedia.txt").write_text("".join(f"{text}\n" for text in DOCUMENTS.values()))
    (folder / "qrels").write_text("".join(f"{query_id} 0 {RELEVANT[query_id]} 2\n" for query_id in trec))
    (folder / "dev_qrels").write_text("".join(f"{query_id} 0 {RELEVANT[query_id]} 1\n" for query_id in dev))
    (folder / "top100").write_bytes(run_lines(trec, "BM25"))
    return folder


def test_the_recipe(downloads: Path, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    sizes = TEACHER._replace(heads=12)
    write_transformers(tmp_path / "pretrained", sizes, random_weights(sizes, 5))
    write_transformers(tmp_path / "general", STUDENT, random_weights(STUDENT, 2))
    variables = {
        "downloads": str(downloads), "name": "tiny", "trec_qrels": str(downloads / "qrels"),
        "trec_candidates": str(downloads / "top100"), "dev_qrels": str(downloads / "dev_qrels"),
        "general_6_768": str(tmp_path / "general"), "pretrained": str(tmp_path / "pretrained"),
        "methods": "simplified standard", "students": "6_768", "num_train_epochs": "1", "train_batch_size": "4",
        "train_loss_step": "99", "max_seq_length": "19", "precision": "fp32", "device": "cpu", "teacher_check": "no",
    }  # fmt: skip
    script = project / "experiments" / "released.sh"
    done = run_bash(script, variables, project)
    assert done.returncode == 0, done.stderr
    runs = project / "runs" / "tiny"
    rows = [line.split(" | ") for line in (runs / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[0] == ["| run", "query\\_num", "NDCG@10", "MRR", "MAP |"]
    assert [row[0].strip("| ").replace("\\", "") for row in rows[2:]] == [
        "top100", "teacher.run", "6_768_released.run", "3_384_released.run", "6_768_simplified.run",
        "6_768_standard.run", "L3_trec.run",
    ]  # fmt: skip
    assert {row[1] for row in rows[2:]} == {"3"} and rows[2][2:] == rows[-1][2:]  # the released run is the candidates'
    assert all(0 < float(value.strip(" |")) <= 1 for row in rows[2:] for value in row[2:])
    assert (runs / "table.md").read_text() in done.stdout
    assert "L3\\_dev.run | 2 | " in (runs / "table_dev.md").read_text()
    released = load_ranker(project / "models" / "tiny" / "teacher")[0].classifier.weight
    assert released.equal(teacher_weights()["classifier.weight"])

    # the released runs can be left out; nothing is made twice
    assert run_bash(script, variables | {"released_runs": ""}, project).returncode == 0
    assert "L3" not in (runs / "table.md").read_text() and "teacher.run" in (runs / "table.md").read_text()

    # a general student of 3 / 384 is made from the released text
    calls = [call[0] for call in run_bash(script, variables, project).calls]
    assert set(calls) == {"-c", "msmarco_mrr_eval.py"}
    more = variables | {"students": "3_384", "methods": "hard", "general_3_384": "", "teacher_check": "yes"}
    done = run_bash(script, more, project)
    assert done.returncode == 0, done.stderr
    model = load_ranker(project / "models" / "tiny" / "3_384_hard")[0]
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (384, 3)
    assert torch.isfinite(model.classifier.weight).all()
    steps = flags_of(done.calls, "distill.py")
    assert [step["distill_model"] for step in steps] == ["intermediate", "hard"]
    assert "3\\_384\\_hard.run" in (runs / "table.md").read_text()


def test_mistakes_of_the_recipe_are_told_before_anything_is_made(downloads: Path, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    script = project / "experiments" / "released.sh"
    judged = {"trec_qrels": str(downloads / "qrels"), "trec_candidates": str(downloads / "top100")}
    for variables, says in (
        ({}, "trec_qrels=msmarco/2019qrels-docs.txt does not exist; download it, or set trec_qrels"),
        (judged | {"students": "4_312"}, "students=4_312: 4_312 is neither 6_768 nor 3_384"),
        (judged | {"skip_malformed": "1"}, "skip_malformed=1 is neither yes nor no"),
    ):
        done = run_bash(script, variables, project, only_record)
        assert (done.returncode, done.calls) == (2, []) and done.stderr == f"released.sh: {says}\n"
        assert not (project / "data").exists()


def test_it_says_that_it_was_tested_on_synthetic_files_only(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    done = run_bash(project / "experiments" / "released.sh", {}, project, only_record, ["--help"])
    assert "It was tested on synthetic files only" in done.stdout


def test_no_file_of_the_download_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "download"
    folder.mkdir()
    (folder / "pairs.tsv").write_text(table(EXAMPLES, "\t"))
    done = take("train_pairs", folder, folder / "pairs.tsv", "--overwrite")
    assert_refused(done, "--output", "is also an input")
    assert (folder / "pairs.tsv").read_text() == table(EXAMPLES, "\t").replace("\r\n", "\n")
