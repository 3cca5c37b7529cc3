"""What a person does in the browser: fill in Prefect's form, watch the run end, compare two runs in MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from flows.dvc_process import dvc
from minillm.params import load_params
from tasks.pages import comparison_page, curves_page
from tests.browser import browser_page, missing, picture
from tests.team_repository import Team, team_up
from tests.tiny_pipeline import new_repository

pytestmark = [pytest.mark.ui, pytest.mark.skipif(bool(missing()), reason=missing())]

_DEPLOYMENT = "pipeline/on-demand"
_RUN_TIMEOUT_S = 900
_DRAWN_MS = 3000


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The real pipeline on a tiny teacher, with servers, workers and deployments."""
    root = new_repository(tmp_path_factory.mktemp("ui"))
    with pytest.MonkeyPatch.context() as patch, team_up(root, patch) as team:
        yield team


def _deployment_page(team: Team) -> str:
    with team.client() as client:
        return f"{team.prefect}/v2/deployments/deployment/{client.read_deployment_by_name(_DEPLOYMENT).id}/run"


def _newest_run(team: Team) -> Any:
    from prefect.client.schemas.sorting import FlowRunSort

    with team.client() as client:
        runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=10)
    return next(run for run in runs if run.parent_task_run_id is None)


def _ended(team: Team, run_id: Any) -> Any:
    deadline = time.monotonic() + _RUN_TIMEOUT_S
    while not (state := team.state(run_id)) or not state.is_final():
        assert time.monotonic() < deadline, state
        time.sleep(1)
    return state


def test_a_run_is_asked_for_in_the_form_and_seen_to_end(team: Team) -> None:
    with browser_page(height=1400) as page:
        page.goto(_deployment_page(team))
        page.get_by_label("Alpha").fill("0.4")
        page.get_by_label("Seed").fill("18")
        page.get_by_label("Experiment").fill("by-form")
        picture(page, "prefect-form")
        page.get_by_role("button", name="Submit").click()
        page.wait_for_url("**/deployments/deployment/*?tab=Runs")
        run = _newest_run(team)
        state = _ended(team, run.id)
        assert state.is_completed(), state.message
        page.goto(f"{team.prefect}/v2/runs/flow-run/{run.id}?tab=Artifacts")
        page.get_by_text("What DVC did with each stage").first.wait_for()
        picture(page, "prefect-run")
    dvc(team.root, "exp", "apply", "by-form")
    params = load_params(team.root / "params.yaml")
    assert (params.distill.rollout.teacher_mix_alpha, params.seed) == (0.4, 18)
    assert "up to date" in dvc(team.root, "status")


def test_a_value_that_is_not_allowed_starts_no_run(team: Team) -> None:
    before = _newest_run(team)
    with browser_page(height=1400) as page:
        page.goto(_deployment_page(team))
        page.get_by_label("Alpha").fill("1.5")
        page.get_by_role("button", name="Submit").click()
        page.get_by_text("1.5 is greater than or equal to the maximum of 1").first.wait_for()
        picture(page, "prefect-refused")
    assert _newest_run(team).id == before.id


def test_two_methods_are_compared_in_mlflow(team: Team) -> None:
    with team.client() as client:
        found = client.read_deployment_by_name(_DEPLOYMENT)
        request = {"overrides": {"method": "kd", "seed": 18}, "experiment": "kd"}
        run = client.create_flow_run_from_deployment(found.id, parameters={"request": request})
    assert _ended(team, run.id).is_completed()
    tracking = load_params(team.root / "params.yaml").tracking
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", team.mlflow)
        comparison = comparison_page(team.mlflow, tracking, ["by-form", "kd"], 2)
        curves = curves_page(team.mlflow, tracking, ["by-form", "kd"], 2, "validation/reverse_kl")
    with browser_page(width=1600) as page:
        page.goto(comparison)
        for text in ("by-form", "kd", "distill.method"):
            page.get_by_text(text, exact=True).first.wait_for()
        picture(page, "mlflow-compare")
        page.goto(curves)
        for name in ("by-form", "kd"):
            page.get_by_text(f"distill {name}").first.wait_for()
        page.wait_for_timeout(_DRAWN_MS)
        picture(page, "mlflow-curves")
