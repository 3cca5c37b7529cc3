"""What must not matter: how a minibatch is cut, ordered and padded changes neither loss nor gradient.

In float64, wherever a model can, so that anything but the order of sums shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.rollout import Actors
from minillm.types import Experience
from tests import tiny
from tests.minibatch import actors, config, experience_of, gradients, largest_difference, loss_of

EVERY_PATH = pytest.mark.parametrize(
    ("make_model", "dtype", "tolerance"),
    [
        (tiny.tiny_llama, torch.float64, 1e-12),
        (tiny.tiny_gpt2, torch.float64, 1e-12),
        (tiny.tiny_gemma2, torch.float32, 1e-5),  # the library's masks for it are for float32
    ],
    ids=["packed", "learned positions", "padded"],
)
Change = Callable[[Experience], Experience]


def example(make_model: Any, dtype: torch.dtype) -> tuple[Actors, Experience]:
    """Return models of a type of numbers and an experience of ragged texts, some of whose prompts are padded."""
    models = actors(make_model)
    experience = experience_of(models)
    assert not bool(experience.prompt_mask.all())
    student = models.student.to(dtype)
    return Actors(student, student, models.teacher.to(dtype)), experience


def by_name(experience: Experience, prompt: Callable[[Tensor], Tensor], response: Callable[[Tensor], Tensor]) -> Any:
    return Experience(
        **{name: (prompt if name.startswith("prompt") else response)(value) for name, value in vars(experience).items()}
    )


def widened(values: Tensor, left: int, right: int) -> Tensor:
    """Return (B, T, ...) with columns of padding."""
    before, after = (values.new_zeros(len(values), size, *values.shape[2:]) for size in (left, right))
    return torch.cat([before, values, after], dim=1)


def right_padded(experience: Experience) -> Experience:
    """Return the prompts with their padding behind them."""
    order = (~experience.prompt_mask).to(torch.int8).argsort(dim=1, stable=True)
    return by_name(experience, lambda values: values.gather(1, order), lambda values: values)


def spoiled(experience: Experience) -> Experience:
    """Return the experience with NaN and another token wherever there is none."""
    outside = ~experience.response_mask
    names = ("old_logprobs", "advantages", "ratios", "single_step_weights")
    terms = {name: torch.where(outside, float("nan"), getattr(experience, name)) for name in names}
    prompt_ids = torch.where(experience.prompt_mask, experience.prompt_ids, 17)
    return replace(
        experience, **terms, prompt_ids=prompt_ids, response_ids=experience.response_ids.masked_fill(outside, 17)
    )


CHANGES: dict[str, Change] = {
    "row order": lambda experience: experience.select(torch.tensor([4, 2, 0, 5, 3, 1])),
    "more padding": lambda experience: by_name(
        experience, lambda values: widened(values, 3, 0), lambda values: widened(values, 0, 4)
    ),
    "padding on the other side of prompts": right_padded,
    "what stands outside the masks": spoiled,
}


@EVERY_PATH
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_order_and_padding_change_no_loss_and_no_gradient(
    make_model: Any, dtype: torch.dtype, tolerance: float, change: Change
) -> None:
    models, experience = example(make_model, dtype)
    changed = change(experience)
    assert abs(loss_of(models, config(), experience) - loss_of(models, config(), changed)) < tolerance
    assert largest_difference(gradients(models, config(), experience), gradients(models, config(), changed)) < tolerance


@EVERY_PATH
@pytest.mark.parametrize("micro_batch_tokens", [1, 20, 45])
def test_the_size_of_micro_batches_changes_no_loss_and_no_gradient(
    make_model: Any, dtype: torch.dtype, tolerance: float, micro_batch_tokens: int
) -> None:
    models, experience = example(make_model, dtype)
    split = config({"micro_batch_tokens": micro_batch_tokens})
    assert abs(loss_of(models, config(), experience) - loss_of(models, split, experience)) < tolerance
    assert largest_difference(gradients(models, config(), experience), gradients(models, split, experience)) < tolerance


def test_neighbours_change_no_gradient_of_a_row() -> None:
    """The gradient of a minibatch is the sum of its rows' own, weighted by their tokens (weights are float32)."""
    models, experience = example(tiny.tiny_llama, torch.float64)
    settings = config(objective={"language_model_weight": 0.0})
    together, num_tokens = gradients(models, settings, experience), int(experience.response_mask.sum())
    totals = [torch.zeros_like(part) for part in together]
    for row in range(6):
        alone = experience.select(torch.tensor([row]))
        share = int(alone.response_mask.sum()) / num_tokens
        for total, part in zip(totals, gradients(models, settings, alone), strict=True):
            total += share * part
    assert largest_difference(together, totals) < 1e-6
