"""`python -m flows.prefect_setup`: the work pools and automations on the Prefect server that PREFECT_API_URL names.

It can be called again at any time: nothing is doubled.
"""

from __future__ import annotations

from contextlib import suppress

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from flows.automations import apply_automation, lost_runs

_CONCURRENCY = {"cpu": None, "gpu": 1}  # the GPU serves one run at a time


def make_pools(client: SyncPrefectClient) -> None:
    """Make the work pools of type process; one that is there stays as it is, limits and pauses included."""
    template = ProcessWorker.get_default_base_job_template()
    # Its lines would go through a pipe that breaks with the worker, and the run with it. Its page has them all.
    template["variables"]["properties"]["stream_output"]["default"] = False
    for name, limit in _CONCURRENCY.items():
        pool = WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=limit)
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(pool)


def main() -> None:
    """Make all of it."""
    with get_client(sync_client=True) as client:
        make_pools(client)
        apply_automation(client, lost_runs())
    print("work pools and automations are there")


if __name__ == "__main__":
    main()
