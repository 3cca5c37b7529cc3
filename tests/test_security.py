"""Canaries: no code of a model ever runs, no name or path leaves its place, no model is loaded through MLflow."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.compare_variants import planned_runs
from flows.environment import child_environment
from flows.graph import select_stages
from minillm.config import DataConfig
from minillm.errors import UserError
from minillm.model_directory import check_location
from minillm.models import load_saved
from minillm.params import parse_params, read_yaml
from minillm.sources import open_sources
from minillm.tokenizers import load_saved_tokenizer
from tasks.prepare import _answers_path
from tasks.preset import apply_preset
from tests.imports import PACKAGES, ROOT
from tests.saved_model import save_tiny
from tests.scratch_repository import make_scratch_repository, set_param

MARKER = "canary-ran"


class Canary:
    """Leaves a file in the working directory when it is unpickled."""

    def __reduce__(self) -> Any:
        return open, (MARKER, "w")


def plant_pickle(model: Path, name: str) -> str:
    (model / name).write_bytes(pickle.dumps(Canary()))
    return name


def plant_code(model: Path, name: str = "modeling_canary.py") -> str:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text(f"open({MARKER!r}, 'w')\nclass Canary: pass\n")
    return name


def plant_auto_map(model: Path, name: str) -> str:
    plant_code(model)
    content = json.loads((model / name).read_text())
    auto_map = {kind: "modeling_canary.Canary" for kind in ("AutoConfig", "AutoModelForCausalLM")}
    auto_map |= {"AutoTokenizer": ["modeling_canary.Canary", None]}
    (model / name).write_text(json.dumps({**content, "auto_map": auto_map}))
    return name


def plant_pickled_weights_alone(model: Path) -> str:
    (model / "model.safetensors").unlink()
    return plant_pickle(model, "pytorch_model.bin")


def plant_adapter(model: Path) -> str:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    return "adapter_config.json"


PLANTS: dict[str, Callable[[Path], str]] = {
    "auto_map of the model": lambda model: plant_auto_map(model, "config.json"),
    "auto_map of the tokenizer": lambda model: plant_auto_map(model, "tokenizer_config.json"),
    "code beside it": plant_code,
    "code of a generation loop": lambda model: plant_code(model, "custom_generate/generate.py"),
    "pickled weights alone": plant_pickled_weights_alone,
    "pickled weights too": lambda model: plant_pickle(model, "pytorch_model.bin"),
    "pickled arguments": lambda model: plant_pickle(model, "training_args.bin"),
    "an adapter of another model": plant_adapter,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_fault_27_the_canary_would_be_noticed(place: Path) -> None:
    pickle.loads(pickle.dumps(Canary())).close()
    assert (place / MARKER).exists()


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_fault_27_code_and_pickles_of_a_model_are_refused_and_never_run(
    place: Path, plant: Callable[[Path], str]
) -> None:
    model = save_tiny(place / "model")
    name = plant(model)
    for load in (load_saved_tokenizer, lambda path: load_saved(path, torch.float32, torch.device("cpu"))):
        with pytest.raises(UserError) as caught:
            load(model)
        assert f"{model}/{name}: " in str(caught.value) and "\n" not in str(caught.value)
    assert not (place / MARKER).exists()


@pytest.mark.parametrize("plant", ["auto_map of the tokenizer", "pickled weights alone"])
def test_fault_27_a_run_with_such_a_teacher_ends_in_one_line_before_any_stage(place: Path, plant: str) -> None:
    root = make_scratch_repository(place / "root")
    name = PLANTS[plant](save_tiny(root / "model"))
    set_param(root, "teacher_model.source", "path")
    set_param(root, "teacher_model.location", "model")
    command = [sys.executable, "-m", "flows.local"]
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    [line] = done.stderr.splitlines()
    assert (done.returncode, line.startswith(f"error: model/{name}: ")) == (2, True)
    assert not list(place.rglob(MARKER)) and not (root / "dvc.lock").exists()


BAD_NAMES = ["../x", "/etc/passwd", "a\0b", "a\n", "-rf", ".", "..", "", "x" * 65, "x" * 5000, "link", "a/b", "ä"]
CONTENT = read_yaml(ROOT / "params.yaml")


def params_with(key: str, value: Any) -> Any:
    section, name = key.split(".")
    return {**CONTENT, section: {**CONTENT[section], name: value}}


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name != "link"])
@pytest.mark.parametrize("key", ["tracking.experiment", "data.evaluation_files", "evaluate.sets"])
def test_fault_26_a_name_is_a_plain_one(key: str, name: str) -> None:
    values = {"tracking.experiment": name, "data.evaluation_files": {name: "x.jsonl"}, "evaluate.sets": [name]}
    with pytest.raises(UserError) as caught:
        parse_params(params_with(key, values[key]), "params.yaml")
    assert str(caught.value).startswith(f"params.yaml: {key}") and "\n" not in str(caught.value)


@pytest.fixture
def data_root(place: Path) -> Path:
    root = place / "raw"
    root.mkdir()
    for path in (root / "good.jsonl", place / "x.jsonl", place / "x"):
        path.write_text("{}\n")
    for name in ("link", "link.jsonl"):
        (root / name).symlink_to(place / "x.jsonl")
    return root


BAD_FILES = [*(name for name in BAD_NAMES if name), "../x.jsonl", "/etc/passwd", "link.jsonl", f"{'x' * 300}.jsonl"]


@pytest.mark.parametrize("file", BAD_FILES)
@pytest.mark.parametrize("key", ["train_files", "validation_file", "evaluation_files", "corpus_file", "answers_file"])
def test_fault_26_a_data_file_stays_under_the_data_root(data_root: Path, key: str, file: str) -> None:
    value = {"train_files": [file], "evaluation_files": {"mine": file}}.get(key, file)
    own = {"source": "path", "root": str(data_root), "train_files": ["good.jsonl"], "corpus_source": "path"}
    own |= {"corpus_file": "good.jsonl"} if key != "corpus_file" else {}
    if key == "corpus_file":
        own |= {"source": "builtin"}
    config = DataConfig.model_validate({**CONTENT["data"], **own, key: value})
    with pytest.raises(UserError) as caught:
        _answers_path(config) if key == "answers_file" else open_sources(config, seed=0)
    assert str(caught.value).startswith(f"data.{key}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "-rf", "x" * 300, "x/" * 600])
@pytest.mark.parametrize("key", ["data.root", "teacher_model.location", "student_model.location"])
def test_fault_26_a_directory_has_an_ordinary_path(key: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^params.yaml: {key}: allowed: a path of ordinary length") as caught:
        parse_params(params_with(key, value), "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", ["../x", "/etc/passwd", "link"])
def test_fault_26_a_model_is_a_whole_directory_wherever_it_lies(data_root: Path, location: str) -> None:
    with pytest.raises(UserError, match=f"^{location}: no such model directory$"):
        check_location("path", location)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b/c", ".", "owner/../x", "owner/", "x" * 200, "s3://a/b"])
@pytest.mark.parametrize("section", ["teacher_model", "student_model"])
def test_fault_26_a_hub_name_is_no_path(section: str, name: str) -> None:
    content = {**CONTENT, section: {**CONTENT[section], "source": "hub", "location": name}}
    with pytest.raises(UserError, match=f"^params.yaml: {section}: .*needs a repository such as 'owner/name'"):
        parse_params(content, "params.yaml")


def test_fault_26_a_hub_name_never_stands_for_a_directory_that_is_there(data_root: Path) -> None:
    with pytest.raises(UserError, match="raw: source 'hub' names a repository, and this is a local path"):
        check_location("hub", "raw")


@pytest.mark.parametrize("revision", ["../x", "/etc/passwd", "a\0b", "-rf", "x" * 200, "a b", "a/../../b", "main\n"])
@pytest.mark.parametrize("key", ["teacher_model.revision", "student_model.revision", "data.hub_revision"])
def test_fault_26_a_revision_is_a_plain_one(key: str, revision: str) -> None:
    with pytest.raises(UserError, match=f"^params.yaml: {key}: allowed: a branch, tag or commit"):
        parse_params(params_with(key, revision), "params.yaml")


@pytest.mark.parametrize("name", [*BAD_NAMES, "../outside", "sub/tiny", "x" * 300 + ".yaml", "a\0.yaml", "dir.yaml"])
def test_fault_26_a_preset_is_a_name_in_configs_or_an_overlay_file(place: Path, name: str) -> None:
    (place / "configs/sub").mkdir(parents=True)
    (place / "dir.yaml").mkdir()
    for path in ("outside.yaml", "x.yaml", "configs/good.yaml", "configs/sub/tiny.yaml"):
        (place / path).write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"no such file or preset; presets: good$"):
        apply_preset(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_fault_26_variants_and_stages_are_those_we_know(name: str) -> None:
    with pytest.raises(UserError, match=r"^unknown variant "):
        planned_runs([name], ["17"])
    with pytest.raises(UserError, match=r"^unknown stage "):
        select_stages(ROOT, [name])
    command = [sys.executable, "-m", "tasks", name.replace("\0", "")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize("uri", ["http://me:s3cret@host:5000", "postgresql://me:s3/c@ret@host/db", "http://:s3cret@h"])
def test_fault_29_a_password_in_params_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: tracking\.uri: allowed: no password in the address") as caught:
        parse_params(params_with("tracking.uri", uri), "params.yaml")
    assert not any(part in str(caught.value) for part in ("s3", "ret"))


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "http://host:5000", "postgresql://me@host:5432/db"])
def test_an_address_without_a_password_is_taken(uri: str) -> None:
    assert parse_params(params_with("tracking.uri", uri), "params.yaml").tracking.uri == uri


def test_no_model_is_loaded_through_mlflow() -> None:
    """A flavor unpickles, or runs the code that an artifact brings; our models are copied as files."""
    banned = {"load_model", "pyfunc", "load_context", "download_artifacts"}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not used & banned, path


def test_mlflow_may_not_unpickle_in_any_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    code = "from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION as v; print(v.get())"
    done = subprocess.run([sys.executable, "-c", code], env=child_environment({}), capture_output=True, text=True)
    assert done.stdout == "False\n"
