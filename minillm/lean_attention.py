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


def turned(heads: Tensor, rotation: Tensor) -> Tensor:
    """Return heads (N, heads, D) times a rotation (N, 1, D / 2), as complex numbers.

    What turns together is half a head apart before and side by side behind, in queries as in keys.
    """
    result: Tensor = _Turned.apply(heads, rotation)  # type: ignore[no-untyped-call]
    return result


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, rotation: Tensor) -> Tensor:
        ctx.rotation = rotation
        values = torch.complex(*wide(heads).unflatten(-1, (2, -1)).unbind(-2)).mul_(rotation)
        return torch.view_as_real(values).flatten(-2).to(heads.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        pairs = torch.view_as_complex(wide(gradient).unflatten(-1, (-1, 2)).contiguous())
        back = torch.view_as_real(pairs * ctx.rotation.conj())
        return back.transpose(-1, -2).flatten(-2).to(gradient.dtype), None


def attended(queries: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Return attention within each text, from scaled queries (N, A, D), keys and values (N, K, D): (N, A, D).

    On a CPU it is written out as products: the backward pass of the fused kernel takes longer for short texts.
    """
    if queries.device.type != "cpu":
        return fused_attention(queries, keys, values, layout)
    result: Tensor = _Attended.apply(queries, keys, values, layout)  # type: ignore[no-untyped-call]
    return result


class _Attended(torch.autograd.Function):
    """Queries that meet the same keys are rows of one matrix."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
        num_heads, (num_keys, size) = queries.shape[1], keys.shape[1:]
        matrices = [layout.as_rows(part).view(layout.shape[0] * num_keys, -1, size) for part in (queries, keys, values)]
        scores = torch.bmm(matrices[0], matrices[1].transpose(1, 2)).unflatten(1, (-1, layout.shape[1]))
        weights = scores.add_(layout.bias).softmax(dim=-1).flatten(1, 2)
        layout.clear_padding(weights, num_heads)
        ctx.save_for_backward(*matrices, weights)
        ctx.layout, ctx.shapes = layout, [part.shape for part in (queries, keys, values)]
        return layout.as_tokens(torch.bmm(weights, matrices[2]), num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, weights = ctx.saved_tensors
        by_output = ctx.layout.as_rows(gradient).view_as(queries)
        by_weights = torch.bmm(by_output, values.transpose(1, 2))
        by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        by_queries, by_keys = torch.bmm(by_scores, keys), torch.bmm(by_scores.transpose(1, 2), queries)
        parts = by_queries, by_keys, torch.bmm(weights.transpose(1, 2), by_output)
        one, two, three = (ctx.layout.as_tokens(part, shape[1]) for part, shape in zip(parts, ctx.shapes, strict=True))
        return one, two, three, None


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Return the same by the kernel of an accelerator."""
    num_rows, width = layout.shape
    one, two, three = (
        layout.as_rows(part).view(num_rows, -1, width, part.shape[-1]) for part in (queries, keys, values)
    )
    result = scaled_dot_product_attention(one, two, three, is_causal=True, scale=1.0, enable_gqa=True)
    return layout.as_tokens(result.contiguous(), queries.shape[1])
