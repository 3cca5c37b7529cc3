"""The image as a git repository of its own: runs apart in worktrees, DVC experiments, and what a new image brings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import experiments
from flows.container import take_up_code
from flows.dvc_process import dvc
from flows.git import edited_files, git, head_commit
from flows.placement import RunFacts, placed
from flows.request import PipelineRequest
from minillm.errors import UserError
from tests.image_place import image_environment, lay_out, outside_volumes
from tests.imports import ROOT
from tests.prefect_place import run_pipeline
from tests.scratch_repository import commit_all, make_scratch_repository, set_param

pytestmark = pytest.mark.slow

REQUEST = PipelineRequest.model_validate({"overrides": {"num_phases": 7}, "experiment": "seven"})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The files of a repository, of which an image is made."""
    files = make_scratch_repository(tmp_path / "files")
    set_param(files, "tracking.enabled", False)  # a container's MLflow is a server, and no file of the root
    (files / "data/raw").mkdir(parents=True)
    (files / "data/raw/mine.jsonl").write_text("{}\n")
    return files


@pytest.fixture
def image(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A laid out image, which is the working directory."""
    image = lay_out(files, tmp_path / "image", tmp_path / "home")
    for name, value in image_environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(image)
    return image


def test_its_commit_has_the_code_and_neither_data_nor_a_dvc_lock(image: Path) -> None:
    assert edited_files(image) == []
    assert git(image, "status", "--porcelain").splitlines() == ["?? .dvc/dvc.lock", "?? data/", "?? dvc.lock"]
    assert {"dvc.yaml", "params.yaml", ".dvc/config"} <= set(git(image, "ls-files").splitlines())
    assert git(image, "log", "--format=%an <%ae> %s") == "MiniLLM <minillm@localhost> The image's code"


def test_equal_code_makes_an_equal_commit(files: Path, image: Path, tmp_path: Path) -> None:
    again = lay_out(files, tmp_path / "again", tmp_path / "home")
    assert head_commit(again) == head_commit(image)


@pytest.mark.pipeline
def test_a_run_apart_leaves_the_read_only_part_and_the_images_dvc_lock_alone(prefect_api: None, image: Path) -> None:
    before, record = outside_volumes(image), Path(".dvc/dvc.lock").read_bytes()
    assert run_pipeline(REQUEST).result() == {"prepare": "ran", "distill": "ran", "report": "ran"}
    assert (outside_volumes(image), Path(".dvc/dvc.lock").read_bytes()) == (before, record)
    assert os.readlink("dvc.lock") == ".dvc/dvc.lock"
    assert "distill:" in experiments.content(image, "seven", "dvc.lock")
    shown = json.loads(dvc(image, "exp", "show", "--json"))
    assert [found["name"] for entry in shown for found in entry["experiments"] or ()] == ["seven"]
    dvc(image, "get", ".", "reports/report.html", "--rev", "seven", "--out", "state/seven.html")
    assert Path("state/seven.html").read_text() == "reportdistillprepare"


@pytest.mark.pipeline
def test_a_worktree_has_a_dvc_lock_of_its_own_and_the_images_data(image: Path) -> None:
    run = RunFacts("0-1", "calm-fox", is_scheduled=True, is_retry=False)
    with placed(image, PipelineRequest(), run, print) as place:
        dvc(place.path, "repro", "--quiet")
        assert place.path != image and (place.path / "dvc.lock").is_file() and not Path("dvc.lock").is_symlink()
        assert (place.path / "data/raw/mine.jsonl").resolve() == image / "data/raw/mine.jsonl"
        experiments.save(place.path, place.experiment, ["prepare", "distill", "report"])
    assert experiments.names(image) == ["calm-fox"]


def _next_image(files: Path, image: Path) -> Path:
    """Return an image of other code at the same place, over whose .git the volume of the old one is mounted."""
    history = shutil.move(image / ".git", image.parent / "volume")
    shutil.rmtree(image)
    set_param(files, "seed", 5)
    lay_out(files, image, image.parent / "home")
    shutil.rmtree(image / ".git")
    shutil.move(history, image / ".git")
    return image


@pytest.mark.pipeline
def test_a_new_images_code_is_checked_out_and_older_experiments_stay_in_sight(files: Path, image: Path) -> None:
    old = head_commit(image)
    dvc(image, "repro", "--quiet")
    experiments.save(image, "older", ["prepare", "distill", "report"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(image.parent)
        _next_image(files, image)
    assert edited_files(image) == ["params.yaml"]
    assert f"in place of {old[:12]}" in take_up_code(image)
    assert edited_files(image) == [] and head_commit(image) != old
    assert "seed: 5 " in git(image, "show", "HEAD:params.yaml")
    assert experiments.base_commit(image, "older") == old
    assert "older" in dvc(image, "exp", "list", "--all-commits")
    assert take_up_code(image) == ""


def test_a_commit_upon_the_images_own_stays(image: Path) -> None:
    assert take_up_code(image) == ""
    (image / "params.yaml").write_text("seed: 4\n")
    commit_all(image)
    after = head_commit(image)
    assert (take_up_code(image), head_commit(image)) == ("", after)


def test_a_repository_that_no_image_made_is_left_alone(files: Path) -> None:
    assert take_up_code(commit_all(files)) == ""


def test_without_its_bundle_nothing_starts_and_with_it_the_command_does(image: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.container", "echo", "started"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "started\n"
    (tmp_path / "home/code.bundle").unlink()
    with pytest.raises(UserError, match="git fetch"):
        take_up_code(image)
    failed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)
