"""MLflow: one parent run per pipeline, one child run per stage; the only file that imports mlflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from minillm.config import Params


class Tracker:
    """Records one stage; every method may fail to reach MLflow without failing the stage."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `group/name` metrics of one step."""

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Record final values on the stage's run and on its parent."""

    def dataset(self, name: str, path: Path) -> None:
        """Record a file as a data set input."""

    def model(self, name: str, directory: Path) -> None:
        """Record a model directory of safetensors, when params select it."""

    def artifact(self, path: Path) -> None:
        """Record a file."""


@contextmanager
def open_tracker(stage: str, params: Params) -> Iterator[Tracker]:
    """Yield the tracker of one stage run and close it as finished or failed."""
    yield Tracker()
