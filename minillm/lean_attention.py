"""Attention of our own layers: texts one after the other, rows of their own for attention alone.

Shapes: N tokens of all texts, B texts, L columns of padded rows, A heads of queries, K of keys and as many of values, D
width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from minillm.heads import wide
from minillm.kernels import training
from minillm.kernels.compiled import takes


class Layout:
    """Where the tokens of all texts stand in rows of their own, padded on the right, whose columns are positions.

    shape: (B, L).
    bias: (L, L), 0 where a token may look, else very negative.
    rotation: (N, 1, D / 2) complex.
    """

    def __init__(self, columns: Tensor, bias: Tensor, rotation: Tensor) -> None:
        self.shape, self.bias, self.rotation = (len(columns), columns.shape[1]), bias, rotation
        numbers = columns.flatten().cumsum(0).view(self.shape) - 1
        self._tokens, self._is_padding = numbers.where(columns, 0), ~columns
        self._places = columns.nonzero()
        self._orders: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def as_rows(self, values: Tensor) -> Tensor:
        """Return (N, heads, D) as (B heads L, D); where there is no token, those of another."""
        return values.flatten(0, 1).index_select(0, self._order(values.shape[1])[0])

    def as_tokens(self, rows: Tensor, num_heads: int) -> Tensor:
        """Return (B heads L, D), of any shape, as (N, heads, D)."""
        tokens = rows.view(-1, rows.shape[-1]).index_select(0, self._order(num_heads)[1])
        return tokens.view(-1, num_heads, rows.shape[-1])

    def clear_padding(self, rows: Tensor, num_heads: int) -> None:
        """Set (B heads L, ...), of any shape, to 0 where there is no token."""
        rows.view(-1, rows.shape[-1]).index_fill_(0, self._order(num_heads)[2], 0)

    def _order(self, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the token's head at each place, the place of each token's head, and the places without one."""
        if num_heads not in self._orders:
            heads, width = torch.arange(num_heads, device=self.bias.device), self.shape[1]
            row, column = (part[:, None] for part in self._places.unbind(1))
            self._orders[num_heads] = (
                (self._tokens[:, None] * num_heads + heads[:, None]).flatten(),
                ((row * num_heads + heads) * width + column).flatten(),
                self._is_padding[:, None].expand(-1, num_heads, -1).flatten().nonzero().squeeze(1),
            )
        return self._orders[num_heads]


def turned(heads: Tensor, num_queries: int, rotation: Tensor, scaling: float) -> Tensor:
    """Return queries and the keys behind them (N, A + K, D) times a rotation (N, 1, D / 2), queries also scaled.

    Two numbers that stand side by side are one complex number.
    """
    result: Tensor = _Turned.apply(heads, num_queries, rotation, scaling)  # type: ignore[no-untyped-call]
    return result


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, num_queries: int, rotation: Tensor, scaling: float) -> Tensor:
        ctx.factors = num_queries, rotation, scaling
        return _times(heads, num_queries, rotation, scaling, is_back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        num_queries, rotation, scaling = ctx.factors
        return _times(gradient, num_queries, rotation, scaling, is_back=True), None, None, None


def _times(heads: Tensor, num_queries: int, rotation: Tensor, scaling: float, *, is_back: bool) -> Tensor:
    if takes(heads.dtype, heads.device):
        return training.turned(heads, rotation, num_queries, scaling, is_back)
    rotation = rotation.conj() if is_back else rotation
    values = wide(heads)
    if values is heads:
        values = heads.clone()
    numbers = torch.view_as_complex(values.unflatten(-1, (-1, 2)))
    numbers[:, :num_queries].mul_(rotation * scaling)
    numbers[:, num_queries:].mul_(rotation)
    return values.to(heads.dtype)


def attended(heads: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Return attention (N, A, D) within each text, from scaled queries and the keys behind them, and values (N, K, D).

    On a CPU it is written out as products: the backward pass of the fused kernel takes longer for short texts.

    heads: (N, A + K, D).
    """
    if heads.device.type != "cpu":
        return fused_attention(heads, values, layout)
    result: Tensor = _Attended.apply(heads, values, layout)  # type: ignore[no-untyped-call]
    return result


class _Attended(torch.autograd.Function):
    """Queries that meet the same keys are rows of one matrix."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, values: Tensor, layout: Layout) -> Tensor:
        num_keys, size = values.shape[1:]
        num_heads, num_matrices = heads.shape[1] - num_keys, layout.shape[0] * num_keys
        parts = heads[:, :num_heads], heads[:, num_heads:], values
        matrices = [layout.as_rows(part).view(num_matrices, -1, size) for part in parts]
        bias = layout.bias.repeat(num_heads // num_keys, 1)
        weights = torch.baddbmm(bias, matrices[0], matrices[1].transpose(1, 2)).softmax(dim=-1)
        layout.clear_padding(weights, num_heads)
        ctx.save_for_backward(*matrices, weights)
        ctx.layout, ctx.num_heads, ctx.num_keys = layout, num_heads, num_keys
        return layout.as_tokens(torch.bmm(weights, matrices[2]), num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (queries, keys, values, weights), layout = ctx.saved_tensors, ctx.layout
        by_output = layout.as_rows(gradient).view_as(queries)
        by_weights = torch.bmm(by_output, values.transpose(1, 2))
        by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        by_queries = layout.as_tokens(torch.bmm(by_scores, keys), ctx.num_heads)
        by_keys = layout.as_tokens(torch.bmm(by_scores.transpose(1, 2), queries), ctx.num_keys)
        by_values = layout.as_tokens(torch.bmm(weights.transpose(1, 2), by_output), ctx.num_keys)
        return torch.cat([by_queries, by_keys], dim=1), by_values, None


def fused_attention(heads: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Return the same by the kernel of an accelerator."""
    (num_rows, width), num_keys = layout.shape, values.shape[1]
    one, two, three = (
        layout.as_rows(part).view(num_rows, -1, width, part.shape[-1])
        for part in (heads[:, :-num_keys], heads[:, -num_keys:], values)
    )
    result = scaled_dot_product_attention(one, two, three, is_causal=True, scale=1.0, enable_gqa=True)
    return layout.as_tokens(result.contiguous(), one.shape[1])
