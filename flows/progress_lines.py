"""Reads the plain progress lines of tasks/progress.py."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PROGRESS = re.compile(
    r"(?P<name>.+): (?P<done>\d+)/(?P<total>\d+) \(\d+%\) (?P<rate>[\d.]+)/s ETA (?P<remaining>\d+:\d\d)"
)


@dataclass(frozen=True)
class Progress:
    """How far a loop is."""

    name: str
    percent: float  # 0 .. 100
    text: str


def parse_progress(line: str) -> Progress | None:
    """Return what a progress line says, or None when it is another line."""
    match = _PROGRESS.fullmatch(line.strip())
    if match is None or int(match["total"]) == 0:
        return None
    done, total = int(match["done"]), int(match["total"])
    text = f"{match['name']}: {done} of {total}, {match['rate']}/s, {match['remaining']} left"
    return Progress(match["name"], min(100.0, 100 * done / total), text)
