"""A decoder for the Llama family (Llama, Qwen2, Qwen3): fused and packed weights, a preallocated cache, little else.

Only attention sees rows: everything else takes the real tokens of a forward pass one after the other, without padding.

Shapes: B rows, n columns of a forward pass, N real tokens in them, S columns so far, H width, A heads, D width of a
head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from minillm.decoders import Decoder
from minillm.heads import Head
from minillm.logprobs import position_ids
from minillm.types import PromptBatch

_FAMILY = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


def is_supported(model: Any) -> bool:
    """Return whether the model is of the family, in one type of numbers, and looks at all earlier tokens."""
    kinds = getattr(model.config, "layer_types", None) or []
    dtypes = {parameter.dtype for parameter in model.parameters()}
    return type(model) in _FAMILY and all(kind == "full_attention" for kind in kinds) and len(dtypes) == 1


class PackedLinear:
    """A linear layer, or several that read the same input, with weights in the layout that products want on a CPU."""

    def __init__(self, layers: Sequence[Any]) -> None:
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias for layer in layers]
        self._bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self._is_packed = _can_pack(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self._is_packed else weight

    def __call__(self, states: Tensor) -> Tensor:
        """Return W x + b (N, out) of states (N, in) for each layer in turn."""
        if not self._is_packed:
            return linear(states, self._weight, self._bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")
        return result


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:  # the library refuses to pack it for processors without its products
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class _Layer:
    """The weights of one layer."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.query_key_value = PackedLinear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.query_norm, self.key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.output, self.down = PackedLinear([attention.o_proj]), PackedLinear([mlp.down_proj])
        self.gate_up, self.activation = PackedLinear([mlp.gate_proj, mlp.up_proj]), mlp.act_fn

    def add_mlp(self, states: Tensor) -> None:
        """Add what the gated layer says to the states (N, H)."""
        gate, up = self.gate_up(_normalized(self.mlp_norm, states)).chunk(2, dim=-1)
        states.add_(self.down(self.activation(gate).mul_(up)))


class LeanModel:
    """A model's weights as the decoder reads them: a copy, made anew whenever the model has changed."""

    def __init__(self, model: Any) -> None:
        body, config = model.model, model.config
        self.embedding, self.norm, self._rotary = body.embed_tokens, body.norm, body.rotary_emb
        self.layers = [_Layer(layer) for layer in body.layers]
        self._head, self._head_weight = Head.of(model), PackedLinear([model.get_output_embeddings()])
        self.state_size = self._head.state_size
        self.num_key_heads = config.num_key_value_heads
        self.head_size = body.layers[0].self_attn.head_dim
        self.num_groups = config.num_attention_heads // config.num_key_value_heads
        self.dtype, self.device = self.embedding.weight.dtype, self.embedding.weight.device

    def logits(self, states: Tensor) -> Tensor:
        """Return float32 logits (B, V) of normalised states (B, H)."""
        return self._head.capped(self._head_weight(states))

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines (N, 1, D) of the rotary embedding at positions (N,)."""
        probe = torch.empty(0, dtype=torch.float32, device=positions.device)
        cosines, sines = self._rotary(probe, positions[None])
        half = self.head_size // 2
        signed = torch.cat([-sines[..., :half], sines[..., half:]], dim=-1)
        return cosines[0, :, None], signed[0, :, None]


def _normalized(norm: Any, states: Tensor) -> Tensor:
    if states.dtype != torch.float32:
        return rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)
    squares = torch.linalg.vecdot(states, states).div_(states.shape[-1])  # a third of the time of rms_norm on a CPU
    scaled: Tensor = states * squares.add_(norm.variance_epsilon).rsqrt_().unsqueeze(-1)
    return scaled.mul_(norm.weight)


@dataclass(frozen=True)
class _Pass:
    """What the layers of one forward pass share.

    shape: (B, n). places: (N,), of its real tokens in its rows, one row after the other; None if all are real.
    columns: of the cache that it takes.
    rotation: cosines and signed sines (N, 1, D).
    bias: (B, 1, 1, 1 or n, S) float32, 0 where a token may look, else very negative.
    """

    shape: tuple[int, int]
    places: Tensor | None
    columns: slice
    rotation: tuple[Tensor, Tensor]
    bias: Tensor

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
        for layer, cache in zip(self._model.layers, self._cache, strict=True):
            self._add_attention(layer, cache, states, step)
            layer.add_mlp(states)
        return step.as_rows(_normalized(self._model.norm, states))

    def _num_positions(self, token_ids: Tensor, mask: Tensor) -> int:
        return int(mask[:, -token_ids.shape[1] :].sum())

    def _logits(self, states: Tensor) -> Tensor:
        return self._model.logits(states)

    def _keep_cache(self, rows: Tensor) -> None:
        self._cache = self._cache[:, :, rows]

    def _next_pass(self, num_new: int, mask: Tensor) -> _Pass:
        num_rows, num_columns = mask.shape
        visible, new = mask[:, None, :], mask[:, -num_new:]
        if num_new > 1:
            columns = torch.arange(num_columns, device=mask.device)
            visible = visible & (columns <= columns[-num_new:, None])
        bias = torch.zeros(visible.shape, device=visible.device)
        bias.masked_fill_(~visible, torch.finfo(bias.dtype).min)
        places = None if num_new == 1 or bool(new.all()) else new.flatten().nonzero().squeeze(1)
        positions = position_ids(mask)[:, -num_new:].flatten()
        rotation = self._model.rotation(positions if places is None else positions[places])
        columns_taken = slice(num_columns - num_new, num_columns)
        return _Pass((num_rows, num_new), places, columns_taken, rotation, bias[:, None, None])

    def _add_attention(self, layer: _Layer, cache: Tensor, states: Tensor, step: _Pass) -> None:
        """Store keys and values of the new tokens, and add what attention says to the states (N, H)."""
        model, (num_rows, num_new) = self._model, step.shape
        turned, values = self._heads(layer, states, step.rotation)
        turned = step.as_rows(turned)
        queries, keys = turned.split([turned.shape[2] - model.num_key_heads, model.num_key_heads], dim=2)
        cache[0, :, :, step.columns] = keys.transpose(1, 2)
        cache[1, :, :, step.columns] = step.as_rows(values).transpose(1, 2)
        queries = queries.unflatten(2, (model.num_key_heads, -1)).permute(0, 2, 3, 1, 4)
        seen_keys, seen_values = cache[:, :, :, : step.columns.stop].flatten(1, 2)
        scores = torch.bmm(queries.flatten(2, 3).flatten(0, 1), seen_keys.transpose(1, 2)).float()
        scores = scores.view(num_rows, model.num_key_heads, model.num_groups, num_new, -1)
        weights = torch.add(step.bias, scores, alpha=model.head_size**-0.5).softmax(dim=-1)
        attended = torch.bmm(weights.to(model.dtype).flatten(2, 3).flatten(0, 1), seen_values)
        attended = attended.view(*scores.shape[:4], -1).permute(0, 3, 1, 2, 4).reshape(num_rows, num_new, -1)
        states.add_(layer.output(step.real_tokens(attended)))

    def _heads(self, layer: _Layer, states: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return turned queries and keys (N, A, D), the keys last, and values."""
        model = self._model
        heads = layer.query_key_value(_normalized(layer.input_norm, states)).unflatten(-1, (-1, model.head_size))
        num_queries = model.num_groups * model.num_key_heads
        turned, values = heads.split([num_queries + model.num_key_heads, model.num_key_heads], dim=1)
        if layer.query_norm is not None:
            queries, keys = turned.split([num_queries, model.num_key_heads], dim=1)
            turned = torch.cat([_normalized(layer.query_norm, queries), _normalized(layer.key_norm, keys)], dim=1)
        return _rotated(turned, rotation), values


def _rotated(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Return heads (B, n, A, D) turned by their positions."""
    cosines, signed_sines = rotation
    turned = heads.float()
    swapped = turned.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(turned * cosines, swapped, signed_sines).to(heads.dtype)
