"""The surrogate loss of MiniLLM on the response tokens of a minibatch (arXiv:2306.08543, equations 4-8).

Shapes: N response tokens, V vocabulary. Losses stay one a token; the update divides by the global minibatch, so that
micro-batch size and accumulation never change the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from minillm.divergences import cross_entropy, entropy, sampled_terms
from minillm.heads import wide
from minillm.logprobs import token_logprobs
from minillm.types import TokenLosses

# Keeps exp() finite in float32 (it overflows at 88.7); far outside any clip range, so no clipped gradient changes.
_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class PolicyTerms:
    """The fields of an Experience at the N sampled tokens, (N,), detached."""

    old_logprobs: Tensor
    teacher_logprobs: Tensor
    advantages: Tensor
    ratios: Tensor
    single_step_weights: Tensor


def policy_terms(at_tokens: Mapping[str, Tensor]) -> PolicyTerms:
    """Return the terms from the fields of an Experience at some of its tokens."""
    return PolicyTerms(**{item.name: at_tokens[item.name] for item in fields(PolicyTerms)})


def surrogate_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    token_ids: Tensor,
    terms: PolicyTerms,
    *,
    clip_low: float,
    clip_high: float,
    single_step_weight: float,
    entropy_weight: float,
) -> TokenLosses:
    """Return, per token, the clipped policy loss plus the single-step reverse KL minus the entropy bonus.

    policy_t = max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)) with ratio = student / old student, times
    rho_t under `per_token` importance.
    """
    logprobs, divergence = sampled_terms(student_logits, teacher_logits, token_ids, terms.teacher_logprobs)
    log_ratio = logprobs - terms.old_logprobs
    ratio = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp() * terms.ratios
    unclipped = -terms.advantages * ratio
    clipped = -terms.advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    policy = torch.maximum(unclipped, clipped)
    loss = policy + single_step_weight * terms.single_step_weights * divergence
    diagnostics = {
        "policy/loss": policy,
        "kl/reverse": divergence,
        "policy/clipped_frac": (clipped > unclipped).to(policy.dtype),
        "policy/log_ratio": log_ratio,
    }
    if entropy_weight:
        diagnostics["policy/entropy"] = spread = entropy(wide(student_logits))
        loss = loss - entropy_weight * spread
    return TokenLosses(loss, {name: values.detach() for name, values in diagnostics.items()})


def language_model_loss(
    student_logits: Tensor, token_ids: Tensor, teacher_logits: Tensor | None, teacher_share: float
) -> Tensor:
    """Return the summed next-token cross-entropy (L_PT), blended with the teacher's when it is given."""
    loss = -token_logprobs(student_logits, token_ids).sum()
    if teacher_logits is None:
        return loss
    return (1 - teacher_share) * loss + teacher_share * cross_entropy(teacher_logits, student_logits).sum()
