"""Workspaces apart from the checkout: a git worktree of its last commit, on its DVC cache, with params of its own.

A worktree is named by what it makes: commit and params. So a retry finds what the run before it has left, checkpoints
included, and a second run of the same content waits for the first one and then finds everything in DVC's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flows.dvc_lock import WORKTREES_DIR, is_busy
from flows.dvc_process import dvc
from flows.git import common_dir, git
from flows.waiting import Say, waited_for
from minillm.config import Params
from minillm.errors import UserError
from tasks.event_spool import SPOOLS_DIR
from tasks.storage import STATE_DIR, replacing

_KEY_LENGTH = 16
_READY = STATE_DIR / "ready"  # written last
_LOCAL_SETTINGS = Path(".dvc/config.local")
_KEPT_S = 7 * 24 * 3600  # what an ended run left for its retry


@contextmanager
def worktree(root: Path, commit: str, params_text: str, params: Params, say: Say) -> Iterator[Path]:
    """Yield the workspace of a commit with other params; it goes when the block ends well and stays otherwise.

    One run at a time works there, others wait.
    """
    key = hashlib.sha256(f"{commit}\n{params_text}".encode()).hexdigest()[:_KEY_LENGTH]
    path = (root / WORKTREES_DIR / key).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    words = f"workspace {key}: another run makes the same; waiting for it"
    with waited_for(_lock_path(root, key), words, say):
        _remove_old(root)
        if not (path / _READY).exists():
            _make(root, path, commit)
        (path / _READY).touch()
        _link_untracked(root, path, params)
        with replacing(path / "params.yaml") as temporary:
            temporary.write_text(params_text, encoding="utf-8")
        yield path
        _remove(root, path)


def workspace_path(root: Path, key: str) -> Path:
    """Return the directory of a workspace by its key; that of the checkout for the empty one."""
    path = root / WORKTREES_DIR / key if key else root
    if not (path / "dvc.yaml").is_file():
        raise UserError(f"workspace {key}: not in {root / WORKTREES_DIR}; the run that made it has ended")
    return path.resolve()


def _make(root: Path, path: Path, commit: str) -> None:
    """Make the worktree, after the remains of one whose making was cut."""
    _remove(root, path)
    no_hooks = ("-c", f"core.hooksPath={os.devnull}")  # DVC's own would check out before it knows the cache
    git(root, *no_hooks, "worktree", "add", "--force", "--force", "--quiet", "--detach", str(path), commit)
    for shared in (path / SPOOLS_DIR, root / SPOOLS_DIR):
        shared.parent.mkdir(parents=True, exist_ok=True)
    (root / SPOOLS_DIR).mkdir(exist_ok=True)
    (path / SPOOLS_DIR).symlink_to((root / SPOOLS_DIR).resolve())  # what MLflow has not yet outlives the worktree
    if (root / _LOCAL_SETTINGS).exists():
        shutil.copyfile(root / _LOCAL_SETTINGS, path / _LOCAL_SETTINGS)
    dvc(path, "cache", "dir", "--local", dvc(root, "cache", "dir"))
    dvc(path, "checkout", "--quiet", "--allow-missing", "--force")
    (path / _READY).touch()


def _remove(root: Path, path: Path) -> None:
    (path / _READY).unlink(missing_ok=True)  # first: a ruin must not be taken for a workspace
    with contextlib.suppress(UserError):
        git(root, "worktree", "remove", "--force", "--force", str(path))
    shutil.rmtree(path, ignore_errors=True)


def _remove_old(root: Path) -> None:
    """Remove workspaces of runs that ended long ago and that nobody has retried."""
    for path in (root / WORKTREES_DIR).glob("*/"):
        mark = path / _READY if (path / _READY).exists() else path  # a ruin has none
        if time.time() - mark.stat().st_mtime > _KEPT_S and not is_busy(path):
            with contextlib.suppress(Timeout), FileLock(_lock_path(root, path.name), timeout=0):
                _remove(root, path)


def _lock_path(root: Path, key: str) -> Path:
    path = common_dir(root) / "minillm" / f"{key}.lock"
    path.parent.mkdir(exist_ok=True)
    return path


def _link_untracked(root: Path, path: Path, params: Params) -> None:
    """Show the worktree what the params name and git does not keep: raw data, and models in directories."""
    models = [model.location for model in (params.teacher_model, params.student_model) if model.source == "path"]
    for name in (params.data.root, *models):
        if root.resolve() in (root / name).resolve().parents:  # else it is read where it is, or refused by the stage
            _link_missing(root / name, path / name)


def _link_missing(source: Path, target: Path) -> None:
    """Link what the target does not have; what both have as directories is gone through."""
    if not target.exists() and source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve())
    elif target.is_dir() and not target.is_symlink() and source.is_dir():
        for entry in source.iterdir():
            _link_missing(entry, target / entry.name)
