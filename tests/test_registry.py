"""What becomes of students in a real MLflow's registry, whatever happens to MLflow meanwhile."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.finish import registry_line
from minillm.config import Params
from minillm.errors import UserError
from tasks.event_spool import SPOOLS_DIR
from tasks.integrity import output_md5
from tasks.promotion import Decision
from tasks.registry import promote, register_student
from tasks.tracking import finish_pipeline, sync_records
from tests.mlflow_place import client, history, runs, with_tracking
from tests.registry_place import (
    DISTANCE,
    NAME,
    ROUGE,
    STUDENT,
    aliases,
    judge_student,
    make_student,
    record_student,
    versions,
)

NOWHERE = "http://127.0.0.1:9"


def test_the_first_student_is_candidate_and_champion(params: Params) -> None:
    md5 = make_student("a", rouge=51.0)
    assert register_student(params) == Decision(NAME, 1, True, f"{ROUGE} 51.0000, the first that was judged")
    (version,) = versions()
    assert aliases() == {"candidate": 1, "champion": 1}
    assert version.run_id == runs("pipeline")[0].info.run_id
    assert version.tags["dvc.md5"] == md5 == output_md5(STUDENT) and version.tags["dvc.path"] == "models/student"
    assert (
        version.tags[ROUGE] == "51.0" and version.tags[DISTANCE] == "1.0" and len(version.tags["params.sha256"]) == 64
    )
    model = client().get_logged_model(version.tags["logged_model"])
    assert {metric.key: metric.value for metric in model.metrics} == {
        "final/teacher_rougeL": 60.0,
        "final/warmup_rougeL": 40.0,
        "final/warmup_reverse_kl": 2.0,
        ROUGE: 51.0,
        DISTANCE: 1.0,
    }


def test_a_better_student_becomes_champion_and_a_worse_one_stays_candidate(params: Params) -> None:
    make_student("a", rouge=48.6)
    register_student(params)
    make_student("b", rouge=51.0)
    assert register_student(params) == Decision(NAME, 2, True, f"{ROUGE} 51.0000 > 48.6000 of version 1")
    make_student("c", rouge=50.0)
    assert register_student(params) == Decision(
        NAME, 3, False, f"{ROUGE} 50.0000 is not better than 51.0000 of version 2"
    )
    assert aliases() == {"candidate": 3, "champion": 2}
    assert [version.tags["decision"].partition(":")[0] for version in versions()] == [
        "is @champion",
        "is @champion",
        "is not @champion",
    ]


def test_the_line_for_the_terminal(params: Params) -> None:
    make_student("a", rouge=51.0)
    line = f"registry: {NAME} version 1 is @champion: {ROUGE} 51.0000, the first that was judged"
    assert registry_line(params, {"MINILLM_PIPELINE_KEY": "key-1"}) == line
    assert registry_line(params, {}) == ""


def test_the_distance_to_the_teacher_decides_when_params_say_so(params: Params) -> None:
    by_distance = with_tracking(params, champion_metric=DISTANCE)
    for weights, rouge, distance in (("a", 50.0, 1.0), ("b", 10.0, 0.5), ("c", 90.0, 0.7)):
        make_student(weights, rouge, distance)
        register_student(by_distance)
    assert aliases()["champion"] == 2
    make_student("d", 50.0, 0.1, teacher="another")
    assert "judged on another evaluation" in register_student(by_distance).reason
    assert aliases()["champion"] == 2


def test_the_teacher_does_not_matter_to_rouge(params: Params) -> None:
    make_student("a", 50.0)
    register_student(params)
    make_student("b", 51.0, teacher="another")
    assert register_student(params).was_promoted


@pytest.mark.parametrize("change", [{"rows": "others"}, {"max_rows": 5}, {"temperature": 0.5}])
def test_another_evaluation_promotes_nothing_by_itself(params: Params, change: dict[str, object]) -> None:
    make_student("a", 50.0)
    register_student(params)
    make_student("b", 99.0, **change)
    decision = register_student(params)
    assert not decision.was_promoted and "version 1 was judged on another evaluation" in decision.reason
    assert aliases() == {"candidate": 2, "champion": 1}
    assert "judged on another evaluation" in versions()[1].tags["decision"]
    assert promote(params, None) == f"registry: {NAME} version 2 is @champion: promoted by hand"
    assert aliases()["champion"] == 2 and "promoted_by_hand" in versions()[1].tags


def test_a_student_whose_rows_are_not_here_is_compared_with_none(params: Params) -> None:
    make_student("a", rouge=40.0)
    register_student(params)
    for weights, rouge in (("b", 50.0), ("c", 60.0)):
        make_student(weights, rouge=rouge)
        Path("data/prepared/evaluation/test.parquet").unlink()
        decision = register_student(params)
        assert decision is not None and not decision.was_promoted
    assert aliases() == {"candidate": 3, "champion": 1}


def test_the_size_of_batches_does_not_matter(params: Params) -> None:
    make_student("a", 50.0)
    register_student(params)
    make_student("b", 51.0, batch_size=64)
    assert register_student(params).was_promoted


def test_a_champion_judged_again_on_the_new_evaluation_can_be_compared(params: Params) -> None:
    make_student("a", 50.0)
    register_student(params)
    make_student("a", 40.0, rows="others")
    assert register_student(params) == Decision(NAME, 1, True, f"{ROUGE} 40.0000")
    make_student("b", 41.0, rows="others")
    assert register_student(params).was_promoted
    make_student("c", 60.0)
    assert "version 2 was judged on another" in register_student(params).reason
    assert len(versions()) == 3


def test_a_student_that_was_not_evaluated_is_a_candidate_alone_until_it_is(params: Params) -> None:
    md5 = make_student("a", 50.0)
    (STUDENT / "model.safetensors").write_text("b")
    record_student(judged=md5)
    assert register_student(params) == Decision(NAME, 1, False, f"it has no finite {ROUGE}")
    assert aliases() == {"candidate": 1}
    judge_student(50.0)
    assert register_student(params).was_promoted
    assert len(versions()) == 1 and aliases() == {"candidate": 1, "champion": 1}


def test_the_same_student_again_is_no_second_version(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    make_student("a", 50.0)
    assert register_student(params) is not None
    assert register_student(params) is None
    shutil.rmtree("state/registered")
    monkeypatch.setenv("MINILLM_PIPELINE_KEY", "key-2")
    assert register_student(params) == Decision(NAME, 1, True, f"{ROUGE} 50.0000, the first that was judged")
    assert len(versions()) == 1


def test_a_choice_by_hand_outlives_the_same_student_again(params: Params) -> None:
    for weights, rouge in (("a", 50.0), ("b", 51.0)):
        make_student(weights, rouge)
        register_student(params)
    promote(params, 1)
    shutil.rmtree("state/registered")
    register_student(params)
    assert aliases() == {"candidate": 2, "champion": 1}


@pytest.mark.parametrize("change", [{"enabled": False}, {"registered_model": ""}])
def test_without_a_registry_nothing_happens(params: Params, change: dict[str, object]) -> None:
    make_student("a")
    off = with_tracking(params, **change)
    assert register_student(off) is None and versions() == [] and not SPOOLS_DIR.exists()
    with pytest.raises(UserError, match="there is no registry"):
        promote(off, None)


def test_without_a_student_nothing_happens(params: Params) -> None:
    assert register_student(params) is None
    Path("dvc.lock").unlink()
    assert register_student(params) is None and versions() == []


def test_a_store_that_is_away_gets_version_and_aliases_later_and_once(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_student("a", 48.6)
    register_student(params)
    for weights, rouge in (("b", 51.0), ("c", 50.0)):
        make_student(weights, rouge)
        away = with_tracking(params, uri=NOWHERE)
        finish_pipeline(away, cached=[])
        assert register_student(away) is None
    assert aliases() == {"candidate": 1, "champion": 1}
    make_student("b")
    for _ in range(2):
        done = subprocess.run([sys.executable, "-m", "tasks", "sync"], capture_output=True, text=True)
        assert done.stdout == "MLflow has every record\n", done.stderr
    assert len(versions()) == 3 and aliases() == {"candidate": 3, "champion": 2}
    assert [run.info.status for run in runs("pipeline")] == ["FINISHED"]


def test_a_promotion_by_hand_tells_in_one_line_what_is_wrong(params: Params) -> None:
    with pytest.raises(UserError, match=f"{NAME} has no version yet"):
        promote(params, None)
    make_student("a")
    register_student(params)
    with pytest.raises(UserError, match=f"{NAME} has no version 7"):
        promote(params, 7)
    with pytest.raises(UserError, match=rf"^MLflow at {NOWHERE}: \w+: [^\n]+$"):
        promote(with_tracking(params, uri=NOWHERE), 1)


def promoted_in_a_new_process() -> str:
    """A process keeps the file of its store open, even one that is removed."""
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli import app; app()", "promote"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_promotion_by_hand_registers_again_after_the_store_was_lost(params: Params) -> None:
    md5 = make_student("a", 50.0)
    code = (
        "from pathlib import Path; from minillm.params import load_params; from tasks.registry import register_student;"
    )
    code += "print(register_student(load_params(Path('params.yaml'))).line)"
    subprocess.run([sys.executable, "-c", code], check=True)
    for path in Path().glob("mlflow.db*"):
        path.unlink()
    assert promoted_in_a_new_process() == f"registry: {NAME} version 1 is @champion: promoted by hand\n"
    (version,) = versions()
    assert version.tags["dvc.md5"] == md5 and version.tags["loadable"] == "true"
    assert aliases() == {"candidate": 1, "champion": 1} and list(SPOOLS_DIR.iterdir()) == []


def test_a_promotion_by_hand_registers_again_after_the_model_was_deleted(params: Params) -> None:
    for weights in ("a", "b"):
        md5 = make_student(weights, 50.0)
        register_student(params)
    client().delete_registered_model(NAME)
    assert register_student(params) is None and versions() == []  # a deletion by hand is not undone by a run
    assert promote(params, None) == f"registry: {NAME} version 1 is @champion: promoted by hand"
    assert [version.tags["dvc.md5"] for version in versions()] == [md5]
    assert register_student(params) is None


def test_a_student_whose_files_are_lost_is_not_promoted(params: Params) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    make_student("a", 50.0)
    register_student(params)
    make_student("b", 51.0)
    register_student(with_tracking(params, uri=NOWHERE))
    make_student("c", 1.0)
    assert sync_records(params) == 0
    assert aliases() == {"candidate": 2, "champion": 1}
    assert "its files are neither at hand nor in DVC's cache" in versions()[1].tags["decision"]
    with pytest.raises(UserError, match=r"version 2 of .*: its files are neither"):
        promote(params, 2)
    make_student("b", 51.0)
    promote(params, 2)
    assert aliases()["champion"] == 2


def test_the_finals_of_a_model_are_the_points_of_its_run(params: Params) -> None:
    make_student("a", 50.0)
    register_student(params)
    (parent,) = runs("pipeline")
    assert history(parent, ROUGE) == [(0, 50.0)]
