"""Two clones of a scratch repository with caches of their own, a common git remote and a common DVC remote."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.imports import ROOT
from tests.scratch_repository import commit_all, make_scratch_repository, run_in


@dataclass(frozen=True)
class Clones:
    """`cpu` is where the pipeline runs, `gpu` where one of its stages does."""

    cpu: Path
    gpu: Path
    git_remote: Path
    dvc_remote: Path


def make_clones(directory: Path, with_code: bool = False) -> Clones:
    """Return the clones of one commit; with this project's code and deployments if asked for."""
    first = make_scratch_repository(directory / "first")
    if with_code:
        for name in ("flows", "tasks", "minillm", "configs"):
            shutil.copytree(ROOT / name, first / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(ROOT / "prefect.yaml", first / "prefect.yaml")
    remote = directory / "dvc-remote"
    run_in(first, sys.executable, "-m", "dvc", "remote", "add", "--default", "common", str(remote))
    commit_all(first)
    bare = directory / "git-remote"
    run_in(directory, "git", "clone", "--quiet", "--bare", str(first), str(bare))
    clones = Clones(directory / "cpu", directory / "gpu", bare, remote)
    for clone in (clones.cpu, clones.gpu):
        run_in(directory, "git", "clone", "--quiet", str(bare), str(clone))
    return clones
