"""What is wrong with a model is told before any stage has spent time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flows.environment import child_environment
from minillm.config import StudentModelConfig, TeacherModelConfig
from minillm.errors import UserError
from minillm.preflight import check_models
from tests.imports import ROOT
from tests.saved_model import WORDS, save_tiny
from tests.scratch_repository import make_scratch_repository, set_param


def models(teacher: Path, student: Path) -> tuple[TeacherModelConfig, StudentModelConfig]:
    place = {"source": "path", "revision": ""}
    return (
        TeacherModelConfig(**place, location=str(teacher)),
        StudentModelConfig(**place, location=str(student), num_layers=1, num_calibration_rows=1),
    )


def swapped() -> list[str]:
    return [WORDS[0], WORDS[2], WORDS[1], *WORDS[3:]]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"words": swapped()}, "token 'w0' has id 1 in the teacher and 2 in the student"),
        ({"words": WORDS[:-1]}, "has id 299 in the teacher and None in the student"),
        ({"end": "w3"}, "end responses differently: end token 0 and 4"),
    ],
)
def test_fault_14_a_student_of_another_tokenizer_is_refused(
    tmp_path: Path, options: dict[str, Any], fault: str
) -> None:
    pair = models(save_tiny(tmp_path / "teacher"), save_tiny(tmp_path / "student", **options))
    with pytest.raises(UserError, match=fault) as caught:
        check_models(*pair)
    assert "\n" not in str(caught.value)


def test_fault_14_equal_tokenizers_and_padded_heads_pass(tmp_path: Path) -> None:
    check_models(*models(save_tiny(tmp_path / "teacher", WORDS[:-64]), save_tiny(tmp_path / "student", WORDS[:-64])))


def test_nothing_is_loaded_when_no_model_is_a_path() -> None:
    code = (
        "import sys; from minillm.params import load_params; from minillm.preflight import check_models\n"
        "params = load_params(__import__('pathlib').Path('params.yaml'))\n"
        "check_models(params.teacher_model, params.student_model); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def no_directory(model: Path) -> None:
    model.rename(model.with_name("moved"))


def no_shard(model: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")


def no_tensor(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def truncated(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-1])


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (no_directory, "model: no such model directory"),
    (no_shard, "model: weights are missing: model-00002-of-00002.safetensors"),
    (no_tensor, "model: 1 tensors are missing or of another shape, the first: model.norm.weight"),
    (truncated, "model/model.safetensors: not a whole safetensors file"),
]


@pytest.mark.parametrize(("damage", "fault"), DAMAGES)
@pytest.mark.parametrize("place", ["teacher", "student"])
def test_fault_15_a_missing_or_partial_model_is_refused(
    tmp_path: Path, place: str, damage: Callable[[Path], None], fault: str
) -> None:
    places = {name: save_tiny(tmp_path / name / "model") for name in ("teacher", "student")}
    damage(places[place])
    with pytest.raises(UserError, match=f"{place}/{fault}") as caught:
        check_models(*models(places["teacher"], places["student"]))
    assert "\n" not in str(caught.value)


def test_fault_15_no_stage_starts_for_a_partial_teacher(tmp_path: Path) -> None:
    root = make_scratch_repository(tmp_path / "root")
    no_tensor(save_tiny(tmp_path / "model"))
    set_param(root, "teacher_model.source", "path")
    set_param(root, "teacher_model.location", str(tmp_path / "model"))
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    command = [sys.executable, "-m", "flows.local"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    [line] = done.stderr.splitlines()
    assert (done.returncode, line.startswith(f"error: {tmp_path}/model: 1 tensors are missing")) == (2, True)
    assert not (root / "dvc.lock").exists()


def test_more_layers_than_the_teacher_has_are_refused_before_any_stage(tmp_path: Path) -> None:
    cut = StudentModelConfig(source="cut", location="", revision="", num_layers=31, num_calibration_rows=1)
    embedded = TeacherModelConfig(source="embedded", location="", revision="")
    with pytest.raises(UserError, match=r"^params.yaml: student_model.num_layers = 31; the teacher has 30 layers$"):
        check_models(embedded, cut)
    own = TeacherModelConfig(source="path", location=str(save_tiny(tmp_path / "teacher")), revision="")
    with pytest.raises(UserError, match=r"num_layers = 31; the teacher has \d layers$"):
        check_models(own, cut)
    check_models(own, cut.model_copy(update={"num_layers": 1}))
