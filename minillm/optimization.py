"""One optimizer step, the same for every training loop: clip, refuse what is not finite, step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.errors import NonFiniteError
from minillm.failpoints import failpoint
from minillm.gradients import put_away

_DIVISOR = "grad_scale"  # of gradients: a fused optimizer reads it from itself, and divides where it reads them anyway


def make_optimizer(model: Any, *, beta1: float, beta2: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW (learning rate set per step); norms and biases are not decayed."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), fused=True)


def optimizer_step(
    model: Any, optimizer: torch.optim.AdamW, *, learning_rate: float, gradient_clip: float, step: int, loss: float
) -> float:
    """Apply the accumulated gradients and return their norm before clipping; NonFiniteError comes before any change.

    optimizer: of `make_optimizer`.
    """
    norm = total_norm([part.grad for part in model.parameters() if part.grad is not None])
    if not (math.isfinite(norm) and math.isfinite(loss)):
        raise NonFiniteError(f"step {step}: loss {loss}, gradient norm {norm}; nothing was updated in this step")
    set_learning_rate(optimizer.param_groups, learning_rate)
    setattr(optimizer, _DIVISOR, (norm / gradient_clip).clamp(min=1).float())
    failpoint("optimizer.before_step")
    optimizer.step()
    failpoint("optimizer.after_step")
    put_away(model.parameters())
    return float(norm)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm (scalar) of all numbers of the gradients.

    By the norms of rows: one sum over a large matrix in float32 is off by up to a thousandth, and takes twice as long.
    """
    norms = [torch.linalg.vector_norm(gradient, dim=-1).flatten() for gradient in gradients]
    result: Tensor = torch.linalg.vector_norm(torch.cat(norms))
    return result


def set_learning_rate(groups: Iterable[dict[str, Any]], learning_rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in groups:
        group["lr"] = learning_rate
