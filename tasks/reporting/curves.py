"""The curves of the report: which metrics are drawn, in which order, under which captions."""

from __future__ import annotations

from html import escape

from tasks.reporting.charts import Series, line_chart
from tasks.reporting.inputs import MODELS, TRAINING_STAGES, ReportContent

_NOT_CHARTED = ("step", "is_best")
_LOSSES = ("train/loss", "validation/loss")  # of a supervised loop, drawn together
_LOSS = "loss"
_SUPERVISED = {_LOSS: ("Loss", "nats per token"), "optim/lr": ("Learning rate", "")}
_DISTILL = {
    "validation/reverse_kl": ("Reverse KL, validation", "nats per token"),
    "validation/rougeL": ("Rouge-L, validation", "points"),
    "kl/reverse": ("Reverse KL, rollouts", "nats per token"),
    "reward/mean": ("Mean reward", "nats per token"),
    "response/length_mean": ("Response length, rollouts", "tokens"),
    "response/end_rate": ("End-token rate, rollouts", "share"),
    "policy/clipped_frac": ("Clipped ratios", "share"),
    "policy/entropy": ("Entropy of the student", "nats"),
}
# Name: title and unit. Drawn first and in this order; other columns follow by name while the number below allows.
_CHARTS = {"teacher": _SUPERVISED, "warmup": _SUPERVISED, "distill": _DISTILL}
_NUM_CHARTS = {"teacher": 2, "warmup": 2, "distill": 8}


def curves(content: ReportContent) -> str:
    """Return the section of curves, grouped by stage."""
    note = (
        "A dashed line marks the step whose checkpoint was published. Names in grey are those in MLflow and in plots/."
    )
    parts = [f'<h2>Curves</h2><p class="muted">{note}</p>']
    for stage, style in zip(TRAINING_STAGES, MODELS, strict=True):
        figures = _figures(stage, style, content.curves[stage], content.metrics[stage].number("best_step"))
        shown = "".join(figures) or '<p class="muted">No steps were recorded.</p>'
        parts.append(f'<h3><span class="dot {style}"></span>Stage {stage}</h3><div class="charts">{shown}</div>')
    return "".join(parts)


def _figures(stage: str, style: str, curve: list[dict[str, float]], best_step: float) -> list[str]:
    columns = {name for row in curve for name in row} - set(_NOT_CHARTED)
    if _LOSS in _CHARTS[stage] and columns >= set(_LOSSES):
        columns = columns - set(_LOSSES) | {_LOSS}
    known = [name for name in _CHARTS[stage] if name in columns]
    names = [*known, *sorted(columns - set(known))][: _NUM_CHARTS[stage]]
    figures = []
    for name in names:
        colours = dict(zip(_LOSSES, ("other", style), strict=True)) if name == _LOSS else {name: style}
        series = [Series(column, colour, _points(curve, column)) for column, colour in colours.items()]
        title, unit = _CHARTS[stage].get(name, (name, ""))
        figures.append(_figure(title, unit, series, best_step))
    return figures


def _points(curve: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in curve if name in row]


def _figure(title: str, unit: str, series: list[Series], best_step: float) -> str:
    """Return a chart under two lines: its title with the unit, and the names of its lines."""
    shown_unit = f" <small>{escape(unit)}</small>" if unit else ""
    names = "".join(
        f'<span class="key">{_dot(line) if len(series) > 1 else ""}{escape(line.name)}</span>' for line in series
    )
    caption = f"<figcaption>{escape(title)}{shown_unit}<div>{names}</div></figcaption>"
    return f'<figure class="card">{caption}{line_chart(series, best_step)}</figure>'


def _dot(line: Series) -> str:
    return f'<span class="dot {line.style}"></span>'
