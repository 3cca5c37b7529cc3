"""The short campaign of kills (`make chaos-short`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import campaign, prepared_repository

pytestmark = pytest.mark.pipeline


def test_stages_that_were_killed_end_as_if_they_had_been_left_alone(tmp_path: Path) -> None:
    found = campaign(prepared_repository(tmp_path), is_short=True)
    assert (found.divergences, found.lost_steps, found.manual_repairs) == (0, 0, 0), found.cases
    assert found.kills == 3 * 5
    assert found.control_detected
