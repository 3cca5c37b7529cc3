"""Models that we run by layers of our own: Llama, Qwen2 and Qwen3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.activations import SiLUActivation

from minillm.checkpointing import is_recomputed

_FAMILY = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)

_LIBRARY_CLASSES = (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, SiLUActivation)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_supported(model: Any) -> bool:
    """Return whether the model is of the family, as the library makes it, and looks at all earlier tokens."""
    kinds = getattr(model.config, "layer_types", None) or []
    dtypes = {parameter.dtype for parameter in model.parameters()}
    looks_at_all = all(kind == "full_attention" for kind in kinds)
    return type(model) in _FAMILY and looks_at_all and len(dtypes) == 1 and _is_as_made(model)


def _is_as_made(model: Any) -> bool:
    """Return whether nothing was put into the model's body that its own code would run and ours would not."""
    body, table, modules = model.model, model.model.embed_tokens, list(model.model.modules())
    kinds = {type(model).__module__, *(known.__module__ for known in _LIBRARY_CLASSES)}
    changed = [module for module in modules if "forward" in vars(module) and not is_recomputed(module)]
    hooked = [module for module in modules if any(getattr(module, name) for name in _HOOKS)]
    return (
        all(type(module).__module__ in kinds for module in modules)
        and not changed
        and not hooked
        and table.max_norm is None
        and not table.scale_grad_by_freq
        and len(body.layers) == model.config.num_hidden_layers
        and not (model.training and model.config.attention_dropout)
    )


def pair_order(head_size: int) -> Tensor:
    """Return the order (D,) that puts each number of a head beside the one that it turns with, half a head apart."""
    return torch.arange(head_size).view(2, -1).t().flatten()


def heads_order(attention: Any) -> Tensor:
    """Return the order of the rows of a layer's weights of queries, keys and values, in turn, by `pair_order`.

    Those of values, which do not turn, keep their places.
    """
    parts = [len(layer.weight) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    heads = torch.arange(sum(parts)).view(-1, attention.head_dim)
    num_turning = (parts[0] + parts[1]) // attention.head_dim
    order = torch.cat([heads[:num_turning, pair_order(attention.head_dim)], heads[num_turning:]]).flatten()
    return order.to(attention.q_proj.weight.device)


def rotation(rotary: Any, head_size: int, positions: Tensor) -> Tensor:
    """Return cosines + i sines (N, 1, D / 2) of a model's rotary embedding at positions (N,)."""
    probe = torch.empty(0, dtype=torch.float32, device=positions.device)
    cosines, sines = (part[0, :, None, : head_size // 2] for part in rotary(probe, positions[None]))
    return torch.complex(cosines.contiguous(), sines.contiguous())
