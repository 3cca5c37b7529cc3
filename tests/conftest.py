"""What all tests share: one thread, patience, and the fixtures of the endpoint and of MLflow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from minillm import packed_linear
from minillm.kernels import compiled
from tests.fake_endpoint import endpoint, store
from tests.mlflow_place import empty_store, params
from tests.prefect_place import prefect_api
from tests.tiny_pipeline import finished_project

__all__ = ["empty_store", "endpoint", "finished_project", "params", "prefect_api", "store"]

# For tiny models more threads only wait for each other, endlessly on a machine that is busy.
torch.set_num_threads(1)

# Tiny models are packed as large ones are.
packed_linear._SMALLEST = 1

# How long an example takes says how busy the machine is.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(params=["kernels", "library"])
def operations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything once by the kernels, where there is a compiler, and once without."""
    if request.param == "library":
        monkeypatch.setattr(compiled, "kernels", lambda: None)
