"""Rows of text as a table: for the terminal, markdown or LaTeX. The first row is the header."""

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
    "[": "{[}",  # LaTeX's \\ at the end of a row takes a [ or * after it as an argument
    "*": "{*}",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "§": r"$^{\S}$",
}


def text_table(rows: Rows) -> str:
    """Returns aligned columns. The first is left-aligned, all others are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip() + "\n")
    return "".join(lines)


def markdown_table(rows: Rows, num_left: int = 1) -> str:
    """Returns a table in GitHub's markdown. The first `num_left` columns are left-aligned."""
    header, *body = [[re.sub(r"([\\|*_`<>\[\]])", r"\\\1", cell) for cell in row] for row in rows]
    rule = ["---"] * num_left + ["---:"] * (len(header) - num_left)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *body))


def latex_table(rows: Rows, num_left: int = 1) -> str:
    """Returns a `tabular` that needs no package. The first `num_left` columns are left-aligned."""
    header, *body = [" & ".join(map(escape_latex, row)) + r" \\" + "\n" for row in rows]
    columns = "l" * num_left + "r" * (len(rows[0]) - num_left)
    return f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{header}\\hline\n{''.join(body)}\\hline\n\\end{{tabular}}\n"


def escape_latex(text: str) -> str:
    """Escapes text so that LaTeX prints it unchanged. The sign of a negative number becomes a minus."""
    escaped = "".join(_LATEX.get(character, character) for character in text).replace("--", "-{}-")
    return f"$-${escaped[1:]}" if re.match(r"-[0-9]", escaped) else escaped


def format_p_value(p: float) -> str:
    """Returns four digits."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"
