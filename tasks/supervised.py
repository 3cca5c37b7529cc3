"""What the stages teacher and warmup share: run a supervised loop, log it, publish the best checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.errors import NonFiniteError
from minillm.models import save_model
from minillm.types import StepReport
from tasks.progress import progress
from tasks.storage import STATE_DIR

if TYPE_CHECKING:
    from tasks.tracking import Tracker

_NOT_REPRODUCIBLE = ("time/", "memory/")  # readings of the machine go to MLflow, never into a DVC output


def publish_best(
    stage: str,
    reports: Iterable[StepReport],
    model: Any,
    tokenizer: Any,
    *,
    num_steps: int,
    published_dir: Path,
    tracker: Tracker,
) -> list[dict[str, float]]:
    """Run a training loop to its end, publish the weights of its last `is_best` report, and return its curve.

    Until the loop has ended the best weights lie outside the stage's outputs, so that a stopped run publishes nothing.
    """
    best_dir = STATE_DIR / stage / "best"
    curve: list[dict[str, float]] = []
    try:
        for report in progress(reports, stage, total=num_steps + 1):
            if report.is_best:
                save_model(model, tokenizer, best_dir)
            tracker.log(report.step, report.metrics)
            curve.append(_curve_row(report))
    except NonFiniteError as error:
        good = f"; best weights so far: {best_dir}, of step {best_row(curve)['step']:.0f}" if curve else ""
        raise NonFiniteError(f"stage {stage}: {error}{good}") from error
    published_dir.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(published_dir, ignore_errors=True)
    os.replace(best_dir, published_dir)
    return curve


def _curve_row(report: StepReport) -> dict[str, float]:
    metrics = {name: value for name, value in report.metrics.items() if not name.startswith(_NOT_REPRODUCIBLE)}
    return {"step": report.step, "is_best": float(report.is_best), **metrics}


def best_row(curve: list[dict[str, float]]) -> dict[str, float]:
    """Return the row of the curve whose weights were published."""
    return [row for row in curve if row["is_best"]][-1]
