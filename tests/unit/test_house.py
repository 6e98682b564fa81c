"""Rules of the house that no linter knows: one name for one type, and docstrings in plain English."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import muai_lab

PACKAGE = Path(muai_lab.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
# Names that stand in two modules for a reason: none so far.
EXCEPTIONS: frozenset[str] = frozenset()
# A thing is a noun phrase, a function a verb: a docstring is neither a question nor a subordinate clause.
NO_OPENING = frozenset({"What", "Whether", "Who", "How", "Which", "When", "Where", "If"})


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def type_names(module: ast.Module) -> list[str]:
    """Classes and aliases at the top of a module: `class Window`, `Floats = NDArray[...]`."""
    found = [node.name for node in module.body if isinstance(node, ast.ClassDef)]
    for node in module.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        found += [name for name in names if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*", name)]
    return found


def test_no_type_name_stands_in_two_modules() -> None:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for name in MODULES:
        for found in type_names(parsed(name)):
            homes[found].append(name)

    twice = {name: where for name, where in homes.items() if len(where) > 1 and name not in EXCEPTIONS}

    assert not twice


def test_no_docstring_begins_as_a_question() -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    questions = [
        f"{name}: {text.splitlines()[0]}"
        for name in MODULES
        for node in ast.walk(parsed(name))
        if isinstance(node, kinds) and (text := ast.get_docstring(node)) and text.split()[0].strip(",.:") in NO_OPENING
    ]

    assert not questions
