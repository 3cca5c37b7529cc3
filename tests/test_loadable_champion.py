"""The champion can be loaded through MLflow, without pickles and without code of a model; the others are links."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.servers import free_port, mlflow_server, running
from minillm.config import Params
from minillm.models import load_saved
from minillm.tokenizers import load_saved_tokenizer
from tasks.integrity import output_md5
from tasks.registry import promote, register_student
from tasks.tracking import sync_records
from tests.mlflow_place import client, with_tracking
from tests.registry_place import NAME, STUDENT, aliases, judge_student, make_student, versions
from tests.tiny_pipeline import tiny_teacher

PICKLES = {".bin", ".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt", ".py"}
REGISTRYS_OWN = {"MLmodel", "registered_model_meta"}


def loaded(monkeypatch: pytest.MonkeyPatch, uri: str, alias: str) -> tuple[Any, Any]:
    """Return what MLflow's flavors make of a version, with unpickling forbidden and no network."""
    import mlflow

    for name, value in {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}.items():
        monkeypatch.setenv(name, value)
    model = f"models:/{NAME}@{alias}"
    return mlflow.transformers.load_model(model), mlflow.pyfunc.load_model(model)


def assert_is_student(pipeline: Any, function: Any) -> None:
    student = load_saved(STUDENT, torch.float32, torch.device("cpu"))
    assert type(pipeline.model) is type(student)
    assert all(torch.equal(value, pipeline.model.state_dict()[name]) for name, value in student.state_dict().items())
    text = "Name 3 colours: naïve,  東京."
    assert pipeline.tokenizer(text)["input_ids"] == load_saved_tokenizer(STUDENT)(text)["input_ids"]
    with torch.random.fork_rng():
        assert len(function.predict("Name a colour.")) == 1


@pytest.fixture
def real_student(params: Params) -> None:
    STUDENT.parent.mkdir()
    tiny_teacher(STUDENT)
    judge_student(50.0)


def artifacts(version: Any) -> set[str]:
    root = Path(version.source)
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_champion_is_loaded_by_both_flavors_from_the_bytes_that_dvc_has(
    params: Params, real_student: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_student(params)
    assert_is_student(*loaded(monkeypatch, params.tracking.uri, "champion"))
    (version,) = versions()
    files = artifacts(version)
    assert {"MLmodel", "model/config.json", "model/model.safetensors", "components/tokenizer/tokenizer.json"} <= files
    assert not {name for name in files if Path(name).suffix in PICKLES}
    weights = Path(version.source, "model/model.safetensors")
    assert weights.read_bytes() == (STUDENT / "model.safetensors").read_bytes() and not weights.is_symlink()


def test_who_is_not_champion_is_a_link_that_says_so(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    for weights, rouge in (("a", 50.0), ("b", 40.0)):
        make_student(weights, rouge)
        register_student(params)
    assert artifacts(versions()[1]) == {"MLmodel"}
    with pytest.raises(Exception, match=r"flavor|external"):
        loaded(monkeypatch, params.tracking.uri, "candidate")
    models = [client().get_logged_model(version.tags["logged_model"]) for version in versions()]
    assert [model.tags["mlflow.model.isExternal"] for model in models] == ["false", "true"]
    assert {model.status for model in models} == {"READY"}


def test_weights_come_from_the_cache_of_dvc_when_the_student_was_replaced(params: Params, real_student: None) -> None:
    md5 = output_md5(STUDENT)
    assert md5 is not None
    keep_in_cache(md5)
    register_student(with_tracking(params, uri="http://127.0.0.1:9"))
    shutil.move(STUDENT, "models/first")
    make_student("b", 40.0)
    assert sync_records(params) == 0 and aliases() == {"candidate": 1, "champion": 1}
    (version,) = [version for version in versions() if version.version == 1]
    first = {path.read_bytes() for path in Path("models/first").iterdir()}
    assert {Path(version.source, name).read_bytes() for name in artifacts(version) - REGISTRYS_OWN} == first


def keep_in_cache(md5: str) -> None:
    """Put the student into DVC's cache as DVC does."""
    objects = Path(".dvc/cache/files/md5")
    entries = []
    for path in sorted(STUDENT.iterdir()):
        own = output_md5(path)
        assert own is not None
        (objects / own[:2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, objects / own[:2] / own[2:])
        entries.append({"md5": own, "relpath": path.name})
    (objects / md5[:2]).mkdir(parents=True, exist_ok=True)
    (objects / md5[:2] / md5[2:]).write_text(json.dumps(entries))


@pytest.mark.pipeline
def test_a_served_mlflow_registers_promotes_and_loads_as_a_local_store_does(
    params: Params, real_student: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = mlflow_server(f"http://127.0.0.1:{free_port()}", params.tracking.uri)
    served = with_tracking(params, uri=server.url)
    assert register_student(served) is None  # not started yet
    with running(Path.cwd(), [server]):
        assert sync_records(served) == 0
        assert_is_student(*loaded(monkeypatch, server.url, "champion"))
        make_student("b", 40.0)
        decision = register_student(served)
        assert decision is not None and not decision.was_promoted
        assert promote(served, 2).endswith("version 2 is @champion: promoted by hand")
    assert aliases() == {"candidate": 2, "champion": 2} and len(versions()) == 2
