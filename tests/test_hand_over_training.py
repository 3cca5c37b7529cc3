"""Real training on a machine with a clone of its own: the record is that of a run on one machine, byte for byte."""

from __future__ import annotations

import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from flows.dvc_process import is_up_to_date
from flows.hand_over import clear_away, fetch_result, send_inputs
from flows.reproduction import reproduce
from flows.request import StageRequest
from tests.tiny_pipeline import command, commit, dvc, new_repository

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

_BEFORE, _AFTER = ("prepare", "teacher", "warmup"), ("evaluate", "report")


def _clone(source: Path, target: Path) -> Path:
    command(source, "git", "clone", "--quiet", str(source), str(target))
    shutil.copytree(source / "tiny-teacher", target / "tiny-teacher")
    return target


def _do(root: Path, *stages: str) -> None:
    for name in stages:
        assert reproduce(root, name, lambda line: None, {})[name].outcome == "ran"


def test_a_student_distilled_in_another_clone_gives_the_record_of_a_run_alone(
    prefect_api: None, tmp_path: Path
) -> None:
    from flows.stage_flow import stage

    (tmp_path / "first").mkdir()
    first = new_repository(tmp_path / "first")
    dvc(first, "remote", "add", "--default", "common", str(tmp_path / "dvc-remote"))
    commit(first, "remote")
    alone, cpu, gpu = (_clone(first, tmp_path / name) for name in ("alone", "cpu", "gpu"))
    _do(alone, *_BEFORE, "distill", *_AFTER)
    with chdir(cpu):
        _do(cpu, *_BEFORE)
        send_inputs(cpu, "carrier", "distill")
        with chdir(gpu):
            sent = StageRequest.model_validate({"stage": "distill", "experiment": "carrier"})
            state = stage(sent, return_state=True)
        assert state.is_completed() and state.message.startswith("ran in ")
        fetch_result(cpu, "carrier")
        clear_away(cpu, "carrier")
        assert is_up_to_date(cpu, *_BEFORE, "distill")
        _do(cpu, *_AFTER)
    assert (cpu / "dvc.lock").read_text() == (alone / "dvc.lock").read_text()
