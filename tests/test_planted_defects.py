"""Defects planted in a copy of the library, each of which the mathematics' own tests must notice (slow).

The first group are faults of published implementations (docs/differences.md); the second would waste a run in silence.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.defects import PUBLISHED, SILENT
from tests.imports import ROOT
from tests.kernel_defects import KERNELS

WATCHFUL = [
    f"tests/test_{name}.py"
    for name in (
        "oracle",
        "divergences",
        "methods",
        "update",
        "invariance",
        "checkpointing",
        "advantages",
        "distiller",
        "sft",
        "logprobs",
        "heads",
        "lean_body",
        "lean_support",
        "lean_decoder",
        "evaluation",
        "sampling",
        "lazy_reading",
        "mixture_law",
        "credit",
        "draws",
        "method_knobs",
        "config",
        "kept_memory",
        "packed_linear",
        "packed_model",
        "kernels",
        "training_kernels",
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PUBLISHED, *SILENT, *KERNELS])
def test_a_planted_defect_makes_the_suite_fail(name: str, tmp_path: Path) -> None:
    path, code, defect = {**PUBLISHED, **SILENT, **KERNELS}[name]
    source = (ROOT / path).read_text(encoding="utf-8")
    assert source.count(code) == 1, f"{path} no longer holds this code once"
    for part in ("minillm", "tasks", "flows", "tests", "configs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / part, tmp_path / part)
    (tmp_path / path).write_text(source.replace(code, defect), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *WATCHFUL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout[-2000:]  # 1: tests failed; other codes say that they could not run
