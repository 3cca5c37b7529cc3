"""The schedules of prefect.yaml: a time zone of their own, one run a night, never two at once."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from minillm.params import read_yaml
from tests.imports import ROOT

DEPLOYMENTS = read_yaml(ROOT / "prefect.yaml")["deployments"]
SCHEDULES = [schedule for deployment in DEPLOYMENTS for schedule in deployment.get("schedules", ())]


def dates(schedule: dict[str, Any], start: datetime, end: datetime) -> list[datetime]:
    """Return when Prefect would start the runs of a schedule."""
    from prefect.server.schemas.schedules import CronSchedule

    cron = CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    return asyncio.run(cron.get_dates(n=100, start=start, end=end))


def test_there_is_a_schedule() -> None:
    assert SCHEDULES


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule["cron"])
@pytest.mark.parametrize(("year", "month", "day"), [(2027, 3, 27), (2026, 10, 24), (2028, 2, 28), (2026, 12, 31)])
def test_fault_24_a_night_has_one_run_also_when_the_clocks_change(
    schedule: dict[str, Any], year: int, month: int, day: int
) -> None:
    start = datetime(year, month, day, 12, tzinfo=ZoneInfo(schedule["timezone"]))
    found = dates(schedule, start, datetime.fromtimestamp(start.timestamp() + 3 * 24 * 3600, start.tzinfo))
    nights = [date.astimezone(start.tzinfo).date().toordinal() - start.date().toordinal() for date in found]
    assert nights == [1, 2, 3]


def test_fault_24_a_date_that_never_comes_and_an_unknown_zone_would_be_noticed() -> None:
    start, end = (datetime(year, 1, 1, tzinfo=ZoneInfo("UTC")) for year in (2026, 2027))
    with pytest.raises(ValueError, match="failed to find next date"):
        dates({"cron": "0 0 30 2 *", "timezone": "UTC"}, start, end)
    with pytest.raises(ValueError, match="Invalid timezone"):
        dates({"cron": "0 2 * * *", "timezone": "Europe/Nowhere"}, start, end)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_fault_24_a_run_waits_for_those_before(deployment: dict[str, Any]) -> None:
    limit = 2 if deployment["name"] == "on-demand" else 1  # two by hand work apart from each other
    assert deployment["concurrency_limit"] == {"limit": limit, "collision_strategy": "ENQUEUE"}
