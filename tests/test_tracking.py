"""What a stage's records become in a real MLflow on sqlite."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flows.processes import wait_until
from minillm.config import Params
from minillm.params import load_params
from tasks import lineage
from tasks.tracking import finish_pipeline, open_tracker, tracking_hint
from tasks.tracking_store import without_secrets
from tests.imports import ROOT
from tests.mlflow_place import client, history, runs, with_tracking

LOCK_MD5 = "8bf2a4444c7ae2c16f126761249fdf06"  # printf "schema: '2.0'\n" | md5sum


def test_stages_with_one_key_are_children_of_one_parent(params: Params) -> None:
    for stage in ("prepare", "distill"):
        with open_tracker(stage, params):
            wait_until(lambda: [run.info.status for run in runs("pipeline")] == ["RUNNING"], 20.0)
            assert [run.info.status for run in runs("pipeline")] == ["RUNNING"]
    (parent,) = runs("pipeline")
    children = runs("stage")
    assert [run.info.run_name for run in children] == ["prepare", "distill"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert parent.data.tags["stage.distill.run_id"] == children[1].info.run_id
    assert parent.data.tags["stage.prepare.outcome"] == parent.data.tags["stage.distill.outcome"] == "finished"


def test_another_key_is_another_parent(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("key-1", "it's"):
        monkeypatch.setenv("MINILLM_PIPELINE_KEY", key)
        with open_tracker("prepare", params):
            pass
    assert [run.data.tags["pipeline.key"] for run in runs("pipeline")] == ["key-1", "it-s"]


def test_parameters_are_flat_and_a_stage_has_only_its_sections(params: Params) -> None:
    with open_tracker("warmup", params):
        pass
    everything = runs("pipeline")[0].data.params
    mine = runs("stage")[0].data.params
    assert everything["distill.objective.clip_low"] == str(params.distill.objective.clip_low)
    assert everything["evaluate.sampling_seeds"] == str(params.evaluate.sampling_seeds)
    assert everything["teacher_model.source"] == "embedded" and everything["seed"] == str(params.seed)
    assert {name.partition(".")[0] for name in mine} == {"seed", "runtime", "student_model", "warmup"}
    assert mine["warmup.sft.num_steps"] == str(params.warmup.sft.num_steps)
    assert all(everything[name] == value for name, value in mine.items())


def test_fault_22_params_edited_between_stages_are_those_of_the_later_stage_alone(params: Params) -> None:
    for seed in (17, 18):
        with open_tracker("warmup", params.model_copy(update={"seed": seed})):
            pass
    assert [run.data.params["seed"] for run in runs("stage")] == ["17", "18"]
    (parent,) = runs("pipeline")
    assert parent.data.params["seed"] == "17" and parent.info.status == "FINISHED"


def test_fault_22_a_value_too_long_for_mlflow_stands_whole_in_the_recorded_file(params: Params) -> None:
    names = [f"set-{number:04d}" for number in range(900)]
    text = Path("params.yaml").read_text().replace("sets: []", f"sets: {names}".replace("'", ""))
    text = text.replace("evaluation_files: {}", f"evaluation_files: {dict.fromkeys(names, 'x.jsonl')}".replace("'", ""))
    Path("params.yaml").write_text(text)
    with open_tracker("evaluate", load_params(Path("params.yaml"))):
        pass
    parent = runs("pipeline")[0]
    assert parent.data.params["evaluate.sets"].startswith('["set-0000"')
    assert Path(client().download_artifacts(parent.info.run_id, "params.yaml")).read_text() == text


def test_lineage_is_tagged(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILLM_PREFECT_FLOW_RUN_ID", "flow-7")
    monkeypatch.setenv("MINILLM_PREFECT_URL", "http://127.0.0.1:4200/runs/flow-run/flow-7")
    monkeypatch.setattr(lineage, "git_commit", lambda: "c" * 40)
    with open_tracker("teacher", params):
        pass
    for run in (*runs("pipeline"), *runs("stage")):
        tags = run.data.tags
        assert tags["mlflow.source.git.commit"] == "c" * 40
        assert tags["prefect.flow_run_id"] == "flow-7"
        assert tags["mlflow.note.content"] == "[Prefect flow run](http://127.0.0.1:4200/runs/flow-run/flow-7)"
        assert tags["dvc.lock.md5"] == LOCK_MD5
    assert runs("stage")[0].data.tags["dvc.stage"] == "teacher"
    names = {file.path for file in client().list_artifacts(runs("pipeline")[0].info.run_id)}
    assert names == {"params.yaml", "dvc.yaml", "dvc.lock"}


def test_every_step_of_a_metric_is_kept_with_its_value(params: Params) -> None:
    with open_tracker("distill", params) as tracker:
        for step in range(45):
            tracker.log(step, {"kl/reverse": 1.0 / (step + 1), "optim/lr": 1e-5 * step})
    assert history(runs("stage")[0], "kl/reverse") == [(step, 1.0 / (step + 1)) for step in range(45)]


def test_a_summary_goes_to_the_stage_at_its_last_step_and_to_the_parent(params: Params) -> None:
    with open_tracker("distill", params) as tracker:
        tracker.log(30, {"kl/reverse": 0.5})
        tracker.summary({"final/rougeL": 21.5})
    assert history(runs("stage")[0], "final/rougeL") == [(30, 21.5)]
    assert runs("pipeline")[0].data.metrics == {"final/rougeL": 21.5}


def test_a_data_set_is_an_input_with_its_digest(params: Params) -> None:
    Path("train.jsonl").write_text("{}\n")
    with open_tracker("teacher", params) as tracker:
        tracker.dataset("train", Path("train.jsonl"))
    (entry,) = runs("stage")[0].inputs.dataset_inputs
    # printf '{}\n' | sha256sum
    sha256 = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    assert (entry.dataset.name, entry.dataset.digest) == ("train", sha256[:36])
    assert json.loads(entry.dataset.source) == {"uri": "train.jsonl", "sha256": sha256}


def test_a_selected_model_is_logged_as_the_files_it_is(params: Params) -> None:
    for name in ("warmup", "student"):
        Path(name).mkdir()
        Path(name, "model.safetensors").write_bytes(name.encode())
        Path(name, "config.json").write_text("{}")
    with open_tracker("distill", with_tracking(params, logged_models=["student"])) as tracker:
        tracker.model("warmup", Path("warmup"))
        tracker.model("student", Path("student"))
    run = runs("stage")[0]
    (output,) = run.outputs.model_outputs
    model = client().get_logged_model(output.model_id)
    assert (model.name, model.status, model.source_run_id) == ("student", "READY", run.info.run_id)
    names = {file.path for file in client().list_logged_model_artifacts(model.model_id)}
    assert names == {"model.safetensors", "config.json"}
    assert Path(model.artifact_location, "model.safetensors").read_bytes() == b"student"
    assert Path(model.artifact_location).is_relative_to(Path("mlartifacts").absolute())


def test_a_failure_fails_child_and_parent_and_goes_on(params: Params) -> None:
    with pytest.raises(RuntimeError, match="no more memory"), open_tracker("distill", params) as tracker:
        tracker.log(3, {"kl/reverse": 0.5})
        raise RuntimeError("no more memory")
    assert runs("stage")[0].info.status == runs("pipeline")[0].info.status == "FAILED"
    assert runs("stage")[0].data.metrics == {"kl/reverse": 0.5}
    with open_tracker("distill", params):
        pass
    assert runs("pipeline")[0].info.status == "FINISHED"
    assert runs("pipeline")[0].data.tags["stage.distill.outcome"] == "finished"


def test_an_interrupt_is_recorded_as_killed(params: Params) -> None:
    with pytest.raises(KeyboardInterrupt), open_tracker("distill", params):
        raise KeyboardInterrupt
    assert runs("stage")[0].info.status == "KILLED"
    assert runs("pipeline")[0].info.status == "FAILED"


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_not_finite_is_refused_by_name(params: Params, value: float, enabled: bool) -> None:
    with (
        pytest.raises(ValueError, match=r"metric reward/mean is .* at step 7"),
        open_tracker("distill", with_tracking(params, enabled=enabled)) as tracker,
    ):
        tracker.log(7, {"kl/reverse": 0.1, "reward/mean": value})


def test_no_tracking_imports_no_mlflow(params: Params) -> None:
    code = """
        import sys
        from pathlib import Path
        from minillm.params import load_params
        from tasks.tracking import open_tracker
        params = load_params(Path("params.yaml"))
        off = params.model_copy(update={"tracking": params.tracking.model_copy(update={"enabled": False})})
        with open_tracker("teacher", off) as tracker:
            tracker.log(1, {"train/loss": 1.0})
            tracker.model("student", Path("nowhere"))
        assert "mlflow" not in sys.modules
    """
    Path("mlflow.db").unlink()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert not Path("mlflow.db").exists()


def test_the_end_of_a_pipeline_records_what_dvc_skipped_and_the_final_lock(params: Params) -> None:
    with open_tracker("report", params):
        pass
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    finish_pipeline(params, cached=["prepare", "report"])
    (parent,) = runs("pipeline")
    assert parent.data.tags["stage.prepare.outcome"] == "cached"
    assert parent.data.tags["stage.report.outcome"] == "finished"
    assert parent.data.tags["dvc.lock.md5"] == lineage.file_md5(Path("dvc.lock"))
    assert parent.info.status == "FINISHED"


def test_the_nearest_dvc_gives_the_key(params: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MINILLM_PIPELINE_KEY")
    fake = tmp_path / "bin" / "dvc"
    fake.parent.mkdir()
    fake.write_text(
        f"#!{sys.executable}\nimport subprocess\nfor _ in range(2):\n    subprocess.run('sh -c \"{sys.executable} "
        "-c \\'from tasks.lineage import pipeline_key; print(pipeline_key())\\'\"; true', shell=True)\n"
    )
    fake.chmod(0o755)
    keys = [subprocess.run([fake], capture_output=True, text=True).stdout.split() for _ in range(2)]
    assert keys[0][0] == keys[0][1] != keys[1][0] == keys[1][1]
    assert keys[0][0].startswith("dvc-")


def test_a_stage_started_by_hand_has_a_fresh_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINILLM_PIPELINE_KEY", raising=False)
    assert lineage.pipeline_key() != lineage.pipeline_key()


@pytest.mark.parametrize("secret", ["me:secret", "me:p@ss", "me:p/ss", "me:a:b@/c"])
def test_fault_29_a_password_of_any_form_is_struck_out_of_an_address(secret: str) -> None:
    text = f"cannot reach http://{secret}@mlflow:5000/api (http://{secret}@mlflow:5000)"
    assert without_secrets(text) == "cannot reach http://***@mlflow:5000/api (http://***@mlflow:5000)"


def test_the_hint_names_the_place_without_passwords(params: Params) -> None:
    assert tracking_hint(params) == "make ui, then http://127.0.0.1:5000 (experiment minillm)"
    server = with_tracking(params, uri="http://me:secret@mlflow:5000")
    assert tracking_hint(server) == "http://***@mlflow:5000 (experiment minillm)"
    assert tracking_hint(with_tracking(params, enabled=False)) == "MLflow is off (params.yaml: tracking.enabled)"
