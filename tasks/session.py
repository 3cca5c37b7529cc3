"""A training stage that can stop at any time: its checkpoints, under the identity of all that its result depends on."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minillm.checkpoint import Checkpoints
from minillm.digests import digest
from minillm.failpoints import failpoint
from minillm.types import StepReport, TrainingState
from tasks.storage import STATE_DIR, read_json, write_json

_log = logging.getLogger(__name__)

_KEY_LENGTH = 16
_COST_SHARE = 20  # a checkpoint takes at most a twentieth of the time
_VERSIONS = ("torch", "transformers", "numpy", "safetensors")

Curve = list[dict[str, float]]


class Session:
    """Where one stage keeps what it has done until it has ended well.

    inputs: returns what the result depends on beside this machine's arithmetic; asked for when training begins.
    every_s: least seconds between checkpoints; 0 = after every step.
    """

    def __init__(self, stage: str, inputs: Callable[[], Mapping[str, Any]], every_s: float) -> None:
        self._stage_dir, self._inputs, self._every_s = STATE_DIR / "training" / stage, inputs, every_s
        self._directory = self._stage_dir / "unopened"
        self._last_s, self._cost_s = time.monotonic(), 0.0

    @property
    def best_dir(self) -> Path:
        """Return where the best weights so far go."""
        return self._directory / "best"

    def resume(self) -> tuple[TrainingState | None, Curve]:
        """Return the state to go on from and the curve up to it; nothing when this run has not been begun before."""
        identity = {**self._inputs(), **_arithmetic()}
        self._directory = self._stage_dir / digest(identity).hex()[:_KEY_LENGTH]
        self._tell_others(identity)
        write_json(self._directory / "identity.json", identity)
        found = Checkpoints(self._directory).newest()
        shutil.rmtree(self.best_dir, ignore_errors=True)
        if found is None:
            return None, []
        state, best = found
        shutil.copytree(best, self.best_dir)
        failpoint("session.resumed")
        _log.info("%s: going on behind step %d", self._stage_dir.name, state.step)
        return replace(state, values=state.values["loop"]), state.values["curve"]

    def offer(self, report: StepReport, curve: Curve) -> None:
        """Write a checkpoint of the step just reported if it is time for one."""
        start_s = time.monotonic()
        is_due = start_s - self._last_s >= max(self._every_s, _COST_SHARE * self._cost_s if self._every_s else 0.0)
        if report.state is None or not is_due:
            return
        state = report.state()
        values = {"loop": state.values, "curve": curve}
        Checkpoints(self._directory).save(replace(state, values=values), self.best_dir)
        self._last_s = time.monotonic()
        self._cost_s = self._last_s - start_s

    def close(self) -> None:
        """Drop what was kept: the stage has ended well."""
        shutil.rmtree(self._stage_dir, ignore_errors=True)

    def _tell_others(self, identity: Mapping[str, Any]) -> None:
        for path in sorted(self._stage_dir.glob("*/identity.json")):
            if path.parent != self._directory:
                names = ", ".join(_differences(read_json(path), json.loads(json.dumps(identity))))
                _log.info("%s: an unfinished run with another %s is left aside", self._stage_dir.name, names)


def _arithmetic() -> dict[str, Any]:
    """Return what the same run would round otherwise with."""
    import torch

    versions = {name: version(name) for name in _VERSIONS}
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "devices": devices,
        **versions,
    }


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
