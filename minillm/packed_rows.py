"""Texts of different lengths through a model's body as one row without padding, with attention within each text.

Products with weights, norms and activations take every token by itself, so they may see all texts in one row. Attention
alone has to know where a text begins: it is registered with transformers as an implementation of its own, which lays
the texts out as rows, padded on the right, where a causal mask keeps padding out of sight.

Shapes: B texts, L columns of padded rows, N tokens, A heads, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import GPT2LMHeadModel, LlamaForCausalLM, OPTForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from minillm.attention import attention_of
from minillm.heads import wide

_NAME = "packed_rows"
_FAMILY = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, GPT2LMHeadModel, OPTForCausalLM)


@dataclass(frozen=True)
class RowLayout:
    """Where the tokens of one long row stand in rows of their own.

    tokens: (B L,), the token at every place of the padded rows; the first one where there is none.
    places: (N,), the place of every token.
    width: L. bias: (L, L), 0 where a token may look, else very negative.
    """

    tokens: Tensor
    places: Tensor
    width: int
    bias: Tensor


def packs(model: Any) -> bool:
    """Return whether the model is of a family whose attention can be laid out, and looks at all earlier tokens."""
    kinds = getattr(model.config, "layer_types", None) or []
    return type(model) in _FAMILY and all(kind == "full_attention" for kind in kinds)


def text_columns(lengths: Tensor) -> Tensor:
    """Return which columns (B, L) texts of the given lengths (B,) fill when they are padded on the right."""
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def packed_states(model: Any, token_ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the states (N, H) of texts (N,) of the given lengths (B,), one after the other."""
    columns = text_columns(lengths)
    # A mask of four dimensions is taken as it is; of this shape, no attention but ours takes it.
    nothing = torch.zeros(1, 1, 1, len(token_ids) + 1, device=lengths.device)
    with attention_of(model.config, _NAME):
        output = model.base_model(
            input_ids=token_ids[None],
            position_ids=columns.nonzero()[:, 1][None],
            attention_mask=nothing,
            use_cache=False,
            row_layout=_layout(columns),
        )
    states: Tensor = output.last_hidden_state
    return states[0]


def _layout(columns: Tensor) -> RowLayout:
    width, places = columns.shape[1], columns.flatten().nonzero().squeeze(1)
    tokens = torch.zeros(columns.numel(), dtype=torch.long, device=columns.device)
    tokens[places] = torch.arange(len(places), device=columns.device)
    bias = torch.full((width, width), torch.finfo(torch.float32).min, device=columns.device).triu(1)
    return RowLayout(tokens, places, width, bias)


def _attended(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    row_layout: RowLayout,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return what attention makes of queries (1, A, N, D) and fewer or as many keys and values: (1, N, A, D)."""
    assert dropout == 0, "models are trained in evaluation mode"
    queries, keys, values = (_as_rows(part, row_layout) for part in (query, key, value))
    if query.device.type == "cpu":
        attended = _plainly_attended(queries, keys, values, scaling, row_layout.bias)
    else:
        attended = scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scaling, enable_gqa=queries.shape[1] != keys.shape[1]
        )
    return attended.transpose(1, 2).flatten(0, 1)[row_layout.places][None], None


def _as_rows(packed: Tensor, layout: RowLayout) -> Tensor:
    """Return (1, A, N, D) as (B, A, L, D)."""
    num_heads, head_size = packed.shape[1], packed.shape[3]
    laid = packed[0].index_select(1, layout.tokens)
    return laid.view(num_heads, -1, layout.width, head_size).transpose(0, 1)


def _plainly_attended(queries: Tensor, keys: Tensor, values: Tensor, scaling: float, bias: Tensor) -> Tensor:
    """Attend by two products: on a CPU the backward pass of the fused one takes longer for short texts."""
    num_rows, num_heads, width, head_size = queries.shape
    grouped = queries.reshape(num_rows, keys.shape[1], -1, head_size)  # queries of one key head, one after the other
    scores = wide(torch.matmul(grouped, keys.transpose(-1, -2))).view(num_rows, num_heads, width, width)
    weights = torch.add(bias, scores, alpha=scaling).softmax(dim=-1).to(queries.dtype)
    attended = torch.matmul(weights.view(num_rows, keys.shape[1], -1, width), values)
    return attended.view(num_rows, num_heads, width, head_size)


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attended)
