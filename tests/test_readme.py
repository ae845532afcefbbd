"""The pages of documentation and the shell scripts name flags, files, variables and sections that exist."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from tiny import run_main

from training.terms import LOSSES, TERMS

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS_PAGE = ROOT / "benchmarks" / "README.md"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), BENCHMARKS_PAGE]
SHELL_SCRIPTS = sorted([*ROOT.glob("*.sh"), *ROOT.glob("experiments/**/*.sh")])
COMMON = ROOT / "common.sh"  # what distill.sh and reranker.sh share
FOLDERS = ("", "data_preparation/", "model_tools/", "experiments/", "experiments/python_docs/", "benchmarks/")
SCRIPTS = {
    path.name: str(path.relative_to(ROOT))
    for folder in FOLDERS
    for path in ROOT.glob(f"{folder}*.py")
    if '__name__ == "__main__"' in path.read_text()
}
# how a text calls Python
PYTHON = r"python|\$python\"?|\"\$\{launch\[@\]\}\"|torchrun --nproc_per_node \d+"
# flags of other programs: torchrun, pip, ruff, setpriv, text-embeddings-inference
FOREIGN_FLAGS = {"nproc_per_node", "standalone", "check", "auto-truncate", "pdeathsig", "index-url"}
FOREIGN_FLAGS |= {"nnodes", "node_rank", "master_addr", "master_port"}
FOREIGN_FLAGS |= {"rdzv_backend", "rdzv_endpoint", "rdzv_id"}
# made by the two commands, or the reader's own
NOT_CARRIED = re.compile(r"^(data|models|runs|msmarco|scifact)/")
# files that the scripts write, and names of other projects' files
MADE = {"vocab.txt", "text.txt", "2019qrels-docs.txt", "2020qrels-docs.txt"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def flags_of(script: str) -> frozenset[str]:
    """A script's flags, without their dashes, from the lines of its --help."""
    done = run_main(script, "--help")
    assert done.status == 0, done
    lines = re.findall(r"^  ((?:-\w, )?--.*)", done.stdout, flags=re.M)
    return frozenset(flag for line in lines for flag in flags_in(line.partition("  ")[0]))


def path_of(script: str) -> str:
    """The path of a script; the pages name most by their file name alone."""
    return script if "/" in script else SCRIPTS.get(script, script)


def joined(text: str) -> str:
    """A text whose commands have a line each."""
    return re.sub(r"\\\n\s*", " ", text)


def flags_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--([a-z][\w-]*)", text)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The project's Python scripts that a text calls, with the long flags of each call."""
    found = []
    for line in joined(text).splitlines():
        for script, rest in re.findall(rf"(?:{PYTHON}) ((?:[\w/]+/)?\w+\.py)([^|;&`]*)", line):
            found.append((script, flags_in(rest)))
        for script, rest in re.findall(r"`((?:[\w/]+/)?\w+\.py)( [^`]*)`", line):  # a page's words
            found.append((path_of(script), flags_in(rest)))
        for name, rest in re.findall(r"\bprepare \"\S+\" (\w+) (.*)", line):  # as the recipes call them
            found.append((f"data_preparation/{name}.py", flags_in(rest)))
    return found


@pytest.mark.parametrize("path", [*PAGES, *SHELL_SCRIPTS], ids=name_of)
def test_every_script_called_exists_and_knows_its_flags(path: Path) -> None:
    called = commands(path.read_text())
    assert called or path.name in (COMMON.name, "differences.md", "installation.md")
    for script, flags in called:
        assert (ROOT / script).is_file(), f"{path.name} calls {script}"
        for flag in flags:
            assert flag in flags_of(script), f"{path.name} gives {script} --{flag}"


@pytest.mark.parametrize("path", [*PAGES, *SHELL_SCRIPTS], ids=name_of)
def test_every_flag_named_belongs_to_a_script(path: Path) -> None:
    scripts = [script for script in SCRIPTS.values() if path == BENCHMARKS_PAGE or "benchmarks" not in script]
    known = FOREIGN_FLAGS.union(*map(flags_of, scripts))
    unknown = set(flags_in(path.read_text())) - known
    assert not unknown, f"{path.name} names {unknown}"


def test_the_page_of_training_lists_every_flag_of_distill() -> None:
    rows = set(re.findall(r"^\| `--([\w-]+)` \|", (ROOT / "docs" / "training.md").read_text(), flags=re.M))
    assert len(rows) > 30
    assert flags_of("distill.py") - {"help", "no-do_lower_case"} == rows


def test_the_variable_of_every_flag_of_distill_is_one_of_the_shell_script() -> None:
    rows = re.findall(r"^\| `--[\w-]+` \|([^|]*)\|", (ROOT / "docs" / "training.md").read_text(), flags=re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)(?:=\w+)?`", row)}
    assert len(named) > 30
    assert named <= variables_of("distill.sh")


def test_every_term_of_the_loss_is_on_the_pages_and_in_the_shell_script() -> None:
    training, formats = (ROOT.joinpath("docs", name).read_text() for name in ("training.md", "formats.md"))
    assert re.findall(r"^\| `(\w+)` \| `--\1_weight` \|", training, flags=re.M) == [term.name for term in TERMS]
    (row,) = re.findall(r"^\| `train_loss.jsonl` \|(.*)", formats, flags=re.M)
    keys = ["global_step", *LOSSES, "learning_rate"]
    assert ", ".join(f"`{key}`" for key in keys) in row
    script = (ROOT / "distill.sh").read_text()
    for term in TERMS:
        assert f"{term.name}_weight" in variables_of("distill.sh")
        assert f'--{term.name}_weight="${term.name}_weight"' in script


@pytest.mark.parametrize("path", [*PAGES, ROOT / "tests" / "README.md", *SHELL_SCRIPTS], ids=name_of)
def test_every_file_named_exists(path: Path) -> None:
    named = re.findall(r"(?<![\w/.$}-])((?:[\w-]+/)*\w[\w-]*\.(?:py|sh|md|txt|yaml|toml))\b", path.read_text())
    own = {name for name in named if not NOT_CARRIED.match(name)}
    known = {file.name for file in ROOT.rglob("*") if ".git/" not in str(file)}
    for name in own:
        found = (ROOT / name).exists() or (path.parent / name).exists() if "/" in name else name in known
        assert found or name in MADE, f"{path.name} names {name}"


@pytest.mark.parametrize("path", [page for page in ROOT.glob("**/*.md") if "." not in name_of(page)[0]], ids=name_of)
def test_every_link_leads_to_a_file_and_a_section(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if link.startswith("https://"):
            continue
        file, _, section = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name} links to {link}"
        if section:
            headings = re.findall(r"^#+ (.*)", target.read_text(), flags=re.M)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert section in anchors, f"{path.name} links to {link}"


def variables_of(script: str) -> set[str]:
    """The variables that a shell script takes from the environment."""
    text = (ROOT / script).read_text()
    if "/" not in script and COMMON.exists():
        text += COMMON.read_text()
    return set(re.findall(r"^(\w+)=\${\1:?-", text, flags=re.M))


def test_shell_variables_that_the_pages_set_exist() -> None:
    found = []
    for page in PAGES:
        text = page.read_text()
        found += re.findall(r"((?:\w+=\S+ +)+)bash (\S+\.sh)", joined(text))
        # one that a sentence names, `seed=43`, of some script
        found += [(name, "") for name in re.findall(r"`(\w+=[\w/.:,-]+)`", text)]
    assert len(found) > 8
    of_any = set().union(*(variables_of(name_of(script)) for script in SHELL_SCRIPTS))
    for assignments, script in found:
        for name in re.findall(r"(\w+)=\S", assignments):
            known = variables_of(script) if script else of_any
            if script.startswith("experiments/"):  # a recipe passes its environment on to distill.sh
                known |= variables_of("distill.sh")
            assert name in known, f"{script}: {name}"


def test_environments_name_the_same_packages() -> None:
    assert "-r requirements.txt" in (ROOT / "env.yaml").read_text()
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in pins)
    for name in ("dev", "extras", "benchmarks"):
        lines = (ROOT / f"requirements-{name}.txt").read_text().splitlines()
        assert all(re.fullmatch(r"#.*|-r requirements.txt|[\w-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in pins and not any(line.startswith("apex") for line in pins)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.M))
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run"]
    named = {
        name for page in pages for name in re.findall(r"(?<=make )([a-z-]+)(?=`|  +#| *$)", page.read_text(), re.M)
    }
    assert {"example", "test", "lint"} <= named <= targets
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets == set(re.findall(r"^make ([a-z-]+) ", listed, flags=re.M))


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=name_of)
def test_shell_scripts_parse(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


def test_every_test_that_the_table_of_promises_names_exists() -> None:
    tests = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    of_section = ""
    named = 0
    for line in (ROOT / "tests" / "README.md").read_text().splitlines():
        if line.startswith("#"):
            of_section = "".join(tests[name] for name in re.findall(r"`(test_\w+\.py)`", line))
        for file, test in re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", line):
            assert f"def {test}(" in (tests[file] if file else of_section), test
            named += 1
    assert named > 50


@pytest.mark.parametrize(("name", "page"), [("python_docs", "docs/tables.md"), ("scifact", "README.md")])
def test_the_rows_shown_are_those_of_the_results(name: str, page: str) -> None:
    table = (ROOT / "results" / name / "table.md").read_text().split("## ")[0]
    head = next(line for line in table.splitlines() if line.startswith("| row |"))
    shown = (ROOT / page).read_text().partition(head)[2].split("\n\n")[0].splitlines()[2:]
    assert len(shown) > 5
    assert set(shown) <= set(table.splitlines())


def test_the_figures_of_the_reproduction_are_those_of_the_results() -> None:
    tables = " ".join(path.read_text() for path in ROOT.glob("results/*/table.md"))
    figures = re.findall(r"\d+\.\d{4}(?!\d)", (ROOT / "docs" / "reproduction.md").read_text())
    assert len(figures) > 20
    assert [figure for figure in figures if figure not in tables] == []


def test_the_lines_of_the_readme_are_at_most_120_characters() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in lines if len(line) > 120] == []
