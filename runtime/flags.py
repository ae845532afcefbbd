"""The parser of all scripts. The shell scripts pass every variable as `--flag=value`, also an empty one."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NoReturn

from runtime.errors import InputError
from runtime.ranks import check_environment, world_size
from runtime.script import error_message, one_line


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Marks required flags, and shows each default that the help text does not tell."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.option_strings and action.required:
            return f"{text} (required)"
        is_number_or_name = isinstance(action.default, int | float | str) and not isinstance(action.default, bool)
        if is_number_or_name and action.default != argparse.SUPPRESS and "default" not in text:
            return f"{text} (default: %(default)s)"
        return text


class Parser(argparse.ArgumentParser):
    """argparse's parser with two more forms of flags, errors in one line, and a usage line of what is required.

    `--flag=`, with nothing after the `=`, leaves the flag at its default. A flag without a value takes `=yes`, and
    `=no`; `=no` is the same as no flag.

    `is_distributed`: torchrun can start several processes of the script. Rank 0 prints an error of any of them.
    """

    def __init__(self, description: str, is_distributed: bool = False) -> None:
        super().__init__(formatter_class=_HelpFormatter, description=description)
        self._is_distributed = is_distributed

    def parse(self, check: Callable[[argparse.Namespace], None]) -> argparse.Namespace:
        """Parses the command line and has `check` complete it. An InputError of `check` ends the script.

        Adds the flag --check_flags, which ends the script after the check.
        """
        if self._is_distributed:
            try:
                check_environment()
            except InputError as error:
                self._exit(str(error))
        self.add_argument("--check_flags", action="store_true", help="check the flags, and run nothing")
        args = self.parse_args()
        try:
            check(args)
        except (InputError, OSError) as error:
            self.error(error_message(error))
        if args.check_flags:
            self.exit()
        del args.check_flags
        return args

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([part for arg in given for part in self._translate(arg)], namespace)

    def _translate(self, arg: str) -> list[str]:
        """Returns an argument in the form that argparse knows, or nothing for a flag at its default."""
        flag, has_value, value = arg.partition("=")
        action = self._option_string_actions.get(flag)
        if action is None or not has_value:
            return [arg]
        if not value:
            return []
        if action.nargs != 0:
            return [arg]
        if value not in ("yes", "no"):
            self.error(f"{flag}: '{value}' is neither yes nor no")
        if isinstance(action, argparse.BooleanOptionalAction):
            return [flag if value == "yes" else f"--no-{flag.removeprefix('--')}"]
        return [flag] if value == "yes" else []

    def format_help(self) -> str:
        """Returns the help text. Its usage line has the required flags and the files alone."""
        parts = [self.prog]
        for action in self._actions:
            value = str(action.metavar or action.dest.upper())
            if not action.option_strings:
                parts.append(f"{value} [{value} ...]" if action.nargs == "+" else value)
            elif action.required:
                choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else value
                parts.append(f"{action.option_strings[0]} {choices}")
        # a flag and its value stay on one line
        lines = textwrap.wrap(
            " ".join(part.replace(" ", "\0") for part in [*parts, "[flags]"]),
            width=92,
            subsequent_indent=" " * 7,
            break_long_words=False,
            break_on_hyphens=False,
        )
        self.usage = "\n".join(lines).replace("\0", " ").replace("%", "%%")
        return super().format_help()

    def error(self, message: str) -> None:
        """Ends the script with exit status 2 and one line on stderr, which only rank 0 prints."""
        if self._is_distributed and world_size() > 1:
            from runtime.distributed import end_all  # late, because it loads torch

            end_all(InputError(message))
        self._exit(message)

    def _exit(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")
