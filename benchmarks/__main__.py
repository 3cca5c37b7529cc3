"""Measure a part of the pipeline: `python -m benchmarks NAME [--json]`; docs/performance.md says what each means."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.errors import UserError

HELP = {
    "rollout": "teacher-mixed decoding against the plain loop of both models",
    "update": "the gradient of an update against the step over whole logits",
    "phase": "rollouts and inner epochs against the passes of published code",
    "peers": "a step against those of TRL's trainers",
    "scaling": "our tokens a second against sizes; writes a figure",
    "draws": "the noise of a gradient by how many rows share who picks a token, on the models of a finished run",
    "prepare": "a million rows read, checked, split and written",
    "checkpoint": "a checkpoint written, and read with every sum checked",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures, the last line as one JSON object with --json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=HELP, help="; ".join(f"{name}: {text}" for name, text in HELP.items()))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each competitor")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all cores")
    parser.add_argument("--short", action="store_true", help="the main case only")
    chosen = parser.parse_args(arguments)
    try:
        found = _measured(chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found) if chosen.json else "\n".join(_lines(found)))
    return 0


def _measured(chosen: argparse.Namespace) -> dict[str, Any]:
    module, commit = importlib.import_module(f"benchmarks.{chosen.name}"), _commit()
    found: dict[str, Any] = module.measure(chosen.threads, chosen.rounds, chosen.short)
    from benchmarks.workload import machine  # not before: a process of `prepare` has this module, and needs no torch

    return found | {"commit": commit, "machine": machine()}


def _commit() -> str:
    """Return the commit that is measured, "-dirty" behind it if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _lines(found: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a line for every figure."""
    lines = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            lines += _lines(value, f"{prefix}{name} ")
        elif isinstance(value, list):
            lines += [line for place, item in enumerate(value, start=1) for line in _lines(item, f"{name} {place} ")]
        else:
            lines.append(f"{prefix}{name}: {value}")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
