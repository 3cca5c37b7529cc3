"""Gradient checkpointing: a layer keeps its input alone and runs again in the backward pass (arXiv:1604.06174).

The library's own switch works in training mode only, where it also turns the cache off. Here models stay in evaluation
mode, and passes without gradient, such as those of a decoder with its cache, are left as they are.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from minillm.attention import attention_of
from minillm.errors import UserError


def recompute_layers(model: Any) -> None:
    """Let every layer of the model run again in the backward pass, in place; raises UserError when it has none."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"runtime.gradient_checkpointing: {type(model).__name__} has no layers that can run again")
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
        layer.config_of_model = model.config


def is_recomputed(layer: Any) -> bool:
    """Return whether the layer is to run again in the backward pass."""
    return getattr(vars(layer).get("forward"), "__func__", None) is _forward


def _forward(layer: Any, *arguments: Any, **named: Any) -> Any:
    forward = type(layer).forward
    if not torch.is_grad_enabled():
        return forward(layer, *arguments, **named)
    implementation = layer.config_of_model._attn_implementation

    def run(*arguments: Any, **named: Any) -> Any:
        with attention_of(layer.config_of_model, implementation):
            return forward(layer, *arguments, **named)

    return checkpoint(run, *arguments, use_reentrant=False, **named)
