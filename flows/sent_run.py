"""A flow run for another pool: start it, wait for its end through short absences of the server, end it with us."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any
from uuid import UUID

import httpx
from prefect import State
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelling

from minillm.errors import UserError

_POLL_S = 2.0
_SERVER_AWAY_S = 600.0  # a server that is restarted is back by then


def run_elsewhere(deployment: str, parameters: dict[str, Any], name: str) -> State[Any]:
    """Return the final state of a run of a deployment; a block that is left otherwise cancels it.

    Prefect itself cancels it as well, but only when this run's process has gone. Raises ObjectNotFound when there is no
    such deployment, and UserError when somebody deletes the run.
    """
    run = run_deployment(deployment, parameters=parameters, as_subflow=True, timeout=0, flow_run_name=name)
    try:
        return _final_state(run.id)
    except BaseException:
        with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Cancelling())
        raise


def _final_state(run_id: UUID) -> State[Any]:
    answered_s = time.monotonic()
    with get_client(sync_client=True) as client:
        while True:
            try:
                state = client.read_flow_run(run_id).state
                answered_s = time.monotonic()
            except ObjectNotFound:
                raise UserError(f"its run {run_id} was deleted in Prefect") from None
            except httpx.HTTPError:
                state = None
                if time.monotonic() - answered_s > _SERVER_AWAY_S:
                    raise
            if state and state.is_final():
                return state
            time.sleep(_POLL_S)
