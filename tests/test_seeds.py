from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import seeds
from flows.seeds import run_seed, spread_table
from minillm.errors import UserError


def report(teacher: float, warmup: tuple[float, float], student: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {
        "teacher": {"rougeL": teacher},
        "warmup": {"rougeL": warmup[0], "reverse_kl": warmup[1]},
        "student": {"rougeL": student[0], "reverse_kl": student[1]},
    }


def test_the_table_has_a_line_a_seed_and_the_spread_over_them() -> None:
    """By hand: means of (60, 62), (40, 44), (1.5, 1.3), (50, 51), (1.0, 1.2) and their deviations with n - 1."""
    table = spread_table({2: report(62, (44, 1.3), (51, 1.2)), 1: report(60, (40, 1.5), (50, 1.0))})
    lines = [line.split() for line in table.splitlines()]
    assert [line[0] for line in lines] == ["seed", "1", "2", "mean", "std"]
    assert lines[1][1:] == ["60.000", "40.000", "1.500", "50.000", "1.000"]
    assert lines[3][1:] == ["61.000", "42.000", "1.400", "50.500", "1.100"]
    assert lines[4][1:] == ["1.414", "2.828", "0.141", "0.707", "0.141"]


def test_one_seed_has_no_spread() -> None:
    assert "std" not in spread_table({1: report(60, (40, 1.5), (50, 1.0))})


def test_a_seed_is_an_experiment_whose_report_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Path, str, dict[str, Any]]] = []

    def run_experiment(root: Path, name: str, settings: dict[str, Any]) -> None:
        calls.append((root, name, settings))
        (root / "metrics").mkdir()
        (root / "metrics/report.json").write_text(json.dumps(report(60, (40, 1.5), (50, 1.0))))

    monkeypatch.setattr(seeds, "run_experiment", run_experiment)
    assert run_seed(tmp_path, 18) == report(60, (40, 1.5), (50, 1.0))
    assert calls == [(tmp_path, "seed-18", {"seed": 18})]


def test_a_seed_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_experiment(root: Path, name: str, settings: dict[str, Any]) -> None:
        raise UserError("dvc exp run ended with exit code 255; its lines are above")

    monkeypatch.setattr(seeds, "run_experiment", run_experiment)
    with pytest.raises(UserError, match=r"seed 18: dvc exp run ended with exit code 255"):
        run_seed(tmp_path, 18)
