"""No stage uses a file that is not what the stage before it made, whatever size and time say."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from minillm.params import read_yaml
from tasks.endings import DAMAGED
from tasks.integrity import cache_dir, damaged_objects, output_md5
from tests.scratch_repository import make_scratch_repository
from tests.tiny_pipeline import command, dvc, set_knob

pytestmark = pytest.mark.pipeline
WEIGHTS = "models/teacher/model.safetensors"


@pytest.fixture
def project(finished_project: Path, tmp_path: Path) -> Path:
    """A finished repository whose files DVC has looked at: it reads them again only if size, time or inode differ."""
    root = Path(shutil.copytree(finished_project, tmp_path / "project", symlinks=True))
    assert "up to date" in dvc(root, "status")
    return root


def flip_a_bit(path: Path) -> None:
    """Change one bit and nothing that DVC looks at: not size, time, permissions or inode."""
    state = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(state.st_size // 2)
        byte = file.read(1)[0]
        file.seek(state.st_size // 2)
        file.write(bytes([byte ^ 4]))
    path.chmod(state.st_mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def cached(root: Path, name: str) -> Path:
    """Return DVC's copy of a file."""
    md5 = output_md5(root / name)
    assert md5 is not None
    return root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def test_the_md5_of_an_output_is_the_one_that_dvc_records(project: Path) -> None:
    stages = read_yaml(project / "dvc.lock")["stages"]
    outs = [out for stage in stages.values() for out in stage["outs"]]
    assert {out["md5"].endswith(".dir") for out in outs} == {True, False}
    assert [output_md5(project / out["path"]) for out in outs] == [out["md5"] for out in outs]


@pytest.mark.parametrize("is_cache_damaged", [False, True], ids=["in the workspace", "in DVC's cache too"])
def test_fault_05_a_flipped_bit_of_a_model_stops_the_stage_and_the_next_run_makes_it_good(
    project: Path, is_cache_damaged: bool
) -> None:
    good, expected = (project / WEIGHTS).read_bytes(), output_md5(project / "models/teacher")
    if is_cache_damaged:
        flip_a_bit(cached(project, WEIGHTS))
    flip_a_bit(project / WEIGHTS)
    set_knob(project, "distill.rollout.teacher_mix_alpha", 0.3)
    run_to_distill = (sys.executable, "-m", "dvc", "repro", "distill")
    failed = command(project, *run_to_distill, check=False)
    assert failed.returncode != 0
    assert f"{WEIGHTS}: not what the stage that made it wrote" in failed.stderr
    again = command(project, *run_to_distill)
    assert ("Running stage 'teacher'" in again.stdout) == is_cache_damaged
    assert (project / WEIGHTS).read_bytes() == good and output_md5(project / "models/teacher") == expected
    assert damaged_objects(project / ".dvc/cache") == []


def test_fault_28_a_student_changed_behind_dvcs_back_is_not_evaluated(project: Path) -> None:
    flip_a_bit(project / "models/student/model.safetensors")
    set_knob(project, "evaluate.sampling_seeds", [10])
    failed = command(project, sys.executable, "-m", "dvc", "repro", "evaluate", check=False)
    assert failed.returncode != 0 and "models/student/model.safetensors: not what the stage" in failed.stderr
    assert not (project / "models/student").exists()


def test_a_stage_by_hand_may_be_given_another_model(project: Path) -> None:
    flip_a_bit(project / "models/student/model.safetensors")
    done = command(project, sys.executable, "-m", "tasks", "evaluate", check=False)
    assert done.returncode != DAMAGED


def test_the_doctor_finds_and_moves_damaged_objects(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr("flows.doctor.findings", lambda root: [])  # of this machine
    damaged = cached(project, WEIGHTS)
    flip_a_bit(damaged)
    for arguments, exit_code, words in (
        (["doctor", "--cache"], 1, f"damaged: {damaged.parent.name}{damaged.name}"),
        (["doctor", "--cache", "--repair"], 0, "moved to state/damaged"),
        (["doctor", "--cache"], 0, "every object has the contents"),
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == exit_code and words in done.output
    assert not damaged.exists() and len(list(Path("state/damaged").iterdir())) == 1


def test_a_cache_that_the_users_own_settings_name_is_the_one_that_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_scratch_repository(tmp_path / "scratch")
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/config").write_text(f"[cache]\n    dir = {tmp_path / 'big'}\n")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.chdir(root)
    assert cache_dir() == tmp_path / "big"
