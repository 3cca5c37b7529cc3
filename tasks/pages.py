"""Addresses of MLflow's pages: of one pipeline's run, and of the comparison of several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from minillm.config import TrackingConfig
from minillm.errors import UserError
from tasks.mlflow_store import PipelineRun, Store
from tasks.tracking_store import tracking_uri, without_secrets

_MAX_SHOWN = 10


def run_page(pages: str, config: TrackingConfig, key: str) -> str:
    """Return the page of the run of the pipeline with a key; raises UserError when there is none or MLflow is away."""
    run = _chosen(_pipelines(config), key)
    return f"{pages}/#/experiments/{run.experiment_id}/runs/{run.run_id}"


def comparison_page(pages: str, config: TrackingConfig, names: Sequence[str], num_last: int) -> str:
    """Return the page that compares the newest pipelines of these names or keys, without any the newest of all.

    Raises UserError for a name that no pipeline has, fewer than two pipelines, or when MLflow is away.
    """
    runs = _several(_pipelines(config), names, num_last)
    experiments = sorted({run.experiment_id for run in runs})
    return f"{pages}/#/compare-runs?runs={_listed([run.run_id for run in runs])}&experiments={_listed(experiments)}"


def curves_page(pages: str, config: TrackingConfig, names: Sequence[str], num_last: int, metric: str) -> str:
    """Return the page with the curves of one metric of the stage distill; pipelines are chosen as for a comparison.

    Those that took distill from the cache have none.
    """
    trained = [run for run in _pipelines(config) if run.distill_run_id]
    runs = _several(trained, names, num_last)
    what = {
        "runs": [run.distill_run_id for run in runs],
        "metric": metric,
        "experiments": sorted({run.experiment_id for run in runs}),
        "plot_metric_keys": [metric],
        "plot_layout": {"autosize": True, "xaxis": {}, "yaxis": {}},
        "deselected_curves": [],
        "last_linear_y_axis_range": [],
    }
    query = "&".join(f"{name}={_listed(value)}" for name, value in what.items())
    return f"{pages}/#/metric?{query}&x_axis=step&y_axis_log_scale=false&line_smoothness=1&show_point=true"


def _several(pipelines: Sequence[PipelineRun], names: Sequence[str], num_last: int) -> list[PipelineRun]:
    runs = [_chosen(pipelines, name) for name in names] or list(pipelines[:num_last])
    if len(runs) < 2:
        raise UserError(
            f"a comparison needs two pipelines at least; MLflow has {len(pipelines)}, asked for {len(runs)}"
        )
    return runs


def _listed(content: Any) -> str:
    """Return JSON as MLflow's pages take it in their address."""
    return quote(json.dumps(content, separators=(",", ":")))


def _chosen(pipelines: Sequence[PipelineRun], name: str) -> PipelineRun:
    found = next((run for run in pipelines if name in (run.name, run.key)), None)
    if found is None:
        known = list(dict.fromkeys(run.name for run in pipelines))
        raise UserError(f"MLflow has no pipeline {name!r}; the newest are: {', '.join(known[:_MAX_SHOWN]) or 'none'}")
    return found


def _pipelines(config: TrackingConfig) -> list[PipelineRun]:
    try:
        return Store(config).pipelines(config.experiment)
    except Exception as error:
        place = without_secrets(tracking_uri(config))
        raise UserError(f"MLflow at {place}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
