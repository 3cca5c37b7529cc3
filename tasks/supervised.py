"""What the stages teacher and warmup share: run a supervised loop, log it, publish the best checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.errors import NonFiniteError
from minillm.failpoints import failpoint
from minillm.models import save_model
from minillm.types import StepReport, TrainingState
from tasks.progress import progress
from tasks.session import Session
from tasks.storage import now_ms

if TYPE_CHECKING:
    from tasks.tracking import Tracker

_OF_ROWS = ("step", "is_best", "time_ms")  # of a row of the history, beside its metrics
_NOT_REPRODUCIBLE = ("time/", "memory/", "time_ms")  # readings of the machine go to MLflow, never into a DVC output


def publish_best(
    stage: str,
    train: Callable[[TrainingState | None], Iterable[StepReport]],
    model: Any,
    tokenizer: Any,
    *,
    num_steps: int,
    published_dir: Path,
    tracker: Tracker,
    session: Session,
) -> list[dict[str, float]]:
    """Run a training loop to its end, publish the weights of its last `is_best` report, and return its curve.

    train: starts the loop anew, or from a state that it reported in a run that was stopped.
    Until the loop has ended everything lies outside the stage's outputs, so that a stopped run publishes nothing.
    """
    state, history = session.resume()
    _tell_again(tracker, history)
    if not session.is_finished:
        reports = progress(train(state), stage, total=num_steps + 1, num_done=len(history))
        _train(reports, model, tokenizer, history, stage, tracker, session)
        session.finish(history)
    _publish(session.best_dir, published_dir)
    return [_curve_row(row) for row in history]


def _train(
    reports: Iterable[StepReport],
    model: Any,
    tokenizer: Any,
    history: list[dict[str, float]],
    stage: str,
    tracker: Tracker,
    session: Session,
) -> None:
    """Keep the best weights, tell MLflow and offer a checkpoint step by step; `history` grows by a row each."""
    try:
        with session.ending_on_sigterm():
            for report in reports:
                if report.is_best:
                    save_model(model, tokenizer, session.best_dir)
                history.append({"step": report.step, "is_best": report.is_best, "time_ms": now_ms(), **report.metrics})
                _tell(tracker, history[-1])
                session.offer(report, history)
    except NonFiniteError as error:
        good = f"; best weights so far: {session.best_dir}, of step {best_row(history)['step']:.0f}" if history else ""
        raise NonFiniteError(f"stage {stage}: {error}{good}") from error


def _tell_again(tracker: Tracker, history: Sequence[dict[str, float]]) -> None:
    """Give MLflow's new run what the steps of a stopped one reported, each at its own time."""
    if history:
        tracker.tag("resumed_behind_step", f"{history[-1]['step']:.0f}")
    for row in history:
        _tell(tracker, row)


def _tell(tracker: Tracker, row: dict[str, float]) -> None:
    metrics = {name: value for name, value in row.items() if name not in _OF_ROWS}
    tracker.log(int(row["step"]), metrics, int(row["time_ms"]))


def _publish(best_dir: Path, published_dir: Path) -> None:
    """Copy the best weights, so that a stage that is stopped after this can go on as well."""
    temporary = published_dir.with_name(f".{published_dir.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(best_dir, temporary)
    failpoint("publish.copied")
    shutil.rmtree(published_dir, ignore_errors=True)
    failpoint("publish.removed")
    os.replace(temporary, published_dir)
    failpoint("publish.replaced")


def _curve_row(row: dict[str, float]) -> dict[str, float]:
    kept = {name: value for name, value in row.items() if not name.startswith(_NOT_REPRODUCIBLE)}
    return {**kept, "is_best": float(row["is_best"])}


def best_row(curve: list[dict[str, float]]) -> dict[str, float]:
    """Return the row of the curve whose weights were published."""
    return [row for row in curve if row["is_best"]][-1]
