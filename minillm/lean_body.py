"""Bodies of the Llama family (Llama, Qwen2, Qwen3) for training and scoring: derivatives written out, little else.

On a CPU with fast bfloat16 products the library's layers spend twice as long beside them, on copies between two types
of numbers and on passes over memory that autograd keeps. Here weights are cast once for all forward passes between two
updates, gradients are added in place, and each part keeps what its derivative needs.

Shapes: N tokens of all texts, W of them wanted, B texts, H width, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import SiLUActivation

from minillm import llama_family
from minillm.bodies import Body
from minillm.checkpointing import is_recomputed
from minillm.lean_attention import Layout, attended, turned
from minillm.lean_parts import Linears, embedded, gated, normalised
from minillm.llama_family import heads_order, pair_order, rotation
from minillm.packed_rows import text_columns


def is_supported(model: Any) -> bool:
    """Return whether the model is of the family and of what we have derivatives of."""
    if not llama_family.is_supported(model):
        return False
    parts = [layer.mlp for layer in model.model.layers]
    linears = [linear for part in parts for linear in (part.gate_proj, part.up_proj, part.down_proj)]
    has_no_bias = all(linear.bias is None for linear in linears)
    return has_no_bias and all(isinstance(part.act_fn, SiLUActivation | nn.SiLU) for part in parts)


class LeanLayer:
    """A layer of the body."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norms, self._dtype = (layer.input_layernorm, layer.post_attention_layernorm), dtype
        self._head_norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        parts, self._pairs = [attention.q_proj, attention.k_proj, attention.v_proj], pair_order(attention.head_dim)
        self._inputs = Linears(parts, dtype, heads_order(attention))
        self._sizes = [len(part.weight) // attention.head_dim for part in parts]
        self._output, self._scaling = Linears([attention.o_proj], dtype), attention.scaling
        self._gated = [Linears([part], dtype) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]

    def __call__(self, states: Tensor, layout: Layout, wanted: Tensor | None) -> Tensor:
        """Return states (N, H) behind the layer, or (W, H) of the wanted (N,) tokens."""
        heads = self._attended(normalised(states, self._norms[0], self._dtype), layout).flatten(1)
        if wanted is not None:
            states, heads = states[wanted], heads[wanted]
        states = states + self._output(heads)
        return states + gated(normalised(states, self._norms[1], self._dtype), *self._gated)

    def _attended(self, inputs: Tensor, layout: Layout) -> Tensor:
        num_queries, num_keys, _ = self._sizes
        heads, values = (
            self._inputs(inputs).unflatten(1, (sum(self._sizes), -1)).split([num_queries + num_keys, num_keys], 1)
        )
        return attended(turned(self._normalised(heads), num_queries, layout.rotation, self._scaling), values, layout)

    def _normalised(self, heads: Tensor) -> Tensor:
        """Return queries and keys (N, A + K, D) behind the norms of heads that some models have."""
        if self._head_norms[0] is None:
            return heads
        parts = zip(heads.split(self._sizes[:2], dim=1), self._head_norms, strict=True)
        return torch.cat([normalised(part, norm, part.dtype, self._pairs) for part, norm in parts], dim=1)


class LeanBody(Body):
    """The body of a model of the family, with products in `dtype`."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._model, self._dtype = model.model, dtype
        self._layers = [LeanLayer(layer, dtype) for layer in self._model.layers]

    def states(self, token_ids: Tensor, lengths: Tensor, wanted: Tensor) -> Tensor:
        """Return the states (W, H) of the wanted tokens; behind the last attention nothing else is computed."""
        layout = self._layout(text_columns(lengths))
        states = embedded(self._model.embed_tokens, token_ids)
        for own, layer in zip(self._layers, self._model.layers, strict=True):
            kept = wanted if own is self._layers[-1] else None
            again = torch.is_grad_enabled() and is_recomputed(layer)
            states = checkpoint(own, states, layout, kept, use_reentrant=False) if again else own(states, layout, kept)
        return normalised(states, self._model.norm, states.dtype)

    def num_positions(self, lengths: Sequence[int]) -> int:
        """Return the real tokens: there is no padding but in attention."""
        return sum(lengths)

    def _layout(self, columns: Tensor) -> Layout:
        width = columns.shape[1]
        bias = torch.full((width, width), torch.finfo(self._dtype).min, dtype=self._dtype, device=columns.device)
        turns = rotation(self._model.rotary_emb, self._model.layers[0].self_attn.head_dim, columns.nonzero()[:, 1])
        return Layout(columns, bias.triu_(1), turns)
