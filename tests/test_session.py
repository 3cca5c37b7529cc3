"""A training stage that is stopped keeps what it has done, under the identity of what its result depends on."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from minillm.kernels import compiled
from minillm.types import StepReport, TrainingState
from tasks import session as module
from tasks.runner import drop_finished
from tasks.session import Session
from tasks.supervised import publish_best
from tasks.tracking import Tracker
from tests import tiny
from tests.test_models import WORDS, word_tokenizer


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Loop:
    """Sets a weight to the number of each step; notes where it began; may do something at a step."""

    def __init__(self, model: Any, num_steps: int = 5, at: dict[int, Callable[[], object]] | None = None) -> None:
        self.model, self.num_steps, self.at, self.began_at = model, num_steps, at or {}, -1

    def __call__(self, resumed: TrainingState | None) -> Iterator[StepReport]:
        self.began_at = resumed.step + 1 if resumed else 0
        for step in range(self.began_at, self.num_steps + 1):
            self.at.get(step, int)()
            with torch.no_grad():
                self.model.lm_head.weight[0, 0] = step
            state = TrainingState(step, {"model": {"w": torch.tensor(float(step))}}, {"seen": step})
            yield StepReport(
                step, {"validation/loss": 9.0 - step}, is_best=step % 2 == 0, state=lambda state=state: state
            )


class Notes(Tracker):
    """Notes what is logged."""

    def __init__(self) -> None:
        super().__init__(None, [])
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Any, time_ms: int | None = None) -> None:
        self.logged.append((step, dict(metrics)))


def publish(loop: Loop, inputs: dict[str, Any], every_s: float = 0.0, tracker: Tracker | None = None) -> list[Any]:
    return publish_best(
        "warmup",
        loop,
        loop.model,
        word_tokenizer(WORDS),
        num_steps=loop.num_steps,
        published_dir=Path("models/warmup"),
        tracker=tracker or Notes(),
        session=Session("warmup", lambda: inputs, every_s),
    )


def stop() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def steps_kept() -> list[str]:
    return sorted(path.name for path in Path("state/training/warmup").glob("*/step-*"))


def test_a_stopped_run_goes_on_behind_its_last_checkpoint_with_its_whole_curve() -> None:
    expected, tracker = publish(Loop(tiny.tiny_llama(1)), {"seed": 0}), Notes()
    with pytest.raises(KeyboardInterrupt):
        publish(Loop(tiny.tiny_llama(1), at={3: stop}), {"seed": 1})
    loop = Loop(tiny.tiny_llama(1))
    assert publish(loop, {"seed": 1}, tracker=tracker) == expected
    assert loop.began_at == 3
    assert [step for step, _ in tracker.logged] == [0, 1, 2, 3, 4, 5]
    assert tracker.logged[1][1] == {"validation/loss": 8.0}


def test_other_inputs_start_anew_and_say_what_differs(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        publish(Loop(tiny.tiny_llama(1), at={3: stop}), {"seed": 1, "data": "a"})
    loop = Loop(tiny.tiny_llama(1))
    with caplog.at_level(logging.INFO):
        publish(loop, {"seed": 2, "data": "a"})
    assert loop.began_at == 0
    assert "warmup: an unfinished run with another seed is left aside" in caplog.text
    assert len(list(Path("state/training/warmup").iterdir())) == 1  # until the stage has ended well


def test_another_number_of_threads_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        publish(Loop(tiny.tiny_llama(1), at={3: stop}), {})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    loop = Loop(tiny.tiny_llama(1))
    publish(loop, {})
    assert loop.began_at == 0


@pytest.mark.skipif(compiled.kernels() is None, reason="no C compiler")
def test_a_compiler_that_is_gone_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        publish(Loop(tiny.tiny_llama(1), at={3: stop}), {})
    monkeypatch.setattr(compiled, "kernels", lambda: None)
    loop = Loop(tiny.tiny_llama(1))
    publish(loop, {})
    assert loop.began_at == 0


def test_training_that_had_ended_but_was_not_recorded_is_published_again_without_a_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = Notes()
    expected = publish(Loop(tiny.tiny_llama(1)), {}, tracker=first)
    weights = Path("models/warmup/model.safetensors").read_bytes()
    shutil.rmtree("models/warmup")
    loop, again = Loop(tiny.tiny_llama(2)), Notes()
    with caplog.at_level(logging.INFO):
        assert publish(loop, {}, tracker=again) == expected
    assert loop.began_at == -1 and "training had ended" in caplog.text
    assert Path("models/warmup/model.safetensors").read_bytes() == weights
    assert again.logged == first.logged and steps_kept() == []


def test_fault_02_the_best_weights_are_on_the_disk_before_the_checkpoints_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps what was synchronised; here the order of the calls is what can be seen."""
    calls: list[str] = []
    sync, drop = module.sync, module.Checkpoints.drop
    monkeypatch.setattr(module, "sync", lambda path: (calls.append(path.name), sync(path)))
    monkeypatch.setattr(module.Checkpoints, "drop", lambda self: (calls.append("drop"), drop(self)))
    publish(Loop(tiny.tiny_llama(1)), {})
    (best,) = Path("state/training/warmup").glob("*/best")
    needed = {*(path.name for path in best.iterdir()), "best", best.parent.name}
    assert set(calls[: calls.index("drop")]) == needed and calls[calls.index("drop") - 1] == best.parent.name


def test_best_weights_that_are_damaged_are_not_published(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(Loop(tiny.tiny_llama(1)), {})
    (best,) = Path("state/training/warmup").glob("*/best/model.safetensors")
    best.write_bytes(best.read_bytes()[:-1] + b"x")
    loop = Loop(tiny.tiny_llama(1))
    publish(loop, {})
    assert loop.began_at == 0 and "not the weights that training ended with; it begins anew" in caplog.text


def test_what_a_stage_kept_goes_when_another_one_runs() -> None:
    publish(Loop(tiny.tiny_llama(1)), {})
    with pytest.raises(KeyboardInterrupt):
        publish(Loop(tiny.tiny_llama(1), at={3: stop}), {"seed": 1})
    drop_finished("warmup")
    assert len(list(Path("state/training/warmup").iterdir())) == 2
    drop_finished("distill")
    assert steps_kept() == ["step-00000001", "step-00000002"]
    publish(Loop(tiny.tiny_llama(1)), {"seed": 2})
    assert steps_kept() == [] and len(list(Path("state/training/warmup").iterdir())) == 1


def test_fault_08_sigterm_lets_the_step_end_and_keeps_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        publish(Loop(tiny.tiny_llama(1), at={3: terminate}), {}, every_s=1000.0)
    assert left.value.code == 143
    assert steps_kept() == ["step-00000003"]
    assert signal.getsignal(signal.SIGTERM) is before
    loop = Loop(tiny.tiny_llama(1))
    assert len(publish(loop, {})) == 6 and loop.began_at == 4


def test_fault_08_a_second_sigterm_changes_nothing() -> None:
    with pytest.raises(SystemExit):
        publish(Loop(tiny.tiny_llama(1), at={3: lambda: (terminate(), terminate())}), {}, every_s=1000.0)
    assert steps_kept() == ["step-00000003"]


def test_fault_08_a_step_that_takes_too_long_after_sigterm_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_GRACE_S", 0.2)
    start_s = time.monotonic()
    with pytest.raises(SystemExit) as left:
        publish(Loop(tiny.tiny_llama(1), at={3: lambda: (terminate(), time.sleep(60))}), {})
    assert left.value.code == 143 and time.monotonic() - start_s < 30
    assert steps_kept()[-1] == "step-00000002"


def test_checkpoints_are_as_far_apart_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a step moves by 10 s: at least 25 s between checkpoints, then 20 times what one took."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    saved: list[int] = []

    class Slow:
        def __init__(self, directory: Path) -> None:
            pass

        def newest(self) -> None:
            return None

        def save(self, state: TrainingState, best: Path) -> None:
            saved.append(state.step)
            now[0] += 2.0

        def drop(self) -> None:
            pass

    monkeypatch.setattr(module, "Checkpoints", Slow)

    def tick() -> None:
        now[0] += 10.0

    publish(Loop(tiny.tiny_llama(1), num_steps=12, at=dict.fromkeys(range(13), tick)), {}, every_s=25.0)
    assert saved == [2, 6, 10]
