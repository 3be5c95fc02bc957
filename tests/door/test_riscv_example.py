"""The RISC-V example, a distribution of its own: its tests pass beside this polymmu, and it uses public names only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from polymmu import arch
from tests.door.beside import ROOT, environment_with, run

EXAMPLE = ROOT / "examples" / "polymmu-riscv"


def passes(tmp_path: Path, *files: str) -> None:
    env = environment_with(EXAMPLE, tmp_path)
    places = [str(EXAMPLE / "tests" / file) for file in files]
    done = run(env, "-m", "pytest", "-q", "-p", "no:cacheprovider", *places, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_captured_kernels_tables_and_the_manuals_vectors_agree(tmp_path: Path) -> None:
    passes(tmp_path, "test_captured.py", "test_vectors.py", "test_fences.py", "test_asids.py")


@pytest.mark.slow
def test_all_of_its_tests_pass(tmp_path: Path) -> None:
    passes(tmp_path, "")


def test_a_recorded_program_runs_on_each_of_its_machines(tmp_path: Path) -> None:
    env = environment_with(EXAMPLE, tmp_path)
    names = sorted(path.stem for path in (EXAMPLE / "src" / "polymmu_riscv_machines").glob("*.yaml"))
    assert len(names) == 4
    done = run(env, "-m", "polymmu", "compare", str(ROOT / "examples" / "sort.npz"), *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in names)


def imported(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every import from polymmu; the name is empty where the module itself is."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, each.name) for each in node.names]
        elif isinstance(node, ast.Import):
            found += [(each.name, "") for each in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] == "polymmu"]


def test_its_plugin_imports_polymmu_arch_and_nothing_else_of_ours() -> None:
    sources = sorted((EXAMPLE / "src").rglob("*.py"))
    assert len(sources) == 5
    for module, name in (each for path in sources for each in imported(path)):
        assert module == "polymmu.arch"
        assert name in arch.__all__


def test_its_tests_import_public_names_only() -> None:
    for path in sorted((EXAMPLE / "tests").glob("*.py")):
        for module, name in imported(path):
            assert (module, name) in {("polymmu", ""), ("polymmu", "conformance")} or (
                module == "polymmu.arch" and name in arch.__all__
            ), f"{path.name}: {module} {name}"
