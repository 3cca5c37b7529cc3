"""The figure of a comparison: Rouge-L and reverse KL of each variant, as an SVG that fits light and dark pages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from flows.compare_results import REFERENCES, Row

_WIDTH, _LABELS_WIDTH, _ROW_HEIGHT = 980, 182, 30
_PLOT_WIDTH, _VALUES_WIDTH, _GAP = 270, 106, 34
_TOP, _BOTTOM = 88, 58
_LABELS_Y = {"warm-up": 54, "teacher": 72}  # of the references, so that close ones do not meet
_NUM_TICKS = 4
_CAPTION = "Large dots and bars: mean and standard deviation over seeds. Pale dots: seeds."
_STYLE = """
  .page { fill: #ffffff; } text { fill: #1c2330; } .muted { fill: #5d6778; } .grid { stroke: #e2e6ec; }
  .dot { fill: #14806a; } .bar { stroke: #14806a; }
  path.warm-up { stroke: #c96a12; } text.warm-up { fill: #b35c0c; }
  path.teacher { stroke: #2f6db5; } text.teacher { fill: #2f6db5; } .label { stroke: #ffffff; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #12161d; } text { fill: #e4e8ef; } .muted { fill: #9aa5b6; } .grid { stroke: #2c3442; }
    .dot { fill: #52c7a9; } .bar { stroke: #52c7a9; }
    path.warm-up { stroke: #eda45c; } text.warm-up { fill: #eda45c; }
    path.teacher { stroke: #7fb2ef; } text.teacher { fill: #7fb2ef; } .label { stroke: #12161d; }
  }
  text { font: 13px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
  .title { font-weight: 600; font-size: 14px; } .small { font-size: 12px; }
  .middle { text-anchor: middle; } .end { text-anchor: end; }
  .bar { stroke-width: 2; fill: none; } .seed { fill-opacity: 0.35; } .reference { stroke-dasharray: 5 4; }
  .label { paint-order: stroke; stroke-width: 5; stroke-linejoin: round; }
"""


@dataclass(frozen=True)
class _Panel:
    title: str
    values: Callable[[Row], list[float]]
    decimals: int
    left: float
    low: float
    high: float
    gap: float  # between ticks

    def place(self, value: float) -> float:
        """Return the x of a value."""
        return self.left + _PLOT_WIDTH * (value - self.low) / (self.high - self.low)


def comparison_figure(rows: Sequence[Row]) -> str:
    """Return the SVG: variants from the highest Rouge-L down, a dot a seed, mean and deviation, references as lines."""
    variants = sorted(
        (row for row in rows if row.name not in REFERENCES), key=lambda row: -statistics.fmean(row.rouge_l)
    )
    references = [row for row in rows if row.name in REFERENCES]
    height = _TOP + _ROW_HEIGHT * len(variants) + _BOTTOM
    size = f'width="{_WIDTH}" height="{height}"'
    right_panel = _LABELS_WIDTH + _PLOT_WIDTH + _VALUES_WIDTH + _GAP
    panels = (
        _panel("Rouge-L, points", lambda row: row.rouge_l, 2, _LABELS_WIDTH, rows),
        _panel("Reverse KL to the teacher, nats per token", lambda row: row.reverse_kl, 3, right_panel, rows),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {size} role="img">',
        "<title>Rouge-L and reverse KL by variant: mean and standard deviation over seeds</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" {size}/>',
        *(
            f'<text class="end" x="{_LABELS_WIDTH - 22}" y="{_row_y(index)}" dy="4.5">{escape(row.name)}</text>'
            for index, row in enumerate(variants)
        ),
        *(part for panel in panels for part in _drawn(panel, variants, references)),
        f'<text class="small muted" x="{_LABELS_WIDTH}" y="{height - 10}">{_CAPTION}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(title: str, values: Callable[[Row], list[float]], decimals: int, left: int, rows: Sequence[Row]) -> _Panel:
    """Return a panel whose axis goes from tick to tick and holds every value and deviation."""
    ends = [end for row in rows if values(row) for end in (*_interval(values(row)), *values(row))]
    low, high = min(ends), max(ends)
    if low == high:
        low, high = low - 1, high + 1
    gap = _round_gap((high - low) / _NUM_TICKS)
    return _Panel(title, values, decimals, left, math.floor(low / gap) * gap, math.ceil(high / gap) * gap, gap)


def _round_gap(gap: float) -> float:
    power = 10.0 ** math.floor(math.log10(gap))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= gap)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean less and plus the standard deviation, which one value does not have."""
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return mean - deviation, mean + deviation


def _drawn(panel: _Panel, variants: Sequence[Row], references: Sequence[Row]) -> list[str]:
    bottom = _TOP + _ROW_HEIGHT * len(variants)
    return [
        f'<text class="title" x="{panel.left:g}" y="26">{panel.title}</text>',
        *_axis(panel, bottom),
        *(_reference_line(panel, row, bottom) for row in references if panel.values(row)),
        *(_reference_label(panel, row) for row in references if panel.values(row)),
        *(part for index, row in enumerate(variants) for part in _marks(panel, row, _row_y(index))),
    ]


def _axis(panel: _Panel, bottom: int) -> list[str]:
    decimals = max(0, -math.floor(math.log10(panel.gap) + 1e-9))
    parts = []
    for index in range(round((panel.high - panel.low) / panel.gap) + 1):
        value = panel.low + index * panel.gap
        x = f"{panel.place(value):.1f}"
        parts.append(f'<path class="grid" d="M{x} {_TOP}V{bottom}"/>')
        parts.append(f'<text class="small muted middle" x="{x}" y="{bottom + 20}">{value:.{decimals}f}</text>')
    return parts


def _reference_line(panel: _Panel, row: Row, bottom: int) -> str:
    x = panel.place(statistics.fmean(panel.values(row)))
    return f'<path class="reference {row.name}" d="M{x:.1f} {_LABELS_Y[row.name] + 5}V{bottom}"/>'


def _reference_label(panel: _Panel, row: Row) -> str:
    mean = statistics.fmean(panel.values(row))
    place = f'x="{panel.place(mean):.1f}" y="{_LABELS_Y[row.name]}"'
    return f'<text class="small label middle {row.name}" {place}>{row.name} {mean:.{panel.decimals}f}</text>'


def _marks(panel: _Panel, row: Row, y: int) -> list[str]:
    values = panel.values(row)
    mean, (low, high) = statistics.fmean(values), map(panel.place, _interval(values))
    spread = f" ± {statistics.stdev(values):.{panel.decimals}f}" if len(values) > 1 else ""
    return [
        *(f'<circle class="dot seed" cx="{panel.place(value):.1f}" cy="{y}" r="3"/>' for value in values),
        f'<path class="bar" d="M{low:.1f} {y - 5}v10m0 -5H{high:.1f}m0 -5v10"/>',
        f'<circle class="dot" cx="{panel.place(mean):.1f}" cy="{y}" r="5"/>',
        f'<text class="small end" x="{panel.left + _PLOT_WIDTH + _VALUES_WIDTH:g}" y="{y}" dy="4">'
        f"{mean:.{panel.decimals}f}{spread}</text>",
    ]


def _row_y(index: int) -> int:
    return _TOP + _ROW_HEIGHT * index + _ROW_HEIGHT // 2
