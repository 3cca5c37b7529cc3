"""A stage on a machine with no disk in common: inputs and results travel as DVC experiments through two remotes."""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from flows import experiments
from flows.dvc_process import dvc, stale_stages
from flows.git import git
from flows.graph import stage_order
from flows.overlay import PARAMS_NAME
from flows.waiting import Say
from flows.worktree import worktree
from minillm.errors import UserError
from minillm.params import parse_params, yaml_content


def require_remotes(checkout: Path) -> None:
    """Raise UserError unless git has its remote and DVC a default one with a full address."""
    if experiments.GIT_REMOTE not in git(checkout, "remote").splitlines():
        raise UserError(f"hand_over: git has no remote {experiments.GIT_REMOTE!r}; `git remote add` makes it")
    try:
        name = dvc(checkout, "remote", "default").split()[0]
    except UserError:
        raise UserError("hand_over: DVC has no default remote; `dvc remote add --default NAME URL` makes one") from None
    url = _written_url(checkout, name)
    if "://" not in url and not Path(url).is_absolute():
        raise UserError(
            f"hand_over: DVC's remote {name!r} is the relative path {url}, which `dvc exp push` takes as one from /; "
            f"`dvc remote modify {name} url` sets a full path"
        )


def _written_url(checkout: Path, remote: str) -> str:
    """Return a remote's address as the repository's settings have it; DVC itself shows relative paths resolved."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([checkout / ".dvc/config", checkout / ".dvc/config.local"], encoding="utf-8")  # the second one wins
    return settings.get(f"'remote \"{remote}\"'", "url", fallback="/")


def result_name(inputs: str) -> str:
    """Return the experiment that brings back what the experiment of the inputs was sent for."""
    return f"{inputs}-done"


def send_inputs(workspace: Path, name: str, stage: str) -> None:
    """Send what the stages have made that are up to date, as the inputs of another stage."""
    clear_away(workspace, name)  # what a try that was killed has left
    stale = stale_stages(workspace)
    done = [other for other in stage_order(workspace) if other not in stale]
    if not done:
        raise UserError(f"stage {stage}: no stage before it is up to date; ask for those too")
    experiments.save(workspace, name, done)
    experiments.send(workspace, name)


def fetch_result(workspace: Path, name: str) -> None:
    """Bring the result of a stage into the workspace that sent its inputs; raises UserError for another's."""
    experiments.fetch(workspace, result_name(name))
    if experiments.content(workspace, result_name(name), PARAMS_NAME) != experiments.content(
        workspace, name, PARAMS_NAME
    ):
        raise UserError(f"{result_name(name)}: it was made with other params than {name} asks for")
    experiments.apply(workspace, result_name(name))


def clear_away(workspace: Path, name: str) -> None:
    """Remove what went to another machine and what came back, here and on the remote."""
    for ended in (name, result_name(name)):
        experiments.drop(workspace, ended)
        experiments.drop_from_remote(workspace, ended)


@contextmanager
def received(checkout: Path, name: str, stage: str, say: Say) -> Iterator[Path]:
    """Yield a workspace with the inputs of a stage, which is the working directory in the block.

    When the block ends well, what the stage has made then goes back; nothing stays here.
    """
    require_remotes(checkout)
    try:
        experiments.fetch(checkout, name)
        base, content = experiments.base_commit(checkout, name), experiments.content(checkout, name, PARAMS_NAME)
        params = parse_params(yaml_content(content, PARAMS_NAME), source=PARAMS_NAME)
        with worktree(checkout, base, content, params, say) as path, chdir(path):
            experiments.apply(path, name)
            yield path
            experiments.save(path, result_name(name), [stage])
            experiments.send(path, result_name(name))
    finally:
        for ended in (name, result_name(name)):
            experiments.drop(checkout, ended)
