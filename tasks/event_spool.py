"""Records on their way to MLflow, on the disk first: they outlive this process, and a store that is away.

A spool is a directory with one JSON line per record. Its first line says which pipeline it belongs to and which process
writes it; a record of kind `end` closes it. How far it has been delivered stands beside it, so that it can be read on.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.integrity import DAMAGED_DIR
from tasks.storage import STATE_DIR, read_json, replacing, write_json

Event = dict[str, Any]

SPOOLS_DIR = STATE_DIR / "mlflow"  # in a worktree a link to that of its checkout
_EVENTS, _PROGRESS, _FILES = "events.jsonl", "progress.json", "files"
_UNBORN_S = 60.0  # a spool without a header for so long was left by a kill
_SYNC_EVERY_S = 1.0  # a kill loses no line; the loss of the machine's power this many seconds


class Spool:
    """The writing side, for one process."""

    def __init__(self, header: Event) -> None:
        self.directory = SPOOLS_DIR / f"{time.time_ns()}-{os.getpid()}"
        self._num_files, self._last_sync_s = 0, time.monotonic()
        with replacing(self.directory / _EVENTS) as temporary:  # a spool that can be read has its header
            temporary.write_text(_line(header), encoding="utf-8")
        self._file = (self.directory / _EVENTS).open("a", encoding="utf-8")

    def add(self, kind: str, **content: Any) -> None:
        """Append a record."""
        self._file.write(_line({"kind": kind, **content}))
        self._file.flush()
        if time.monotonic() - self._last_sync_s >= _SYNC_EVERY_S:
            self._sync()

    def keep(self, run: str, path: Path) -> None:
        """Append a record of a file as it is now."""
        name = f"{_FILES}/{self._num_files}/{path.name}"
        (self.directory / name).parent.mkdir(parents=True)
        shutil.copyfile(path, self.directory / name)
        self._num_files += 1
        self.add("file", run=run, name=name)

    def close(self) -> None:
        """Have all records on the disk; the spool goes when it has been delivered."""
        self._sync()
        self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._last_sync_s = time.monotonic()


def _line(event: Event) -> str:
    return json.dumps(event, allow_nan=False) + "\n"


def beside_spools(name: str) -> Path:
    """Return a path beside the spools where they really are: one for all who share them by links."""
    return SPOOLS_DIR.resolve().with_name(name)


def spools() -> list[Path]:
    """Return the directories of all spools, the oldest first; what a kill left without a header goes."""
    if not SPOOLS_DIR.is_dir():
        return []
    found = sorted(SPOOLS_DIR.iterdir())
    for path in filter(_is_unborn, found):
        shutil.rmtree(path, ignore_errors=True)
    return [path for path in found if (path / _EVENTS).exists()]


def put_aside(directory: Path) -> Path:
    """Move a spool to where damaged files are, and return where it is; moved back, it is delivered on."""
    target = beside_spools(DAMAGED_DIR.name) / directory.name
    target.parent.mkdir(parents=True, exist_ok=True)
    directory.rename(target)
    return target


def _is_unborn(path: Path) -> bool:
    try:
        return not (path / _EVENTS).exists() and time.time() - path.stat().st_mtime > _UNBORN_S
    except FileNotFoundError:  # delivered by another process since it was listed
        return False


def last_write_ms(directory: Path) -> int:
    """Return when a spool was last written to, in milliseconds since 1970."""
    return (directory / _EVENTS).stat().st_mtime_ns // 1_000_000


def header(directory: Path) -> Event:
    """Return the first record of a spool."""
    with (directory / _EVENTS).open("rb") as file:
        content: Event = json.loads(file.readline())
        return content


def events_behind(directory: Path, offset: int) -> Iterator[tuple[Event, int]]:
    """Yield the records behind an offset in bytes, each with the offset behind it; a line that was cut is left out."""
    with (directory / _EVENTS).open("rb") as file:
        file.seek(offset)
        while (line := file.readline()).endswith(b"\n"):
            offset += len(line)
            yield json.loads(line), offset


def read_progress(directory: Path) -> Event:
    """Return what was noted last; the offset is 0 before anything was."""
    path = directory / _PROGRESS
    return {"offset": 0, **(read_json(path) if path.exists() else {})}


def write_progress(directory: Path, progress: Event) -> None:
    """Note how far a spool has been delivered, and where to."""
    write_json(directory / _PROGRESS, progress)
