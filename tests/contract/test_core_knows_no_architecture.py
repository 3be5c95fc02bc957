"""No name of an architecture in the core's code: not as an identifier, not in a string it computes with.

Docstrings and comments may name machines as examples of why a question is asked.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "core" / "polymmu"
NAMES = re.compile(
    r"x86|i386|amd64|ia64|itanium|ppc|powerpc|sparc|s390|riscv|arm64|\bpae\b|pcid|cr3", re.IGNORECASE
)
# A trace of a real program carries the call numbers of the system it was recorded on.
RECORDED_ON = {"syscalls.py"}


def code_words(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, word) of every identifier and every string that is not a docstring."""
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for child in node.body:
                if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                    docstrings.add(id(child.value))
    words: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            words.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute):
            words.append((node.lineno, node.attr))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words.append((node.lineno, node.value))
        elif isinstance(node, (ast.alias, ast.FunctionDef | ast.ClassDef)):
            words.append((node.lineno, node.name))
    return words


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_core_names_no_architecture(path: Path) -> None:
    if path.name in RECORDED_ON:
        return
    found = [
        (line, word)
        for line, word in code_words(ast.parse(path.read_text(encoding="utf-8")))
        if NAMES.search(word)
    ]
    assert not found


def test_the_search_finds_what_it_looks_for() -> None:
    tree = ast.parse('"""x86 in a docstring"""\nif arch == "x86":\n    load_cr3(1)\n')
    assert [word for _, word in code_words(tree) if NAMES.search(word)] == ["x86", "load_cr3"]
