"""Registrars at once, and registrars whose every call fails: the best student is @champion, the newest @candidate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minillm.config import Params
from tasks.mlflow_store import Store
from tasks.registry import register_student
from tasks.registry_store import Registry
from tests.failing_client import deliver_through_failures
from tests.fake_registry import FakeClient, interleave
from tests.mlflow_place import client, runs, with_tracking
from tests.registry_place import NAME, ROUGE, aliases, make_student, versions

IDS = {"experiment": "0", "parent": "run"}
NUM_TURNS = 40


@pytest.fixture
def without_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.registry_store.student_files", lambda md5: {})
    for name in ("write_link", "write_loadable"):
        monkeypatch.setattr(f"tasks.registry_store.{name}", lambda *arguments: None)


def registrar(md5: str, value: float) -> Callable[[Any], None]:
    student = {
        "md5": md5,
        "path": "models/student",
        "tags": {},
        "finals": {ROUGE: value},
        "evaluations": {ROUGE: "e1"},
        "time_ms": 0,
    }
    return lambda mlflow: Registry(mlflow, NAME, ROUGE).register(IDS, student)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    values=st.lists(st.integers(0, 9), min_size=2, max_size=3),
    order=st.lists(st.integers(0, 2), min_size=NUM_TURNS, max_size=NUM_TURNS),
    crashes=st.lists(st.none() | st.integers(0, 30), min_size=3, max_size=3),
)
def test_in_whatever_order_registrars_work_and_crash_the_best_is_champion_in_the_end(
    without_files: None, values: list[int], order: list[int], crashes: list[int | None]
) -> None:
    mlflow = FakeClient()
    registrar("md5-first", 4.5)(mlflow)
    actions = [registrar(f"md5-{number}", float(value)) for number, value in enumerate(values)]
    interleave(mlflow, actions, order, crashes[: len(values)])
    for action in actions:  # a record that was not delivered to its end is delivered again
        action(mlflow)
    judged = {number: float(version.tags[ROUGE]) for number, version in mlflow.versions.items()}
    assert judged[mlflow.aliases["champion"]] == max(judged.values())
    assert mlflow.aliases["candidate"] == max(mlflow.versions, key=int)
    assert all("decision" in version.tags for version in mlflow.versions.values())
    assert len(mlflow.versions) == 1 + len(values)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(order=st.lists(st.integers(0, 1), min_size=NUM_TURNS, max_size=NUM_TURNS))
def test_two_registrars_of_one_student_leave_one_version(without_files: None, order: list[int]) -> None:
    mlflow = FakeClient()
    interleave(mlflow, [registrar("md5", 5.0)] * 2, order, [None, None])
    assert list(mlflow.aliases.values()) == ["1", "1"] and list(mlflow.versions) == ["1"]


@pytest.mark.parametrize("is_done_first", [False, True], ids=["call lost", "answer lost"])
def test_a_registration_whose_every_call_fails_once_is_made_good(params: Params, is_done_first: bool) -> None:
    make_student("a", 48.0)
    register_student(params)
    make_student("b", 51.0)
    register_student(with_tracking(params, uri="http://127.0.0.1:9"))
    assert deliver_through_failures(Store(params.tracking), is_done_first) > 20
    assert len(versions()) == 2 and aliases() == {"candidate": 2, "champion": 2}
    assert versions()[1].tags["decision"].startswith("is @champion: ")
    (run,) = runs("pipeline")
    assert len(client().search_logged_models([run.info.experiment_id])) == 2
