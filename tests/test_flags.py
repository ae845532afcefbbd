"""The parser of all scripts, and the flags of distill.py for the terms of the loss."""

import argparse
from typing import get_args, get_type_hints

import pytest
from tiny import run_main

from distill import METHODS
from runtime.errors import InputError
from runtime.flags import Parser
from training.flags import trainings
from training.terms import LOSSES, TERMS, Term


def parser() -> Parser:
    made = Parser("what it does")
    made.add_argument("runs", nargs="*")
    made.add_argument("--rate", type=float, default=0.5)
    made.add_argument("--name")
    made.add_argument("--overwrite", action="store_true")
    made.add_argument("--do_lower_case", action=argparse.BooleanOptionalAction, default=True)
    return made


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--rate=", "--name=", "--overwrite=", "--do_lower_case="], {}),
        (["--rate=2"], {"rate": 2.0}),
        (["--name= "], {"name": " "}),
        (["--name=a=b"], {"name": "a=b"}),
        (["--name=$(touch x); \n*"], {"name": "$(touch x); \n*"}),
        (["--overwrite"], {"overwrite": True}),
        (["--overwrite=yes"], {"overwrite": True}),
        (["--overwrite=no"], {}),
        (["--do_lower_case=yes"], {}),
        (["--do_lower_case=no"], {"do_lower_case": False}),
        (["--no-do_lower_case"], {"do_lower_case": False}),
        (["--overwrite", "a", "b="], {"overwrite": True, "runs": ["a", "b="]}),
        (["--overwrite=no", "yes"], {"runs": ["yes"]}),
    ],
)
def test_a_flag_is_given_as_the_shell_scripts_do(given: list[str], expected: dict) -> None:
    defaults = {"runs": [], "rate": 0.5, "name": None, "overwrite": False, "do_lower_case": True}
    assert vars(parser().parse_args(given)) == defaults | expected


@pytest.mark.parametrize("value", ["true", "1", "Yes", "0"])
def test_another_value_than_yes_or_no_is_refused(value: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as done:
        parser().parse_args([f"--overwrite={value}"])
    assert done.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: --overwrite: '{value}' is neither yes nor no" in line


def test_an_error_of_the_check_is_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", "--rate=3"])

    def check(args: argparse.Namespace) -> None:
        raise InputError(f"--rate: {args.rate} is\ntoo much")

    with pytest.raises(SystemExit) as done:
        parser().parse(check)
    assert done.value.code == 2
    assert capsys.readouterr().err.endswith(": error: --rate: 3.0 is too much\n")


def test_flags_and_keys_follow_from_the_terms() -> None:
    text = run_main("distill.py", "--help").stdout
    for term in TERMS:
        assert f"--{term.name}_weight " in text
        assert term.meaning in text
        assert term.compares in get_args(get_type_hints(Term)["compares"])
    assert list(LOSSES) == ["loss", "cls_loss", *(f"{term.name}_loss" for term in TERMS)]
    for weights in METHODS.values():
        assert weights.keys() <= {term.name for term in TERMS}


def test_other_methods_are_one_training() -> None:
    args = argparse.Namespace(distill_model="simplified")
    assert trainings(args) == [args]
