from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from minillm.errors import NonFiniteError
from minillm.models import load_saved
from minillm.types import StepReport
from tasks.session import Session
from tasks.supervised import best_row, publish_best
from tasks.tracking import Tracker
from tests import tiny
from tests.test_models import WORDS, word_tokenizer


@pytest.fixture
def quiet_tracker() -> Tracker:
    return Tracker(None, [])


def scripted(model: Any, losses: list[float], fails_after: int | None = None) -> Iterator[StepReport]:
    """Change one weight a step to the step's number; the lowest loss so far is the best."""
    for step, loss in enumerate(losses):
        if step == fails_after:
            raise NonFiniteError(f"step {step}: loss nan, gradient norm nan")
        with torch.no_grad():
            model.lm_head.weight[0, 0] = step
        metrics = {"validation/loss": loss, "time/step_s": 0.1, "memory/peak_mib": 9.0}
        yield StepReport(step, metrics, is_best=loss == min(losses[: step + 1]))


def publish(reports: Iterator[StepReport], model: Any, tracker: Tracker) -> list[dict[str, float]]:
    return publish_best(
        "warmup",
        lambda state: reports,
        model,
        word_tokenizer(WORDS),
        num_steps=3,
        published_dir=Path("models/warmup"),
        tracker=tracker,
        session=Session("warmup", dict, 60.0),
    )


def test_the_weights_of_the_best_report_are_published_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_tracker: Tracker
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny.tiny_llama(1)
    curve = publish(scripted(model, [3.0, 1.0, 2.0, 4.0]), model, quiet_tracker)
    published = load_saved(Path("models/warmup"), torch.float32, torch.device("cpu"))
    assert float(published.lm_head.weight[0, 0].detach()) == 1.0 == best_row(curve)["step"]
    assert [row["validation/loss"] for row in curve] == [3.0, 1.0, 2.0, 4.0]
    assert not any(
        {"time/step_s", "memory/peak_mib"} & set(row) for row in curve
    )  # clock readings stay out of DVC's outputs


def test_fault_12_a_run_that_diverges_publishes_nothing_and_names_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_tracker: Tracker
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny.tiny_llama(1)
    with pytest.raises(NonFiniteError, match=r"stage warmup: step 3: .*state/training/warmup/\w+/best, of step 1"):
        publish(scripted(model, [3.0, 1.0, 2.0, 4.0], fails_after=3), model, quiet_tracker)
    assert not Path("models/warmup").exists()
    (best_dir,) = Path("state/training/warmup").glob("*/best")
    kept = load_saved(best_dir, torch.float32, torch.device("cpu"))
    assert float(kept.lm_head.weight[0, 0].detach()) == 1.0
