"""Gradients of parameters that are added in place, where their products are made rather than by autograd.

Autograd would make each in new memory, in the arithmetic of the product, copy it to that of the parameter, and add it.

Shapes: N rows of a product, H their width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_PIECE_ROWS = 4096  # of a gradient that are made at a time in another type of numbers
_MADE = "minillm_made_gradient"  # attribute of a parameter: the address of the gradient that was made here
_KEPT = "minillm_kept_gradient"  # attribute of a parameter: memory for its next gradient


def put_away(parameters: Iterable[Tensor]) -> None:
    """Take the gradients off; on a CPU, the memory of those that were made here serves the parameters' next ones.

    Given back, the system would clear every page of a large one again.
    """
    for parameter in parameters:
        gradient, made = parameter.grad, vars(parameter).pop(_MADE, None)
        if gradient is not None and gradient.data_ptr() == made and gradient.device.type == "cpu":
            setattr(parameter, _KEPT, gradient)
        parameter.grad = None


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Add to the parameter's gradient, if it is trained."""
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        _new_gradient(parameter).copy_(gradient)
    else:
        parameter.grad += gradient


def in_order(rows: Tensor, order: Tensor | None) -> Tensor:
    """Return the rows in an order, if there is one."""
    return rows if order is None else rows[order]


def joined(parts: Sequence[Tensor], order: Tensor | None) -> Tensor:
    """Return the parameters of layers as one, without gradient, its rows in an order if there is one."""
    whole = parts[0].detach() if len(parts) == 1 else torch.cat([part.detach() for part in parts])
    return in_order(whole, order)


def accumulate_product(
    parameters: Sequence[Tensor], outer: Tensor, states: Tensor, order: Tensor | None = None
) -> None:
    """Add outer^T states to the gradients of the parameters, whose rows are together the columns of `outer`.

    outer: (N, rows of all parameters). states: (N, H).
    order: the column for each row; None: in turn.
    In another type of numbers than the parameters' it is made by pieces, so that a large one is never there as a whole.
    """
    if not any(parameter.requires_grad for parameter in parameters):
        return
    sizes = [len(parameter) for parameter in parameters]
    if order is not None or (outer.shape[1] <= _PIECE_ROWS and outer.dtype != parameters[0].dtype):
        products = in_order(outer.t() @ states, order)
        for parameter, product in zip(parameters, products.split(sizes), strict=True):
            accumulate(parameter, product)
        return
    for parameter, columns in zip(parameters, outer.split(sizes, dim=1), strict=True):
        _accumulate_one(parameter, columns.t(), states)


def accumulate_rows(parameter: Tensor, rows: Tensor, gradient: Tensor) -> None:
    """Add gradients (N, H) to rows (N,) of the parameter's, if it is trained."""
    if parameter.requires_grad:
        whole = _new_gradient(parameter).zero_() if parameter.grad is None else parameter.grad
        whole.index_add_(0, rows, gradient.to(parameter.dtype))


def _accumulate_one(parameter: Tensor, outer: Tensor, states: Tensor) -> None:
    if not parameter.requires_grad:
        return
    is_new = parameter.grad is None
    gradient = _new_gradient(parameter) if parameter.grad is None else parameter.grad
    if parameter.dtype == outer.dtype:
        gradient.addmm_(outer, states, beta=0 if is_new else 1)
        return
    for start in range(0, len(outer), _PIECE_ROWS):
        piece = gradient[start : start + _PIECE_ROWS]
        product = outer[start : start + _PIECE_ROWS] @ states
        piece.copy_(product) if is_new else piece.add_(product)


def _new_gradient(parameter: Tensor) -> Tensor:
    """Give the parameter a gradient, whose numbers mean nothing yet, and return it."""
    kept = vars(parameter).pop(_KEPT, None)
    kind = parameter.shape, parameter.dtype, parameter.device
    fits = kept is not None and (kept.shape, kept.dtype, kept.device) == kind
    gradient: Tensor = kept if fits else torch.empty_like(parameter)
    setattr(parameter, _MADE, gradient.data_ptr())
    parameter.grad = gradient
    return gradient
