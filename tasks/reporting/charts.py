"""Line charts as inline SVG: small multiples with axes, ticks and labels; colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 36
_NUM_TICKS = 4
_MAX_POINTS = 400  # more than the chart has pixels
_MAX_MARKED_POINTS = 25
_MAX_DECIMALS = 4

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line of a chart; `style` names its colour in the page's style."""

    name: str
    style: str
    points: Sequence[Point]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: list[float]
    decimals: int
    start: float
    length: float

    def place(self, value: float) -> str:
        """Return the coordinate of a value."""
        return _short(self.start + self.length * (value - self.low) / (self.high - self.low))

    def label(self, tick: float) -> str:
        """Return the text of a tick."""
        if self.decimals <= _MAX_DECIMALS:
            return f"{tick:,.{self.decimals}f}"
        if tick == 0:
            return "0"
        digits = math.floor(math.log10(abs(tick)) + 1e-9) + self.decimals  # as many as tell it from its neighbours
        mantissa, exponent = f"{tick:.{digits}e}".split("e")
        return f"{mantissa}e{int(exponent)}"


def line_chart(series: Sequence[Series], best_step: float | None) -> str:
    """Return the SVG of lines over steps, with a mark at the step that was published."""
    points = [point for line in series for point in line.points]
    steps = _axis([step for step, _ in points], _LEFT, _WIDTH - _LEFT - _RIGHT, is_tight=True)
    values = _axis([value for _, value in points], _HEIGHT - _BOTTOM, -(_HEIGHT - _TOP - _BOTTOM), is_tight=False)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(", ".join(s.name for s in series))}">',
        *(_value_tick(values, tick) for tick in values.ticks),
        *(_step_tick(steps, tick) for tick in steps.ticks),
        f'<text class="axis" x="{_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2:g}" y="{_HEIGHT - 4}">step</text>',
        *([_best_mark(steps, best_step)] if best_step is not None and steps.low <= best_step <= steps.high else []),
        *(_line(line, steps, values) for line in series),
        "</svg>",
    ]
    return "".join(parts)


def _axis(numbers: Sequence[float], start: float, length: float, is_tight: bool) -> _Axis:
    """Return an axis over the numbers: tight to them, or widened to the ticks around them."""
    low, high = min(numbers), max(numbers)
    if low == high:
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    gap = _round_gap((high - low) / _NUM_TICKS)
    if is_tight:
        gap = max(gap, 1.0)
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    ticks = [index * gap for index in range(first, last + 1)]
    if is_tight:
        ticks = [tick for tick in ticks if low <= tick <= high]
    else:
        low, high = ticks[0], ticks[-1]
    return _Axis(low, high, ticks, max(0, -math.floor(math.log10(gap) + 1e-9)), start, length)


def _round_gap(gap: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below a gap."""
    power = 10.0 ** math.floor(math.log10(gap))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= gap * (1 - 1e-9))


def _value_tick(axis: _Axis, tick: float) -> str:
    y = axis.place(tick)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="value" x="{_LEFT - 6}" y="{y}" dy="3.5">{axis.label(tick)}</text>'
    )


def _step_tick(axis: _Axis, tick: float) -> str:
    x, bottom = axis.place(tick), _HEIGHT - _BOTTOM
    return (
        f'<line class="tick" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>'
        f'<text class="axis" x="{x}" y="{bottom + 16}">{axis.label(tick)}</text>'
    )


def _best_mark(axis: _Axis, step: float) -> str:
    x = axis.place(step)
    return f'<line class="best" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'


def _line(series: Series, steps: _Axis, values: _Axis) -> str:
    places = [(steps.place(step), values.place(value)) for step, value in _thinned(series.points)]
    path = "M" + "L".join(f"{x} {y}" for x, y in places)
    is_marked = len(series.points) <= _MAX_MARKED_POINTS
    return f'<path class="line {series.style}" d="{path}"/>' + "".join(
        f'<circle class="{series.style}" cx="{x}" cy="{y}" r="2.4"><title>step {step:g}: {value:.6g}</title></circle>'
        for (x, y), (step, value) in zip(places, series.points, strict=False)
        if is_marked
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most `_MAX_POINTS` points: of each run the lowest and the highest, so that spikes stay."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    num_runs = _MAX_POINTS // 2
    kept: list[Point] = []
    for index in range(num_runs):
        run = points[index * len(points) // num_runs : (index + 1) * len(points) // num_runs]
        kept += sorted({min(run, key=lambda point: point[1]), max(run, key=lambda point: point[1])})
    return kept


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
