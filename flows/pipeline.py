"""The Prefect flow: one task per stage of dvc.yaml; `dvc repro` does the work and alone decides what is stale."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect import State, flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.states import Failed
from prefect.utilities.urls import url_for

from flows import experiments
from flows.dvc_process import first_stages_up_to_date, is_up_to_date
from flows.environment import LASTING_PAGES_VARIABLE, mlflow_url
from flows.finish import mlflow_run_page, record_outcomes, registry_line
from flows.graph import select_stages, stage_order
from flows.hand_over import clear_away, fetch_result, require_remotes, send_inputs
from flows.placement import Place, RunFacts, checkout_mark, placed
from flows.publish import publish_experiment, publish_results, publish_stages
from flows.reproduction import Reproduction, StageRun, reproduction
from flows.request import Origin, PipelineRequest, StageRequest
from flows.stage_task import run_stage, send_stage, stage_environment
from minillm.config import Params
from minillm.errors import UserError
from minillm.preflight import check_models

GPU_STAGES = ("teacher", "distill")
_EVERYTHING = PipelineRequest()


class _StageFailed(Exception):
    """Ends a run with the state of the stage that failed."""

    def __init__(self, state: State[Any]) -> None:
        super().__init__(state.message)
        self.state = state


@flow(name="pipeline", retries=0, persist_result=False)  # type: ignore[untyped-decorator]
def pipeline(request: PipelineRequest = _EVERYTHING) -> Any:
    """Bring the stages up to date in graph order; returns stage -> outcome, or a failed state that says what to do."""
    root, say = Path.cwd(), get_run_logger().warning
    try:
        with placed(root, request, _run_facts(), say) as place:
            runs = _stages(place, request)
            _finish(place, runs)
    except UserError as error:
        return Failed(message=str(error))
    except _StageFailed as failed:
        return Failed(message=failed.state.message, data=failed.state.data)
    return {name: run.outcome for name, run in runs.items()}


def _stages(place: Place, request: PipelineRequest) -> dict[str, StageRun]:
    names, origin = select_stages(place.path, request.stages), _origin(place)
    if request.gpu_pool and request.hand_over == "remotes":
        require_remotes(place.checkout)
    done = first_stages_up_to_date(place.path, names, get_run_logger().info)
    if done != names:
        check_models(place.params.teacher_model, place.params.student_model)
    runs = dict.fromkeys(done, StageRun("skipped", 0.0))
    pool_stages = GPU_STAGES if request.gpu_pool else ()
    for is_away, group in itertools.groupby(names[len(done) :], lambda name: name in pool_stages):
        if is_away:
            runs |= {name: _elsewhere(name, place, request, origin) for name in group}
        else:
            runs |= _here(list(group), place, origin)
    return runs


def _here(names: Sequence[str], place: Place, origin: Origin) -> dict[str, StageRun]:
    """Bring stages up to date, each as a task; one process of DVC serves them all, as each would cost a second."""
    environment = {**stage_environment(origin), **place.environment}
    with reproduction(place.path, names, environment) as work:
        return {name: _result(_run(name, work)) for name in names}


def _run(name: str, work: Reproduction) -> State[Any]:
    return run_stage.with_options(name=name, task_run_name=name)(name, work, return_state=True)


def _elsewhere(name: str, place: Place, request: PipelineRequest, origin: Origin) -> StageRun:
    """Have the stage run on the GPU pool, unless it is up to date; what came of it is checked here."""
    if is_up_to_date(place.path, name):
        return _here([name], place, origin)[name]
    sent = StageRequest(stage=name, origin=origin, checkout=checkout_mark(place.checkout), workspace=place.key)
    if request.hand_over == "remotes":
        run = _by_remotes(place, request.gpu_pool, sent)
    else:
        run = _result(_sent(request.gpu_pool, sent))
    if not is_up_to_date(place.path, name):
        raise UserError(
            f"stage {name}: pool {request.gpu_pool} ended it well, but `dvc status {name}` is not clean here"
        )
    return run


def _by_remotes(place: Place, pool: str, sent: StageRequest) -> StageRun:
    # The whole id: ids of one minute begin alike.
    carrier = f"handover-{sent.origin.flow_run_id.replace('-', '')}-{sent.stage}"
    try:
        send_inputs(place.path, carrier, sent.stage)
        run = _result(_sent(pool, sent.model_copy(update={"workspace": "", "experiment": carrier})))
        fetch_result(place.path, carrier)
    finally:
        clear_away(place.path, carrier)
    return run


def _sent(pool: str, sent: StageRequest) -> State[Any]:
    return send_stage.with_options(name=sent.stage, task_run_name=sent.stage)(pool, sent, return_state=True)


def _result(state: State[Any]) -> StageRun:
    if not state.is_completed():
        raise _StageFailed(state)
    return StageRun(**state.result())


def _finish(place: Place, runs: dict[str, StageRun]) -> None:
    """Tell MLflow and the run's page how it ended; keep a workspace apart as an experiment."""
    environment = {**stage_environment(_origin(place)), **place.environment}
    if place.experiment:
        experiments.save(place.path, place.experiment, list(runs))  # first: it refuses inputs that were edited
    record_outcomes(place.params, runs, environment)
    if place.params.tracking.enabled:
        register(place.params, environment)  # also when a killed try has made the student
    page = mlflow_url(place.params.tracking)
    if any(run.outcome == "ran" for run in runs.values()):
        page = mlflow_run_page(place.params, environment, str(runtime.flow_run.id))
    publish_stages(runs)
    publish_results(place.path, page)
    if place.experiment:
        publish_experiment(place.experiment, page)
    elif not _was_clean(place, runs) and not is_up_to_date(place.path):
        get_run_logger().warning("`dvc status` is not clean: an input was edited, or not every stage was asked for")


@task(retries=0, cache_policy=NO_CACHE, persist_result=False)  # type: ignore[untyped-decorator]
def register(params: Params, environment: dict[str, str]) -> None:
    """Make the student a version in MLflow's registry, and the champion if it is better (tasks/promotion.py)."""
    try:
        if line := registry_line(params, environment):
            get_run_logger().info(line)
    except UserError as error:
        get_run_logger().warning("the student was not registered: %s", error)


def _was_clean(place: Place, runs: dict[str, StageRun]) -> bool:
    """Return whether DVC was asked for every stage, and none was stale."""
    return set(runs) == set(stage_order(place.path)) and all(run.outcome == "skipped" for run in runs.values())


def _origin(place: Place) -> Origin:
    """Return what the records of stages say of this flow run."""
    flow_run_id = str(runtime.flow_run.id)
    page = url_for("flow-run", obj_id=flow_run_id) or ""
    # A server that lives as long as this run keeps its runs where a lasting one will find and show them.
    if lasting := os.environ.get(LASTING_PAGES_VARIABLE):
        page = lasting + urlsplit(page).path
    return Origin(pipeline_key=flow_run_id, flow_run_id=flow_run_id, page=page, experiment=place.experiment)


def _run_facts() -> RunFacts:
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    facts = (str(runtime.flow_run.id), str(runtime.flow_run.name))
    return RunFacts(*facts, bool(run and run.auto_scheduled), bool(run and run.run_count > 1))
