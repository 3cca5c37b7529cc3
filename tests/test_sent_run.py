"""A run that was sent to another pool, when somebody deletes it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.processes import wait_until
from flows.request import Origin, StageRequest

pytestmark = pytest.mark.pipeline

_TIMEOUT_S = 60.0


def test_a_run_that_was_deleted_fails_its_stage_in_one_line(prefect_api: None, tmp_path: Path) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client

    from flows.stage_task import send_stage

    @flow(name="stage")
    def nothing() -> None:
        pass

    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(nothing), name="far")
        origin = Origin(pipeline_key="key", flow_run_id="0123456789", page="", experiment="")
        request = StageRequest(stage="distill", origin=origin)
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(send_stage, "far", request, return_state=True)
            assert wait_until(lambda: bool(client.read_flow_runs()), _TIMEOUT_S)
            [run] = client.read_flow_runs()
            assert run.deployment_id == deployment
            client.delete_flow_run(run.id)
            state = sent.result(_TIMEOUT_S)
    assert state.is_failed()
    assert state.message == f"stage distill on pool far: its run {run.id} was deleted in Prefect"
