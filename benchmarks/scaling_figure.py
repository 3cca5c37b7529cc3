"""The figure of the scaling benchmark: a panel an axis, tokens a second of rollouts and of updates, as an SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_TITLES = {
    "rows": "rows of a batch",
    "new_tokens": "response tokens a row",
    "vocabulary": "vocabulary",
    "alpha": "share of the teacher",
    "teacher_layers": "layers of the teacher",
}
_PANEL, _PLOT, _LEFT, _TOP = (232, 216), (160, 128), 52, 56
_STYLE = """
  .page { fill: #ffffff; } text { fill: #1c2330; } .muted { fill: #5d6778; } .grid { stroke: #e2e6ec; }
  .rollout { stroke: #14806a; fill: #14806a; } .update { stroke: #c96a12; fill: #c96a12; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #12161d; } text { fill: #e4e8ef; } .muted { fill: #9aa5b6; } .grid { stroke: #2c3442; }
    .rollout { stroke: #52c7a9; fill: #52c7a9; } .update { stroke: #eda45c; fill: #eda45c; }
  }
  text { font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums; stroke: none; }
  .title { font-weight: 600; } .middle { text-anchor: middle; } .end { text-anchor: end; }
  polyline { fill: none; stroke-width: 2; }
"""

Speeds = Mapping[str, Mapping[str, Sequence[float]]]


def scaling_figure(axes: Mapping[str, Sequence[float]], speeds: Speeds) -> str:
    """Return the SVG; speeds are tokens a second by part, then by axis, a number for each value of it."""
    top = _round_up(max(value for part in speeds.values() for measured in part.values() for value in measured))
    panels = [_panel(number, name, axes[name], speeds, top) for number, name in enumerate(axes)]
    width, height = _PANEL[0] * min(3, len(axes)), _PANEL[1] * -(-len(axes) // 3) + 24
    size = f'width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" {size}/>',
            '<text x="12" y="20" class="title">Tokens a second</text>',
            *(_key(x, part) for x, part in ((130, "rollout"), (210, "update"))),
            *(line for panel in panels for line in panel),
            "</svg>",
        ]
    )


def _key(x: float, part: str) -> str:
    return f'<circle class="{part}" cx="{x}" cy="16" r="4"/><text x="{x + 9}" y="20">{part}</text>'


def _panel(number: int, name: str, values: Sequence[float], speeds: Speeds, top: float) -> list[str]:
    left, upper = _PANEL[0] * (number % 3) + _LEFT, _PANEL[1] * (number // 3) + _TOP
    lower = upper + _PLOT[1]
    lines = [f'<text x="{left}" y="{upper - 12}" class="title">{_TITLES[name]}</text>']
    for share in (0.0, 0.5, 1.0):
        y = lower - share * _PLOT[1]
        lines.append(f'<path class="grid" d="M{left} {y:.1f}h{_PLOT[0]}"/>')
        lines.append(f'<text x="{left - 6}" y="{y + 4:.1f}" class="muted end">{share * top:,.0f}</text>')
    places = [left + 8 + share * (_PLOT[0] - 16) for share in _shares(values)]
    for place, value in zip(places, values, strict=True):
        lines.append(f'<text x="{place:.1f}" y="{lower + 18}" class="muted middle">{_short(value)}</text>')
    for part, measured in ((part, axes[name]) for part, axes in speeds.items() if name in axes):
        points = [(x, lower - speed / top * _PLOT[1]) for x, speed in zip(places, measured, strict=True)]
        lines.append(f'<polyline class="{part}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        lines += [f'<circle class="{part}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points]
    return lines


def _shares(values: Sequence[float]) -> list[float]:
    """Return where the values stand between the first and the last: by ratio, or evenly when one is 0."""
    if values[0] == 0:
        return [(value - values[0]) / (values[-1] - values[0]) for value in values]
    return [math.log(value / values[0]) / math.log(values[-1] / values[0]) for value in values]


def _round_up(value: float) -> float:
    unit: float = 10 ** math.floor(math.log10(value))
    return math.ceil(2 * value / unit) / 2 * unit


def _short(value: float) -> str:
    return f"{value / 1000:.0f}k" if value >= 1000 else f"{value:g}"
