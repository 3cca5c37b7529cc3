"""`make image-check`: the image built as the Dockerfile says, and what its user can do there."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.image_build import Builder, Container, why_not

pytestmark = pytest.mark.slow

# A run with an override, as a worker starts it: by Prefect's flow, in a worktree, saved as an experiment.
RUN_APART = """
import os
from pathlib import Path
from flows.environment import PREFECT_CLIENT
from flows.servers import free_port, prefect_server, running
server = prefect_server(f"http://127.0.0.1:{free_port()}")
os.environ |= {**PREFECT_CLIENT, "PREFECT_API_URL": f"{server.url}/api", "PREFECT_HOME": "/tmp/prefect"}
with running(Path.cwd(), [server]):
    from flows.pipeline import pipeline
    from flows.request import PipelineRequest
    fields = {"overrides": {"num_phases": 7}, "stages": ["prepare"], "experiment": "seven"}
    print("result", pipeline(PipelineRequest.model_validate(fields)))
"""


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container of the new image, whose volumes are new."""
    if reason := why_not():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("image")
    builder = Builder(directory)
    try:
        builder.make_base()
        builder.build()
        settings = builder.settings()
        assert (settings["User"], settings["WorkingDir"]) == ("10001:10001", "/pipeline")
        environment = dict(entry.split("=", 1) for entry in settings["Env"])
        yield Container(builder.mounted(), directory / "volumes", environment)
    finally:
        builder.remove()  # gigabytes


def said(container: Container, *command: str, **extra: str) -> str:
    """Return what a command printed; it must succeed."""
    done = container.run(*command, **extra)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_its_user_writes_to_volumes_alone(container: Container) -> None:
    assert said(container, "id", "-u").strip() == "10001"
    for directory in ("/pipeline", "/opt/venv", "/home/minillm"):
        assert "Read-only file system" in container.run("touch", f"{directory}/new").stderr
    new = [f"{place}/new" for place in (".dvc", ".git", "state", "reports")]
    said(container, "touch", *new)
    said(container, "rm", *new)


def test_it_is_a_repository_whose_files_are_its_commit(container: Container) -> None:
    assert said(container, "git", "log", "--format=%an %s") == "MiniLLM The image's code\n"
    assert said(container, "git", "diff", "--name-only", "HEAD") == ""
    assert "Repo: dvc, git" in said(container, "dvc", "version")
    assert "prepare" in said(container, "dvc", "status")


def test_its_programs_start(container: Container) -> None:
    assert "prepare" in said(container, "python", "-m", "tasks", "--help")
    assert "compare" in said(container, "python", "-c", "from flows.cli import app; app()", "--help")
    assert "3.9.1" in said(container, "prefect", "--version", PREFECT_HOME="/tmp/prefect")
    assert said(container, "python", "-m", "flows.container", "echo", "started") == "started\n"


def test_a_run_with_an_override_works_apart_and_ends_as_an_experiment(container: Container) -> None:
    printed = said(container, "python", "-c", RUN_APART, MLFLOW_TRACKING_URI="sqlite:////tmp/mlflow.db")
    assert "result {'prepare': 'ran'}" in printed
    assert "seven" in said(container, "dvc", "exp", "list")
    said(container, "dvc", "get", ".", "metrics/prepare.json", "--rev", "seven", "--out", "state/seven.json")
    assert json.loads(said(container, "cat", "state/seven.json"))["corpus"]["blocks"] > 0
    assert said(container, "cat", "dvc.lock") == "schema: '2.0'\n"
    assert list((container.volumes / "pipeline/state/worktrees").glob("*/")) == []
