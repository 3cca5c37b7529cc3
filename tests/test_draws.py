"""What keys a draw: its stream, the seed, the phase and its place, from the params on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from minillm.draws import Stream, component_draws, token_uniforms
from minillm.generation import _teacher_picks, all_responses, generate_responses, sampled_batches
from tasks.distill import _decoding
from tests import tiny
from tests.tiny_run import DEFAULTS, changed, decoding


def test_no_two_uses_share_a_stream() -> None:
    assert len(Stream.__members__) == len({int(stream) for stream in Stream})


@pytest.mark.parametrize("seed", [0, 17])
def test_who_picks_a_token_says_nothing_about_the_number_that_draws_it(seed: int) -> None:
    """With one stream for both, the teacher would pick the tokens whose number is below alpha, and no other."""
    picks = torch.tensor([component_draws(seed, step, 0, 64, 0.5) for step in range(64)]).double()
    uniforms = torch.cat([token_uniforms(seed, step, [0], 64) for step in range(64)])
    correlation = torch.corrcoef(torch.stack([picks.flatten(), uniforms.flatten()]))[0, 1]
    assert abs(float(correlation)) < 4 / 64  # four standard errors of 4,096 pairs


def test_a_phase_draws_anew_from_the_same_weights_and_alike_if_repeated() -> None:
    model, prompts = tiny.tiny_llama(1), tiny.random_rows(4, 2, 9, seed=3)
    first, again, second = (
        all_responses(generate_responses(model, prompts, range(4), decoding(step=step))) for step in (1, 1, 2)
    )
    assert first == again and all(one != other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("num_rows", [1, 5, 16])
@pytest.mark.parametrize("mask_groups", [1, 2, 4, 5, 9, 15, 16])
def test_a_batch_has_as_many_patterns_as_asked_for_or_one_a_row(num_rows: int, mask_groups: int) -> None:
    settings = replace(decoding(seed=17, step=1, max_tokens=64), mask_groups=mask_groups)
    patterns = Counter(tuple(row.tolist()) for row in _teacher_picks(range(num_rows), settings, 0.5))
    assert len(patterns) == min(mask_groups, num_rows)
    assert max(patterns.values()) - min(patterns.values()) <= 1


def test_components_are_drawn_independently_with_the_share_of_the_teacher() -> None:
    """The number of the teacher's tokens varies as that of independent draws does, neighbours and rows do not agree."""
    alpha, num_rows, num_tokens = 0.2, 4000, 25
    drawn = torch.tensor([component_draws(3, step, 7, num_tokens, alpha) for step in range(num_rows)]).double()
    size, variance = num_rows * num_tokens, alpha * (1 - alpha)
    assert abs(float(drawn.mean()) - alpha) < 4 * (variance / size) ** 0.5
    counts = drawn.sum(dim=1)
    expected = num_tokens * variance  # a variance's own standard error is sqrt(2 / n) of it
    assert abs(float(counts.var()) - expected) < 4 * expected * (2 / num_rows) ** 0.5
    for one, other in ((drawn[:, :-1], drawn[:, 1:]), (drawn[:-1], drawn[1:]), (drawn[:, :-7], drawn[:, 7:])):
        covariance = float(((one - alpha) * (other - alpha)).mean())
        assert abs(covariance) < 4 * variance / one.numel() ** 0.5


@pytest.mark.parametrize("mask_groups", [1, 2])
def test_the_params_say_how_many_rows_share_who_picks(mask_groups: int) -> None:
    rollout = {"batch_size": 4, "mask_groups": mask_groups, "max_response_tokens": 16, "temperature": 0.7}
    settings = _decoding(changed(DEFAULTS, {"rollout": rollout}), 5, tiny.END_ID, tiny.PAD_ID)
    prompts = tiny.random_rows(4, 2, 9, seed=3)
    ((_, responses),) = sampled_batches(tiny.tiny_llama(1), tiny.tiny_llama(2), prompts, range(4), settings, 0.5)
    width = responses.teacher_picks.shape[1]
    assert len({tuple(row.tolist()) for row in responses.teacher_picks}) == mask_groups
    assert width > 8


def test_the_params_reach_the_draws() -> None:
    rollout = {"batch_size": 3, "max_response_tokens": 9, "temperature": 0.7, "top_k": 4, "top_p": 0.9}
    settings = _decoding(changed(DEFAULTS, {"method": "sft", "rollout": rollout}), 5, tiny.END_ID, tiny.PAD_ID)
    assert settings == decoding(batch_size=3, max_tokens=9, temperature=0.7, top_k=4, top_p=0.9)
