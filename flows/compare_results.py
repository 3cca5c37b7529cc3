"""What the runs of a comparison gave: kept in metrics/compare.json, summed up over seeds in one table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.compare_variants import VARIANTS, Run, Setting
from minillm.errors import UserError
from tasks.reporting.inputs import MODELS, load_metrics, mean_scores, set_scores
from tasks.runner import COST_DIR
from tasks.storage import METRICS_DIR, read_json, write_json

RESULTS_PATH = METRICS_DIR / "compare.json"
REFERENCES = {"warm-up": "warmup", "teacher": "teacher"}  # row of the table -> model
_STUDENT = "student"
_TRAINING = "distill"
_HEADER = ("variant", "Rouge-L", "reverse KL", "distinct-4", "training, CPU s", "seeds")
_NONE = "-"
_NOTES = """\
Mean ± standard deviation (n - 1) over seeds, on the evaluation sets, sampled: Rouge-L in points; reverse KL to the
teacher in nats per token; distinct-4 is the share of different 4-grams; training is the CPU time of the stage distill.
"""

Numbers = dict[str, dict[str, float]]  # by model
Record = dict[str, Any]  # of one run: the digest of its params, its numbers by model, what its training took


@dataclass(frozen=True)
class Row:
    """A line of the table: a variant or a reference, with a value a seed in each list."""

    name: str
    rouge_l: list[float]
    reverse_kl: list[float]  # empty for the teacher
    distinct_4: list[float]
    cpu_s: list[float]  # of the seeds for which it is known


class Results:
    """The records of metrics/compare.json by variant and seed; each new one is on disk at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._records: dict[str, dict[str, Record]] = _read_records(root / RESULTS_PATH)

    def add(self, run: Run, digest: str, since_s: float) -> None:
        """Record the run whose metrics are in the workspace; `since_s` is the time when it started.

        When its training came from DVC's cache, what that took is known from the record before, if at all.
        """
        seeds = self._records.setdefault(run.variant, {})
        before = seeds.get(str(run.seed), {})
        known = before.get("cost") if before.get("params") == digest else None
        cost = _fresh_cost(self._root, since_s) or known
        seeds[str(run.seed)] = {"params": digest, "models": _read_numbers(self._root), "cost": cost}
        write_json(self._root / RESULTS_PATH, self._records)

    def record(self, run: Run, digest: str) -> Record | None:
        """Return a run's record, if it was made with params of this digest."""
        found = self._records.get(run.variant, {}).get(str(run.seed))
        return found if found is not None and found.get("params") == digest else None

    def recorded_runs(self) -> list[Run]:
        """Return the runs that have a record, whatever its params."""
        return [Run(name, int(seed)) for name in VARIANTS for seed in sorted(self._records.get(name, {}), key=int)]


def table_rows(records: Mapping[Run, Record]) -> list[Row]:
    """Return a row a variant, in the order in which variants are listed, then the warm-up and the teacher."""
    by_variant = {name: [record for run, record in records.items() if run.variant == name] for name in VARIANTS}
    rows = [_row(name, _STUDENT, found) for name, found in by_variant.items() if found]
    by_seed = {run.seed: record for run, record in records.items()}  # the stages before distill know no variant
    return rows + [_row(name, model, list(by_seed.values())) for name, model in REFERENCES.items()]


def text_table(rows: Sequence[Row]) -> str:
    """Return an aligned Markdown table."""
    lines = [_HEADER, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]])


def markdown_page(rows: Sequence[Row], records: Mapping[Run, Record], figure_name: str) -> str:
    """Return the page: table, figure, and what each variant sets."""
    shown = dict.fromkeys(run.variant for run in records)
    settings = "\n".join(f"- `{name}`: {_settings_text(VARIANTS[name])}" for name in VARIANTS if name in shown)
    seeds = ", ".join(map(str, sorted({run.seed for run in records})))
    parts = (
        "# Comparison",
        text_table(rows),
        _NOTES.strip() + _same_seeds_note(records),
        f"![Rouge-L and reverse KL by variant]({figure_name})",
        f"Seeds: {seeds}. What a variant sets; everything else is as in params.yaml:",
        settings,
    )
    return "\n\n".join(parts) + "\n"


def _read_records(path: Path) -> dict[str, dict[str, Record]]:
    try:
        content = read_json(path) if path.exists() else {}
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path.name}: not JSON ({error}); delete it to start anew") from None
    return dict(content)


def _read_numbers(root: Path) -> Numbers:
    report, scores = load_metrics("report", root), mean_scores(set_scores(load_metrics("evaluate", root)))
    numbers = {
        model: {"rougeL": report.number(model, "rougeL"), "distinct_4": scores[model].distinct_4} for model in MODELS
    }
    for model in MODELS:
        if model != "teacher":
            numbers[model]["reverse_kl"] = report.number(model, "reverse_kl")
    return numbers


def _fresh_cost(root: Path, since_s: float) -> dict[str, float] | None:
    """Return what the training took, if it has run since a time."""
    path = root / COST_DIR / f"{_TRAINING}.json"
    return dict(read_json(path)) if path.exists() and path.stat().st_mtime >= since_s else None


def _row(name: str, model: str, records: Sequence[Record]) -> Row:
    def column(key: str) -> list[float]:
        return [record["models"][model][key] for record in records if key in record["models"][model]]

    costs = [record["cost"]["cpu_s"] for record in records if record["cost"] and model == _STUDENT]
    return Row(name, column("rougeL"), column("reverse_kl"), column("distinct_4"), costs)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        _spread(row.rouge_l, 2),
        _spread(row.reverse_kl, 3),
        f"{statistics.fmean(row.distinct_4):.3f}",
        f"{statistics.fmean(row.cpu_s):,.0f}" if row.cpu_s else _NONE,
        str(len(row.rouge_l)),
    )


def _spread(values: Sequence[float], decimals: int) -> str:
    if not values:
        return _NONE
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else mean


def _settings_text(settings: Mapping[str, Setting]) -> str:
    return ", ".join(
        f"`{key}: {value if isinstance(value, str) else json.dumps(value)}`" for key, value in settings.items()
    )


def _same_seeds_note(records: Mapping[Run, Record]) -> str:
    seeds: dict[str, set[int]] = {}
    for run in records:
        seeds.setdefault(run.variant, set()).add(run.seed)
    is_uneven = len(set(map(frozenset, seeds.values()))) > 1
    return (
        "\nNot every variant has run under every seed: means over different seeds compare less well."
        if is_uneven
        else ""
    )
