"""The short campaign of kills (`make chaos-short`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import NUM_REPRO_SHORT, SHORT_PLACES, campaign, prepared_repository
from tests.chaos_findings import Findings
from tests.chaos_repro import kill_repro

pytestmark = pytest.mark.pipeline


def test_fault_01_and_fault_02_stages_that_were_killed_end_as_if_they_had_been_left_alone(tmp_path: Path) -> None:
    found = campaign(prepared_repository(tmp_path), is_short=True)
    assert (found.divergences, found.lost_steps, found.manual_repairs) == (0, 0, 0), found.cases
    assert found.kills == sum(len(case) for cases in SHORT_PLACES.values() for case in cases)
    assert found.control_detected


def test_fault_07_a_killed_dvc_repro_needs_no_hand(tmp_path: Path) -> None:
    found = Findings()
    kill_repro(tmp_path / "repro", found, NUM_REPRO_SHORT)
    assert (found.divergences, found.manual_repairs) == (0, 0), found.cases
    assert found.kills == NUM_REPRO_SHORT
