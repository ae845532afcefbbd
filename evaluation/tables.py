"""Rows of text as a table: for the terminal, markdown or LaTeX."""

import re
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "[": "{[}",  # at the start of a row these two would belong to the end of the row before
    "*": "{*}",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
}


def text_table(rows: Rows) -> str:
    """Aligned columns, the first to the left and all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip() + "\n")
    return "".join(lines)


def markdown_table(rows: Rows, num_left: int = 1) -> str:
    """A table of GitHub's markdown, whose first row is the head; its first `num_left` columns are text."""
    head, *body = [[re.sub(r"([\\|*_`<>\[\]])", r"\\\1", cell) for cell in row] for row in rows]
    rule = ["---"] * num_left + ["---:"] * (len(head) - num_left)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *body))


def latex_table(rows: Rows, num_left: int = 1) -> str:
    """A `tabular` that needs no package, whose first row is the head; its first `num_left` columns are text."""
    head, *body = [" & ".join(map(escape_latex, row)) + r" \\" + "\n" for row in rows]
    columns = "l" * num_left + "r" * (len(rows[0]) - num_left)
    return f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{head}\\hline\n{''.join(body)}\\hline\n\\end{{tabular}}\n"


def escape_latex(text: str) -> str:
    """The text as LaTeX prints it as it stands; the sign of a negative number becomes a minus."""
    escaped = "".join(_LATEX.get(character, character) for character in text).replace("--", "-{}-")
    return f"$-${escaped[1:]}" if re.match(r"-[0-9]", escaped) else escaped
