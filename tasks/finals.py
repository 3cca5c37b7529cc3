"""The final metrics of stages that a pipeline did not have to run: read from the metrics that DVC tracks.

A stage that runs gives its own to the pipeline's run; without the others, charts of many pipelines would have gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.storage import METRICS_DIR, read_json

_GROUPS = {"teacher": "teacher", "warmup": "warmup", "distill": "distill", "report": "final"}
_NOT_GIVEN = "distill/best_step"  # in the file, but not among what the stage gives to MLflow


def recorded_finals(stages: Iterable[str], root: Path = Path()) -> dict[str, float]:
    """Return what stages wrote into their metrics files, by the names under which they give it to MLflow."""
    finals: dict[str, float] = {}
    for stage in stages:
        path = root / METRICS_DIR / f"{stage}.json"
        if path.exists():
            finals |= dict(_named(stage, read_json(path)))
    finals.pop(_NOT_GIVEN, None)
    return finals


def _named(stage: str, content: Any) -> Iterator[tuple[str, float]]:
    if stage in _GROUPS:
        yield from _leaves(content, f"{_GROUPS[stage]}/")
    if stage == "prepare":
        yield from _leaves(content["rows"], "data/rows_")
        yield from ((f"data/{name}_rows", content["splits"][name]) for name in ("train", "validation"))
    if stage == "evaluate":
        for model, sets in content.items():
            for set_name, scores in sets.items():
                yield from _leaves(scores, f"evaluate_{set_name}/{model}_")


def _leaves(content: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested mappings, their keys joined by underscores behind a prefix."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}_")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)
