"""Numbers at the edge: exploding ratios, and models that end every response at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from minillm.advantages import with_advantages
from minillm.errors import NonFiniteError
from minillm.evaluation.rouge import mean_rouge_l
from minillm.methods.policy import minillm_credit
from minillm.objective import PolicyTerms, surrogate_loss
from minillm.rollout import Actors
from minillm.sampling import decodable, sample_responses
from minillm.types import PromptBatch
from tests import tiny
from tests.minibatch import config, rollout_of, updater_of
from tests.tiny_run import DEFAULTS

NUM_TOKENS = 12


def losses_at(log_ratio: float, advantage: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the policy losses, and their gradient in the student's logits, at an extreme ratio to the old one."""
    logits = torch.randn(NUM_TOKENS, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.arange(NUM_TOKENS)
    now = logits.detach().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    ones = torch.ones(NUM_TOKENS)
    terms = PolicyTerms(now - log_ratio, now, advantage * ones, ones, ones)
    settings = {"clip_low": 0.2, "clip_high": 0.2, "single_step_weight": 0.0, "entropy_weight": 0.0}
    losses = surrogate_loss(logits, logits.detach(), ids, terms, **settings)
    losses.loss.sum().backward()
    assert logits.grad is not None
    return losses.diagnostics["policy/loss"], logits.grad


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("log_ratio", [200.0, -200.0])
def test_fault_13_a_ratio_that_float32_cannot_hold_gives_finite_losses_and_clipped_ones_no_gradient(
    log_ratio: float, advantage: float
) -> None:
    losses, gradient = losses_at(log_ratio, advantage)
    assert losses.isfinite().all() and gradient.isfinite().all() and not gradient.any()
    clipped = 1.2 if log_ratio > 0 else 0.8
    if advantage * log_ratio > 0:  # the clip binds: max(-A r, -A clip(r)) = -A clip(r)
        assert losses.tolist() == pytest.approx([-advantage * clipped] * NUM_TOKENS)


def ending_at_once(seed: int) -> Any:
    """Return a GPT-2 that gives the end token a probability of 1 after any prefix."""
    model = tiny.tiny_gpt2(seed)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()[0] = 1.0
        model.lm_head.weight[:, 0] = -50.0
        model.lm_head.weight[tiny.END_ID, 0] = 50.0
    return model


def test_fault_16_responses_that_end_at_once_are_one_scored_token_and_a_finite_step() -> None:
    student = ending_at_once(1)
    models = Actors(student, student, ending_at_once(2))
    rollout = rollout_of(models)
    assert rollout.response_mask.sum(dim=1).tolist() == [1] * 6
    assert (rollout.response_ids[rollout.response_mask] == tiny.END_ID).all()
    report = updater_of(models, config()).update(with_advantages(rollout, minillm_credit(DEFAULTS)), 1)
    assert all(math.isfinite(value) for value in report.values())
    assert all(value.isfinite().all() for value in student.state_dict().values())


def test_fault_16_empty_responses_score_zero() -> None:
    assert mean_rouge_l(["", ""], [["a reference"], ["another", "one"]]) == 0.0


@pytest.mark.parametrize("make_model", [tiny.tiny_llama, tiny.tiny_gpt2])
@pytest.mark.parametrize("greedy", [False, True])
def test_fault_12_no_token_is_drawn_from_weights_that_are_not_numbers(make_model: Any, greedy: bool) -> None:
    model = make_model(1)
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 0] = math.nan
    decoding = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "end_id": tiny.END_ID, "pad_id": tiny.PAD_ID}
    uniforms = None if greedy else torch.full((2, 4), 0.5)
    picks = torch.zeros(2, 4, dtype=torch.bool)
    prompts = PromptBatch(torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.ones(2, 3, dtype=torch.bool), [0, 1])
    with pytest.raises(NonFiniteError, match="the logits of a token are not finite"):
        sample_responses(decodable(model), None, prompts, uniforms=uniforms, teacher_picks=picks, **decoding)
