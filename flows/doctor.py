"""`minillm doctor`: is everything here that a run needs, and is what earlier runs made still whole?"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from flows.environment import mlflow_url, prefect_url
from flows.servers import answers
from flows.team import team_line
from flows.workers import gpu_names
from minillm.errors import UserError
from minillm.params import load_params
from tasks.event_spool import spools
from tasks.integrity import DAMAGED_DIR, cache_dir, damaged_objects, move_aside
from tasks.tracking_store import is_server, tracking_uri

_LOCKS = ("requirements-torch.lock", "requirements.lock", "requirements-embedded.lock")
_PINNED = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")
_PYTHON = (3, 11)
_NEEDED_GIB = 10.0  # of `make run`, measured: 5 of checkpoints of the teacher, 3 of models and their copies
_GIB = 2**30


class Finding(NamedTuple):
    """What one check found; `is_good` is None for what is neither needed nor wrong."""

    subject: str
    is_good: bool | None
    text: str


def findings(root: Path) -> Iterator[Finding]:
    """Yield what the quick checks find in a repository; UserError where there is none."""
    if not (root / "dvc.yaml").is_file():
        raise UserError(f"{root}: no dvc.yaml; run this in the root of the repository")
    found = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info[:2] == _PYTHON, f"{found}; {'.'.join(map(str, _PYTHON))} is needed")
    yield _packages(root)
    free_gib = shutil.disk_usage(root).free / _GIB
    yield Finding("disk", free_gib >= _NEEDED_GIB, f"{free_gib:.1f} GiB free; a run takes up to {_NEEDED_GIB:.0f} GiB")
    yield _params(root)
    yield from _servers(root)
    yield _team(root)
    waiting = len(spools())
    yield Finding("records", None if waiting else True, f"of {waiting} runs wait for MLflow (python -m tasks sync)")
    yield _gpu()


def cache_finding(is_repaired: bool) -> Finding:
    """Read every object of DVC's cache; damaged ones are moved to state/damaged when that is asked for."""
    damaged = damaged_objects(cache_dir())
    if not damaged:
        return Finding("cache", True, "every object has the contents that it is named by")
    names = ", ".join(f"{path.parent.name}{path.name}" for path in damaged)
    if not is_repaired:
        return Finding(
            "cache", False, f"damaged: {names}; `minillm doctor --cache --repair` moves them to {DAMAGED_DIR}"
        )
    for path in damaged:
        move_aside(path)
    return Finding(
        "cache", None, f"moved to {DAMAGED_DIR}: {names}; the next run makes them anew, `dvc pull` fetches them"
    )


def _packages(root: Path) -> Finding:
    pinned = [pair for name in _LOCKS for pair in _PINNED.findall((root / name).read_text(encoding="utf-8"))]
    other = [f"{name} {found or 'missing'} instead of {wanted}" for name, wanted, found in _installed(pinned)]
    good = f"{len(pinned)} packages are as pinned"
    return Finding("packages", not other, f"{'; '.join(other[:5])}; run `make run` or `make test`" if other else good)


def _installed(pinned: list[tuple[str, str]]) -> Iterator[tuple[str, str, str | None]]:
    """Yield the packages whose version is not the pinned one; a build's own mark behind + does not count."""
    for name, wanted in pinned:
        try:
            found: str | None = version(name)
        except PackageNotFoundError:
            found = None
        if found is None or found.partition("+")[0] != wanted.partition("+")[0]:
            yield name, wanted, found


def _params(root: Path) -> Finding:
    try:
        load_params(root / "params.yaml")
    except UserError as error:
        return Finding("params", False, str(error).replace("\n", "; "))
    return Finding("params", True, "params.yaml can be run")


def _servers(root: Path) -> Iterator[Finding]:
    try:
        tracking = load_params(root / "params.yaml").tracking
    except UserError:
        return
    needs_mlflow = tracking.enabled and is_server(tracking_uri(tracking))
    pages = {
        "mlflow": (f"{mlflow_url(tracking)}/health", needs_mlflow),
        "prefect": (f"{prefect_url()}/api/health", False),
    }
    for name, (url, is_needed) in pages.items():
        is_up = answers(url)
        text = f"{'up' if is_up else 'down'} at {url.rpartition('/')[0].removesuffix('/api')}"
        yield Finding(name, is_up or (False if is_needed else None), text + ("" if is_up else " (`make ui` starts it)"))


def _team(root: Path) -> Finding:
    pages = team_line(root)
    return Finding("team", True if pages else None, f"up: {pages}" if pages else "down (`make up` starts it)")


def _gpu() -> Finding:
    names = gpu_names()
    return Finding("gpu", True if names else None, "; ".join(names) or "none found; everything runs on the processor")
