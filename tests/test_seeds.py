from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import seeds
from flows.seeds import run_seed, spread_table
from minillm.errors import UserError
from tests.compare_example import edit, make_repository, stand_in, state


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


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with an edited params.yaml, in which `dvc exp run` is replaced by something quick."""
    root = make_repository(tmp_path, monkeypatch)
    monkeypatch.setattr(seeds, "run_experiment", stand_in)
    monkeypatch.setattr(seeds, "end_by_signal", lambda: None)
    edit(root)
    return root


def test_after_all_seeds_the_workspace_is_as_it_was(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(root)
    assert seeds.main(["19", "18", "19"]) == 0
    (root / "metrics").joinpath("seeds.json").unlink()
    assert state(root) == before
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["seed", "18", "19", "mean", "std", "params.yaml"]


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (UserError("it failed"), 2, "error: seed 18: it failed"),
        (KeyboardInterrupt(), 130, "interrupted; the workspace is as it was. "),
    ],
)
def test_seeds_that_are_cut_give_the_workspace_back(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    exit_code: int,
    line: str,
) -> None:
    def failing(root: Path, name: str, settings: dict[str, Any]) -> None:
        stand_in(root, name, settings)
        if name == "seed-18":
            raise error

    monkeypatch.setattr(seeds, "run_experiment", failing)
    before = state(root)
    assert seeds.main(["17", "18"]) == exit_code
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith(line)
    assert state(root) == before


def test_a_seed_out_of_range_is_refused_before_anything_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert seeds.main(["17", "-1"]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: seed -1: params.yaml: seed: ") and output.out == ""
    assert not (root / "metrics").exists()
