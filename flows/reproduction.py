"""`dvc repro` as a process that cannot outlive us: its lines, stage by stage, and what it did with each."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.dvc_lock import clear_up
from flows.dvc_process import allow_no_git, dvc_command
from flows.environment import child_environment
from flows.processes import end_group, process_group

Outcome = Literal["ran", "skipped", "restored"]
LineSink = Callable[[str], None]

_STAGE_LINES: dict[Outcome, re.Pattern[str]] = {
    "ran": re.compile(r"Running stage '([^']+)':"),
    "skipped": re.compile(r"Stage '([^']+)' didn't change, skipping"),
    "restored": re.compile(r"Stage '([^']+)' is cached - skipping run, checking out outputs"),
}
_FAILURE_LINE = re.compile(r"ERROR: failed to reproduce '([^']+)'.*")
_NUM_KEPT_LINES = 20


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
        if named := _named(line):
            stage, outcome = named
            self.close(now_s)
            self._outcomes[stage] = outcome
            if outcome != "skipped":
                self.current, self._since_s = stage, now_s

    def close(self, now_s: float) -> None:
        """End the time of the current stage."""
        if self.current is not None:
            self._seconds[self.current] = now_s - self._since_s
        self.current = None

    def stages(self) -> dict[str, StageRun]:
        """Return the stages seen so far, in the order in which DVC named them."""
        return {name: StageRun(outcome, self._seconds.get(name, 0.0)) for name, outcome in self._outcomes.items()}


class Reproduction:
    """A `dvc repro` at work."""

    def __init__(self, process: subprocess.Popen[str], messages: Sequence[str] = ()) -> None:
        assert process.stdout is not None
        self._process = process
        self._lines = iter(process.stdout)
        self._clock = StageClock()
        self._kept = deque[str](maxlen=_NUM_KEPT_LINES)
        self._ahead = deque(messages)  # lines to be passed on before those that are still to be read

    def read_stage(self, name: str, on_line: LineSink) -> StageRun:
        """Pass on the lines up to the first one of another stage, and return what was done; raises DvcError.

        The stages are to be read in the order in which they were asked for.
        """
        self._kept.clear()
        for line in self._next_lines():
            if _subject(line) not in (None, name):
                self._ahead.appendleft(line)
                self._clock.close(time.monotonic())
                return self._clock.stages()[name]
            self._pass_on(line, on_line)
        return self._end(name)[name]

    def read_all(self, on_line: LineSink) -> dict[str, StageRun]:
        """Pass on every line, and return what was done with each stage; raises DvcError."""
        for line in self._next_lines():
            self._pass_on(line, on_line)
        return self._end(None)

    def _next_lines(self) -> Iterator[str]:
        while self._ahead:
            yield self._ahead.popleft()
        for line in self._lines:
            yield line.rstrip()

    def _pass_on(self, line: str, on_line: LineSink) -> None:
        self._clock.read(line, time.monotonic())
        self._kept.append(line)
        on_line(line)

    def _end(self, stage: str | None) -> dict[str, StageRun]:
        exit_code = self._process.wait()
        failed = stage or self._clock.current
        self._clock.close(time.monotonic())
        if exit_code != 0:
            raise DvcError(failed, exit_code, list(self._kept))
        return self._clock.stages()


@contextmanager
def reproduction(
    root: Path,
    stages: Sequence[str],
    environment: Mapping[str, str],
    on_start: Callable[[int], None] = lambda pid: None,
    stderr_to_terminal: bool = False,
) -> Iterator[Reproduction]:
    """Have DVC bring stages up to date in the block, in their order and without those before them; none means all.

    With `stderr_to_terminal` standard error stays the caller's, so that progress bars are seen as such; its lines are
    then not among those read. `on_start` receives DVC's process id.
    """
    no_git = allow_no_git(root)
    messages = [*clear_up(root), *([no_git] if no_git else [])]
    command = dvc_command("repro", *(["--single-item", *stages] if stages else []))
    stderr = None if stderr_to_terminal else subprocess.STDOUT
    with process_group(command, root, child_environment(environment), subprocess.PIPE, stderr) as process:
        on_start(process.pid)
        end_leftovers(process)
        yield Reproduction(process, messages)


def reproduce(
    root: Path,
    stage: str | None,
    on_line: LineSink,
    environment: Mapping[str, str],
    on_start: Callable[[int], None] = lambda pid: None,
    stderr_to_terminal: bool = False,
) -> dict[str, StageRun]:
    """Bring all stages up to date, or one alone, and return what was done; raises DvcError. See `reproduction`."""
    with reproduction(root, [stage] if stage else [], environment, on_start, stderr_to_terminal) as work:
        return {stage: work.read_stage(stage, on_line)} if stage else work.read_all(on_line)


def end_leftovers(process: subprocess.Popen[str]) -> None:
    """End what DVC leaves behind when it ends: a trainer whose DVC was killed would train on and keep our pipe open."""

    def wait_and_end() -> None:
        process.wait()
        end_group(process.pid)

    threading.Thread(target=wait_and_end, name="dvc-leftovers", daemon=True).start()


def _named(line: str) -> tuple[str, Outcome] | None:
    """Return the stage that a line of DVC names, and what is done with it; None for every other line."""
    for outcome, pattern in _STAGE_LINES.items():
        if match := pattern.fullmatch(line):
            return match[1], outcome
    return None


def _subject(line: str) -> str | None:
    """Return the stage that a line begins or ends; DVC may refuse one that it has not begun."""
    if match := _FAILURE_LINE.fullmatch(line):
        return match[1]
    named = _named(line)
    return named[0] if named else None
