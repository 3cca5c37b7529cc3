"""`python -m tests.differences`: what each published deviation does to the gradient, by exact enumeration.

Every row is the expected gradient of a variant, summed over all responses of the toy (tests/tabular.py) under its
sampling distribution, against the exact gradient of the reverse KL: the relative error and the cosine between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm.logprobs import mixture_logprobs
from tests import tabular

ALPHA = 0.2
Weights = Callable[[Tensor], tuple[Tensor, Tensor]]


def gradient(
    *,
    alpha: float = 0.0,
    from_current: bool = False,
    single_step: float = 1.0,
    length_normalize: bool = False,
    discount: float = 1.0,
    importance: str = "none",
    normalizer: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the expected gradient of a variant, written here term by term, apart from the library."""
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    total = torch.zeros((), dtype=torch.float64)
    for sequence in tabular.sequences():
        ids = torch.tensor(sequence)[:, None]
        own, other = (tabular.sequence_logits(table, sequence).log_softmax(-1) for table in (student, teacher))
        chosen, preferred = own.gather(1, ids).squeeze(1), other.gather(1, ids).squeeze(1)
        rewards = (preferred - chosen).detach()
        ratios = (chosen - mixture_logprobs(preferred, chosen, alpha)).exp().detach()
        prefix = ratios.cumprod(0)
        returns = _returns(
            rewards * prefix if importance == "per_decision" else rewards, from_current, length_normalize, discount
        )
        returns = returns if normalizer is None else normalizer(returns)
        factors = {"none": torch.ones_like(ratios), "per_decision": torch.ones_like(ratios), "per_token": ratios}
        factors["prefix"] = prefix
        step_weights = torch.cat([torch.ones(1), prefix[:-1]]) if importance == "per_decision" else torch.ones(len(ids))
        divergence = (own.exp() * (own - other)).sum(-1)
        loss = (single_step * step_weights * divergence - factors[importance] * returns * chosen).sum()
        total = total + tabular.mixture_probability(student, teacher, sequence, alpha) * loss
    (result,) = torch.autograd.grad(total, student)
    return result


def _returns(rewards: Tensor, from_current: bool, length_normalize: bool, discount: float = 1.0) -> Tensor:
    """Return the sums of later rewards; discounted or not, as the published code does, over their plain number."""
    first = 0 if from_current else 1
    powers = discount ** torch.arange(len(rewards))
    parts = [rewards[step + first :] * powers[: len(rewards) - step - first] for step in range(len(rewards))]
    sums = [
        part.sum() / (len(part) if length_normalize else 1) if len(part) else rewards.new_zeros(()) for part in parts
    ]
    return torch.stack(sums)


def whitening(over_padding: bool) -> Callable[[Tensor], Tensor]:
    """Return (R - mean) / std with statistics of all current-token returns, each response counting by probability."""
    student, teacher = tabular.random_table(1), tabular.random_table(2)
    values, weights = [], []
    for sequence in tabular.sequences():
        own, other = (tabular.sequence_logits(table, sequence).log_softmax(-1) for table in (student, teacher))
        ids = torch.tensor(sequence)[:, None]
        returns = _returns((other - own).gather(1, ids).squeeze(1), True, True).tolist()
        padding = tabular.NUM_STEPS - len(sequence) if over_padding else 0
        values += returns + [0.0] * padding
        weights += [float(tabular.sequence_logprob(student, sequence).exp())] * (len(sequence) + padding)
    value, weight = torch.tensor(values, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    mean = (weight * value).sum() / weight.sum()
    std = ((weight * (value - mean).square()).sum() / weight.sum()).sqrt()
    return lambda returns: (returns - mean) / std


def exact() -> Tensor:
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    (result,) = torch.autograd.grad(tabular.exact_reverse_kl(student, teacher), student)
    return result


VARIANTS: dict[str, dict[str, Any]] = {
    "ours: next + single-step": {},
    "policy gradient, no single-step": {"from_current": True, "single_step": 0.0},
    "published: current + single-step": {"from_current": True},
    "published, length-normalized": {"from_current": True, "length_normalize": True},
    "the same, discounted by 0.95": {"from_current": True, "length_normalize": True, "discount": 0.95},
    "ours, length-normalized (the paper's bias)": {"length_normalize": True},
    "whitened over tokens": {"from_current": True, "length_normalize": True, "normalizer": whitening(False)},
    "whitened over padding too": {"from_current": True, "length_normalize": True, "normalizer": whitening(True)},
    "mixture, per_decision": {"alpha": ALPHA, "importance": "per_decision"},
    "mixture, per_token (published)": {"alpha": ALPHA, "importance": "per_token"},
    "mixture, prefix weight on the return": {"alpha": ALPHA, "importance": "prefix"},
    "mixture, no weights": {"alpha": ALPHA},
}


def table() -> str:
    """Return one line a variant."""
    truth = exact()
    lines = [f"{'variant':<44} {'relative error':>14} {'cosine':>7}"]
    for name, options in VARIANTS.items():
        found = gradient(**options)
        error = float((found - truth).norm() / truth.norm())
        cosine = float((found * truth).sum() / (found.norm() * truth.norm()))
        lines.append(f"{name:<44} {error if error > 1e-12 else 0:14.3f} {cosine:7.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
