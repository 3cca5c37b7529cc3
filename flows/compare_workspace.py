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

from flows.dvc_lock import remove_dead_lock, wait_for_others
from flows.dvc_process import dvc_command
from flows.environment import child_environment
from flows.git import git
from flows.graph import made_paths
from flows.placement import KEPT_PATH, occupied
from flows.processes import exit_on_sigterm
from minillm.errors import UserError
from minillm.params import ConfigError, load_params, read_yaml, yaml_content
from tasks.integrity import move_aside
from tasks.storage import read_json, replacing, write_json

PARAMS_NAME = "params.yaml"
_LOCK_NAME = "dvc.lock"
_DVC_TEMPORARY = ".dvc/tmp"


@dataclass(frozen=True)
class Kept:
    """What is given back. Contents of files are in base64, None where there was no file."""

    commit: str
    head: str | None
    index: str | None
    files: dict[str, str | None]  # what DVC does not keep in its cache
    outputs: list[str]  # those in DVC's cache that were there
    stashes: list[str]  # of git, with edits of the user's
    running: Any  # content of params.yaml in the run at work; None before the first
    previous: Any  # that of the run before it


class Workspace:
    """A workspace in which experiments may run, one after the other."""

    def __init__(self, root: Path, kept: Kept) -> None:
        self._root = root
        self._kept = kept

    def start(self, content: Any) -> None:
        """Bring the kept params.yaml back, from which the next run makes this content, and note that on disk.

        Without it the run would inherit the knobs that the one before it set.
        """
        self._kept = replace(self._kept, previous=self._kept.running, running=content)
        write_json(self._root / KEPT_PATH, asdict(self._kept))
        _write(self._root / PARAMS_NAME, self._kept.files[PARAMS_NAME])

    def give_back(self) -> None:
        """Bring everything back, if a run has started."""
        if self._kept.running is not None:
            _give_back(self._root, self._kept)
            (self._root / KEPT_PATH).unlink(missing_ok=True)


def end_by_signal() -> None:
    """Give the workspace back on SIGTERM too, and when the terminal goes away, unless `nohup` keeps that from us."""
    exit_on_sigterm()
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))


@contextmanager
def kept_workspace(root: Path, work: str = "comparison") -> Iterator[Workspace]:
    """Yield the workspace, which nobody else works in meanwhile, and give it back on every way out.

    After a SIGKILL the next call does that first.
    """
    _git(root, "rev-parse", "HEAD")  # a place that is no repository stays as it is
    with occupied(root, work):
        wait_for_others(root)
        recover(root)
        workspace = Workspace(root, _keep(root))
        try:
            yield workspace
        finally:
            with _uninterrupted():
                workspace.give_back()


def _keep(root: Path) -> Kept:
    cached, uncached = made_paths(root)
    files = {name: _read(root / name) for name in (PARAMS_NAME, _LOCK_NAME, *uncached)}
    outputs = [name for name in cached if (root / name).exists()]
    head, index = (_read(_git_path(root, name)) for name in ("HEAD", "index"))
    commit, stashes = _git(root, "rev-parse", "HEAD"), _stashes(root)
    return Kept(commit, head, index, files, outputs, stashes, running=None, previous=None)


def _give_back(root: Path, kept: Kept) -> None:
    for name, content in kept.files.items():
        _write(root / name, content)
    _attach_head(root, kept)
    if _git(root, "rev-parse", "HEAD") == kept.commit:  # else someone has committed meanwhile
        _write(_git_path(root, "index"), kept.index)
    _check_out(root, kept.outputs)


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


def recover(root: Path) -> None:
    """Give the workspace back if killed experiments could not, unless someone has changed params.yaml since."""
    if not (root / KEPT_PATH).exists():
        return
    wait_for_others(root)  # what a killed run left behind still writes
    kept = _read_kept(root)
    if kept is None:
        _put_aside(root, KEPT_PATH, "the workspace that another version kept when it was killed is now")
        return
    _attach_head(root, kept)
    is_usable = _is_usable(root)
    if is_usable and _is_edited(root, kept):
        words = f"{PARAMS_NAME} was edited after experiments were killed and stays; what it was before them is now in"
        _put_aside(root, KEPT_PATH, words)
        return
    if not is_usable and (root / PARAMS_NAME).exists():  # DVC writes it in place
        _put_aside(root, PARAMS_NAME, f"{PARAMS_NAME} cannot be used, a kill may have cut it; it is now")
    _give_back(root, kept)
    _take_back_stashes(root, kept)
    (root / KEPT_PATH).unlink()
    print(f"{PARAMS_NAME} and outputs are again as they were before the experiments that were killed", flush=True)


def _read_kept(root: Path) -> Kept | None:
    try:
        return Kept(**read_json(root / KEPT_PATH))
    except TypeError:
        return None


def _put_aside(root: Path, path: str | Path, words: str) -> None:
    print(f"{words} {move_aside(root / path, root).relative_to(root)}", flush=True)


def _is_usable(root: Path) -> bool:
    try:
        load_params(root / PARAMS_NAME)
    except ConfigError:
        return False
    return True


def _is_edited(root: Path, kept: Kept) -> bool:
    """Return whether params.yaml is none of those that it may be when experiments are killed."""
    if _read(root / PARAMS_NAME) == kept.files[PARAMS_NAME]:
        return False
    return read_yaml(root / PARAMS_NAME) not in (kept.running, kept.previous, _committed(root, kept))


def _committed(root: Path, kept: Kept) -> Any:
    """Return the content of the commit's params.yaml, which is there while DVC has stashed that of the user."""
    try:
        return yaml_content(git(root, "show", f"{kept.commit}:./{PARAMS_NAME}"), PARAMS_NAME)
    except UserError:
        return None


def _stashes(root: Path) -> list[str]:
    return git(root, "stash", "list", "--format=%H").splitlines()


def _take_back_stashes(root: Path, kept: Kept) -> None:
    """Take back the edits that DVC had stashed when it was killed, and drop its entry when all of them are there."""
    for number, stash in reversed(list(enumerate(_stashes(root)))):  # from the oldest: dropping renumbers the newer
        if stash in kept.stashes:
            continue
        missing = [f":(literal){name}" for name in _differing(root, stash)]
        if reset := [name for name in missing if not _differing(root, kept.commit, name)]:
            git(root, "restore", f"--source={stash}", "--worktree", "--", *reset)
        if _differing(root, stash):
            print(f"git stash list: stash@{{{number}}} has edits that are not in the workspace; it stays", flush=True)
        else:
            git(root, "stash", "drop", "--quiet", f"stash@{{{number}}}")


def _differing(root: Path, commit: str, name: str = ".") -> list[str]:
    """Return the files of git that are other than in a commit, without those that are given back anyway."""
    own = (f":(exclude){path}" for path in (PARAMS_NAME, _LOCK_NAME, *made_paths(root)[1], _DVC_TEMPORARY))
    names = git(root, "diff", "--name-only", "--relative", "-z", commit, "--", name, *own)
    return [name for name in names.split("\0") if name]


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
    """Let no second signal stop what the first one asked for."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
