"""Run `dvc repro` as a process that cannot outlive us, pass on its lines, and say what it did with each stage."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.dvc_lock import clear_up
from flows.environment import child_environment
from flows.processes import end_group, process_group
from minillm.errors import UserError
from tasks.tracking_store import without_secrets

Outcome = Literal["ran", "skipped", "restored"]
LineSink = Callable[[str], None]

_STAGE_LINES: dict[Outcome, re.Pattern[str]] = {
    "ran": re.compile(r"Running stage '([^']+)':"),
    "skipped": re.compile(r"Stage '([^']+)' didn't change, skipping"),
    "restored": re.compile(r"Stage '([^']+)' is cached - skipping run, checking out outputs"),
}
_NUM_KEPT_LINES = 20
_LOCAL_SETTINGS = Path(".dvc/config.local")
_NO_GIT = "[core]\n    no_scm = true\n"


@dataclass(frozen=True)
class StageRun:
    """What DVC did with one stage, and how long that took."""

    outcome: Outcome
    wall_s: float  # 0 when skipped


class DvcError(RuntimeError):
    """`dvc repro` failed: which stage, its exit code, and the last lines that it printed."""

    def __init__(self, stage: str | None, exit_code: int, lines: list[str]) -> None:
        self.stage = stage
        self.exit_code = exit_code
        self.lines = lines
        subject = f"stage {stage}" if stage else "dvc repro"
        ending = f"was ended by signal {-exit_code}" if exit_code < 0 else f"failed with exit code {exit_code}"
        super().__init__(f"{subject} {ending}")


class StageClock:
    """Reads DVC's lines and keeps, for each stage, what was done with it and for how long."""

    def __init__(self) -> None:
        self.current: str | None = None  # the stage that DVC works on
        self._outcomes: dict[str, Outcome] = {}
        self._seconds: dict[str, float] = {}
        self._since_s = 0.0

    def read(self, line: str, now_s: float) -> None:
        """Note a line that names a stage; the time since the last such line belongs to the stage named there."""
        for outcome, pattern in _STAGE_LINES.items():
            if match := pattern.fullmatch(line):
                self.close(now_s)
                self._outcomes[match[1]] = outcome
                if outcome != "skipped":
                    self.current, self._since_s = match[1], now_s

    def close(self, now_s: float) -> None:
        """End the time of the current stage."""
        if self.current is not None:
            self._seconds[self.current] = now_s - self._since_s
        self.current = None

    def stages(self) -> dict[str, StageRun]:
        """Return the stages seen so far, in the order in which DVC named them."""
        return {name: StageRun(outcome, self._seconds.get(name, 0.0)) for name, outcome in self._outcomes.items()}


def reproduce(
    root: Path,
    stage: str | None,
    on_line: LineSink,
    environment: Mapping[str, str],
    on_start: Callable[[int], None] = lambda pid: None,
    stderr_to_terminal: bool = False,
) -> dict[str, StageRun]:
    """Run `dvc repro`, or `dvc repro --single-item STAGE`, and return what it did; raises DvcError.

    With `stderr_to_terminal` standard error stays the caller's, so that progress bars are seen as such; its lines then
    reach neither `on_line` nor the error. `on_start` receives DVC's process id.
    """
    no_git = allow_no_git(root)
    for message in [*clear_up(root), *([no_git] if no_git else [])]:
        on_line(message)
    command = dvc_command("repro", *(["--single-item", stage] if stage else []))
    stderr = None if stderr_to_terminal else subprocess.STDOUT
    clock, kept = StageClock(), deque[str](maxlen=_NUM_KEPT_LINES)
    with process_group(command, root, child_environment(environment), subprocess.PIPE, stderr) as process:
        on_start(process.pid)
        end_leftovers(process)
        for line in _lines(process):
            clock.read(line, time.monotonic())
            kept.append(line)
            on_line(line)
        exit_code = process.wait()
    failed = clock.current
    clock.close(time.monotonic())
    if exit_code != 0:
        raise DvcError(stage or failed, exit_code, list(kept))
    return clock.stages()


def is_up_to_date(root: Path, *stages: str) -> bool:
    """Return whether `dvc status`, of some stages or of all, is clean."""
    done = subprocess.run(
        dvc_command("status", "--quiet", *stages), cwd=root, env=child_environment({}), capture_output=True
    )
    return done.returncode == 0


def first_stages_up_to_date(root: Path, names: Sequence[str], on_line: LineSink) -> list[str]:
    """Return the stages, of those named in graph order, that come before the first one that is stale.

    One question for all: `dvc repro` of each would take half a second of processor time to find that out.
    """
    for message in clear_up(root):
        on_line(message)
    stale = stale_stages(root, *names)
    return list(itertools.takewhile(lambda name: name not in stale, names))


def stale_stages(root: Path, *names: str) -> set[str]:
    """Return the stages, of those named or of all, that `dvc status` does not call up to date."""
    return set(json.loads(dvc(root, "status", "--json", *names).splitlines()[-1]))


def dvc(root: Path, *arguments: str) -> str:
    """Return what a short DVC command printed; raises UserError with its last line when it fails."""
    done = subprocess.run(
        dvc_command(*arguments), cwd=root, env=child_environment({}), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        words = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["it failed"]
        told = [line.removeprefix("ERROR: ") for line in words if line.startswith("ERROR: ")] or words[-1:]
        raise UserError(f"dvc {' '.join(arguments[:2])}: {without_secrets(told[-1])}")
    return done.stdout.strip()


def dvc_command(*arguments: str) -> list[str]:
    """Return the command line of this environment's DVC."""
    return [sys.executable, "-m", "dvc", *arguments]


def allow_no_git(root: Path) -> str | None:
    """Let DVC work in a copy of the files that is no git repository, such as an image; return what was done."""
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root}: no .dvc directory; run this in the root of the repository")
    settings = root / _LOCAL_SETTINGS
    if any((directory / ".git").exists() for directory in (root, *root.resolve().parents)) or settings.exists():
        return None
    settings.write_text(_NO_GIT, encoding="utf-8")
    return f"not a git repository: DVC works, but not `dvc exp` and its diff commands (set in {_LOCAL_SETTINGS})"


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line.rstrip()


def end_leftovers(process: subprocess.Popen[str]) -> None:
    """End what DVC leaves behind when it ends: a trainer whose DVC was killed would train on and keep our pipe open."""

    def wait_and_end() -> None:
        process.wait()
        end_group(process.pid)

    threading.Thread(target=wait_and_end, name="dvc-leftovers", daemon=True).start()
