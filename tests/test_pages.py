"""The addresses of MLflow's pages name the runs that a real store has."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from minillm.config import Params
from minillm.errors import UserError
from tasks.pages import comparison_page, curves_page, run_page
from tasks.tracking import finish_pipeline, open_tracker
from tests.mlflow_place import client, runs, with_tracking

PAGES = "http://127.0.0.1:5000"


@pytest.fixture
def ids(params: Params, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Three pipelines, two of them of one DVC experiment, one of none; the id of each by its key."""
    for key, name in (("key-1", "kd-17"), ("key-2", "kd-17"), ("key-3", "")):
        monkeypatch.setenv("MINILLM_PIPELINE_KEY", key)
        monkeypatch.setenv("MINILLM_RUN_NAME", name)
        finish_pipeline(params, cached=[])
    return {run.data.tags["pipeline.key"]: run.info.run_id for run in runs("pipeline")}


def compared(page: str) -> list[str]:
    query = parse_qs(urlsplit(page.replace("/#/", "/")).query)
    assert json.loads(query["experiments"][0]) == [client().get_experiment_by_name("minillm").experiment_id]
    return list(json.loads(query["runs"][0]))


def test_the_newest_pipelines_are_compared(params: Params, ids: dict[str, str]) -> None:
    page = comparison_page(PAGES, params.tracking, [], 2)
    assert page.startswith(f"{PAGES}/#/compare-runs?runs=%5B%22") and " " not in page
    assert compared(page) == [ids["key-3"], ids["key-2"]]
    assert compared(comparison_page(PAGES, params.tracking, [], 10)) == [ids[f"key-{number}"] for number in (3, 2, 1)]


def test_a_name_stands_for_its_newest_pipeline_and_a_key_for_its_own(params: Params, ids: dict[str, str]) -> None:
    assert compared(comparison_page(PAGES, params.tracking, ["kd-17", "key-1"], 10)) == [ids["key-2"], ids["key-1"]]
    experiment = client().get_experiment_by_name("minillm").experiment_id
    assert run_page(PAGES, params.tracking, "key-1") == f"{PAGES}/#/experiments/{experiment}/runs/{ids['key-1']}"


def test_mistakes_are_one_line(params: Params, ids: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"^MLflow has no pipeline 'kd-18'; the newest are: pipeline key, kd-17$"):
        comparison_page(PAGES, params.tracking, ["kd-17", "kd-18"], 10)
    with pytest.raises(UserError, match="needs two pipelines at least; MLflow has 3, asked for 1"):
        comparison_page(PAGES, params.tracking, ["kd-17"], 10)
    with pytest.raises(UserError, match=r"^MLflow at http://127\.0\.0\.1:9: \w+: [^\n]+$"):
        run_page(PAGES, with_tracking(params, uri="http://127.0.0.1:9").tracking, "key-1")


def test_a_store_without_pipelines_is_told(params: Params) -> None:
    with pytest.raises(UserError, match="MLflow has 0, asked for 0"):
        comparison_page(PAGES, params.tracking, [], 10)


def test_curves_are_those_of_the_stage_distill_and_named_by_experiment(
    params: Params, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kd-17", "gkd-17"):
        monkeypatch.setenv("MINILLM_PIPELINE_KEY", f"key-of-{name}")
        monkeypatch.setenv("MINILLM_RUN_NAME", name)
        with open_tracker("distill", params) as tracker:
            tracker.log(1, {"train/loss": 1.0})
    page = curves_page(PAGES, params.tracking, [], 10, "train/loss")
    query = parse_qs(urlsplit(page.replace("/#/", "/")).query)
    stages = {run.info.run_id: run.info.run_name for run in runs("stage")}
    assert [stages[run_id] for run_id in json.loads(query["runs"][0])] == ["distill gkd-17", "distill kd-17"]
    assert json.loads(query["metric"][0]) == "train/loss"
