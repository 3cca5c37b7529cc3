"""Each knob of a method reaches what it is for: away from its default, against values worked out here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from minillm.advantages import groups_with_signal
from minillm.distill_config import ObjectiveConfig
from minillm.distiller import distill
from minillm.draws import component_draws
from minillm.logprobs import token_logprobs
from minillm.methods import make_method, on_policy, policy
from minillm.methods.replay import ReplayBuffer, Sample, drawn_sources
from minillm.task_rewards import TASK_REWARDS
from minillm.types import Experience, Rollout
from tests.test_methods import ROWS, pairs_of, run_of, settings
from tests.tiny_run import whole_block


def losses_of(method_name: str, **sections: Any) -> tuple[Experience, Tensor, Tensor]:
    """Return an experience, its token losses, and the student's ratio after the student has moved."""
    run = run_of(settings(method_name, **sections))
    method = make_method(run)
    experience, _ = method.collect(1)
    assert isinstance(experience, Experience)
    with torch.no_grad():
        for parameter in run.actors.student.parameters():
            parameter.mul_(1.05)
        block = whole_block(run, experience)
        own = token_logprobs(block.student_logits / run.config.rollout.temperature, block.token_ids)
        losses = method.token_losses(block).loss
    ratio = (own - experience.old_logprobs[experience.response_mask]).exp()
    return experience, losses, ratio * experience.ratios[experience.response_mask]


def test_every_registered_task_reward_can_be_named_in_the_params() -> None:
    allowed = get_args(ObjectiveConfig.model_fields["task_reward"].annotation)
    assert allowed == ("none", *TASK_REWARDS)


def test_the_two_clip_ranges_bound_the_ratio_on_their_own_sides() -> None:
    """Without the single-step term: max(-A r, -A clip(r, 1 - 0.05, 1 + 0.4)), token by token."""
    experience, losses, ratio = losses_of(
        "minillm",
        minillm={"single_step_weight": 0.0},
        objective={"clip_low": 0.05, "clip_high": 0.4, "importance": "none"},
    )
    advantages = experience.advantages[experience.response_mask]
    expected = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.95, 1.4))
    assert torch.allclose(losses, expected, atol=1e-5)
    assert bool(((ratio > 1.06) & (ratio < 1.39) & (advantages > 0)).any())  # where a swapped range would clip
    assert bool(((ratio < 0.94) & (advantages < 0)).any())


def test_grpo_has_no_single_step_term_and_follows_its_own_knobs() -> None:
    experience, losses, ratio = losses_of(
        "grpo", grpo={"scale": "none"}, objective={"length_normalize": False, "clip_low": 0.9, "clip_high": 9.0}
    )
    mask = experience.response_mask
    rewards = torch.where(mask, experience.teacher_logprobs - experience.old_logprobs, 0.0).sum(1)
    for group in (slice(0, 4), slice(4, 8)):
        expected = rewards[group] - rewards[group].mean()
        assert torch.allclose(experience.advantages[group, 0], expected, atol=1e-5)
    expected = torch.maximum(*(-experience.advantages[mask] * part for part in (ratio, ratio.clamp(0.1, 10.0))))
    assert torch.allclose(losses, expected, atol=1e-5)


@pytest.mark.parametrize(("importance", "expected"), [("none", False), ("per_token", True)])
def test_grpo_weights_tokens_of_the_mixture_as_told(importance: str, expected: bool) -> None:
    run = run_of(settings("grpo", objective={"importance": importance}))
    experience, _ = make_method(run).collect(1)
    assert isinstance(experience, Experience)
    assert bool((experience.ratios[experience.response_mask] != 1).any()) == expected


def test_the_single_step_term_has_its_weight() -> None:
    _, losses, _ = losses_of("minillm", minillm={"single_step_weight": 0.0})
    _, weighted, _ = losses_of("minillm", minillm={"single_step_weight": 0.5})
    _, full, _ = losses_of("minillm", minillm={"single_step_weight": 1.0})
    assert torch.allclose(weighted - losses, (full - losses) / 2, atol=1e-6)
    assert float((full - losses).min()) > 0


@pytest.mark.parametrize("method", ["minillm", "grpo"])
def test_the_entropy_bonus_lowers_the_loss_where_the_student_is_undecided(method: str) -> None:
    _, losses, _ = losses_of(method)
    run = run_of(settings(method, objective={"entropy_weight": 0.3}))
    rewarded = make_method(run)
    experience, _ = rewarded.collect(1)
    with torch.no_grad():
        for parameter in run.actors.student.parameters():
            parameter.mul_(1.05)
        block = whole_block(run, experience)
        own = block.student_logits / run.config.rollout.temperature
        spread = -(own.softmax(-1) * own.log_softmax(-1)).sum(-1)
        produced = rewarded.token_losses(block).loss
    assert torch.allclose(produced, losses - 0.3 * spread, atol=1e-5)


def flat_rollout(responses: list[list[int]], rewards: list[list[float]]) -> Rollout:
    ids, values = torch.tensor(responses), torch.tensor(rewards)
    mask = torch.ones_like(ids, dtype=torch.bool)
    zeros = torch.zeros_like(values)
    return Rollout(ids, mask, ids, mask, zeros[..., None], zeros, values, zeros)


def test_groups_without_signal_are_told_by_their_tokens_or_by_rewards_equal_but_for_rounding() -> None:
    """Groups of two: equal texts, rewards that differ by rounding; other texts with equal rewards; and a signal."""
    texts = [[1, 2], [1, 2], [1, 2], [1, 3], [1, 2], [1, 3]]
    rewards = [[0.5, 0.5], [0.5, 0.53], [0.1, 0.2], [0.2, 0.1], [0.1, 0.2], [0.1, 0.3]]
    rollout = flat_rollout(texts, rewards)
    assert groups_with_signal(rollout, rollout.teacher_logprobs.sum(1), 2).tolist() == [False, False, True]


def test_a_flat_group_gets_no_advantage_however_its_mean_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    real = policy.collect_rollout

    def flat(*arguments: Any, **options: Any) -> Rollout:
        rollout = real(*arguments, **options)
        rewards = torch.full_like(rollout.teacher_logprobs, -0.7)
        return Rollout(**{**vars(rollout), "teacher_logprobs": rollout.old_logprobs + rewards})

    monkeypatch.setattr(policy, "collect_rollout", flat)
    run = run_of(settings("grpo", grpo={"group_size": 8}))
    experience, _ = make_method(run).collect(1)
    assert isinstance(experience, Experience) and not bool(experience.advantages.any())


@pytest.mark.parametrize(("reference", "num_calls"), [("", 3), (" ".join(f"w{token}" for token in range(99)), 1)])
def test_refills_count_the_task_reward_and_bring_their_own(
    monkeypatch: pytest.MonkeyPatch, reference: str, num_calls: int
) -> None:
    """Teacher rewards are all flat; only a task reward that tells the responses apart gives signal."""
    real, asked = policy.collect_rollout, []

    def flat(actors: Any, prompts: Any, *arguments: Any, **options: Any) -> Rollout:
        rollout = real(actors, prompts, *arguments, **options)
        asked.append([tuple(prompt) for prompt in prompts])
        return Rollout(**{**vars(rollout), "teacher_logprobs": rollout.old_logprobs})

    monkeypatch.setattr(policy, "collect_rollout", flat)
    task = {"task_reward": "rougeL", "task_reward_weight": 2.0, "max_refills": 2}
    run = run_of(settings("grpo", objective=task))
    rows = [replace(row, references=[reference]) for row in ROWS]
    make_method(replace(run, data=replace(run.data, rows=rows))).collect(1)
    assert [len(prompts) for prompts in asked] == [8] * num_calls
    assert len({prompt for prompts in asked for prompt in prompts}) == 2 * num_calls  # no prompt twice


def test_replacing_groups_takes_every_column_of_the_fresh_rows_and_pads_on_the_right_side() -> None:
    run = run_of(settings("grpo"))
    method = make_method(run)
    assert isinstance(method, policy.PolicyGradient)
    short, long = sorted(range(10), key=lambda index: len(ROWS[index].prompt_ids))[::9]
    kept, single = method._sampled(1, [short, short], 0), method._sampled(1, [long], 8)
    mixed = kept.replaced([1], single)
    expected = pairs_of(kept.rollout)[:4] + pairs_of(single.rollout)
    assert pairs_of(mixed.rollout) == expected
    for name in ("old_logprobs", "teacher_logprobs", "behavior_logprobs"):
        for row in range(8):
            source, place = (kept.rollout, row) if row < 4 else (single.rollout, row - 4)
            values = getattr(mixed.rollout, name)[row][mixed.rollout.response_mask[row]]
            assert torch.equal(values, getattr(source, name)[place][source.response_mask[place]])


def test_a_task_reward_is_replaced_with_its_group_and_logged() -> None:
    run = run_of(settings("grpo", objective={"task_reward": "rougeL", "task_reward_weight": 3.0}))
    method = make_method(run)
    assert isinstance(method, policy.PolicyGradient)
    sampled = method._sampled(1, [0, 1], 0)
    second = sampled.rollout.select(torch.arange(4, 8))
    mixed = sampled.replaced([1], policy._Sampled(second, sampled.task_rewards[4:] + 7, ~sampled.signal[1:]))
    assert torch.equal(mixed.task_rewards[:4], sampled.task_rewards[:4])
    assert torch.equal(mixed.task_rewards[4:], sampled.task_rewards[4:] + 7)
    assert mixed.signal.tolist() == [bool(sampled.signal[0]), not bool(sampled.signal[1])]
    _, metrics = method.collect(1)
    assert 0 <= metrics["reward/task_mean"] <= 1


def test_rows_of_one_group_are_sampled_under_component_draws_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm import generation

    patterns: list[tuple[bool, ...]] = []
    real = generation.sample_responses

    def watched(student: Any, teacher: Any, prompts: Any, **options: Any) -> Any:
        patterns.extend(tuple(row) for row in options["teacher_picks"].unique(dim=0).tolist())
        assert len({row_id % 4 for row_id in prompts.row_ids}) == 1  # one member of every group
        return real(student, teacher, prompts, **options)

    monkeypatch.setattr(generation, "sample_responses", watched)
    run = run_of(settings("grpo", rollout={"teacher_mix_alpha": 0.5}))
    method = make_method(run)
    assert isinstance(method, policy.PolicyGradient)
    method._sampled(1, [0, 1], first_row_id=0)
    method._sampled(1, [2, 3], first_row_id=8)  # a refill of the same phase
    expected = [tuple(component_draws(5, 1, key, 6, 0.5)) for key in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert patterns == expected and len(set(expected)) > 4


def test_replay_and_sources_draw_anew_in_every_phase() -> None:
    buffer = ReplayBuffer(50)
    buffer.add([Sample(index, [index]) for index in range(50)])
    assert buffer.draw(20, seed=1, phase=1) != buffer.draw(20, seed=1, phase=2)
    assert drawn_sources(40, 0.5, 0.5, seed=1, phase=1) != drawn_sources(40, 0.5, 0.5, seed=1, phase=2)


def test_the_share_of_student_samples_follows_the_validation_losses_of_the_run() -> None:
    losses = iter([1.0, 2.0, 1.5, 3.0])
    knobs = {"on_policy_share": 0.25, "share_step": 0.25, "replay_capacity": 3}
    run = run_of(settings("gkd", gkd=knobs, validation={"every_phases": 1}))
    reports = list(distill(run, lambda actors: {"validation/reverse_kl": 1.0, "validation/loss": next(losses)}))
    assert [report.metrics["rollout/on_policy_share"] for report in reports[1:]] == [0.25, 0.5, 0.5]


def test_the_buffer_has_the_capacity_of_the_params() -> None:
    run = run_of(settings("gkd", gkd={"on_policy_share": 1.0, "replay_capacity": 3}))
    method = make_method(run)
    assert isinstance(method, on_policy.GeneralizedDistillation)
    method.collect(1)
    assert len(method._buffer) == 3
