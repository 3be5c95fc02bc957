"""The explorer and SPIN agree on every outcome of small models; and both with what is known of them by hand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.spin.models import VARIANTS, outcomes

HERE = Path(__file__).parent
CASES = [(model, variant, breaks) for (model, variant), breaks in VARIANTS.items()]


def spin_outcomes(model: str, variant: str, scratch: Path) -> set[tuple[int, ...]]:
    """Every outcome that SPIN's full search (no reduction) comes to."""
    spin, compiler = shutil.which("spin"), shutil.which("gcc") or shutil.which("cc")
    if spin is None or compiler is None:
        pytest.skip("spin or a C compiler is not installed (apt-get install spin gcc)")
    defined = [f"-D{variant}"] if variant else []
    subprocess.run(
        [spin, *defined, "-a", str(HERE / f"{model}.pml")], cwd=scratch, check=True, capture_output=True
    )
    build = [compiler, "-w", "-O1", "-DNOREDUCE", "-DSAFETY", "-o", "pan", "pan.c"]
    subprocess.run(build, cwd=scratch, check=True, capture_output=True)
    done = subprocess.run([str(scratch / "pan")], cwd=scratch, check=True, capture_output=True, text=True)
    assert "errors: 0" in done.stdout
    return {tuple(map(int, line.split()[1:])) for line in done.stdout.splitlines() if line.startswith("OUT ")}


@pytest.mark.parametrize(("model", "variant", "breaks"), CASES)
def test_source_sets_find_every_outcome_that_brute_force_finds(
    model: str, variant: str, breaks: bool
) -> None:
    found, _ = outcomes(model, variant)
    assert found == outcomes(model, variant, "naive")[0]
    assert any(outcome[0] for outcome in found) == breaks


@pytest.mark.spin
@pytest.mark.parametrize(("model", "variant", "breaks"), CASES)
def test_spin_and_the_explorer_agree(model: str, variant: str, breaks: bool, tmp_path: Path) -> None:
    theirs = spin_outcomes(model, variant, tmp_path)
    assert any(outcome[0] for outcome in theirs) == breaks
    assert outcomes(model, variant)[0] == theirs
