"""How our tokens a second grow with rows, response length, vocabulary, the teacher's share and the teacher's size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.rollout import our_rollout
from benchmarks.scaling_figure import scaling_figure
from benchmarks.timing import interleaved
from benchmarks.update import made_up_experience, our_step
from benchmarks.workload import (
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    VOCABULARY,
    prompt_batch,
    smol_model,
    the_compute,
)
from minillm.device import Compute
from minillm.sampling import decodable

FIGURE_PATH = Path("reports/scaling.svg")


@dataclass(frozen=True)
class Case:
    """Sizes of a rollout and of an update on it."""

    rows: int = 16
    new_tokens: int = 64
    vocabulary: int = VOCABULARY
    alpha: float = 0.2
    teacher_layers: int = TEACHER_LAYERS


AXES: dict[str, tuple[Any, ...]] = {
    "rows": (4, 16, 64),
    "new_tokens": (32, 64, 256),
    "vocabulary": (VOCABULARY, 2 * VOCABULARY, 151_936),
    "alpha": (0.0, 0.1, 0.2, 0.5, 0.8),
    "teacher_layers": (10, 30, 60),
}
_NOT_OF_UPDATES = ("alpha", "teacher_layers")  # the teacher's states are there already


def measure(num_threads: int, num_rounds: int, is_short: bool) -> dict[str, Any]:
    """Return tokens a second along each axis, the others as in `Case`, and write a figure of them."""
    compute = the_compute(num_threads)
    rollout = cache(partial(_rollout_tokens_per_s, compute, num_rounds))
    update = cache(partial(_update_tokens_per_s, compute, num_rounds))
    axes = {"rows": AXES["rows"]} if is_short else AXES
    cases = {name: [replace(Case(), **{name: value}) for value in values] for name, values in axes.items()}
    found = {"rollout": {name: [rollout(case) for case in those] for name, those in cases.items()}}
    kept = {name: those for name, those in cases.items() if name not in _NOT_OF_UPDATES}
    found["update"] = {name: [update(case) for case in those] for name, those in kept.items()}
    FIGURE_PATH.parent.mkdir(exist_ok=True)
    FIGURE_PATH.write_text(scaling_figure(axes, found), encoding="utf-8")
    return {
        "tokens_per_s": {part: _by_value(axes, speeds) for part, speeds in found.items()},
        "growth": {part: _growth(axes, speeds) for part, speeds in found.items()},
        "figure": str(FIGURE_PATH),
        "arithmetic": str(compute),
    }


def _by_value(axes: Mapping[str, tuple[float, ...]], speeds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {str(value): round(speed, 1) for value, speed in zip(axes[name], measured, strict=True)}
        for name, measured in speeds.items()
    }


def _growth(axes: Mapping[str, tuple[float, ...]], speeds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the exponent between the ends of each axis: 1 = twice as many tokens a second for twice the size."""
    return {
        name: round(math.log(measured[-1] / measured[0]) / math.log(axes[name][-1] / axes[name][0]), 2)
        for name, measured in speeds.items()
        if axes[name][0] > 0
    }


def _models(compute: Compute, case: Case) -> tuple[Any, Any]:
    layers = STUDENT_LAYERS, case.teacher_layers
    student, teacher = (smol_model(number, compute, seed=number, vocabulary=case.vocabulary) for number in layers)
    return student, teacher.to(compute.dtype)


def _rollout_tokens_per_s(compute: Compute, num_rounds: int, case: Case) -> float:
    student, teacher = _models(compute, case)
    models = [student.to(compute.dtype), decodable(teacher)]
    prompts = prompt_batch(case.rows, compute)
    run = partial(our_rollout, models, prompts, case.new_tokens, case.alpha, prepared=decodable)
    return case.rows * case.new_tokens / interleaved({"ours": run}, num_rounds)["ours"].summary()["wall_s"]


def _update_tokens_per_s(compute: Compute, num_rounds: int, case: Case) -> float:
    models = _models(compute, case)
    experience = made_up_experience(models[1], compute, case.rows, case.new_tokens)
    step = our_step(models, compute, experience)
    return case.rows * case.new_tokens / interleaved({"ours": step}, num_rounds)["ours"].summary()["wall_s"]
