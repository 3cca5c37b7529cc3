"""Shows a stage's progress on the page of its Prefect run."""

from __future__ import annotations

import logging
import time
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from flows.progress_lines import Progress, parse_progress

_EVERY_S = 2.0  # an update costs a request to the server


class ProgressArtifact:
    """Keeps a progress artifact, made at a stage's first progress line, up to date; gives up when Prefect fails it."""

    def __init__(self, stage: str, logger: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> None:
        self._key = f"{stage}-progress".lower().replace("_", "-")  # Prefect takes lower case and dashes only
        self._logger = logger
        self._artifact_id: UUID | None = None
        self._next_s = 0.0
        self._lost = False

    def read(self, line: str) -> None:
        """Show what a line says when it is a progress line and the last one is old enough, or its loop has ended."""
        progress = parse_progress(line)
        now_s = time.monotonic()
        if progress is None or self._lost or (now_s < self._next_s and progress.percent < 100):
            return
        self._next_s = now_s + _EVERY_S
        try:
            self._show(progress)
        except (httpx.HTTPError, PrefectException) as error:
            self._lost = True
            self._logger.warning("no more progress is shown: %r", error)

    def _show(self, progress: Progress) -> None:
        if self._artifact_id is None:
            self._artifact_id = create_progress_artifact(progress.percent, key=self._key, description=progress.text)
        else:
            update_progress_artifact(self._artifact_id, progress=progress.percent, description=progress.text)
