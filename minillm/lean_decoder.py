"""A decoder for the Llama family (Llama, Qwen2, Qwen3): fused and packed weights, a preallocated cache, little else.

Only attention sees rows: everything else takes the real tokens of a forward pass one after the other, without padding.
A step of a few rows pays for operations rather than for their arithmetic, so there are few: what comes right behind a
product is done within it where its layout can, and rotary positions are one product of complex numbers.

Shapes: B rows, n columns of a forward pass, N real tokens in them, S columns so far, H width, A heads of queries, K of
keys and as many of values, D width of a head, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.activations import SiLUActivation

from minillm.decoders import Decoder
from minillm.gradients import joined
from minillm.heads import Head, wide
from minillm.kernels.compiled import takes
from minillm.kernels.decoding import Attention, RmsNorm
from minillm.llama_family import heads_order, pair_order, rotation
from minillm.logprobs import position_ids
from minillm.packed_linear import PackedLinear
from minillm.types import PromptBatch


class _Norm:
    """An RMS norm: states / sqrt(|states|^2 / H + smallest) weight.

    order: (H,), the weight that comes at each place.
    """

    def __init__(self, norm: Any, order: Tensor | None = None) -> None:
        weight, smallest = wide(joined([norm.weight], order)).contiguous(), float(norm.variance_epsilon)
        self.kernel = RmsNorm(weight, smallest) if takes(norm.weight.dtype, weight.device) else None
        self._weight = weight * len(weight) ** 0.5  # with it, an operation less
        self._smallest = torch.tensor(len(weight) * smallest, dtype=weight.dtype).sqrt().to(weight.device)

    def __call__(self, states: Tensor) -> Tensor:
        """Return normalised states (..., H)."""
        if self.kernel is not None:
            return self.kernel(states)
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=self._weight.dtype)
        scaled = torch.div(states, torch.hypot(length, self._smallest)).mul_(self._weight)
        return scaled.to(states.dtype)


class _Layer:
    """The weights of one layer; in queries and keys, the numbers that turn together stand side by side."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm, self.mlp_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        parts, order = [attention.q_proj, attention.k_proj, attention.v_proj], pair_order(attention.head_dim)
        self.query_key_value = PackedLinear.of(parts, heads_order(attention))
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.head_norms = [_Norm(norm, order) for norm in norms if norm is not None]
        self.norm_kernels = [norm.kernel for norm in self.head_norms if norm.kernel is not None]
        self.output, self.down = PackedLinear.of([attention.o_proj]), PackedLinear.of([mlp.down_proj])
        self.gate, self.up = PackedLinear.of([mlp.gate_proj]), PackedLinear.of([mlp.up_proj])
        self.activation = mlp.act_fn

    def after_mlp(self, states: Tensor) -> Tensor:
        """Return the states (N, H) with what the gated layer says added to them."""
        inputs = self.mlp_norm(states)
        is_silu = isinstance(self.activation, SiLUActivation)
        gate = self.gate.silu(inputs) if is_silu else self.activation(self.gate(inputs))
        return self.down.plus(self.up.times(inputs, gate), states)


class LeanModel:
    """A model's weights as the decoder reads them, most of them copies: good until the model changes."""

    def __init__(self, model: Any) -> None:
        body, config = model.model, model.config
        self.embedding, self.norm, self._rotary = body.embed_tokens, _Norm(body.norm), body.rotary_emb
        self.layers = [_Layer(layer) for layer in body.layers]
        self._head, self._head_weight = Head.of(model), PackedLinear.of([model.get_output_embeddings()])
        self.state_size = self._head.state_size
        self.num_heads, self.num_key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = body.layers[0].self_attn.head_dim
        self.dtype, self.device = self.embedding.weight.dtype, self.embedding.weight.device

    def logits(self, states: Tensor) -> Tensor:
        """Return float32 logits (B, V) of normalised states (B, H)."""
        return self._head.capped(self._head_weight(states))

    def rotation(self, positions: Tensor) -> Tensor:
        """Return the rotation (N, 1, D / 2) at positions (N,)."""
        return rotation(self._rotary, self.head_size, positions)


@dataclass(frozen=True)
class _Pass:
    """What the layers of one forward pass share.

    shape: (B, n). places: (N,), of its real tokens in its rows, one row after the other; None if all are real.
    rotation: (N, 1, D / 2) complex.
    mask: (B, S), of real tokens.
    """

    shape: tuple[int, int]
    places: Tensor | None
    rotation: Tensor
    mask: Tensor

    def as_rows(self, values: Tensor) -> Tensor:
        """Return (N, ...) as (B, n, ...), with zeros for padding."""
        if self.places is None:
            return values.view(*self.shape, *values.shape[1:])
        rows = values.new_zeros(self.shape[0] * self.shape[1], *values.shape[1:])
        return rows.index_copy_(0, self.places, values).view(*self.shape, *values.shape[1:])

    def real_tokens(self, rows: Tensor) -> Tensor:
        """Return (B, n, ...) as (N, ...)."""
        flat = rows.flatten(0, 1)
        return flat if self.places is None else flat[self.places]


class LeanDecoder(Decoder):
    """A model of the family, with a cache that is as long as it will ever be."""

    def __init__(self, model: LeanModel, prompts: PromptBatch, num_tokens: int, kept: Tensor | None = None) -> None:
        super().__init__(prompts, kept)
        self._model = model
        num_rows, num_columns = prompts.prompt_ids.shape
        size = num_rows, model.num_key_heads, num_columns + num_tokens, model.head_size
        self._cache = torch.empty(len(model.layers), 2, *size, dtype=model.dtype, device=model.device)

    def _forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        step = self._next_pass(token_ids.shape[1], mask)
        states = self._model.embedding(step.real_tokens(token_ids))
        attention = self._attention(step)
        for index, layer in enumerate(self._model.layers):
            heads = layer.query_key_value(layer.input_norm(states)).unflatten(-1, (-1, self._model.head_size))
            states = layer.after_mlp(layer.output.plus(attention(index, layer, heads), states))
        return step.as_rows(self._model.norm(states))

    def _num_positions(self, token_ids: Tensor, mask: Tensor) -> int:
        return int(mask[:, -token_ids.shape[1] :].sum())

    def _logits(self, states: Tensor) -> Tensor:
        return self._model.logits(states)

    def _keep_cache(self, rows: Tensor) -> None:
        self._cache = self._cache[:, :, rows]

    def _next_pass(self, num_new: int, mask: Tensor) -> _Pass:
        new = mask[:, -num_new:]
        places = None if num_new == 1 or bool(new.all()) else new.flatten().nonzero().squeeze(1)
        positions = position_ids(mask)[:, -num_new:].flatten()
        rotation = self._model.rotation(positions if places is None else positions[places])
        return _Pass((len(mask), num_new), places, rotation, mask)

    def _attention(self, step: _Pass) -> _Attention:
        is_fast = takes(self._cache.dtype, self._cache.device)
        return (_KernelAttention if is_fast else _LibraryAttention)(self._model, self._cache, step)


class _Attention(ABC):
    """Attention of one forward pass; it stores what is new in the cache (L, 2, B, K, C, D)."""

    def __init__(self, model: LeanModel, cache: Tensor, step: _Pass) -> None:
        self._model, self._cache, self._step = model, cache, step
        self._num_columns, self._num_new = step.mask.shape[1], step.shape[1]

    @abstractmethod
    def __call__(self, index: int, layer: _Layer, heads: Tensor) -> Tensor:
        """Return what the queries of a layer find (N, A D).

        heads: (N, A + 2 K, D): queries, keys and values before their norms, if there are any, and before they turn.
        """

    def _attended(self, queries: Tensor, index: int) -> Tensor:
        """Return (B, K, n A / K, D) for such queries: those of one key head are the rows of one product."""
        keys, values = self._cache[index, ..., : self._num_columns, :]
        return scaled_dot_product_attention(queries, keys, values, attn_mask=self._bias)

    @cached_property
    def _bias(self) -> Tensor:
        """(B, 1, n A / K, S), with one query for all if n is 1: 0 for what a token sees, else very negative."""
        visible = self._step.mask[:, None, :]
        if self._num_new > 1:
            columns = torch.arange(self._num_columns, device=visible.device)
            visible = visible & (columns <= columns[-self._num_new :, None])
            visible = visible.repeat_interleave(self._model.num_heads // self._model.num_key_heads, dim=1)
        bias = torch.zeros(visible.shape, dtype=self._model.dtype, device=visible.device)
        return bias.masked_fill_(~visible, torch.finfo(bias.dtype).min)[:, None]


class _KernelAttention(_Attention):
    """All but the products of several tokens a row by kernels."""

    def __init__(self, model: LeanModel, cache: Tensor, step: _Pass) -> None:
        super().__init__(model, cache, step)
        self._kernel = Attention(cache, step.rotation, step.mask, self._num_new, model.num_heads, step.places)

    def __call__(self, index: int, layer: _Layer, heads: Tensor) -> Tensor:
        """Return what the queries of a layer find (N, A D)."""
        if self._num_new == 1:
            return self._kernel.once(index, heads, layer.norm_kernels)
        queries = self._kernel.arranged(index, heads, layer.norm_kernels)
        return self._kernel.gathered(self._attended(queries, index))


class _LibraryAttention(_Attention):
    def __call__(self, index: int, layer: _Layer, heads: Tensor) -> Tensor:
        """Return what the queries of a layer find (N, A D)."""
        model, step = self._model, self._step
        turning = heads[:, : -model.num_key_heads]
        parts = turning.split([model.num_heads, model.num_key_heads], dim=1)
        for part, norm in zip(parts, layer.head_norms, strict=False):
            part.copy_(norm(part))
        _turn(turning, step.rotation)
        queries, new = step.as_rows(heads).split([model.num_heads, 2 * model.num_key_heads], dim=2)
        kept = self._cache[index, ..., self._num_columns - self._num_new : self._num_columns, :]
        kept.copy_(new.unflatten(2, (2, -1)).permute(2, 0, 3, 1, 4))
        grouped = queries.unflatten(2, (model.num_key_heads, -1)).transpose(1, 2).flatten(2, 3)
        attended = self._attended(grouped, index).unflatten(2, (self._num_new, -1))
        return step.real_tokens(attended.transpose(1, 2).flatten(2))


def _turn(heads: Tensor, rotation: Tensor) -> None:
    """Turn heads (N, A + K, D), whose pairs stand side by side, in place."""
    values = wide(heads)
    torch.view_as_complex(values.unflatten(-1, (-1, 2))).mul_(rotation)
    if values is not heads:
        heads.copy_(values)
