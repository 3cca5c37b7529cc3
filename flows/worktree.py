"""Workspaces apart from the checkout: a git worktree of its last commit, on its DVC cache, with params of its own.

A worktree is named by what it makes: commit and params. So a retry finds what the run before it has left, checkpoints
included, and a second run of the same content waits for the first one and then finds everything in DVC's cache.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flows.dvc_lock import WORKTREES_DIR
from flows.dvc_process import dvc
from flows.git import git
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
    with waited_for(Path(f"{path}.lock"), f"workspace {key}: another run makes the same; waiting for it", say):
        _remove_old(root)
        if not (path / _READY).exists():
            _make(root, path, commit)
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
    git(root, "worktree", "add", "--quiet", "--detach", str(path), commit)
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
    shutil.rmtree(path, ignore_errors=True)
    git(root, "worktree", "prune")


def _remove_old(root: Path) -> None:
    """Remove workspaces of runs that ended long ago and that nobody has retried."""
    for path in (root / WORKTREES_DIR).iterdir():
        if path.is_dir() and time.time() - path.stat().st_mtime > _KEPT_S:
            try:
                with FileLock(f"{path}.lock", timeout=0):
                    _remove(root, path)
            except Timeout:
                continue


def _link_untracked(root: Path, path: Path, params: Params) -> None:
    """Show the worktree what the params name and git does not keep: raw data, and models in directories."""
    models = [model.location for model in (params.teacher_model, params.student_model) if model.source == "path"]
    data = [file.relative_to(root).as_posix() for file in (root / params.data.root).rglob("*") if file.is_file()]
    for name in (name for name in (*models, *data) if not Path(name).is_absolute() and (root / name).exists()):
        if not (path / name).exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).symlink_to((root / name).resolve())
