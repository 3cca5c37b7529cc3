"""A stage on a machine with no disk in common: inputs and results travel as DVC experiments through two remotes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from flows import experiments
from flows.dvc_process import dvc
from flows.git import git
from flows.overlay import PARAMS_NAME
from flows.waiting import Say
from flows.worktree import worktree
from minillm.errors import UserError
from minillm.params import parse_params, read_yaml, yaml_content
from tasks.lineage import LOCK_PATH


def require_remotes(checkout: Path) -> None:
    """Raise UserError unless git has its remote and DVC a default one."""
    if experiments.GIT_REMOTE not in git(checkout, "remote").splitlines():
        raise UserError(f"hand_over: git has no remote {experiments.GIT_REMOTE!r}; `git remote add` makes it")
    try:
        dvc(checkout, "remote", "default")
    except UserError:
        raise UserError("hand_over: DVC has no default remote; `dvc remote add --default NAME URL` makes one") from None


def result_name(inputs: str) -> str:
    """Return the experiment that brings back what the experiment of the inputs was sent for."""
    return f"{inputs}-done"


def send_inputs(workspace: Path, name: str, done: list[str]) -> None:
    """Send what the stages that are done have made."""
    experiments.save(workspace, name, done)
    experiments.send(workspace, name)


def fetch_result(workspace: Path, name: str) -> None:
    """Bring the result of a stage into the workspace that sent its inputs, and remove both from the remote."""
    experiments.fetch(workspace, result_name(name))
    experiments.apply(workspace, result_name(name))
    for ended in (name, result_name(name)):
        experiments.drop(workspace, ended)


@contextmanager
def received(checkout: Path, name: str, say: Say) -> Iterator[Path]:
    """Yield a workspace with the inputs of a stage, which is the working directory in the block.

    When the block ends well, what is done there then goes back.
    """
    require_remotes(checkout)
    experiments.fetch(checkout, name)
    base, content = experiments.base_commit(checkout, name), experiments.content(checkout, name, PARAMS_NAME)
    params = parse_params(yaml_content(content, PARAMS_NAME), source=PARAMS_NAME)
    with worktree(checkout, base, content, params, say) as path, chdir(path):
        experiments.apply(path, name)
        yield path
        experiments.save(path, result_name(name), list(read_yaml(path / LOCK_PATH)["stages"]))
        experiments.send(path, result_name(name))
