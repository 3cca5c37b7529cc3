"""Stage report: one self-contained HTML page and the final numbers of the pipeline."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from minillm.config import ReportConfig
from tasks.reporting.inputs import (
    MODELS,
    TRAINING_STAGES,
    ReportContent,
    Score,
    load_curve,
    load_examples,
    load_metrics,
    mean_scores,
    set_scores,
)
from tasks.reporting.page import report_page, verdict
from tasks.storage import METRICS_DIR, PLOTS_DIR, REPORT_PATH, replacing, write_json

if TYPE_CHECKING:
    from tasks.tracking import Tracker

_log = logging.getLogger(__name__)
_METRIC_STAGES = ("prepare", *TRAINING_STAGES, "evaluate")


def run(report: ReportConfig, tracker: Tracker) -> None:
    """Write the page and metrics/report.json from what the other stages left."""
    content = _content(report.num_examples)
    page = report_page(content)
    with replacing(REPORT_PATH) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    numbers = final_numbers(content.scores)
    write_json(METRICS_DIR / "report.json", numbers)
    tracker.summary({f"final/{model}_{name}": value for model in MODELS for name, value in numbers[model].items()})
    tracker.artifact(REPORT_PATH)
    _log.info("report: %s", verdict(content.scores))


def final_numbers(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Return Rouge-L and reverse KL by model; the teacher has no distance to itself."""
    return {
        model: {"rougeL": score.rougeL} | ({} if score.reverse_kl is None else {"reverse_kl": score.reverse_kl})
        for model, score in scores.items()
    }


def _content(num_examples: int) -> ReportContent:
    metrics = {stage: load_metrics(stage) for stage in _METRIC_STAGES}
    by_set = set_scores(metrics["evaluate"])
    return ReportContent(
        metrics=metrics,
        curves={stage: load_curve(PLOTS_DIR / f"{stage}.tsv") for stage in TRAINING_STAGES},
        set_scores=by_set,
        scores=mean_scores(by_set),
        examples=load_examples(sorted(by_set), num_examples),
    )
