"""Make a student by cutting the least influential layers out of the teacher."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minillm.errors import UserError
from minillm.logprobs import position_ids
from minillm.model_directory import check_num_layers
from minillm.probes import choose_head


@torch.no_grad()
def block_influence(model: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Return, per layer, 1 - cosine of the angle between its input and output, averaged over real tokens.

    batches: (input_ids, attention_mask) pairs, (B, L). Source: ShortGPT, arXiv:2403.03853, block influence.
    """
    layers = model.get_submodule(_layer_list(model)[0].removesuffix("."))
    totals, num_tokens = [0.0] * len(layers), 0
    for input_ids, mask in batches:
        with ExitStack() as hooks:
            for index, layer in enumerate(layers):
                hook = layer.register_forward_hook(partial(_add_influence, totals, index, mask), with_kwargs=True)
                hooks.callback(hook.remove)
            model.base_model(input_ids=input_ids, attention_mask=mask.long(), position_ids=position_ids(mask))
        num_tokens += int(mask.sum())
    return [total / num_tokens for total in totals]


def _add_influence(
    totals: list[float],
    index: int,
    mask: Tensor,
    layer: Any,
    inputs: tuple[Any, ...],
    named: Any,
    output: Any,
) -> None:
    """Read a layer's own input and output: what a model returns as its last states may be normalised or projected."""
    before = inputs[0] if inputs else named["hidden_states"]
    after = output[0] if isinstance(output, tuple) else output
    similarity = torch.cosine_similarity(before[mask].float(), after[mask].float(), dim=-1)
    totals[index] += float((1 - similarity).sum())


def most_influential_layers(influence: list[float], num_layers: int) -> list[int]:
    """Return the indices of the layers to keep, in order; more layers than the teacher has is a UserError."""
    check_num_layers(num_layers, len(influence))
    ranked = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return sorted(ranked[:num_layers])


def cut_model(model: Any, kept_layers: list[int]) -> Any:
    """Return a new model with the given layers of `model`, weights copied, in the same dtype and on the same device."""
    prefix, num_layers = _layer_list(model)
    config = copy.deepcopy(model.config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == num_layers:
            setattr(config, name, [value[layer] for layer in kept_layers])
    config.num_hidden_layers = len(kept_layers)
    student = type(model)(config)
    student.load_state_dict(_renumbered(model.state_dict(), prefix, kept_layers))
    student.tie_weights()
    reference = next(model.parameters())
    student = student.to(reference.device, reference.dtype).eval()
    choose_head(student, "student_model")
    return student


def _layer_list(model: Any) -> tuple[str, int]:
    """Return the name and the length of the module list that holds the decoder layers."""
    num_layers = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return f"{name}.", num_layers
    raise UserError(f"student_model.source: 'cut' finds no list of {num_layers} layers in {type(model).__name__}")


def _renumbered(weights: dict[str, Tensor], prefix: str, kept_layers: list[int]) -> dict[str, Tensor]:
    new_index = {old: new for new, old in enumerate(kept_layers)}
    result = {}
    for name, value in weights.items():
        if not name.startswith(prefix):
            result[name] = value
            continue
        layer, rest = name.removeprefix(prefix).split(".", 1)
        if int(layer) in new_index:
            result[f"{prefix}{new_index[int(layer)]}.{rest}"] = value
    return result
