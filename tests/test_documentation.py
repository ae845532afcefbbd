"""The commands of README.md, CONTRIBUTING.md and docs/ run as printed, with tiny files in place of the real ones.

A block of commands runs after `make example`, or the paragraph before it says what it needs: "Needs ...".
"""

import gzip
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from bash_runner import Ran, run_bash, run_python
from tiny import ROOT, TEACHER, WORDS, Finished, copy_project, random_weights, some_pairs, write_transformers

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
# The only blocks that these tests do not run, by a word of theirs: where else they run.
ELSEWHERE = {
    "pip install -r requirements.txt": "the target install of Makefile does it, and .ci/run calls that",
    "conda env create": "test_readme.py::test_environments_name_the_same_packages",
    "torchrun --nnodes": "test_distributed.py::test_machines_train_as_one_process_and_resume_from_the_first_one",
}
# Calls of which only the flags are checked: where else they run.
FLAGS_ONLY = {
    "convert_tf_checkpoint.py": "test_convert_tf_checkpoint.py",
    "--onnx": "test_export_student.py",
    "make_table.py": "test_make_table.py",
}
# A student of 3 layers is made of layers 2, 4 and 6. Pairs have 256 tokens by default.
SIZES = TEACHER._replace(layers=6, hidden=24, heads=12, positions=256)


class Block(NamedTuple):
    page: str
    before: str  # the paragraph before the commands
    commands: str

    @property
    def needs(self) -> bool:
        return re.search(r"(^|[.:)] |\n)Needs ", self.before) is not None

    def __str__(self) -> str:
        return f"{self.page}: {self.commands.splitlines()[0]}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        for match in re.finditer(r"^```sh\n(.*?)^```$", text, flags=re.M | re.S):
            before = text[: match.start()].rstrip().rpartition("\n\n")[2]
            if all(match[1] != block.commands for block in found):  # a page can show a command of another one
                found.append(Block(page, before, match[1]))
    return found


def runs_elsewhere(block: Block) -> bool:
    return any(words in block.commands for words in ELSEWHERE)


def write_pairs(path: Path, labelled: bool) -> None:
    rows = [f"q{i % 4}#D{i}_0\t{query}\t{passage}" for i, (query, passage) in enumerate(some_pairs(24))]
    path.write_text("".join(f"{row}\t{i % 2}\n" if labelled else f"{row}\n" for i, row in enumerate(rows)))


def write_rankings(data: Path, split: str) -> None:
    """Candidates and relevance judgments of the queries of `write_pairs`."""
    lines = [f"q{i % 4} Q0 D{i} {i // 4 + 1} {9 - i // 4} BM25\n" for i in range(24)]
    (data / f"top100.{split}").write_text("".join(lines))
    (data / f"qrels.{split}.tsv").write_text("".join(f"q{i} 0 D{i + 4} 1\n" for i in range(4)))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after `make example`, with tiny files."""
    project = copy_project(tmp_path_factory.mktemp("documentation") / "project")
    shutil.copytree(ROOT / "experiments", project / "experiments", dirs_exist_ok=True)
    for path in (*ROOT.glob("requirements*.txt"), ROOT / "Makefile"):
        shutil.copy(path, project)
    data, models = project / "data" / "python_docs", project / "models" / "python_docs"
    data.mkdir(parents=True)
    for seed, name in enumerate(("encoder", "teacher", "general_student")):
        sizes = SIZES._replace(layers=3) if name == "general_student" else SIZES
        write_transformers(models / name, sizes, random_weights(sizes, seed))
    write_pairs(data / "train_pairs.tsv", labelled=True)
    for split in ("dev", "test"):
        write_pairs(data / f"{split}_pairs.tsv", labelled=False)
        write_rankings(data, split)
    (data / "report.json").touch()
    for script in ("distill.sh", "reranker.sh"):
        done = run_bash(project / script, {"device": "cpu", "precision": "fp32"}, project)
        assert done.returncode == 0, done.stderr
    return project


def add_what_is_needed(project: Path) -> None:
    """Adds what blocks with "Needs" name: a BEIR folder, models, dev pairs, scores, files of TREC."""
    rng = random.Random(5)
    documents = [
        {"_id": f"d{i}", "title": " ".join(rng.choices(WORDS, k=6)), "text": " ".join(rng.choices(WORDS, k=12 + i))}
        for i in range(80)
    ]
    for folder in (project / "scifact", project / "path" / "to" / "beir_folder"):
        (folder / "qrels").mkdir(parents=True)
        (folder / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
        queries = [{"_id": f"q{i}", "text": " ".join(rng.choices(WORDS, k=3))} for i in range(8)]
        (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
        for split, numbers in (("train", range(4)), ("test", range(4, 8))):
            rows = "".join(f"q{i}\td{i * 2}\t1\n" for i in numbers)
            (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    data, models = project / "data", project / "models"
    # positives pass the threshold of filter_positives.py
    weights = random_weights(SIZES, 7) | {"classifier.bias": torch.tensor([-9.0, 9.0])}
    for name in ("encoder", "teacher", "my_pairs/teacher"):
        write_transformers(models / name, SIZES, weights)
    write_transformers(project / "google-bert" / "bert-base-uncased", SIZES, random_weights(SIZES, 8))
    small = SIZES._replace(layers=3)
    write_transformers(models / "my_pairs" / "general_student", small, random_weights(small, 9))
    for folder in (data / "my_pairs", data / "scifact"):
        folder.mkdir(exist_ok=True)
        write_pairs(folder / "train_pairs.tsv", labelled=True)
        write_pairs(folder / "test_pairs.tsv", labelled=False)
        write_pairs(folder / "dev_pairs.tsv", labelled=False)
        write_rankings(folder, "test")
        write_rankings(folder, "dev")
    for split in ("dev", "test"):
        write_rankings(data, split)
        rows = [f"q{i % 4}\tD{i}_0\t{0.9 - i / 50}\n" for i in range(24)]
        (project / "runs" / f"{split}.scores.tsv").write_text("".join(rows))
    (data / "queries.test.tsv").write_text("t1\tthe cat sat\n")
    checkpoint = project / "msmarco" / "BERT_Base_trained_on_MSMARCO"
    checkpoint.mkdir(parents=True)
    for name in ("model.ckpt-100000.index", "model.ckpt-100000.data-00000-of-00001"):
        (checkpoint / name).touch()
    shutil.copy(models / "encoder" / "vocab.txt", checkpoint)
    shutil.copy(models / "encoder" / "config.json", checkpoint / "bert_config.json")
    (project / "msmarco" / "2019qrels-docs.txt").write_text((data / "qrels.test.tsv").read_text())
    packed = gzip.compress((data / "top100.test").read_bytes())
    (project / "msmarco" / "msmarco-doctest2019-top100.gz").write_bytes(packed)


def answer(*arguments: str) -> Finished:
    if any(part in argument for part in FLAGS_ONLY for argument in arguments):
        # --onnx asks for packages that may be missing
        return run_python(*(argument for argument in arguments if argument != "--onnx"), "--check_flags")
    return run_python(*arguments)


def run_block(block: Block, project: Path, directory: Path) -> Ran:
    """Runs the commands in the project. `python` is this process; `make` and `pip` install nothing."""
    tools = directory / "tools"
    tools.mkdir(exist_ok=True)
    if not (tools / "make").exists():
        (tools / "python").symlink_to(directory / ".python stub")
        make = shutil.which("make")
        (tools / "make").write_text(f'#!/bin/bash\nexec {make} --dry-run "$@"\n' if make else "#!/bin/bash\n")
        (tools / "pip").write_text("#!/bin/bash\n")
        for name in ("make", "pip"):
            (tools / name).chmod(0o755)
    script = directory / "block.sh"
    script.write_text(f"set -e\ncd '{project}'\n{block.commands}")
    variables = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "device": "cpu", "precision": "fp32"}
    variables["pseudo_examples"] = "300"  # of beir.sh; the default takes minutes
    return run_bash(script, variables, directory, answer)


def test_blocks_run_after_make_example_or_where_there_is_what_they_need(project: Path, tmp_path: Path) -> None:
    """All in one test, in the order of the pages: some use what an earlier one has made."""
    done = {}
    for needs in (False, True):
        if needs:
            add_what_is_needed(project)
        for block in blocks():
            if block.needs == needs and not runs_elsewhere(block):
                ran = run_block(block, project, tmp_path)
                assert ran.returncode == 0, f"{block}\n{ran.stdout[-2000:]}\n{ran.stderr[-3000:]}"
                done[str(block)] = ran
    assert len(done) >= 18
    by_hand = next(ran for name, ran in done.items() if name.startswith("docs/scripts.md: python tokenize"))
    assert "query_num: 4\n" in by_hand.stdout


def test_what_is_not_run_here_says_what_it_needs_and_runs_elsewhere() -> None:
    elsewhere = [block for block in blocks() if runs_elsewhere(block)]
    assert len(elsewhere) == len(ELSEWHERE) and all(block.needs for block in elsewhere)
    named = " ".join([*ELSEWHERE.values(), *FLAGS_ONLY.values()])
    for file, test in re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", named):
        assert f"def {test}" in (ROOT / "tests" / file).read_text()


def test_packages_that_a_page_installs_have_the_versions_of_the_requirements() -> None:
    pins = set("".join(path.read_text() for path in ROOT.glob("requirements*.txt")).split())
    text = "".join((ROOT / page).read_text() for page in PAGES)
    named = set(re.findall(r"\b[\w-]+==[\d.]*\d", text))
    assert len(named) >= 5 and named <= pins, named - pins


def test_the_python_code_of_readme_is_that_of_a_page_whose_code_runs() -> None:
    """test_export_student.py runs the code of docs/serving.md."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    page = (ROOT / "docs" / "serving.md").read_text()
    assert len(code) == 2 and all(block in page for block in code)
