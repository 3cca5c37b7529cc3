"""Gives the workspace back as it was: `dvc exp run` rewrites params.yaml, dvc.lock, outputs, git's index and HEAD."""

from __future__ import annotations

import base64
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.dvc_lock import remove_dead_lock
from flows.dvc_process import dvc_command
from flows.environment import child_environment
from flows.graph import made_paths
from minillm.errors import UserError
from minillm.params import ConfigError, read_yaml
from tasks.storage import STATE_DIR, read_json, replacing, write_json

PARAMS_NAME = "params.yaml"
_LOCK_NAME = "dvc.lock"
_DIRECTORY = STATE_DIR / "compare"
_KEPT_PATH = _DIRECTORY / "workspace.json"  # outlives a comparison that is killed


@dataclass(frozen=True)
class Kept:
    """What is given back. Contents of files are in base64, None where there was no file."""

    commit: str
    head: str | None
    index: str | None
    files: dict[str, str | None]  # what DVC does not keep in its cache
    outputs: list[str]  # those in DVC's cache that were there
    running: Any  # content of params.yaml in the run at work; None before the first


class Workspace:
    """A workspace in which experiments may run, one after the other."""

    def __init__(self, root: Path, kept: Kept) -> None:
        self._root = root
        self._kept = kept

    def start(self, content: Any) -> None:
        """Bring the kept params.yaml back, from which the next run makes this content, and note that on disk.

        Without it the run would inherit the knobs that the one before it set.
        """
        self._kept = replace(self._kept, running=content)
        write_json(self._root / _KEPT_PATH, asdict(self._kept))
        _write(self._root / PARAMS_NAME, self._kept.files[PARAMS_NAME])

    def give_back(self) -> None:
        """Bring everything back, if a run has started."""
        if self._kept.running is not None:
            _give_back(self._root, self._kept)


@contextmanager
def kept_workspace(root: Path) -> Iterator[Workspace]:
    """Yield the workspace of one comparison at a time, and give it back on every way out.

    After a SIGKILL the next comparison does that first.
    """
    (root / _DIRECTORY).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / _DIRECTORY / "lock", timeout=0):
            _recover(root)
            workspace = Workspace(root, _keep(root))
            try:
                yield workspace
            finally:
                with _uninterrupted():
                    workspace.give_back()
    except Timeout:
        raise UserError("another comparison is at work in this directory") from None


def _keep(root: Path) -> Kept:
    cached, uncached = made_paths(root)
    files = {name: _read(root / name) for name in (PARAMS_NAME, _LOCK_NAME, *uncached)}
    outputs = [name for name in cached if (root / name).exists()]
    head, index = (_read(_git_path(root, name)) for name in ("HEAD", "index"))
    return Kept(_git(root, "rev-parse", "HEAD"), head, index, files, outputs, running=None)


def _give_back(root: Path, kept: Kept) -> None:
    for name, content in kept.files.items():
        _write(root / name, content)
    _attach_head(root, kept)
    if _git(root, "rev-parse", "HEAD") == kept.commit:  # else someone has committed meanwhile
        _write(_git_path(root, "index"), kept.index)
    _check_out(root, kept.outputs)
    (root / _KEPT_PATH).unlink(missing_ok=True)


def _attach_head(root: Path, kept: Kept) -> None:
    """Undo what a killed `dvc exp run` leaves: git's HEAD detached, so that the next commit is on no branch."""
    attached = subprocess.run(["git", "symbolic-ref", "--quiet", "HEAD"], cwd=root, capture_output=True)
    if attached.returncode != 0 and _git(root, "rev-parse", "HEAD") == kept.commit:
        _write(_git_path(root, "HEAD"), kept.head)


def _check_out(root: Path, outputs: list[str]) -> None:
    """Bring the outputs of dvc.lock from DVC's cache; remove those that were not there."""
    for name in set(made_paths(root)[0]) - set(outputs):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    remove_dead_lock(root)
    command = dvc_command("checkout", "--force", "--quiet", "--allow-missing", *outputs)  # without any it takes all
    if outputs:
        subprocess.run(command, cwd=root, env=child_environment({}), stdin=subprocess.DEVNULL, capture_output=True)
    lost = [name for name in outputs if not (root / name).exists()]
    if lost:
        print(f"not in DVC's cache, `dvc repro` makes them again: {', '.join(lost)}", file=sys.stderr)


def _recover(root: Path) -> None:
    """Give the workspace back if a killed comparison could not, unless someone has changed params.yaml since."""
    if not (root / _KEPT_PATH).exists():
        return
    kept = Kept(**read_json(root / _KEPT_PATH))
    _attach_head(root, kept)
    try:
        is_untouched = read_yaml(root / PARAMS_NAME) == kept.running
    except ConfigError:
        is_untouched = False
    if is_untouched:
        _give_back(root, kept)
        print(f"{PARAMS_NAME} and outputs are again as they were before the comparison that was killed", flush=True)
    (root / _KEPT_PATH).unlink(missing_ok=True)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"`dvc exp run` needs a git repository with a commit: {done.stderr.strip().splitlines()[0]}")
    return done.stdout.strip()


def _git_path(root: Path, name: str) -> Path:
    return root / _git(root, "rev-parse", "--git-path", name)


def _read(path: Path) -> str | None:
    return base64.b64encode(path.read_bytes()).decode() if path.is_file() else None


def _write(path: Path, content: str | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif content != _read(path):
        with replacing(path) as temporary:
            temporary.write_bytes(base64.b64decode(content))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let no second Ctrl-C stop what the first one asked for."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
