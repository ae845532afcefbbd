"""Docstrings of the modules, classes and functions in a tree of Python sources. Sources are parsed, not imported."""

import ast
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError

# Tests and programs. Names that start with _ or are not identifiers (site-packages, lib-dynload) are left out as well.
SKIPPED_DIRECTORIES = {"test", "tests", "idlelib", "lib2to3", "turtledemo"}


@dataclass
class Function:
    """The part of a document about a function. `summary` is empty if the docstring has no separate summary line."""

    name: str
    signature: str
    summary: str
    description: str


@dataclass
class Source:
    """A module or a class: the source of one document."""

    title: str
    description: str
    functions: list[Function]

    @property
    def url(self) -> str:
        """The documentation page of the top-level package. Not every module has its own page."""
        return f"https://docs.python.org/3/library/{self.title.partition('.')[0]}.html"


def find_modules(source_dir: Path) -> list[Path]:
    """Returns the public modules in a directory tree, in the same order on every machine."""
    modules = []
    for directory, subdirectories, names in os.walk(source_dir):
        subdirectories[:] = [
            name
            for name in subdirectories
            if name.isidentifier() and not name.startswith("_") and name not in SKIPPED_DIRECTORIES
        ]
        modules += [
            Path(directory, name)
            for name in names
            if name == "__init__.py" or (name.endswith(".py") and name[:-3].isidentifier() and not name.startswith("_"))
        ]
    return sorted(modules)


def read_module(path: Path, source_dir: Path) -> list[Source]:
    """Returns the module with its functions, and each of its public classes with its methods.

    Raises InputError for a file that is not Python.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of invalid escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise InputError(f"{path}: this Python cannot parse it: {error}") from None
    parts = path.relative_to(source_dir).with_suffix("").parts
    title = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    sources = [Source(title, ast.get_docstring(tree) or "", read_functions(tree))]
    for node in definitions(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            sources.append(Source(f"{title}.{node.name}", ast.get_docstring(node) or "", read_functions(node)))
    return sources


def definitions(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yields the functions and classes that a module or class defines, also inside `if`, `try` and `with`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from definitions(child)


def read_functions(node: ast.AST) -> list[Function]:
    """Returns the public functions of a module or class, and its special methods with a docstring."""
    functions = []
    for child in definitions(node):
        if isinstance(child, ast.ClassDef):
            continue
        docstring = ast.get_docstring(child) or ""
        special = child.name.startswith("__") and child.name.endswith("__")
        if child.name.startswith("_") and not (special and docstring):
            continue
        # PEP 257: a summary line has an empty line after it. Without that, the first line can end inside a sentence.
        summary, _, description = docstring.partition("\n")
        if description.partition("\n")[0].strip():
            summary, description = "", docstring
        functions.append(Function(child.name, signature(child), summary.strip(), description))
    return functions


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Returns `name(parameter, *others)`, without `self`, defaults and annotations, which would fill a passage."""
    given = function.args
    names = [argument.arg for argument in given.posonlyargs + given.args]
    if names[:1] in (["self"], ["cls"]):
        del names[0]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [argument.arg for argument in given.kwonlyargs]
    names += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return f"{function.name}({', '.join(names)})"
