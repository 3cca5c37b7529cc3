"""The line charts of the report, as SVG."""

from __future__ import annotations

import re

import pytest

from tasks.reporting.charts import Series, line_chart


def test_a_chart_places_its_points_on_its_axes() -> None:
    svg = line_chart([Series("a/b", "student", [(0.0, 1.0), (5.0, 3.0), (10.0, 2.0)])], best_step=5.0)
    # x: 50 + 276 * step / 10; y: 154 - 142 * (value - 1) / 2
    assert 'd="M50 154L188 12L326 83"' in svg
    assert '<line class="best" x1="188" x2="188"' in svg
    assert re.findall(r'class="value"[^>]*>([^<]*)<', svg) == ["1.0", "1.5", "2.0", "2.5", "3.0"]


def test_small_values_are_labelled_so_that_they_differ() -> None:
    svg = line_chart([Series("a/b", "student", [(0.0, 0.0), (1.0, 2e-5)])], best_step=None)  # a learning rate
    assert re.findall(r'class="value"[^>]*>([^<]*)<', svg) == ["0", "5e-6", "1.0e-5", "1.5e-5", "2.0e-5"]


@pytest.mark.parametrize(
    "points", [[(0.0, 1.0)], [(0.0, 0.0), (1.0, 0.0)], [(3.0, -1e-9), (4.0, 1e-9)], [(0.0, 1e12), (1e6, -1e12)]]
)
def test_a_chart_of_any_numbers_stays_in_its_frame(points: list[tuple[float, float]]) -> None:
    svg = line_chart([Series("a/b", "student", points)], best_step=None)
    numbers = [float(number) for number in re.findall(r"[ML ]([-\d.]+)", re.findall(r' d="([^"]*)"', svg)[0])]
    assert all(0 <= number <= 340 for number in numbers)
    assert "nan" not in svg


def test_a_long_curve_is_thinned_but_keeps_its_spike() -> None:
    points = [(float(step), 100.0 if step == 7777 else 0.0) for step in range(20000)]
    svg = line_chart([Series("a/b", "student", points)], best_step=None)
    path = re.findall(r' d="([^"]*)"', svg)[0]
    assert path.count("L") < 400 and " 12L" in path
