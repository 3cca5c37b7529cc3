"""`python -m tests.shared_draws`: how much noise rows add to a gradient when they share who picks each token.

Exact, by enumeration of the toy (tests/tabular.py): every response under every pattern of picks. The noise is the trace
of the covariance of the mean gradient of B rows: with patterns of their own, that of a row over B; with one pattern,
the variance of the pattern's mean stays whatever B is, and only the rest is divided by B.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from minillm.logprobs import mixture_logprobs
from tests import tabular

ALPHAS = (0.1, 0.2, 0.5)
NUM_ROWS = (4, 16, 64)


def row_gradient(sequence: tuple[int, ...], alpha: float) -> Tensor:
    """Return the gradient that one response gives: single-step term and per-token weighted mean of later rewards."""
    student, teacher = tabular.random_table(1).requires_grad_(), tabular.random_table(2)
    ids = torch.tensor(sequence)[:, None]
    own, other = (tabular.sequence_logits(table, sequence).log_softmax(-1) for table in (student, teacher))
    chosen, preferred = own.gather(1, ids).squeeze(1), other.gather(1, ids).squeeze(1)
    rewards, ratios = (
        (preferred - chosen).detach(),
        (chosen - mixture_logprobs(preferred, chosen, alpha)).exp().detach(),
    )
    returns = torch.stack(
        [rewards[t + 1 :].mean() if t + 1 < len(rewards) else rewards.new_zeros(()) for t in range(len(rewards))]
    )
    loss = ((own.exp() * (own - other)).sum(-1) - ratios * returns * chosen).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    return gradient.flatten()


def probability(sequence: tuple[int, ...], pattern: tuple[bool, ...]) -> float:
    """Return the probability of a response when the pattern says who picks each token."""
    student, teacher = tabular.random_table(1), tabular.random_table(2)
    result = 1.0
    for step, token in enumerate(sequence):
        table = teacher if pattern[step] else student
        result *= float(tabular.sequence_logits(table, sequence)[step].softmax(-1)[token])
    return result


def moments(alpha: float) -> tuple[float, float]:
    """Return the variance of the means of the patterns, and the mean of the variances under one."""
    gradients = torch.stack([row_gradient(sequence, alpha) for sequence in tabular.sequences()])
    means, spreads, weights = [], [], []
    for pattern in product((False, True), repeat=tabular.NUM_STEPS):
        chances = torch.tensor(
            [probability(sequence, pattern) for sequence in tabular.sequences()], dtype=torch.float64
        )
        means.append(chances @ gradients)
        spreads.append(float(chances @ (gradients - means[-1]).square().sum(1)))
        weights.append(alpha ** sum(pattern) * (1 - alpha) ** (tabular.NUM_STEPS - sum(pattern)))
    weight, mean = torch.tensor(weights, dtype=torch.float64), torch.stack(means)
    between = float(weight @ (mean - weight @ mean).square().sum(1))
    return between, float(weight @ torch.tensor(spreads, dtype=torch.float64))


def table() -> str:
    """Return one line an alpha: the noise with one pattern as a multiple of that with patterns of their own."""
    lines = ["alpha   of a row, between patterns" + "".join(f"{f'{rows} rows':>10}" for rows in NUM_ROWS)]
    for alpha in ALPHAS:
        between, within = moments(alpha)
        ratios = [(between + within / rows) / ((between + within) / rows) for rows in NUM_ROWS]
        lines.append(f"{alpha:<7} {between / (between + within):26.3f}" + "".join(f"{ratio:10.2f}" for ratio in ratios))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
