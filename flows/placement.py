"""Where a run of the pipeline works: in the checkout, or in a workspace apart from it."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from flows.dvc_lock import is_busy, wait_for_others
from flows.experiments import require_free_name, reserved
from flows.git import edited_files, head_commit, new_files
from flows.graph import GRAPH_NAME
from flows.overlay import PARAMS_NAME, run_params
from flows.processes import STAGE_GRACE_S
from flows.request import PipelineRequest
from flows.waiting import Say
from flows.worktree import worktree
from minillm.config import Params
from minillm.errors import UserError
from minillm.params import load_params
from tasks.lineage import LOCK_PATH
from tasks.storage import STATE_DIR, read_json, write_json
from tasks.tracking_store import STORE_VARIABLE, shared_uri

_IN_USE_PATH = STATE_DIR / "in-use.lock"  # held by all who work in the checkout; the kernel frees it at their death
_HOLDER_PATH = STATE_DIR / "in-use.json"  # who that is
_ENDING_S = STAGE_GRACE_S + 5  # who was told to end has ended by then
KEPT_PATH = STATE_DIR / "compare/workspace.json"  # of experiments at work here; outlives those that are killed
_PLACES_DIR = STATE_DIR / "places"  # of runs that have not ended well
_NUM_NAMED = 10  # edited files in one line
_MAX_NAME = 64
_MARK_PATH = STATE_DIR / "checkout-id"


@dataclass(frozen=True)
class RunFacts:
    """What Prefect knows of a run: id and name, whether a schedule started it, and whether it was tried before."""

    id: str
    name: str
    is_scheduled: bool
    is_retry: bool


@dataclass(frozen=True)
class Place:
    """A directory to work in, its params, and what isolates it."""

    checkout: Path
    path: Path
    params: Params
    commit: str  # of a workspace apart; empty in the checkout
    experiment: str  # that a workspace apart ends as; empty in the checkout
    environment: Mapping[str, str]  # that leads stages to what is the checkout's

    @property
    def key(self) -> str:
        """Return the name of a workspace apart; empty in the checkout."""
        return self.path.name if self.commit else ""


@contextmanager
def occupied(checkout: Path, work: str) -> Iterator[None]:
    """Keep the checkout for this work in the block, also while no DVC process runs; `work` names it to others.

    Raises UserError when someone else works there and does not end soon.
    """
    if not (checkout / GRAPH_NAME).is_file():  # a place that is no repository stays as it is
        raise UserError(f"{checkout}: no {GRAPH_NAME}; run this in the root of the repository")
    lock = FileLock(checkout / _IN_USE_PATH)
    try:
        lock.acquire(timeout=_ENDING_S)
    except Timeout:
        work, pid = _holder(checkout)
        raise UserError(f"{checkout}: another {work} works here (pid {pid}); wait until it ends, or end it") from None
    try:
        _sign(checkout, work)
        yield
    finally:
        lock.release()


def _sign(checkout: Path, work: str) -> None:
    write_json(checkout / _HOLDER_PATH, {"pid": os.getpid(), "work": work})


def _holder(checkout: Path) -> tuple[str, str]:
    """Return what is at work in the checkout, and the id of its process, unless it has only begun."""
    path = checkout / _HOLDER_PATH
    holder = read_json(path) if path.exists() else {"work": "run", "pid": "unknown"}
    return holder["work"], str(holder["pid"])


@contextmanager
def placed(checkout: Path, request: PipelineRequest, run: RunFacts, say: Say) -> Iterator[Place]:
    """Yield the place of a run, which is the working directory in the block.

    The checkout itself serves a run by hand that takes params.yaml as it is, while nobody else works there.
    """
    lock, memory = FileLock(checkout / _IN_USE_PATH), checkout / _PLACES_DIR / (run.id or "none")
    is_apart = _chosen_before(memory) if run.is_retry else None
    if is_apart is None:
        is_apart = request.needs_isolation or run.is_scheduled or not _taken(lock, checkout)
    elif not is_apart:
        _take_again(lock, checkout)
    write_json(memory, is_apart)
    try:
        if not is_apart:
            _sign(checkout, f"Prefect run {_experiment_name(run.name)}")
        with _apart(checkout, request, run, say) if is_apart else _inside(checkout) as place:
            yield place
            memory.unlink(missing_ok=True)
    finally:
        lock.release()


def _chosen_before(memory: Path) -> bool | None:
    """Return whether the first try of a run worked apart: a retry must not go on with other params."""
    return bool(read_json(memory)) if memory.exists() else None


def _take_again(lock: FileLock, checkout: Path) -> None:
    """Take the checkout for a retry, when what the killed try has left there has ended."""
    wait_for_others(checkout)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        work, pid = _holder(checkout)
        words = f"another run works in the checkout, as this one did ({work}, pid {pid})"
        raise UserError(f"{checkout}: {words}; retry when it has ended") from None


def checkout_mark(checkout: Path) -> str:
    """Return what tells a checkout from every other one, and from copies on other machines."""
    path = checkout / _MARK_PATH
    if not path.exists():
        own = path.with_name(f"{path.name}.{uuid.uuid4()}")
        write_json(own, str(uuid.uuid4()))
        with suppress(FileExistsError):
            os.link(own, path)  # whole, and the first one's
        own.unlink()
    return str(read_json(path))


def _taken(lock: FileLock, checkout: Path) -> bool:
    """Return whether the checkout is ours now; what killed experiments left in it is no place to work in."""
    if is_busy(checkout) or (checkout / KEPT_PATH).exists():
        return False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


@contextmanager
def _inside(checkout: Path) -> Iterator[Place]:
    yield Place(checkout, checkout, load_params(checkout / PARAMS_NAME), commit="", experiment="", environment={})


@contextmanager
def _apart(checkout: Path, request: PipelineRequest, run: RunFacts, say: Say) -> Iterator[Place]:
    commit, name = head_commit(checkout), request.experiment or _experiment_name(run.name)
    if not run.is_retry:  # its first try may have saved it
        require_free_name(checkout, name)
    text, params = run_params(checkout, commit, request.preset, request.overrides.settings())
    environment = {STORE_VARIABLE: shared_uri(params.tracking, checkout)}
    with reserved(checkout, name), worktree(checkout, commit, text, params, say) as path, chdir(path):
        _say_what_is_left_out(checkout, path, commit, say)
        say(f"workspace {path}; the run ends as the DVC experiment {name!r}")
        yield Place(checkout, path, params, commit, name, environment)


def _say_what_is_left_out(checkout: Path, path: Path, commit: str, say: Say) -> None:
    """Name the edits and the new files of the checkout that a workspace does not have; raw data and models it has."""
    new = [name for name in new_files(checkout) if Path(name).name != LOCK_PATH.name and not (path / name).exists()]
    absent = edited_files(checkout) + new
    if absent:
        names = ", ".join(absent[:_NUM_NAMED]) + (
            f" and {len(absent) - _NUM_NAMED} more" if absent[_NUM_NAMED:] else ""
        )
        say(f"this run is made from commit {commit[:12]}; not in it are your edits of {names}")


def _experiment_name(run_name: str) -> str:
    """Return a run's name, which may have any characters, as that of an experiment."""
    return re.sub(r"[^A-Za-z0-9]+", "-", run_name).strip("-")[:_MAX_NAME] or "run"
