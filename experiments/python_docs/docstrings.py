"""What a tree of Python sources documents: modules, classes, functions. Sources are parsed, never imported."""

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError

# Tests and programs, not a library's documentation. Names that begin with _ or are no identifiers (site-packages,
# lib-dynload) are left out as well.
SKIPPED_DIRECTORIES = {"test", "tests", "idlelib", "lib2to3", "turtledemo"}


@dataclass
class Function:
    """A function's part of a document. `summary` is empty where the docstring has no summary line of its own."""

    name: str
    signature: str
    summary: str
    description: str


@dataclass
class Source:
    """What becomes a document: a module, or a class of it."""

    title: str
    description: str
    functions: list[Function]

    @property
    def url(self) -> str:
        """The page of the module's package, which documents also those of its modules that have no page."""
        return f"https://docs.python.org/3/library/{self.title.partition('.')[0]}.html"


def find_modules(source_dir: Path) -> list[Path]:
    """The public modules under a directory, in the same order on every machine."""
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
    """The module itself, with its functions, and each of its public classes, with their methods.

    Raises InputError for a file that is not Python.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path}: this Python cannot parse it: {error}") from None
    parts = path.relative_to(source_dir).with_suffix("").parts
    title = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    sources = [Source(title, ast.get_docstring(tree) or "", read_functions(tree))]
    for node in definitions(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            sources.append(Source(f"{title}.{node.name}", ast.get_docstring(node) or "", read_functions(node)))
    return sources


def definitions(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions and classes that a module or class defines, those under an `if`, `try` or `with` too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from definitions(child)


def read_functions(node: ast.AST) -> list[Function]:
    """The public functions of a module or class, and those special methods that are documented."""
    functions = []
    for child in definitions(node):
        if isinstance(child, ast.ClassDef):
            continue
        docstring = ast.get_docstring(child) or ""
        special = child.name.startswith("__") and child.name.endswith("__")
        if child.name.startswith("_") and not (special and docstring):
            continue
        # A summary line as PEP 257 has it: one line, an empty one behind it. Others break off inside a sentence.
        summary, _, description = docstring.partition("\n")
        if description.partition("\n")[0].strip():
            summary, description = "", docstring
        functions.append(Function(child.name, signature(child), summary.strip(), description))
    return functions


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """`name(parameter, *others)`. Without `self`, defaults and annotations, which would take most of a passage."""
    given = function.args
    names = [argument.arg for argument in given.posonlyargs + given.args]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [argument.arg for argument in given.kwonlyargs]
    names += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return f"{function.name}({', '.join(names[names[:1] in (['self'], ['cls']) :])})"
