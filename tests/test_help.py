"""--help of every script: usage, inputs and outputs, what is required, defaults."""

import argparse
import re
import runpy
from unittest import mock

import pytest
from test_startup import SCRIPTS
from tiny import ROOT, run_main

from runtime.flags import Parser


class Parsed(Exception):
    """Ends a script when it parses its command line."""


def parser_of(script: str) -> Parser:
    """Returns the parser that a script makes."""
    found: list[Parser] = []

    def parse_known_args(parser: Parser, *args: object) -> None:
        found.append(parser)
        raise Parsed

    with (
        mock.patch("sys.argv", [script]),
        mock.patch.object(Parser, "parse_known_args", parse_known_args),
        pytest.raises(Parsed),
    ):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return found[0]


def text_of(script: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    done = run_main(script, "--help")
    assert (done.status, done.stderr) == (0, "")
    return done.stdout


def shown_of(text: str) -> dict[str, str]:
    """The help text of each flag, by its longest name without dashes, in one line."""
    entries = re.findall(r"^  (?:-h, )?--(\S+)((?:.|\n {3,})*)", text, flags=re.M)
    return {flag.rstrip(","): re.sub(r"\s+", " ", rest) for flag, rest in entries}


@pytest.mark.parametrize("script", SCRIPTS)
def test_usage_is_what_is_required(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(script, monkeypatch)
    assert max(map(len, text.splitlines())) <= 120
    usage, _, description = text.partition("\n\n")
    name = script.rpartition("/")[2]
    assert usage.startswith(f"usage: {name}") and usage.endswith("[flags]")
    assert max(map(len, usage.splitlines())) <= 100
    flags = [action for action in parser_of(script)._actions if action.option_strings]
    required = [action.option_strings[0] for action in flags if action.required]
    assert re.findall(r"--\w+", usage) == required
    assert f"python {script}" in description.partition("\noptions:")[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_inputs_and_outputs_are_named(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    description = text_of(script, monkeypatch).partition("\noptions:")[0]
    if script.startswith("benchmarks/"):
        assert "Prints" in description and "exit status is" in description.replace("\n", " ")
    else:
        assert re.search(r"^In: .*^Out: ", description, flags=re.M | re.S)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_tells_whether_it_is_required_and_its_default(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_of(text_of(script, monkeypatch))
    for action in parser_of(script)._actions:
        assert action.help, action
        if not action.option_strings or action.help == argparse.SUPPRESS:
            continue
        text = shown[action.option_strings[-1 if action.dest == "help" else 0].lstrip("-")]
        assert ("(required)" in text) == action.required, text
        if action.default not in (None, False, [], argparse.SUPPRESS):
            assert "default" in text, text
        value = action.default
        if isinstance(value, int | float) and not isinstance(value, bool) and "default: all" not in text:
            # as 5e-05, 0.5 or 42
            assert re.search(
                rf"(?<![\w.]){re.escape(format(value, 'g') if value < 1e5 else str(value))}(?!\w)", text
            ), text


@pytest.mark.parametrize("script", SCRIPTS)
def test_many_flags_are_in_groups(script: str) -> None:
    for group in parser_of(script)._action_groups:
        actions = [action for action in group._group_actions if action.dest not in ("help", "check_flags")]
        assert len(actions) <= 10 or group.title not in ("options", None), [action.dest for action in actions]


def shell_defaults(script: str) -> dict[str, str]:
    """The variables at the top of a shell script, with their defaults."""
    return dict(re.findall(r"^(\w+)=\$\{\1:?-([^}]*)\}", (ROOT / script).read_text(), flags=re.M))


def test_defaults_that_differ_between_flags_and_variables_are_in_the_table() -> None:
    differing = set()
    for shell, scripts in (
        ("distill.sh", ("tokenize_to_features.py", "distill.py")),
        ("reranker.sh", ("tokenize_to_features.py", "rerank.py", "convert_to_trec_results.py")),
    ):
        variables = shell_defaults(shell)
        compared = 0
        for script in scripts:
            for action in parser_of(script)._actions:
                value = variables.get({"distill_model": "distill_model_type"}.get(action.dest, action.dest), "")
                default = action.default
                if value in ("", "yes", "no") and default in (None, True, False):
                    assert (value, default) != ("no", True) and (value, default) != ("yes", False), action.dest
                    continue
                if value == "" or default is None:  # the variable leaves the flag out, or the flag has no default
                    continue
                compared += 1
                is_number = isinstance(default, int | float)
                if (float(value) if is_number else value) != default:
                    shown = format(default, "g") if is_number else default
                    differing.add((script, action.dest, shown, value))
        assert compared > (10 if shell == "distill.sh" else 2)
    page = (ROOT / "docs" / "training.md").read_text()
    table = page[page.index("### Where the shell scripts") :]
    rows = re.findall(r"^\| `(\w+\.py)` \| `(\w+)` \| (\S+) \| (\S+) \| \w", table, flags=re.M)
    assert set(rows) == differing and len(rows) == len(differing) > 5
