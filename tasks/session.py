"""A training stage that can stop at any time: its checkpoints, under the identity of all that its result depends on."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from minillm.checkpoint import Checkpoints
from minillm.digests import content_sha256, digest
from minillm.durable import sync
from minillm.failpoints import failpoint
from minillm.types import StepReport, TrainingState
from tasks.storage import FINISHED_NAME, TRAINING_DIR, read_json, write_json

_log = logging.getLogger(__name__)

_KEY_LENGTH = 16
STEP_GRACE_S = 5.0  # for the step that runs at SIGTERM; the checkpoint has the rest of the time until SIGKILL
_SIGTERM_EXIT = 128 + signal.SIGTERM
_COST_SHARE = 20  # a checkpoint takes at most a twentieth of the time
_VERSIONS = ("torch", "transformers", "numpy", "safetensors")

History = list[dict[str, float]]  # a row for each step that was reported


class Session:
    """Where one stage keeps what it has done until it has ended well.

    inputs: returns what the result depends on beside this machine's arithmetic; asked for when training begins.
    every_s: least seconds between checkpoints; 0 = after every step.
    """

    def __init__(self, stage: str, inputs: Callable[[], Mapping[str, Any]], every_s: float) -> None:
        self._stage_dir, self._inputs, self._every_s = TRAINING_DIR / stage, inputs, every_s
        self._directory = self._stage_dir / "unopened"
        self.is_finished = False  # training ended in an earlier run, which nobody recorded
        self._last_s, self._cost_s, self._is_ending = time.monotonic(), 0.0, False

    @property
    def best_dir(self) -> Path:
        """Return where the best weights so far go."""
        return self._directory / "best"

    def resume(self) -> tuple[TrainingState | None, History]:
        """Return the state to go on from and the history up to it; nothing when this run has not been begun before.

        When training had ended, there is no state to go on from: `is_finished`, and the best weights are there.
        """
        identity = {**self._inputs(), **_arithmetic()}
        self._directory = self._stage_dir / digest(identity).hex()[:_KEY_LENGTH]
        self._tell_others(identity)
        write_json(self._directory / "identity.json", identity)
        history = self._finished_history()
        if history is not None:
            self.is_finished = True
            Checkpoints(self._directory).drop()  # a kill may have come before that
            _log.info("%s: training had ended; publishing its best weights", self._stage_dir.name)
            return None, history
        found = Checkpoints(self._directory).newest()
        shutil.rmtree(self.best_dir, ignore_errors=True)
        if found is None:
            return None, []
        state, best = found
        shutil.copytree(best, self.best_dir)
        failpoint("session.resumed")
        _log.info("%s: going on behind step %d", self._stage_dir.name, state.step)
        return replace(state, values=state.values["loop"]), state.values["history"]

    @contextmanager
    def ending_on_sigterm(self) -> Iterator[None]:
        """On SIGTERM let the step end, write a checkpoint and leave with 143; drop a step that takes too long."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
        signal.signal(signal.SIGTERM, self._begin_to_end)
        signal.signal(signal.SIGALRM, _leave)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _begin_to_end(self, number: int, frame: FrameType | None) -> None:
        if not self._is_ending:
            self._is_ending = True
            signal.setitimer(signal.ITIMER_REAL, STEP_GRACE_S)

    def offer(self, report: StepReport, history: History) -> None:
        """Write a checkpoint of the step just reported if it is time for one, and leave if that was asked for."""
        if report.state is not None and (self._is_ending or self._is_due()):
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._save(report.state(), history)
        if self._is_ending:
            _log.info("%s: stopped; the next run goes on behind step %d", self._stage_dir.name, report.step)
            sys.exit(_SIGTERM_EXIT)

    def _is_due(self) -> bool:
        gap_s = max(self._every_s, _COST_SHARE * self._cost_s) if self._every_s else 0.0
        return time.monotonic() - self._last_s >= gap_s

    def _save(self, state: TrainingState, history: History) -> None:
        start_s = time.monotonic()
        values = {"loop": state.values, "history": history}
        Checkpoints(self._directory).save(replace(state, values=values), self.best_dir)
        self._last_s = time.monotonic()
        self._cost_s = self._last_s - start_s

    def finish(self, history: History) -> None:
        """Keep the best weights alone: a stage that is killed before DVC has recorded it publishes them again.

        Unfinished runs with other inputs are dropped.
        """
        for path in (*self.best_dir.iterdir(), self.best_dir, self._directory):
            sync(path)  # before the checkpoints go
        write_json(self._directory / FINISHED_NAME, {"best": content_sha256(self.best_dir), "history": history})
        sync(self._directory)
        failpoint("session.finished")
        Checkpoints(self._directory).drop()
        for path in self._stage_dir.iterdir():
            if path != self._directory:
                shutil.rmtree(path)

    def _finished_history(self) -> History | None:
        path = self._directory / FINISHED_NAME
        if not path.exists():
            return None
        finished = read_json(path)
        if self.best_dir.is_dir() and content_sha256(self.best_dir) == finished["best"]:
            history: History = finished["history"]
            return history
        _log.warning("%s: not the weights that training ended with; it begins anew", self.best_dir)
        return None

    def _tell_others(self, identity: Mapping[str, Any]) -> None:
        for path in sorted(self._stage_dir.glob("*/identity.json")):
            if path.parent != self._directory and not (path.parent / FINISHED_NAME).exists():
                names = ", ".join(_differences(read_json(path), json.loads(json.dumps(identity))))
                _log.info("%s: an unfinished run with another %s is left aside", self._stage_dir.name, names)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    _log.info("stopped in the middle of a step; the next run goes on from the last checkpoint")
    sys.exit(_SIGTERM_EXIT)


def _arithmetic() -> dict[str, Any]:
    """Return what the same run would round otherwise with."""
    import torch

    from minillm.kernels.compiled import arithmetic

    versions = {name: version(name) for name in _VERSIONS}
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "devices": devices,
        "kernels": "" if devices else arithmetic(),  # a GPU takes none
        **versions,
    }


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
