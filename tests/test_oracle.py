"""The production loss, summed over every response of an enumerable model, against autograd of the exact reverse KL."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.advantages import Credit, with_advantages
from minillm.objective import PolicyTerms, policy_terms, surrogate_loss
from minillm.types import Experience, Rollout
from tests import tabular

ALPHA = 0.3
EXACT = 1e-12


@dataclass(frozen=True)
class Setting:
    """The undoctored objective unless told otherwise: sums, not means; no baseline; no clipping to speak of."""

    credit: Credit
    single_step_weight: float
    task_rewards: dict[tuple[int, ...], float] = field(default_factory=dict)


def setting(single_step_weight: float = 1.0, task_rewards: Any = None, **changes: Any) -> Setting:
    base = {
        "importance": "none",
        "returns_from": "next",
        "length_normalize": False,
        "gamma": 1.0,
        "baseline": "none",
        "scale": "none",
        "group_size": 1,
    }
    return Setting(Credit(**(base | changes)), single_step_weight, task_rewards or {})


def experience_of(rollout: Rollout, sequences: Sequence[tuple[int, ...]], chosen: Setting) -> Experience:
    rewards = (
        torch.tensor([chosen.task_rewards[s] for s in sequences], dtype=torch.float64) if chosen.task_rewards else None
    )
    return with_advantages(rollout, chosen.credit, rewards)


def production_loss(
    student: Tensor, teacher: Tensor, sequence: tuple[int, ...], experience: Experience, chosen: Setting
) -> Tensor:
    """Return the summed loss of one response, the one row of `experience`."""
    losses = surrogate_loss(
        tabular.sequence_logits(student, sequence),
        tabular.sequence_logits(teacher, sequence),
        torch.tensor(sequence),
        policy_terms(experience.at_tokens()),
        clip_low=1.0,
        clip_high=1e9,
        single_step_weight=chosen.single_step_weight,
        entropy_weight=0.0,
    )
    return losses.loss.sum()


def surrogate_gradient(chosen: Setting, alpha: float) -> Tensor:
    """Return the expected gradient of the production loss under the sampling distribution, by enumeration."""
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    expected = torch.zeros((), dtype=torch.float64)
    for sequence in tabular.sequences():
        weight = tabular.mixture_probability(student, teacher, sequence, alpha)
        rollout = tabular.rollout_of(student, teacher, sequence, alpha)
        experience = experience_of(rollout, [sequence], chosen)
        expected = expected + weight * production_loss(student, teacher, sequence, experience, chosen)
    (gradient,) = torch.autograd.grad(expected, student)
    return gradient


def exact_gradient() -> Tensor:
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    (gradient,) = torch.autograd.grad(tabular.exact_reverse_kl(student, teacher), student)
    return gradient


def error(chosen: Setting, alpha: float) -> float:
    return float((surrogate_gradient(chosen, alpha) - exact_gradient()).abs().max())


def test_the_enumeration_has_ragged_lengths_and_sums_to_one() -> None:
    student, teacher = tabular.random_table(1), tabular.random_table(2)
    lengths = {len(sequence) for sequence in tabular.sequences()}
    assert lengths == {1, 2, 3}
    for alpha in (0.0, ALPHA):
        total = sum(tabular.mixture_probability(student, teacher, s, alpha) for s in tabular.sequences())
        assert float(total) == pytest.approx(1, abs=1e-14)


def test_policy_gradient_with_current_returns_is_exact() -> None:
    assert error(setting(returns_from="current", single_step_weight=0.0), alpha=0.0) < EXACT


def test_single_step_decomposition_with_next_returns_is_exact() -> None:
    assert error(setting(), alpha=0.0) < EXACT


@pytest.mark.parametrize("alpha", [0.1, ALPHA, 0.8])
def test_mixture_sampling_with_per_decision_importance_is_exact(alpha: float) -> None:
    assert error(setting(importance="per_decision"), alpha) < EXACT


def test_per_decision_importance_is_exact_without_the_single_step_term() -> None:
    config = setting(importance="per_decision", returns_from="current", single_step_weight=0.0)
    assert error(config, ALPHA) < EXACT


def test_current_returns_beside_the_single_step_term_count_a_reward_twice() -> None:
    wrong, exact = surrogate_gradient(setting(returns_from="current"), 0.0), exact_gradient()
    assert float((wrong - exact).norm()) > 0.1 * float(exact.norm())


def test_ignoring_the_mixture_is_biased() -> None:
    assert error(setting(importance="none"), ALPHA) > 1e-3


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
    produced = surrogate_gradient(setting(importance="per_token"), ALPHA)
    assert float((produced - reference).abs().max()) < EXACT
    assert float((produced - exact_gradient()).abs().max()) > 1e-3


def test_length_normalized_returns_match_a_naive_loop() -> None:
    student, teacher = tabular.random_table(1), tabular.random_table(2)
    for sequence in tabular.sequences():
        rollout = tabular.rollout_of(student, teacher, sequence, 0.0)
        experience = with_advantages(rollout, setting(length_normalize=True, gamma=0.9).credit)
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
    experience = with_advantages(attached, setting().credit)
    assert not experience.advantages.requires_grad and not experience.ratios.requires_grad


def sum_with(student: Tensor, values: Tensor) -> Tensor:
    return values + 0 * student.sum()


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"), [(1.0, 1.5, -1.2), (1.0, 0.5, -0.5), (-1.0, 1.5, 1.5), (-1.0, 0.5, 0.8)]
)
def test_clipping_is_the_pessimistic_bound(advantage: float, ratio: float, expected: float) -> None:
    """Hand arithmetic with both ranges 0.2: max(-A ratio, -A clip(ratio, 0.8, 1.2))."""
    logits = torch.zeros(1, 2, dtype=torch.float64)
    old = torch.log(torch.tensor([0.5 / ratio], dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    terms = PolicyTerms(
        old_logprobs=old, teacher_logprobs=old, advantages=advantage * one, ratios=one, single_step_weights=one
    )
    losses = surrogate_loss(
        logits,
        logits,
        torch.tensor([0]),
        terms,
        clip_low=0.2,
        clip_high=0.2,
        single_step_weight=0.0,
        entropy_weight=0.0,
    )
    assert float(losses.loss) == pytest.approx(expected, abs=1e-12)
    assert float(losses.diagnostics["policy/clipped_frac"]) == (expected != -advantage * ratio)


def one_batch(student: Tensor, teacher: Tensor, alpha: float, sequences: Sequence[tuple[int, ...]]) -> Rollout:
    parts = [tabular.rollout_of(student, teacher, sequence, alpha) for sequence in sequences]
    return Rollout(**{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Rollout)})


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_a_constant_baseline_leaves_the_exact_forms_exact(alpha: float) -> None:
    """All responses form one batch, so that the baseline is one constant; each counts with its probability."""
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    chosen = setting(importance="per_decision", baseline="batch_mean")
    experience = experience_of(one_batch(student, teacher, alpha, tabular.sequences()), tabular.sequences(), chosen)
    expected = torch.zeros((), dtype=torch.float64)
    for row, sequence in enumerate(tabular.sequences()):
        weight = tabular.mixture_probability(student, teacher, sequence, alpha)
        part = experience.select(torch.tensor([row]))
        expected = expected + weight * production_loss(student, teacher, sequence, part, chosen)
    (gradient,) = torch.autograd.grad(expected, student)
    assert float(experience.advantages.abs().sum()) > 0
    assert float((gradient - exact_gradient()).abs().max()) < EXACT


def test_whole_response_returns_are_exact_without_a_baseline() -> None:
    """GRPO's return counts past rewards too; they add nothing to the expected gradient."""
    assert error(setting(returns_from="response", single_step_weight=0.0), alpha=0.0) < EXACT


def group_gradient(chosen: Setting) -> Tensor:
    """Return the expected gradient of the mean loss over groups of two, by enumeration of all pairs."""
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    expected = torch.zeros((), dtype=torch.float64)
    for pair in itertools.product(tabular.sequences(), repeat=2):
        weight = torch.stack([tabular.mixture_probability(student, teacher, s, 0.0) for s in pair]).prod()
        experience = experience_of(one_batch(student, teacher, 0.0, pair), pair, chosen)
        for row, sequence in enumerate(pair):
            part = experience.select(torch.tensor([row]))
            expected = expected + weight * production_loss(student, teacher, sequence, part, chosen) / 2
    (gradient,) = torch.autograd.grad(expected, student)
    return gradient


def test_the_mean_of_a_group_that_holds_the_response_itself_shrinks_the_gradient_by_its_share() -> None:
    """E[(R_i - mean) score_i] = (1 - 1 / G) E[R_i score_i]: an exact direction, shortened to (G - 1) / G."""
    chosen = setting(returns_from="response", single_step_weight=0.0, baseline="group_mean", group_size=2)
    assert float((group_gradient(chosen) - exact_gradient() / 2).abs().max()) < EXACT


def test_group_std_is_an_approximation_pinned_term_by_term() -> None:
    """Of two rewards the standard deviation is half their difference, so the advantages are +1 and -1 (0 if equal)."""
    chosen = setting(returns_from="response", single_step_weight=0.0, baseline="group_mean", scale="std", group_size=2)
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    expected = torch.zeros((), dtype=torch.float64)
    for pair in itertools.product(tabular.sequences(), repeat=2):
        own = [tabular.sequence_logprob(student, sequence) for sequence in pair]
        rewards = [
            float(tabular.sequence_logprob(teacher, sequence) - value.detach())
            for sequence, value in zip(pair, own, strict=True)
        ]
        sign = (rewards[0] > rewards[1]) - (rewards[0] < rewards[1])
        weight = (own[0] + own[1]).detach().exp()
        expected = expected - weight * sign * (own[0] - own[1]) / 2
    (reference,) = torch.autograd.grad(expected, student)
    assert float((group_gradient(chosen) - reference).abs().max()) < EXACT


TASK_WEIGHT = 0.7
TASK = {sequence: TASK_WEIGHT * ((7 * place) % 5) for place, sequence in enumerate(tabular.sequences())}


@pytest.mark.parametrize(
    ("chosen", "alpha"),
    [
        (setting(task_rewards=TASK), 0.0),
        (setting(task_rewards=TASK, returns_from="current", single_step_weight=0.0), 0.0),
        (setting(task_rewards=TASK, returns_from="response", single_step_weight=0.0), 0.0),
        (setting(task_rewards=TASK, importance="per_decision"), ALPHA),
    ],
    ids=["next", "current", "response", "per_decision"],
)
def test_a_task_reward_adds_exactly_its_own_gradient(chosen: Setting, alpha: float) -> None:
    """The objective is KL(student || teacher) - E[task], enumerated and differentiated."""
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    expected_task = sum(tabular.sequence_logprob(student, s).exp() * value for s, value in TASK.items())
    total = tabular.exact_reverse_kl(student, teacher) - expected_task
    (exact,) = torch.autograd.grad(total, student)
    assert float((surrogate_gradient(chosen, alpha) - exact).abs().max()) < EXACT
    assert float((exact - exact_gradient()).abs().max()) > 1e-2


def test_a_discount_is_pinned_to_its_own_sum() -> None:
    """gamma < 1 is another objective; the reference discounts each later reward by its distance, term by term."""
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    expected = torch.zeros((), dtype=torch.float64)
    for sequence in tabular.sequences():
        own = tabular.sequence_logits(student, sequence).log_softmax(-1)
        other = tabular.sequence_logits(teacher, sequence).log_softmax(-1)
        weight = tabular.mixture_probability(student, teacher, sequence, 0.0)
        for step, token in enumerate(sequence):
            later = [
                0.6 ** (s - step - 1) * (other - own)[s, sequence[s]].detach() for s in range(step + 1, len(sequence))
            ]
            divergence = (own[step].exp() * (own[step] - other[step])).sum()
            expected = expected + weight * (divergence - sum(later) * own[step, token])
    (reference,) = torch.autograd.grad(expected, student)
    assert float((surrogate_gradient(setting(gamma=0.6), 0.0) - reference).abs().max()) < EXACT
