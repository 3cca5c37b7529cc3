"""`python -m tests.chaos [--short]`: kill stages and `dvc repro`, let them go on, and compare with a run left alone.

Each stage runs as its own process on the tiny pipeline of the tests. It is killed (SIGKILL) at random moments and at
every named failpoint, also while it resumes, and told to end (SIGTERM); what it publishes in the end must be the same,
byte for byte. A control changes one part of a checkpoint under a valid manifest: the comparison must notice. Then
`dvc repro` is killed under our entry point (tests/chaos_repro.py). Result: metrics/chaos.json.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from flows.environment import child_environment
from flows.processes import STAGE_GRACE_S
from minillm.checkpoint import Checkpoints
from minillm.digests import content_sha256
from minillm.failpoints import VARIABLE
from tasks.endings import DISK_FULL
from tests.chaos_findings import Findings
from tests.chaos_repro import kill_repro
from tests.imports import ROOT
from tests.tiny_pipeline import command, new_repository, set_knob

STAGES = {
    "teacher": ["models/teacher", "metrics/teacher.json", "plots/teacher.tsv"],
    "warmup": ["models/warmup", "metrics/warmup.json", "plots/warmup.tsv"],
    "distill": ["models/student", "metrics/distill.json", "plots/distill.tsv"],
    "evaluate": ["outputs/responses", "metrics/evaluate.json"],
}
PLACES = [
    "optimizer.before_step:3",
    "optimizer.after_step:3",
    "checkpoint.file_written:1",
    "checkpoint.file_written:5",
    "checkpoint.before_manifest:2",
    "checkpoint.before_rename:2",
    "checkpoint.after_rename:1",
    "checkpoint.before_prune:1",
    "session.finished:1",
    "publish.copied:1",
    "publish.removed:1",
    "publish.replaced:1",
]
ONLY_DISTILL = ["rollout.sampled:2"]
IN_EVALUATION = ["judgement.kept:1", "judgement.kept:2", "judgement.kept:3"]
WHILE_RESUMING = ("optimizer.before_step:3", "session.resumed:1", "checkpoint.before_rename:1")
SHORT_PLACES: dict[str, list[tuple[str, ...]]] = {
    "teacher": [("session.finished:1",)],
    "warmup": [],  # the code of teacher
    "distill": [("optimizer.after_step:3",), ("publish.removed:1",), WHILE_RESUMING],
    "evaluate": [(IN_EVALUATION[1],)],  # where no phase improved, the student is the warm-up, which is judged once
}
NUM_RANDOM, NUM_TERMINATED, NUM_REPRO = 20, 10, 60
NUM_REPRO_SHORT = 3
_IN_THIRD_PHASE = "optimizer.before_step:9"
_RESUMED = re.compile(r"going on behind step (\d+)")
_FINISHED = "training had ended"
_TIMEOUT_S = 300


class Campaign:
    """One stage of one repository, against what it publishes when it is left alone."""

    def __init__(self, root: Path, stage: str, findings: Findings) -> None:
        self._root, self._stage, self._found = root, stage, findings
        self._clear()
        start = time.monotonic()
        assert self._run().returncode == 0
        self.time_s = time.monotonic() - start
        self._expected = self._published()

    def kill_at(self, *places: str) -> None:
        """Kill one run after the other at failpoints, then let one end."""
        self._clear()
        for place in places:
            self._killed(self._run({VARIABLE: f"{place}:kill"}))
        self._finish(f"{self._stage} at {', then '.join(places)}")

    def kill_after(self, *seconds: float) -> None:
        """Kill one run after the other after a time, then let one end."""
        self._clear()
        for limit_s in seconds:
            self._killed(self._run(limit_s=limit_s))
        self._finish(f"{self._stage} after {', then '.join(f'{limit_s:.1f} s' for limit_s in seconds)}")

    def fill_disk_at(self, place: str) -> None:
        """Let the disk be full at a failpoint: the stage must say so by its exit code, and go on when there is room."""
        self._clear()
        done = self._run({VARIABLE: f"{place}:enospc"})
        self._found.divergences += done.returncode != DISK_FULL
        self._finish(f"{self._stage} with a full disk at {place} (exit {done.returncode})")

    def end_after(self, *seconds: float) -> None:
        """Tell one run after the other to end after a time; each must end by itself in time, with 143 or its result."""
        self._clear()
        codes = [self._run(limit_s=limit_s, number=signal.SIGTERM).returncode for limit_s in seconds]
        self._found.divergences += sum(code not in (0, 128 + signal.SIGTERM) for code in codes)
        moments = ", then ".join(f"{limit_s:.1f} s" for limit_s in seconds)
        self._finish(f"{self._stage} told to end after {moments} (exit {', '.join(map(str, codes))})")

    def control(self) -> None:
        """Forget the optimizer's moments in a checkpoint that is otherwise whole; the end must differ."""
        self._clear()
        self._run({VARIABLE: f"{_IN_THIRD_PHASE}:kill"})
        (directory,) = self._state_dir().iterdir()
        checkpoints = Checkpoints(directory)
        found = checkpoints.newest()
        assert found is not None
        state, best = found
        assert state.tensors["optimizer"]
        lost = {name: torch.zeros_like(value) for name, value in state.tensors["optimizer"].items()}
        kept = Path(shutil.copytree(best, directory / "control"))
        checkpoints.save(replace(state, tensors={**state.tensors, "optimizer": lost}), kept)
        assert self._run().returncode == 0
        self._found.control_detected = self._published() != self._expected

    def _killed(self, done: subprocess.CompletedProcess[str]) -> None:
        self._found.kills += done.returncode == -signal.SIGKILL

    def _finish(self, case: str) -> None:
        newest = max((int(path.name[5:]) for path in self._state_dir().glob("*/step-*")), default=0)
        done = self._run()
        resumed = _RESUMED.search(done.stdout)
        lost = 0 if _FINISHED in done.stdout else newest - (int(resumed[1]) if resumed else 0)
        is_same = done.returncode == 0 and self._published() == self._expected
        left = list(self._root.rglob(".*.tmp")) + list(self._state_dir().glob("*/step-*"))
        self._found.manual_repairs += done.returncode != 0
        self._found.divergences += not is_same
        self._found.lost_steps += lost
        outcome = "same" if is_same else f"DIFFERS (exit {done.returncode}) {done.stderr[-300:]}"
        self._found.cases.append(f"{case}: {outcome}, lost {lost}, left {[path.name for path in left]}")
        print(self._found.cases[-1], flush=True)
        self._found.divergences += bool(left)

    def _run(
        self,
        environment: dict[str, str] | None = None,
        limit_s: float = _TIMEOUT_S,
        number: signal.Signals = signal.SIGKILL,
    ) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "tasks", self._stage]
        variables = {**child_environment(environment or {}), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            arguments, cwd=self._root, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                output, errors = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                output, errors = _last_words(process)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def _published(self) -> dict[str, str]:
        return {name: content_sha256(self._root / name) for name in STAGES[self._stage] if (self._root / name).exists()}

    def _clear(self) -> None:
        """Do as DVC does before a stage: remove its outputs; its state is that of no run."""
        for directory in (self._state_dir(), self._root / "state/evaluate"):
            shutil.rmtree(directory, ignore_errors=True)
        for name in STAGES[self._stage]:
            path = self._root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _state_dir(self) -> Path:
        return self._root / "state/training" / self._stage


def _last_words(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a process that was signalled still printed; one that does not end in its time of grace is killed."""
    try:
        return process.communicate(timeout=STAGE_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, write its result and return 0 when nothing was lost and the control was noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few kills, in minutes")
    is_short = parser.parse_args(arguments).short
    with tempfile.TemporaryDirectory(prefix="minillm-chaos-") as name:
        found = campaign(prepared_repository(Path(name) / "stages"), is_short)
        kill_repro(Path(name) / "repro", found, found.kills + (NUM_REPRO_SHORT if is_short else NUM_REPRO))
    result = {key: value for key, value in vars(found).items() if key != "cases"}
    (ROOT / "metrics").mkdir(exist_ok=True)
    (ROOT / "metrics/chaos.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return int(bool(found.divergences or found.lost_steps or found.manual_repairs) or not found.control_detected)


def prepared_repository(root: Path) -> Path:
    """Return a tiny repository in which every stage has run once."""
    new_repository(root)
    for stage in ("teacher", "warmup"):
        set_knob(root, f"{stage}.sft.num_steps", 6)
    set_knob(root, "distill.num_phases", 4)
    set_knob(root, "checkpoint.every_s", 0)
    set_knob(root, "tracking.enabled", False)
    for stage in ("prepare", *STAGES):
        command(root, sys.executable, "-m", "tasks", stage)
    return root


def campaign(root: Path, is_short: bool) -> Findings:
    """Kill every stage and return what was found."""
    found, draw = Findings(), random.Random(0)
    for stage in STAGES:
        if is_short and not SHORT_PLACES[stage]:
            continue
        each = Campaign(root, stage, found)
        for places in SHORT_PLACES[stage] if is_short else _places(stage):
            each.kill_at(*places)
        if not is_short:
            _at_random(each, draw)
        if stage == "distill" or not (is_short or stage == "evaluate"):
            each.fill_disk_at("checkpoint.file_written:5")
        if stage == "distill":
            each.end_after(0.7 * each.time_s, 0.7 * each.time_s)
            each.control()
    return found


def _at_random(each: Campaign, draw: random.Random) -> None:
    for _ in range(NUM_RANDOM):
        each.kill_after(draw.uniform(0.2, 1.0) * each.time_s)
    each.kill_after(*(draw.uniform(0.5, 1.0) * each.time_s for _ in range(4)))
    for _ in range(NUM_TERMINATED):
        each.end_after(draw.uniform(0.2, 1.0) * each.time_s)


def _places(stage: str) -> Iterator[tuple[str, ...]]:
    """Yield what one case is killed at, in turn."""
    if stage == "evaluate":
        yield from ((place,) for place in IN_EVALUATION)
        return
    yield from ((place,) for place in PLACES)
    yield from ((place,) for place in ONLY_DISTILL if stage == "distill")
    yield WHILE_RESUMING


if __name__ == "__main__":
    sys.exit(main())
