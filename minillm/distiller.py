"""The training loop of every method (for MiniLLM, arXiv:2306.08543, algorithm 1): phases of texts and updates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from minillm.checkpoint import model_tensors, restore_model
from minillm.checkpointing import recompute_layers
from minillm.device import Compute
from minillm.methods import make_method
from minillm.methods.interface import Method, Run
from minillm.rollout import Actors
from minillm.stopwatch import peak_memory_mib
from minillm.types import StepReport, TrainingState
from minillm.update import Updater

Validate = Callable[[Actors], Mapping[str, float]]


def distill(run: Run, validate: Validate, resumed: TrainingState | None = None) -> Iterator[StepReport]:
    """Train the student in place, yielding a report per phase; that of step 0 holds the validation before training.

    `validate` returns `validation/...` metrics; `is_best` marks the best `config.validation.metric` so far. `resumed`
    is a state that an earlier call with an equal run reported: training goes on behind its phase, to the same weights.
    """
    config, actors = run.config, run.actors
    if run.compute.gradient_checkpointing:
        recompute_layers(actors.student)
    method = make_method(run)
    updater, best = Updater(run, method), BestMetric(config.validation.metric)
    track = _Track(actors, method, updater, best)
    if resumed:
        track.restore(resumed)
    else:
        first = validate(actors)
        method.observe(first)
        yield StepReport(0, first, is_best=best.improves(first), state=track.state)
    for phase in range(track.phase + 1, config.num_phases + 1):
        with run.stopwatch.part("rollout"):
            texts, collected = method.collect(phase)
        with run.stopwatch.part("update"):
            metrics = dict(collected) | updater.update(texts, phase)
            refresh_sampler(actors)
        metrics |= _speed(run, int(texts.response_mask.sum()), method.recipe.inner_epochs)
        scores: Mapping[str, float] = {}
        if phase % config.validation.every_phases == 0 or phase == config.num_phases:
            scores = validate(actors)
            method.observe(scores)
        is_best, track.phase = bool(scores) and best.improves(scores), phase
        yield StepReport(phase, metrics | dict(scores), is_best=is_best, state=track.state)


@dataclass
class _Track:
    """Where a run stands; everything drawn is a function of seed and phase, so that no generator has a state."""

    actors: Actors
    method: Method
    updater: Updater
    best: BestMetric
    phase: int = 0

    def state(self) -> TrainingState:
        """Return what goes on from here."""
        optimizer, counters = self.updater.state()
        tensors = {"model": model_tensors(self.actors.student), "optimizer": optimizer}
        values = {"updater": counters, "method": dict(self.method.state()), "best": self.best.value}
        return TrainingState(self.phase, tensors, values)

    def restore(self, state: TrainingState) -> None:
        """Take what `state` returned."""
        restore_model(self.actors.student, state.tensors["model"])
        refresh_sampler(self.actors)
        self.updater.restore(state.tensors["optimizer"], state.values["updater"])
        self.method.restore(state.values["method"])
        self.best.value, self.phase = state.values["best"], state.step


class BestMetric:
    """Remembers the best value of a validation metric: lowest reverse KL or highest Rouge-L; NaN is never best."""

    def __init__(self, metric: str) -> None:
        self._name = f"validation/{metric}"
        self._sign = -1.0 if metric == "reverse_kl" else 1.0
        self.value = float("-inf")

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Return whether the metrics hold the best value so far, and remember it."""
        value = self._sign * metrics[self._name]
        if not value > self.value:
            return False
        self.value = value
        return True


def make_actors(student: Any, teacher: Any, compute: Compute) -> Actors:
    """Return the models of a run; the sampler is a copy of the student in the arithmetic of decoding."""
    same = compute.dtype == torch.float32
    return Actors(student, student if same else copy.deepcopy(student).to(compute.dtype), teacher)


@torch.no_grad()
def refresh_sampler(actors: Actors) -> None:
    """Copy the student's weights into the sampler."""
    pairs = zip(actors.sampler.parameters(), actors.student.parameters(), strict=True)
    for target, source in pairs:
        target.copy_(source)


def _speed(run: Run, num_tokens: int, inner_epochs: int) -> dict[str, float]:
    """Return what the parts of a phase of so many response tokens took, and how fast they were.

    padding: share of the positions in the student's forward passes that hold no token of a text; at decoding, at least
    that: what the teacher said last counts as read by the student, which skips it unless its states are kept.
    teacher/calls: its forward passes.
    """
    seconds, counts = {"score": 0.0} | run.stopwatch.taken(), run.stopwatch.counted()
    tokens = {"rollout": num_tokens, "update": inner_epochs * num_tokens}
    return {
        **{f"time/{name}_s": elapsed_s for name, elapsed_s in seconds.items()},
        **{f"time/{name}_tokens_per_s": count / seconds[name] for name, count in tokens.items()},
        **{
            f"padding/{name}_share": max(0.0, 1 - counts[f"{name}_tokens"] / counts[f"{name}_positions"])
            for name in ("rollout", "update")
            if counts[f"{name}_positions"]
        },
        "teacher/calls": float(counts["teacher_calls"]),
        "memory/peak_mib": peak_memory_mib(run.compute.device),
    }
