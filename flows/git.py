"""Git commands, by their own names; an error is the user's to read in one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

from minillm.errors import UserError


def git(root: Path, *arguments: str) -> str:
    """Return what a git command printed; raises UserError with its first line when it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed; runs apart from the workspace need it") from None
    if done.returncode != 0:
        reason = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise UserError(f"git {' '.join(arguments[:2])}: {reason}")
    return done.stdout.strip()


def common_dir(root: Path) -> Path:
    """Return the directory of git that all worktrees of a repository share; `git clean` leaves it alone."""
    return (root / git(root, "rev-parse", "--git-common-dir")).resolve()


def head_commit(root: Path) -> str:
    """Return the commit that is checked out."""
    try:
        return git(root, "rev-parse", "--verify", "HEAD")
    except UserError as error:
        raise UserError(f"{root}: a git repository with a commit is needed for a run apart from it ({error})") from None


def edited_files(root: Path) -> list[str]:
    """Return the tracked files that differ from the last commit."""
    return git(root, "diff", "--name-only", "HEAD").splitlines()


def new_files(root: Path) -> list[str]:
    """Return the files that git neither knows nor ignores."""
    return git(root, "ls-files", "--others", "--exclude-standard").splitlines()
