"""What the benchmarks compute beside times."""

from __future__ import annotations

import importlib.util
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import peers
from benchmarks.floor import Ceilings, rollout_floor_s
from benchmarks.scaling_figure import scaling_figure
from minillm.errors import UserError
from tests import tiny


def sizes(model: Any) -> tuple[int, int]:
    """Return the weights of the layers and of the head."""
    return sum(weight.numel() for weight in model.model.layers.parameters()), model.lm_head.weight.numel()


def test_the_floor_counts_every_token_of_both_models_once() -> None:
    """Two rows, 7 prompt tokens, tokens drawn by student, teacher and student; reading takes no time here."""
    student, teacher = tiny.tiny_llama(1), tiny.tiny_llama(2, num_layers=3)
    (own, own_head), (other, other_head) = sizes(student), sizes(teacher)
    found = rollout_floor_s([student, teacher], 2, 7, [False, True, False], Ceilings(1.0, float("inf")))
    of_student = 2 * ((7 + 2 + 2) * own + 2 * 2 * own_head)  # the prompts, then two tokens a row; two draws
    of_teacher = 2 * ((7 + 2 + 2) * other + 2 * other_head)  # the prompts and a token, at the end another; one draw
    assert found == pytest.approx(of_student + of_teacher)


def test_the_floor_reads_the_weights_of_a_pass_at_least_once() -> None:
    student, teacher = tiny.tiny_llama(1), tiny.tiny_llama(2, num_layers=3)
    (own, own_head), (other, other_head) = sizes(student), sizes(teacher)
    found = rollout_floor_s([student, teacher], 2, 7, [False, True, False], Ceilings(float("inf"), 1.0))
    assert found == pytest.approx(4 * (2 * (own + own_head) + (other + other_head) + other))


def test_the_figure_is_well_formed_and_has_a_point_for_every_number() -> None:
    axes = {"rows": (4, 16, 64), "alpha": (0.0, 0.5)}
    speeds = {"rollout": {"rows": [100.0, 210.0, 260.0], "alpha": [150.0, 120.0]}, "update": {"rows": [90, 95, 99]}}
    page = ElementTree.fromstring(scaling_figure(axes, speeds))
    circles = [item for item in page.iter() if item.tag.endswith("circle") and item.get("r") == "3.5"]
    assert len(circles) == 3 + 2 + 3
    heights = [float(item.get("cy") or 0) for item in circles if item.get("class") == "rollout"]
    assert heights[0] > heights[1] > heights[2]  # the faster, the higher
    assert all(0 < float(item.get("cx") or 0) < float(page.get("width") or 0) for item in circles)


@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="TRL is installed")
def test_without_the_peers_a_line_says_how_to_get_them() -> None:
    with pytest.raises(
        UserError, match=r"trl is not installed: pip install --no-deps -r requirements-benchmarks\.lock"
    ):
        peers.measure(1, 1, True)
