"""Results as named DVC experiments: saved by the stages that are done, sent and fetched by DVC's and git's remotes.

Experiments are git references, which all worktrees of a repository share. DVC fails when two write them at once, so one
lock file in git's common directory keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flows.dvc_process import dvc
from flows.git import common_dir, git
from flows.graph import made_paths
from minillm.errors import UserError
from tasks.lineage import LOCK_PATH

GIT_REMOTE = "origin"
_NAME_DEPTH = 4
_LOCK_NAME = "minillm-experiments.lock"


def require_free_name(root: Path, name: str) -> None:
    """Raise UserError when an experiment, a branch or a tag has the name."""
    if name in names(root):
        raise UserError(f"experiment {name!r} is there already; choose another name, or `dvc exp remove {name}`")
    try:
        git(root, "rev-parse", "--verify", "--quiet", name)
    except UserError:
        return
    raise UserError(f"experiment {name!r}: git knows a commit by this name; choose another one")


@contextmanager
def reserved(root: Path, name: str) -> Iterator[None]:
    """Keep a name for one run while it works; raises UserError when another one has it."""
    try:
        with FileLock(common_dir(root) / f"minillm-name-{name}.lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"experiment {name!r}: another run at work will end as that; choose another name") from None


def names(root: Path) -> list[str]:
    """Return the names of all experiments of the repository."""
    return [Path(reference).name for reference in _all_references(root)]


def base_commit(root: Path, name: str) -> str:
    """Return the commit that an experiment is based on."""
    *_, start, rest, _ = _reference(root, name).split("/")
    return start + rest


def content(root: Path, name: str, path: str) -> str:
    """Return a small file as an experiment has it."""
    return git(root, "show", f"{_reference(root, name)}:{path}") + "\n"


def save(workspace: Path, name: str, stages: Sequence[str]) -> None:
    """Keep the state of a workspace, of which these stages are done, under a name; an older one gives it up.

    `dvc exp save` without stages would record those that have not run as done. It commits by force: inputs that were
    edited since would be recorded as those of the outputs, so its record must be the one that was there.
    """
    if not stages:
        raise UserError(f"experiment {name!r}: no stage is done that it could keep")
    untracked = [argument for path in _small_outputs(workspace) for argument in ("--include-untracked", path)]
    record = (workspace / LOCK_PATH).read_bytes()
    with _references(workspace):
        dvc(workspace, "exp", "save", "--force", "--name", name, *untracked, *stages)
    if (workspace / LOCK_PATH).read_bytes() != record:
        drop(workspace, name)
        (workspace / LOCK_PATH).write_bytes(record)
        raise UserError(f"experiment {name!r} was not saved: inputs of its stages were edited meanwhile; run again")


def send(workspace: Path, name: str) -> None:
    """Send an experiment to git's remote and its files to DVC's."""
    with _references(workspace):
        dvc(workspace, "exp", "push", "--force", GIT_REMOTE, name)


def fetch(workspace: Path, name: str) -> None:
    """Bring an experiment and its files from the remotes, in place of one that is here."""
    drop(workspace, name)
    with _references(workspace):
        dvc(workspace, "exp", "pull", "--force", GIT_REMOTE, name)


def apply(workspace: Path, name: str) -> None:
    """Bring a workspace into the state of an experiment, which may have done a part of the stages.

    `dvc exp apply` fails for such a one, as it also wants the outputs that nobody has made.
    """
    git(workspace, "restore", f"--source={_reference(workspace, name)}", "--worktree", "--", ".")
    dvc(workspace, "checkout", "--force", "--quiet", "--allow-missing")


def drop(workspace: Path, name: str) -> None:
    """Remove all experiments of a name from this repository; they are git's references."""
    with _references(workspace):
        for reference in [known for known in _all_references(workspace) if Path(known).name == name]:
            git(workspace, "update-ref", "-d", reference)


def drop_from_remote(workspace: Path, name: str) -> None:
    """Remove all experiments of a name from git's remote."""
    listed = git(workspace, "ls-remote", GIT_REMOTE, f"refs/exps/*/*/{name}").splitlines()
    if listed:
        git(workspace, "push", "--quiet", GIT_REMOTE, *(f":{line.split()[1]}" for line in listed))


def _small_outputs(workspace: Path) -> list[str]:
    """Return the outputs that DVC leaves to git, and its lists for git, as far as git does not know them."""
    _, uncached = made_paths(workspace)
    ignores = [str(path.relative_to(workspace)) for path in workspace.glob("*/.gitignore")]
    listed = git(workspace, "ls-files", "--others", "--exclude-standard", "--", *uncached, *ignores)
    return listed.splitlines()


def _all_references(root: Path) -> list[str]:
    """Return refs/exps/.., which name the commit in two parts and then the experiment; others are DVC's own."""
    listed = git(root, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    return [name for name in listed if name.count("/") == _NAME_DEPTH]


def _reference(root: Path, name: str) -> str:
    found = [reference for reference in _all_references(root) if Path(reference).name == name]
    if not found:
        raise UserError(f"experiment {name!r}: not in this repository")
    return found[-1]


@contextmanager
def _references(workspace: Path) -> Iterator[None]:
    with FileLock(common_dir(workspace) / _LOCK_NAME):
        yield
