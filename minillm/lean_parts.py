"""The parts of our own layers beside attention, each with its derivative written out and gradients added in place.

Shapes: N tokens, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from minillm.gradients import accumulate, accumulate_product, accumulate_rows, in_order, joined
from minillm.heads import wide
from minillm.kernels import training
from minillm.kernels.compiled import KINDS, takes

_PIECE_NUMBERS = 2**19  # of each of a few tensors that several operations read in turn


class Linears:
    """Linear layers that read the same input, as one product in the arithmetic of `dtype`.

    order: (out,), the row of the weights that comes at each place.
    """

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype, order: Tensor | None = None) -> None:
        self.weights, self.biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        self.weight = joined(self.weights, order).to(dtype)
        self.bias = None if layers[0].bias is None else joined(self.biases, order).to(dtype)
        self._places = None if order is None else order.argsort()

    def __call__(self, states: Tensor) -> Tensor:
        """Return W x + b (N, out) of states (N, in), for each layer in turn."""
        parameters = self.weights if self.bias is None else [*self.weights, *self.biases]
        result: Tensor = _Product.apply(states, self, *parameters)  # type: ignore[no-untyped-call]
        return result

    def accumulate(self, outer: Tensor, states: Tensor) -> None:
        """Add to the gradients of the parameters what that of the output (N, out) means."""
        accumulate_product(self.weights, outer, states, self._places)
        if self.bias is not None:
            sums = in_order(wide(outer).sum(dim=0), self._places).split([len(weight) for weight in self.weights])
            for bias, part in zip(self.biases, sums, strict=True):
                accumulate(bias, part)


class _Product(torch.autograd.Function):
    """W x + b; the parameters are arguments so that autograd calls for their gradient, which is added in place."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, layers: Linears, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(states)
        ctx.layers, ctx.no_gradients = layers, [None] * len(parameters)
        return linear(states, layers.weight, layers.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (states,) = ctx.saved_tensors
        ctx.layers.accumulate(gradient, states)
        return gradient @ ctx.layers.weight, None, *ctx.no_gradients


def embedded(table: nn.Embedding, token_ids: Tensor) -> Tensor:
    """Return the rows (N, H) of the tokens (N,); as in the library, that of the padding token learns nothing here."""
    result: Tensor = _Embedded.apply(table.weight, token_ids, table.padding_idx)  # type: ignore[no-untyped-call]
    return result


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, token_ids: Tensor, padding_id: int | None) -> Tensor:
        ctx.weight, ctx.padding_id = weight, padding_id
        ctx.save_for_backward(token_ids)
        return weight[token_ids]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        (token_ids,) = ctx.saved_tensors
        if ctx.padding_id is not None:
            learns = token_ids != ctx.padding_id
            token_ids, gradient = token_ids[learns], gradient[learns]
        accumulate_rows(ctx.weight, token_ids, gradient)
        return None, None, None


def normalised(states: Tensor, norm: Any, dtype: torch.dtype, order: Tensor | None = None) -> Tensor:
    """Return states (..., H) behind an RMS norm of the library, in `dtype`; order: (H,), of its weights."""
    result: Tensor = _Normalised.apply(states, norm.weight, norm.variance_epsilon, dtype, order)  # type: ignore[no-untyped-call]
    return result


class _Normalised(torch.autograd.Function):
    """x s w with s = 1 / rms(x). With g the gradient: g s x by w, and s g w - s^2 x mean(g s x w) by x."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, smallest: float, dtype: torch.dtype, order: Tensor | None
    ) -> Tensor:
        ctx.weight, ctx.order, ctx.is_fast = weight, order, takes(states.dtype, states.device) and dtype in KINDS
        if ctx.is_fast:
            states = states.contiguous()
            fast, scale = training.normalised(states, wide(in_order(weight.detach(), order)), smallest, dtype)
            ctx.save_for_backward(states, scale)
            return fast
        values, size = wide(states), states.shape[-1]
        squares = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_()
        scale = squares.div_(size).add_(smallest).rsqrt_()
        ctx.save_for_backward(states, scale)
        result: Tensor = (values * scale).to(states.dtype).mul_(in_order(weight, order)).to(dtype)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        states, scale = ctx.saved_tensors
        weight = in_order(wide(ctx.weight.detach()), ctx.order)
        places = None if ctx.order is None else ctx.order.argsort()
        if ctx.is_fast:
            by_states, by_weight = training.normalised_backward(gradient.contiguous(), states, weight, scale)
            accumulate(ctx.weight, in_order(by_weight, places))
            return by_states, None, None, None, None
        values = wide(states)
        scaled = gradient * scale if gradient.dtype == scale.dtype else wide(gradient).mul_(scale)
        products = scaled * values
        accumulate(ctx.weight, in_order(products.flatten(0, -2).sum(dim=0), places))
        means = (products @ weight).unsqueeze(-1).div_(-states.shape[-1]).mul_(scale).mul_(scale)
        result = scaled.mul_(weight).addcmul_(values, means)
        return result.to(states.dtype), None, None, None, None


def gated(states: Tensor, gate: Linears, up: Linears, down: Linears) -> Tensor:
    """Return W_down (silu(W_gate x) W_up x) (N, H) of states (N, H)."""
    weights = [part.weights[0] for part in (gate, up, down)]
    result: Tensor = _Gated.apply(states, gate, up, down, *weights)  # type: ignore[no-untyped-call]
    return result


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, gate: Linears, up: Linears, down: Linears, *weights: Tensor) -> Tensor:
        gates, ups = linear(states, gate.weight), linear(states, up.weight)
        ctx.save_for_backward(states, gates, ups)
        ctx.layers = gate, up, down
        if takes(ups.dtype, ups.device):
            return linear(training.gated(gates, ups), down.weight)
        product = torch.empty_like(ups)
        for gate_rows, up_rows, rows in _pieces(gates, ups, product):
            torch.mul(silu(gate_rows), up_rows, out=rows)
        return linear(product, down.weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (states, gates, ups), (gate, up, down) = ctx.saved_tensors, ctx.layers
        by_product = gradient @ down.weight
        product, by_gate, by_up = _gated_backward(gates, ups, by_product)
        down.accumulate(gradient, product)
        up.accumulate(by_up, states)
        gate.accumulate(by_gate, states)
        return (by_gate @ gate.weight).addmm_(by_up, up.weight), None, None, None, None, None, None


def _gated_backward(gates: Tensor, ups: Tensor, by_product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return silu(gate) up, and the gradients of gate and up, the last in the place of the product's."""
    if takes(ups.dtype, ups.device):
        return *training.gated_backward(gates, ups, by_product), by_product
    product, by_gate = torch.empty_like(ups), torch.empty_like(gates)
    for gate_rows, up_rows, *rows in _pieces(gates, ups, product, by_gate, by_product):
        active = silu(gate_rows)
        torch.mul(active, up_rows, out=rows[0])
        torch.ops.aten.silu_backward(rows[2] * up_rows, gate_rows, grad_input=rows[1])
        rows[2].mul_(active)
    return product, by_gate, by_product


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the rows of all tensors (N, H) that several operations read in turn: on a CPU what its caches hold."""
    num_rows, width = tensors[0].shape
    size = max(_PIECE_NUMBERS // width, 1) if tensors[0].device.type == "cpu" else num_rows
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)
