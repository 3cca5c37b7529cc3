"""The production update of one global minibatch of tiny models, its gradient taken before it is applied."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from minillm.advantages import with_advantages
from minillm.distill_config import DistillConfig
from minillm.methods import make_method
from minillm.methods.interface import Run
from minillm.methods.policy import minillm_credit
from minillm.rollout import Actors, collect_rollout
from minillm.stopwatch import Stopwatch
from minillm.types import Experience, Rollout
from minillm.update import Updater
from tests import tiny
from tests.tiny_run import CPU, DEFAULTS, changed, decoding, examples, tiny_run

ALPHA = 0.3


def config(optimizer: Mapping[str, Any] | None = None, **sections: Any) -> DistillConfig:
    """Return small batches and one inner epoch; arguments change the optimizer's and other sections."""
    sizes = {"minibatch_size": 6, "micro_batch_tokens": 1000, "language_model_batch_size": 2}
    steps = {"num_warmup_steps": 0, "learning_rate": 1e-2}
    base = changed(DEFAULTS, {"inner_epochs": 1, "rollout": {"rollouts_per_phase": 6}, "optimizer": sizes | steps})
    return changed(base, {**sections, "optimizer": optimizer or {}})


def run_of(models: Actors, settings: DistillConfig) -> Run:
    return tiny_run(settings, models.student, models.teacher, examples(6, seed=3), seed=1)


def updater_of(models: Actors, settings: DistillConfig) -> Updater:
    run = run_of(models, settings)
    return Updater(run, make_method(run))


def actors(make_model: Any = tiny.tiny_llama) -> Actors:
    student = make_model(1)
    return Actors(student, student, make_model(2, num_layers=3))


def rollout_of(models: Actors, temperature: float = 1.0) -> Rollout:
    prompts = tiny.random_rows(6, 2, 9, seed=3)
    return collect_rollout(
        models,
        prompts,
        decoding(step=1, temperature=temperature, max_tokens=9),
        teacher_mix_alpha=ALPHA,
        score_batch_tokens=40,
        compute=CPU,
        stopwatch=Stopwatch(),
    )


def experience_of(models: Actors, temperature: float = 1.0) -> Experience:
    rollout = rollout_of(models, temperature)
    # Responses of random models rarely end: cut some, so that lengths are ragged.
    mask = rollout.response_mask.clone()
    for row, length in enumerate((9, 2, 5, 1, 9, 7)):
        mask[row, length:] = False
    ragged = Rollout(**{**vars(rollout), "response_mask": mask})
    return with_advantages(ragged, minillm_credit(DEFAULTS))


def gradients(models: Actors, settings: DistillConfig, experience: Experience) -> list[torch.Tensor]:
    """Return the gradient of one global minibatch, taken from the production update before it is applied."""
    student = copy.deepcopy(models.student)
    updater = updater_of(Actors(student, student, models.teacher), settings)
    taken: list[torch.Tensor] = []

    def keep(loss: float) -> dict[str, float]:
        taken.extend(parameter.grad.clone() for parameter in student.parameters())
        return {}

    updater._apply = keep  # type: ignore[method-assign]
    updater.update(experience, phase=1)
    return taken


def loss_of(models: Actors, settings: DistillConfig, experience: Experience) -> float:
    """Return the loss that the production update reports of one global minibatch."""
    student = copy.deepcopy(models.student)
    updater = updater_of(Actors(student, student, models.teacher), settings)
    return updater.accumulate(experience, list(range(len(experience.response_ids))))["train/loss"]


def largest_difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))
