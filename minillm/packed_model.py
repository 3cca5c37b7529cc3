"""A copy of any model whose linear layers are packed for decoding (`minillm/packed_linear.py`)."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from minillm.checkpointing import is_recomputed
from minillm.packed_linear import PackedLinear, PlainLinear, kind_for, pack

_IS_PACKED = "minillm_is_packed"


def packed_copy(model: Any) -> Any:
    """Return the model with its linear layers packed: good until its weights change, and not for training.

    Everything else is the model's own: modules are copied as they stand, with their hooks, and share its parameters.
    What somebody has given another `forward` is not copied. The model itself if it is such a copy already.
    """
    if is_packed(model):
        return model
    result = _copied(model, {})
    if result is not model:
        setattr(result, _IS_PACKED, True)
    return result


def is_packed(module: Any) -> bool:
    """Return whether a model is a packed copy, or a layer packed in one."""
    return getattr(module, _IS_PACKED, False)


def _copied(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy of a module; `known` holds those of modules that stand at several places."""
    if "forward" in vars(module) and not is_recomputed(module):
        return module
    if module not in known:
        known[module] = own = _twin(module)
        parts = module._modules.items()
        vars(own)["_modules"] = {name: None if part is None else _copied(part, known) for name, part in parts}
        if _can_pack(module):
            vars(own).update({"forward": _packed(module).__call__, _IS_PACKED: True})
    return known[module]


def _twin(module: nn.Module) -> nn.Module:
    """Return a module of the same kind and content, with dictionaries of its own, that is never recomputed."""
    own: nn.Module = object.__new__(type(module))
    vars(own).update(
        {name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(module).items()}
    )
    vars(own).pop("forward", None)
    return own


def _can_pack(module: Any) -> bool:
    """Return whether the module is a plain linear layer.

    What runs before it may make its weights anew, as `weight_norm` does.
    """
    is_plain = type(module) in (nn.Linear, Conv1D) and not module._forward_pre_hooks
    return is_plain and kind_for(module.weight) is not PlainLinear


def _packed(layer: Any) -> PackedLinear:
    weight, bias = layer.weight.detach(), layer.bias
    if isinstance(layer, Conv1D):
        weight = weight.t().contiguous()
    return pack(weight, None if bias is None else bias.detach())
