"""Bodies of the Llama family (Llama, Qwen2, Qwen3) for training and scoring: derivatives written out, little else.

On a CPU with fast bfloat16 products the library's layers spend twice as long beside them, on copies between two types
of numbers and on passes over memory that autograd keeps. Here weights are cast once for all forward passes between two
updates, gradients are added in place, and each part keeps what its derivative needs.

Shapes: N tokens of all texts, one text after the other, B texts, L columns of padded rows, H width, A heads of queries,
K of keys and as many of values, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint
from transformers.activations import SiLUActivation

from minillm import llama_family
from minillm.bodies import Body
from minillm.checkpointing import is_recomputed
from minillm.gradients import accumulate, accumulate_product, accumulate_rows
from minillm.heads import wide
from minillm.llama_family import rotation
from minillm.packed_rows import text_columns


def is_supported(model: Any) -> bool:
    """Return whether the model is of the family, and its layers are made of what we have derivatives of."""
    return llama_family.is_supported(model) and all(_is_plain(layer) for layer in model.model.layers)


def _is_plain(layer: Any) -> bool:
    gated = [layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
    linears = [module for module in layer.modules() if not any(module.children()) and hasattr(module, "in_features")]
    return (
        all(type(module) is nn.Linear for module in linears)
        and all(module.bias is None for module in gated)
        and isinstance(layer.mlp.act_fn, SiLUActivation | nn.SiLU)
    )


class _Linears:
    """Linear layers that read the same input, as one product in the arithmetic of `dtype`."""

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self.weights, self.biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        self.weight = _joined(self.weights, dtype)
        self.bias = None if layers[0].bias is None else _joined(self.biases, dtype)

    def __call__(self, states: Tensor) -> Tensor:
        """Return W x + b (N, out) of states (N, in), for each layer in turn."""
        result: Tensor = _Product.apply(states, self, *self.weights)  # type: ignore[no-untyped-call]
        return result

    def accumulate(self, outer: Tensor, states: Tensor) -> None:
        """Add to the gradients of the parameters what that of the output (N, out) means."""
        accumulate_product(self.weights, outer, states)
        if self.bias is not None:
            sums = wide(outer).sum(dim=0).split([len(weight) for weight in self.weights])
            for bias, part in zip(self.biases, sums, strict=True):
                accumulate(bias, part)


def _joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    whole = parts[0].detach() if len(parts) == 1 else torch.cat([part.detach() for part in parts])
    return whole.to(dtype)


class _Product(torch.autograd.Function):
    """W x + b; the weights are arguments so that autograd calls for their gradient, which is added in place."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, layers: _Linears, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(states)
        ctx.layers = layers
        return linear(states, layers.weight, layers.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (states,) = ctx.saved_tensors
        ctx.layers.accumulate(gradient, states)
        return gradient @ ctx.layers.weight, None, *(None for _ in ctx.layers.weights)


class _Embedded(torch.autograd.Function):
    """Rows of the embedding."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, token_ids: Tensor) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(token_ids)
        return weight[token_ids]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        accumulate_rows(ctx.weight, ctx.saved_tensors[0], gradient)
        return None, None


class _Normalised(torch.autograd.Function):
    """x w / rms(x). With y = x / rms(x) and g the gradient: g y by w, and (g w - y mean(g w y)) / rms(x) by x."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, smallest: float, dtype: torch.dtype) -> Tensor:
        values, size = wide(states), states.shape[-1]
        squares = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_()
        scale = squares.div_(size).add_(smallest).rsqrt_()
        ctx.weight = weight
        ctx.save_for_backward(states, scale)
        result: Tensor = (values * scale).to(states.dtype).mul_(weight).to(dtype)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        states, scale = ctx.saved_tensors
        weight, size = wide(ctx.weight.detach()), states.shape[-1]
        unit, by_output = wide(states) * scale, wide(gradient)
        products = by_output * unit
        accumulate(ctx.weight, products.flatten(0, -2).sum(dim=0))
        means = (products @ weight).div_(-size).unsqueeze(-1)
        result = unit.mul_(means).addcmul_(by_output, weight).mul_(scale)
        return result.to(states.dtype), None, None, None


class _Gated(torch.autograd.Function):
    """W_down (silu(g) u) with g = W_gate x and u = W_up x."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, layer: LeanLayer, *weights: Tensor) -> Tensor:
        gate, up = linear(states, layer.gate.weight), linear(states, layer.up.weight)
        ctx.save_for_backward(states, gate, up)
        ctx.layer = layer
        return linear(silu(gate).mul_(up), layer.down.weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, gate, up = ctx.saved_tensors
        layer, active = ctx.layer, silu(gate)
        layer.down.accumulate(gradient, active * up)
        by_product = gradient @ layer.down.weight
        by_up = active.mul_(by_product)
        by_gate = torch.ops.aten.silu_backward(by_product.mul_(up), gate)
        layer.up.accumulate(by_up, states)
        layer.gate.accumulate(by_gate, states)
        return (by_gate @ layer.gate.weight).addmm_(by_up, layer.up.weight), None, None, None, None


class _Turned(torch.autograd.Function):
    """Heads (N, heads, D) times a rotation (N, 1, D / 2), as complex numbers.

    What turns together is half a head apart before and side by side behind, in queries as in keys.
    """

    @staticmethod
    def forward(ctx: Any, heads: Tensor, rotation: Tensor) -> Tensor:
        ctx.rotation = rotation
        values = torch.complex(*wide(heads).unflatten(-1, (2, -1)).unbind(-2)).mul_(rotation)
        return torch.view_as_real(values).flatten(-2).to(heads.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        pairs = torch.view_as_complex(wide(gradient).unflatten(-1, (-1, 2)).contiguous())
        turned = torch.view_as_real(pairs * ctx.rotation.conj())
        return turned.transpose(-1, -2).flatten(-2).to(gradient.dtype), None


class _Attended(torch.autograd.Function):
    """Attention within each text, from scaled queries (N, A, D), keys and values (N, K, D): (N, A, D).

    Written out as products: on a CPU the backward pass of the fused kernel takes longer for short texts. Queries that
    meet the same keys are rows of one matrix.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, layout: _Layout) -> Tensor:
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


class _Layout:
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


class LeanLayer:
    """A layer of the body."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norms, self._dtype = (layer.input_layernorm, layer.post_attention_layernorm), dtype
        self._head_norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self._inputs = _Linears([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self._sizes = [len(weight) // attention.head_dim for weight in self._inputs.weights]
        self._output, self._scaling = _Linears([attention.o_proj], dtype), attention.scaling
        self.gate, self.up, self.down = (
            _Linears([part], dtype) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )

    def __call__(self, states: Tensor, layout: _Layout, wanted: Tensor | None) -> Tensor:
        """Return states (N, H) behind the layer, or (W, H) of the wanted (N,) tokens."""
        inputs = _normalised(states, self._norms[0], self._dtype)
        attended = self._attended(inputs, layout).flatten(1)
        if wanted is not None:
            states, attended = states[wanted], attended[wanted]
        states = states + self._output(attended)
        inputs = _normalised(states, self._norms[1], self._dtype)
        weights = [part.weights[0] for part in (self.gate, self.up, self.down)]
        gated: Tensor = _Gated.apply(inputs, self, *weights)  # type: ignore[no-untyped-call]
        return states + gated

    def _attended(self, inputs: Tensor, layout: _Layout) -> Tensor:
        heads = self._inputs(inputs).unflatten(1, (sum(self._sizes), -1))
        *turning, values = heads.split(self._sizes, dim=1)
        normalised = [
            part if norm is None else _normalised(part, norm, part.dtype)
            for part, norm in zip(turning, self._head_norms, strict=True)
        ]
        queries, keys = (
            _Turned.apply(part, layout.rotation * scale)  # type: ignore[no-untyped-call]
            for part, scale in zip(normalised, (self._scaling, 1), strict=True)
        )
        if inputs.device.type == "cpu":
            attended: Tensor = _Attended.apply(queries, keys, values, layout)  # type: ignore[no-untyped-call]
            return attended
        return fused_attention(queries, keys, values, layout)


def _normalised(states: Tensor, norm: Any, dtype: torch.dtype) -> Tensor:
    result: Tensor = _Normalised.apply(states, norm.weight, norm.variance_epsilon, dtype)  # type: ignore[no-untyped-call]
    return result


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, layout: _Layout) -> Tensor:
    """Return what `_Attended` does, by the kernel of an accelerator."""
    num_rows, width = layout.shape
    one, two, three = (
        layout.as_rows(part).view(num_rows, -1, width, part.shape[-1]) for part in (queries, keys, values)
    )
    attended = scaled_dot_product_attention(one, two, three, is_causal=True, scale=1.0, enable_gqa=True)
    return layout.as_tokens(attended.contiguous(), queries.shape[1])


class LeanBody(Body):
    """The body of a model of the family, with products in `dtype`."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._model, self._dtype = model.model, dtype
        self._layers = [LeanLayer(layer, dtype) for layer in self._model.layers]

    def states(self, token_ids: Tensor, lengths: Tensor, wanted: Tensor) -> Tensor:
        """Return the states (W, H) of the wanted tokens; behind the last attention nothing else is computed."""
        layout = self._layout(text_columns(lengths))
        states: Tensor = _Embedded.apply(self._model.embed_tokens.weight, token_ids)  # type: ignore[no-untyped-call]
        for own, layer in zip(self._layers, self._model.layers, strict=True):
            kept = wanted if own is self._layers[-1] else None
            again = torch.is_grad_enabled() and is_recomputed(layer)
            states = checkpoint(own, states, layout, kept, use_reentrant=False) if again else own(states, layout, kept)
        return _normalised(states, self._model.norm, states.dtype)

    def num_positions(self, lengths: Sequence[int]) -> int:
        """Return the real tokens: there is no padding but in attention."""
        return sum(lengths)

    def _layout(self, columns: Tensor) -> _Layout:
        width = columns.shape[1]
        bias = torch.full((width, width), torch.finfo(self._dtype).min, dtype=self._dtype, device=columns.device)
        turns = rotation(self._model.rotary_emb, self._model.layers[0].self_attn.head_dim, columns.nonzero()[:, 1])
        return _Layout(columns, bias.triu_(1), turns)
