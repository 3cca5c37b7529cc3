"""Models that we run by layers of our own: Llama, Qwen2 and Qwen3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

_FAMILY = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


def is_supported(model: Any) -> bool:
    """Return whether the model is of the family, in one type of numbers, and looks at all earlier tokens."""
    kinds = getattr(model.config, "layer_types", None) or []
    dtypes = {parameter.dtype for parameter in model.parameters()}
    return type(model) in _FAMILY and all(kind == "full_attention" for kind in kinds) and len(dtypes) == 1


def rotation(rotary: Any, head_size: int, positions: Tensor) -> Tensor:
    """Return cosines + i sines (N, 1, D / 2) of a model's rotary embedding at positions (N,)."""
    probe = torch.empty(0, dtype=torch.float32, device=positions.device)
    cosines, sines = (part[0, :, None, : head_size // 2] for part in rotary(probe, positions[None]))
    return torch.complex(cosines.contiguous(), sines.contiguous())
