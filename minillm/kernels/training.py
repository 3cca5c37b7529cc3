"""The parts of a layer beside its products, and their derivatives, for CPUs; training.c has the loops.

Shapes: N tokens, H width, A heads, D their width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.kernels.compiled import KINDS, check, functions, room


def normalised(states: Tensor, weight: Tensor, smallest: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x w / sqrt(mean(x^2) + smallest) (..., H) in `dtype`, and the scales (...) of all vectors.

    states: (..., H). weight: (H,), float32.
    """
    result, scales = states.new_empty(states.shape, dtype=dtype), room(states.shape[:-1])
    pointer, width = check(states, states.shape, *KINDS), states.shape[-1]
    functions().norm_forward(
        *(pointer, KINDS[states.dtype], check(weight, (width,), torch.float32)),
        *(result.data_ptr(), KINDS[dtype], scales.data_ptr(), scales.numel(), width, smallest),
    )
    return result, scales


def normalised_backward(gradient: Tensor, states: Tensor, weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the states (..., H), in their type, and that of the weight (H,)."""
    by_states, width, num_threads = torch.empty_like(states), states.shape[-1], torch.get_num_threads()
    by_weight = room([num_threads, width]).zero_()
    functions().norm_backward(
        *(check(gradient, states.shape, *KINDS), KINDS[gradient.dtype]),
        *(check(states, states.shape, *KINDS), KINDS[states.dtype]),
        *(check(weight, (width,), torch.float32), check(scales, states.shape[:-1], torch.float32)),
        *(by_states.data_ptr(), by_weight.data_ptr(), num_threads, scales.numel(), width),
    )
    return by_states, by_weight.sum(dim=0)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) up, of any shape."""
    result = torch.empty_like(up)
    pointers = (check(part, up.shape, up.dtype) for part in (gate, up, result))
    functions().gated_forward(*pointers, KINDS[up.dtype], up.numel())
    return result


def gated_backward(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return silu(gate) up and the gradient of the gate; that of `up` takes the place of the gradient."""
    result, by_gate = torch.empty_like(up), torch.empty_like(up)
    pointers = (check(part, up.shape, up.dtype) for part in (gate, up, gradient, result, by_gate, gradient))
    functions().gated_backward(*pointers, KINDS[up.dtype], up.numel())
    return result, by_gate


def turned(heads: Tensor, rotation: Tensor, num_scaled: int, scale: float, is_back: bool) -> Tensor:
    """Return heads (N, A, D) times a rotation (N, 1, D / 2), or its conjugate; the first are also scaled.

    heads: each token's in a row, with others behind them or not.
    """
    count, num_heads, width = heads.shape
    stride, result = heads.stride(0), heads.new_empty(heads.shape)
    assert heads.stride() == (stride, width, 1) and stride >= num_heads * width and 0 <= num_scaled <= num_heads
    check(heads[:1].contiguous(), (min(count, 1), num_heads, width), *KINDS)
    sizes = count, num_heads, width, stride, num_scaled
    pointers = heads.data_ptr(), check(rotation, (count, 1, width // 2), torch.complex64), result.data_ptr()
    functions().turn_heads(*pointers, KINDS[heads.dtype], *sizes, scale, -1.0 if is_back else 1.0)
    return result
