"""The production loss, summed over every response of an enumerable model, against autograd of the exact reverse KL."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from minillm.advantages import with_advantages
from minillm.config import ObjectiveConfig
from minillm.objective import policy_terms, surrogate_loss
from minillm.types import Rollout
from tests import tabular

ALPHA = 0.3
EXACT = 1e-12


def objective(**changes: object) -> ObjectiveConfig:
    """Return the undoctored objective: sums instead of means, no baseline, no clipping to speak of."""
    base = {
        "importance": "none",
        "returns_from": "next",
        "length_normalize": False,
        "gamma": 1.0,
        "baseline": "none",
        "scale": "none",
        "clip_low": 1.0,
        "clip_high": 1e9,
        "single_step_weight": 1.0,
        "language_model_weight": 0.0,
        "language_model_teacher_share": 0.0,
        "entropy_weight": 0.0,
    }
    return ObjectiveConfig(**(base | changes))


def production_loss(
    student: Tensor, teacher: Tensor, sequence: tuple[int, ...], rollout: Rollout, config: ObjectiveConfig
) -> Tensor:
    experience = with_advantages(rollout, objective=config, group_size=1)
    sums = surrogate_loss(
        tabular.sequence_logits(student, sequence),
        tabular.sequence_logits(teacher, sequence),
        torch.tensor(sequence),
        policy_terms(experience),
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        single_step_weight=config.single_step_weight,
        entropy_weight=config.entropy_weight,
    )
    return sums.loss


def surrogate_gradient(config: ObjectiveConfig, alpha: float) -> Tensor:
    """Return the expected gradient of the production loss under the sampling distribution, by enumeration."""
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    expected = torch.zeros((), dtype=torch.float64)
    for sequence in tabular.sequences():
        weight = tabular.mixture_probability(student, teacher, sequence, alpha)
        rollout = tabular.rollout_of(student, teacher, sequence, alpha)
        expected = expected + weight * production_loss(student, teacher, sequence, rollout, config)
    (gradient,) = torch.autograd.grad(expected, student)
    return gradient


def exact_gradient() -> Tensor:
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    (gradient,) = torch.autograd.grad(tabular.exact_reverse_kl(student, teacher), student)
    return gradient


def error(config: ObjectiveConfig, alpha: float) -> float:
    return float((surrogate_gradient(config, alpha) - exact_gradient()).abs().max())


def test_the_enumeration_has_ragged_lengths_and_sums_to_one() -> None:
    student, teacher = tabular.random_table(1), tabular.random_table(2)
    lengths = {len(sequence) for sequence in tabular.sequences()}
    assert lengths == {1, 2, 3}
    for alpha in (0.0, ALPHA):
        total = sum(tabular.mixture_probability(student, teacher, s, alpha) for s in tabular.sequences())
        assert float(total) == pytest.approx(1, abs=1e-14)


def test_policy_gradient_with_current_returns_is_exact() -> None:
    assert error(objective(returns_from="current", single_step_weight=0.0), alpha=0.0) < EXACT


def test_single_step_decomposition_with_next_returns_is_exact() -> None:
    assert error(objective(), alpha=0.0) < EXACT


@pytest.mark.parametrize("alpha", [0.1, ALPHA, 0.8])
def test_mixture_sampling_with_per_decision_importance_is_exact(alpha: float) -> None:
    assert error(objective(importance="per_decision"), alpha) < EXACT


def test_per_decision_importance_is_exact_without_the_single_step_term() -> None:
    config = objective(importance="per_decision", returns_from="current", single_step_weight=0.0)
    assert error(config, ALPHA) < EXACT


def test_current_returns_beside_the_single_step_term_count_a_reward_twice() -> None:
    wrong, exact = surrogate_gradient(objective(returns_from="current"), 0.0), exact_gradient()
    assert float((wrong - exact).norm()) > 0.1 * float(exact.norm())


def test_ignoring_the_mixture_is_biased() -> None:
    assert error(objective(importance="none"), ALPHA) > 1e-3


def test_per_token_importance_is_the_published_approximation() -> None:
    """The reference is summed term by term here: rho_t R_{t+1} on the log-probability, 1 on the divergence."""
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    expected = torch.zeros((), dtype=torch.float64)
    for sequence in tabular.sequences():
        own = tabular.sequence_logits(student, sequence).log_softmax(-1)
        other = tabular.sequence_logits(teacher, sequence).log_softmax(-1)
        weight = tabular.mixture_probability(student, teacher, sequence, ALPHA)
        for step, token in enumerate(sequence):
            mixed = ALPHA * other[step, token].exp() + (1 - ALPHA) * own[step, token].exp()
            rho = (own[step, token].exp() / mixed).detach()
            later = sum((other[s, sequence[s]] - own[s, sequence[s]]).detach() for s in range(step + 1, len(sequence)))
            divergence = (own[step].exp() * (own[step] - other[step])).sum()
            expected = expected + weight * (divergence - rho * later * own[step, token])
    (reference,) = torch.autograd.grad(expected, student)
    produced = surrogate_gradient(objective(importance="per_token"), ALPHA)
    assert float((produced - reference).abs().max()) < EXACT
    assert float((produced - exact_gradient()).abs().max()) > 1e-3


def test_length_normalized_returns_match_a_naive_loop() -> None:
    student, teacher = tabular.random_table(1), tabular.random_table(2)
    for sequence in tabular.sequences():
        rollout = tabular.rollout_of(student, teacher, sequence, 0.0)
        experience = with_advantages(rollout, objective=objective(length_normalize=True, gamma=0.9), group_size=1)
        rewards = (rollout.teacher_logprobs - rollout.old_logprobs)[0]
        for step in range(len(sequence)):
            later = range(step + 1, len(sequence))
            weights = [0.9 ** (s - step - 1) for s in later]
            total = sum(weight * float(rewards[s]) for weight, s in zip(weights, later, strict=True))
            expected = total / sum(weights) if weights else 0.0
            assert float(experience.advantages[0, step]) == pytest.approx(expected, abs=1e-12)


def test_advantages_carry_no_gradient() -> None:
    student = tabular.random_table(1).requires_grad_()
    sequence = (0, 1, 2)
    rollout = tabular.rollout_of(student, tabular.random_table(2), sequence, 0.0)
    attached = Rollout(**{**vars(rollout), "old_logprobs": sum_with(student, rollout.old_logprobs)})
    experience = with_advantages(attached, objective=objective(), group_size=1)
    assert not experience.advantages.requires_grad and not experience.ratios.requires_grad


def sum_with(student: Tensor, values: Tensor) -> Tensor:
    return values + 0 * student.sum()


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"), [(1.0, 1.5, -1.2), (1.0, 0.5, -0.5), (-1.0, 1.5, 1.5), (-1.0, 0.5, 0.8)]
)
def test_clipping_is_the_pessimistic_bound(advantage: float, ratio: float, expected: float) -> None:
    """Hand arithmetic with both ranges 0.2: max(-A ratio, -A clip(ratio, 0.8, 1.2))."""
    from minillm.objective import PolicyTerms

    logits = torch.zeros(1, 2, dtype=torch.float64)
    old = torch.log(torch.tensor([0.5 / ratio], dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    terms = PolicyTerms(old_logprobs=old, advantages=advantage * one, ratios=one, single_step_weights=one)
    sums = surrogate_loss(
        logits,
        logits,
        torch.tensor([0]),
        terms,
        clip_low=0.2,
        clip_high=0.2,
        single_step_weight=0.0,
        entropy_weight=0.0,
    )
    assert float(sums.loss) == pytest.approx(expected, abs=1e-12)
    assert float(sums.clipped) == (expected != -advantage * ratio)


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_a_constant_baseline_leaves_the_exact_forms_exact(alpha: float) -> None:
    """All responses form one batch, so that the baseline is one constant; each counts with its probability."""
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    parts = [tabular.rollout_of(student, teacher, sequence, alpha) for sequence in tabular.sequences()]
    batch = Rollout(**{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Rollout)})
    config = objective(importance="per_decision", baseline="batch_mean")
    experience = with_advantages(batch, objective=config, group_size=1)
    expected = torch.zeros((), dtype=torch.float64)
    for row, sequence in enumerate(tabular.sequences()):
        weight = tabular.mixture_probability(student, teacher, sequence, alpha)
        own, other = (tabular.sequence_logits(table, sequence) for table in (student, teacher))
        terms = policy_terms(experience.select(torch.tensor([row])))
        options = {"clip_low": 1.0, "clip_high": 1e9, "single_step_weight": 1.0, "entropy_weight": 0.0}
        expected = expected + weight * surrogate_loss(own, other, torch.tensor(sequence), terms, **options).loss
    (gradient,) = torch.autograd.grad(expected, student)
    assert float(experience.advantages.abs().sum()) > 0
    assert float((gradient - exact_gradient()).abs().max()) < EXACT
