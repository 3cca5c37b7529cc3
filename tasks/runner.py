"""Run one stage with the params it declares, and refuse to finish when its inputs changed meanwhile."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.config import Params
from minillm.digests import content_sha256
from minillm.errors import UserError
from minillm.params import load_params, read_yaml
from minillm.stopwatch import RSS_UNITS_PER_MIB
from tasks.integrity import check_inputs
from tasks.storage import FINISHED_NAME, STATE_DIR, TRAINING_DIR, write_json
from tasks.tracking import open_tracker

if TYPE_CHECKING:
    from tasks.session import Session

STAGES = ("prepare", "teacher", "warmup", "distill", "evaluate", "report")
COST_DIR = STATE_DIR / "cost"  # outside every output: no two runs cost the same
_PARAMS_PATH = Path("params.yaml")
_GRAPH_PATH = Path("dvc.yaml")


def run_stage(name: str) -> None:
    """Run `tasks.NAME.run` with the sections of params.yaml that its arguments name."""
    params = load_params(_PARAMS_PATH)
    drop_finished(name)
    with recorded_cost(name):
        check_inputs(list(_dependencies(name, params)))
        run = importlib.import_module(f"tasks.{name}").run
        before = _fingerprint(name, run, params)
        sessions = _sessions(name, run, params)
        with open_tracker(name, params) as tracker:
            run(**stage_arguments(run, params), tracker=tracker, **sessions)
            if _fingerprint(name, run, load_params(_PARAMS_PATH)) != before:
                raise UserError(f"stage {name}: its parameters or inputs were edited while it ran; run it again")


@contextmanager
def recorded_cost(name: str) -> Iterator[None]:
    """Write what a block that ends well took this process and its ended children: seconds, and the peak of memory."""
    start_s, start_cpu_s = time.monotonic(), _cpu_s()
    yield
    cost = {"wall_s": time.monotonic() - start_s, "cpu_s": _cpu_s() - start_cpu_s, "peak_rss_mib": _peak_rss_mib()}
    write_json(COST_DIR / f"{name}.json", {key: round(value, 2) for key, value in cost.items()})


def stage_sections(run: Callable[..., None]) -> list[str]:
    """Return the sections of params.yaml that a stage reads: the names of its arguments."""
    return [name for name in inspect.signature(run).parameters if name not in ("tracker", "session")]


def stage_arguments(run: Callable[..., None], params: Params) -> dict[str, Any]:
    """Return the sections that a stage reads, by argument name."""
    return {name: getattr(params, name) for name in stage_sections(run)}


def _cpu_s() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_rss_mib() -> float:
    """Return the largest resident set that one process had."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage.ru_maxrss for usage in usages) / RSS_UNITS_PER_MIB


def drop_finished(name: str) -> None:
    """Drop what other training stages kept in case their run would not be recorded: this one follows, so it was."""
    for path in TRAINING_DIR.glob(f"*/*/{FINISHED_NAME}"):
        if path.parent.parent.name != name:
            shutil.rmtree(path.parent)


def _fingerprint(name: str, run: Callable[..., None], params: Params) -> str:
    """Return a hash of what DVC will record as the stage's inputs.

    DVC hashes inputs after the command: without this check, an edit during the run would be recorded as their maker.
    """
    sections = params.model_dump(mode="json", include=set(stage_sections(run)))
    files = [_file_state(path) for path in _dependency_files(name, params)]
    return hashlib.sha256(json.dumps([sections, files]).encode()).hexdigest()


def _sessions(name: str, run: Callable[..., None], params: Params) -> dict[str, Session]:
    """Return the session of a stage that takes one, by the name of the argument."""
    if "session" not in inspect.signature(run).parameters:
        return {}
    from tasks.session import Session  # which loads torch

    return {"session": Session(name, lambda: _identity(name, run, params), params.checkpoint.every_s)}


def _identity(name: str, run: Callable[..., None], params: Params) -> dict[str, Any]:
    """Return the stage's params and the contents of its inputs, code included."""
    sections = params.model_dump(mode="json", include=set(stage_sections(run)))
    return {**sections, "inputs": {str(path): content_sha256(path) for path in _dependency_files(name, params)}}


def _dependency_files(name: str, params: Params) -> Iterator[Path]:
    for dependency in _dependencies(name, params):
        root = Path(dependency)
        yield from sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]


def _dependencies(name: str, params: Params) -> Iterator[str]:
    for dependency in read_yaml(_GRAPH_PATH)["stages"][name]["deps"]:
        yield _interpolated(dependency, params)


def _interpolated(text: str, params: Params) -> str:
    def value(match: re.Match[str]) -> str:
        section: Any = params
        for part in match[1].split("."):
            section = getattr(section, part)
        return str(section)

    return re.sub(r"\$\{([a-z_.]+)\}", value, text)


def _file_state(path: Path) -> tuple[str, int, int]:
    if not path.exists():
        raise UserError(f"{path}: not there; `dvc repro` makes what stages make, data.root must be a directory")
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns
