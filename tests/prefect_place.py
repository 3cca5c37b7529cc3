"""A real Prefect server for tests, and the flow run on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flows.environment import PREFECT_CLIENT, TELEMETRY_OFF
from flows.request import PipelineRequest


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect server for all tests of a module, with its files in a temporary directory."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**TELEMETRY_OFF, **PREFECT_CLIENT}.items():
            patch.setenv(name, value)
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            yield


def run_pipeline(request: PipelineRequest) -> Any:
    """Return the final state of one run in the working directory."""
    from flows.pipeline import pipeline

    return pipeline(request, return_state=True)
