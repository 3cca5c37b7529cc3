"""The rule of promotion: strictly better, by a finite metric, on the same evaluation."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from minillm.config import TrackingConfig
from tasks.promotion import METRICS, Decision, Version, judged

ROUGE, DISTANCE = METRICS


def version(number: int, value: float | None, evaluation: str = "e1", **earlier: float) -> Version:
    values = {**earlier, **({} if value is None else {evaluation: value})}
    return Version(number, f"md5-{number}", None if value is None else evaluation, values, None, True)


@pytest.mark.parametrize(
    ("metric", "value", "champion", "was_promoted"),
    [
        (ROUGE, 51.0, 48.6, True),
        (ROUGE, 48.6, 51.0, False),
        (ROUGE, 51.0, 51.0, False),
        (ROUGE, math.nextafter(51.0, 52.0), 51.0, True),
        (DISTANCE, 0.9, 1.1, True),
        (DISTANCE, 1.1, 0.9, False),
        (DISTANCE, 0.9, 0.9, False),
        (DISTANCE, 0.0, 1e-300, True),
    ],
)
def test_only_a_strictly_better_student_takes_the_place(
    metric: str, value: float, champion: float, was_promoted: bool
) -> None:
    assert judged(metric, version(2, value), version(1, champion))[0] is was_promoted


def test_the_words_say_what_was_compared() -> None:
    assert judged(ROUGE, version(2, 51.0), version(1, 48.6)) == (True, f"{ROUGE} 51.0000 > 48.6000 of version 1")
    assert judged(DISTANCE, version(2, 0.5), version(1, 0.75)) == (True, f"{DISTANCE} 0.5000 < 0.7500 of version 1")
    assert judged(ROUGE, version(2, 3.0), version(1, 4.0)) == (
        False,
        f"{ROUGE} 3.0000 is not better than 4.0000 of version 1",
    )
    assert Decision("student", 2, True, "why").line == "registry: student version 2 is @champion: why"
    assert Decision("student", 2, False, "why").line == "registry: student version 2 is not @champion: why"


def test_the_first_that_was_judged_is_champion() -> None:
    assert judged(ROUGE, version(1, 0.0), None) == (True, f"{ROUGE} 0.0000, the first that was judged")


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_without_a_finite_metric_nothing_is_promoted(metric: str, value: float | None) -> None:
    for champion in (None, version(1, 1.0)):
        assert judged(metric, version(2, value), champion) == (False, f"it has no finite {metric}")


def test_other_evaluations_are_not_compared() -> None:
    better = version(2, 99.0, "e2")
    for champion in (version(1, 1.0, "e1"), version(1, None), version(1, math.nan, "e2")):
        is_better, reason = judged(ROUGE, better, champion)
        assert not is_better and "version 1 was judged on another evaluation" in reason and "promote" in reason


def test_a_champion_that_was_judged_again_is_compared_on_the_evaluation_that_both_know() -> None:
    assert judged(ROUGE, version(2, 60.0, "e1"), version(1, 10.0, "e2", e1=50.0))[0]
    assert not judged(ROUGE, version(2, 40.0, "e1"), version(1, 10.0, "e2", e1=50.0))[0]


def test_every_metric_of_the_params_has_a_direction() -> None:
    assert get_args(TrackingConfig.model_fields["champion_metric"].annotation) == METRICS
