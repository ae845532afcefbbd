"""README and shell scripts speak of flags, files and variables that exist."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHELL_SCRIPTS = sorted(path for path in [*ROOT.glob("*.sh"), *ROOT.glob("experiments/**/*.sh")])
TEXTS = [ROOT / "README.md", *SHELL_SCRIPTS]
# how a text calls Python
PYTHON = r"python|\$python\"?|\"\$\{launch\[@\]\}\""
# made by the two commands, or the reader's own
NOT_CARRIED = re.compile(r"^(data|models|runs|msmarco|scifact)/")
SCRIPTS = [
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.py"), *ROOT.glob("data_preparation/*.py"), *ROOT.glob("experiments/*.py")]
    if '__name__ == "__main__"' in path.read_text()
]


@cache
def help_of(script: str) -> str:
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The project's Python scripts that a text calls, with the long flags of each call."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in joined.splitlines():
        for script, rest in re.findall(rf"(?:{PYTHON}) ((?:[\w/]+/)?\w+\.py)([^|;&`]*)", line):
            found.append((script, re.findall(r"(?<![\w-])--([\w-]+)", rest)))
        for name, rest in re.findall(r" prepare (\w+) (.*)", line):  # as the recipes call them
            found.append((f"data_preparation/{name}.py", re.findall(r"(?<![\w-])--([\w-]+)", rest)))
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_script_called_exists_and_knows_its_flags(path):
    called = commands(path.read_text())
    assert called
    for script, flags in called:
        assert (ROOT / script).is_file(), f"{path.name} calls {script}"
        for flag in flags:
            assert re.search(rf"--{flag}\b", help_of(script)), f"{path.name} gives {script} --{flag}"


def test_every_flag_that_the_readme_names_belongs_to_a_script():
    helps = [help_of(script) for script in SCRIPTS]
    for flag in re.findall(r"`--([\w-]+)", (ROOT / "README.md").read_text()):
        assert any(re.search(rf"--{flag}\b", text) for text in helps), flag


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_file_named_exists(path):
    named = re.findall(r"(?<![\w/.$}-])((?:[\w-]+/)*\w[\w-]*\.(?:py|sh|md|txt|yaml|toml))\b", path.read_text())
    own = {name for name in named if not NOT_CARRIED.match(name)}
    known = {file.name for file in ROOT.rglob("*") if ".git/" not in str(file)}
    for name in own:
        found = (ROOT / name).exists() if "/" in name else name in known
        assert found or name in MADE, f"{path.name} names {name}"


# files that the scripts write, and names of other projects' files
MADE = {"vocab.txt", "text.txt", "2019qrels-docs.txt"}


def test_shell_variables_that_the_readme_sets_exist():
    readme = (ROOT / "README.md").read_text()
    found = re.findall(r"((?:\w+=\S+ +)+)bash (\S+\.sh)", re.sub(r"\\\n\s*", " ", readme))
    assert len(found) > 8
    for assignments, script in found:
        for name in re.findall(r"(\w+)=\S", assignments):
            assert re.search(rf"^{name}=\${{{name}:?-", (ROOT / script).read_text(), flags=re.M), f"{script}: {name}"


def test_environments_name_the_same_packages():
    assert "-r requirements.txt" in (ROOT / "env.yaml").read_text()
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in pins)
    assert "torch==2.13.0" in pins and not any(line.startswith("apex") for line in pins)


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_every_test_that_the_table_of_promises_names_exists():
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


@pytest.mark.parametrize("name", ["python_docs", "scifact"])
def test_the_tables_shown_are_those_of_the_results(name):
    table = (ROOT / "results" / name / "table.md").read_text()
    rows = table[table.index("| row |") :].split("\n\n")[0]
    assert len(rows.splitlines()) > 5
    assert rows in (ROOT / "README.md").read_text()
