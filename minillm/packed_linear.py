"""Linear layers with their weights in the layout that a CPU's products of few rows want.

Shapes: N tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from minillm.gradients import joined

_SMALLEST = 2**16  # numbers of weights that are packed: MKL reserves 7 to 10 MiB beside each
_MKL_ROWS = 256  # that MKL lays weights out for: any number may come, and from few to many this serves them best


class PackedLinear(ABC):
    """W x + b, and what often comes right behind it; most kinds hold a copy of the weights, good until they change."""

    @staticmethod
    def of(layers: Sequence[Any], order: Tensor | None = None) -> PackedLinear:
        """Return one layer, or several that read the same input as one.

        order: (out,), the row of the weights that comes at each place.
        """
        bias = None if layers[0].bias is None else joined([layer.bias for layer in layers], order)
        return pack(joined([layer.weight for layer in layers], order), bias)

    @abstractmethod
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take weights (out, in) and biases (out,)."""

    @abstractmethod
    def __call__(self, states: Tensor) -> Tensor:
        """Return W x + b (..., out) of states (..., in), for each layer in turn."""

    def silu(self, states: Tensor) -> Tensor:
        """Return silu(W x + b) (N, out)."""
        return silu(self(states), inplace=True)

    def times(self, states: Tensor, other: Tensor) -> Tensor:
        """Return (W x + b) other (N, out), number by number."""
        return self(states).mul_(other)

    def plus(self, states: Tensor, other: Tensor) -> Tensor:
        """Return W x + b + other (N, out)."""
        return self(states).add_(other)


def pack(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """Return the fastest kind of layer with weights (out, in) and biases (out,), which have no gradient."""
    return kind_for(weight)(weight, bias)


def kind_for(weight: Tensor) -> type[PackedLinear]:
    """Return the fastest kind of layer for such weights: by device, type of numbers and size."""
    is_plain = type(weight) in (Tensor, nn.Parameter) and weight.layout is torch.strided
    is_on_cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not is_plain or not is_on_cpu or weight.numel() < _SMALLEST:
        return PlainLinear
    if weight.dtype == torch.float32:
        return MklLinear if _mkl_takes_any_rows() else OneDnnLinear
    # The library refuses to pack bfloat16 for processors without its products.
    is_fast = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return OneDnnLinear if is_fast else PlainLinear


@cache
def _mkl_takes_any_rows() -> bool:
    """Return whether weights that MKL packed for one number of rows are right for others here: it does not say."""
    if not torch.backends.mkl.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(130, 70, generator=generator), torch.randn(130, generator=generator)
    packed = MklLinear(weight, bias)
    texts = [torch.randn(num_rows, 70, generator=generator) for num_rows in (1, 17, 300)]
    return all(torch.allclose(packed(states), linear(states, weight, bias), atol=1e-4) for states in texts)


class PlainLinear(PackedLinear):
    """Weights as they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, states: Tensor) -> Tensor:
        """Return W x + b."""
        return linear(states, self._weight, self._bias)


class MklLinear(PackedLinear):
    """Weights packed by MKL, in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed, self._bias = torch.ops.mkl._mkl_reorder_linear_weight(weight, _MKL_ROWS), bias
        # Of the weights, which the operation would fall back to if it did not take the packed ones.
        self._stand_in = weight.new_full((1,), torch.nan).expand(weight.shape)

    def __call__(self, states: Tensor) -> Tensor:
        """Return W x + b.

        The operation takes packed weights where they were packed for as many rows as come, as it is told here: the
        layout of a second factor knows nothing of the first (tests/test_packed_linear.py tries other numbers). It
        does not check their width.
        """
        assert states.shape[-1] == self._stand_in.shape[1]
        num_rows = states.numel() // states.shape[-1]
        result: Tensor = torch.ops.mkl._mkl_linear(states, self._packed, self._stand_in, self._bias, num_rows)
        return result


class OneDnnLinear(PackedLinear):
    """Weights packed by oneDNN, which does what comes right behind a product within it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed, self._bias = torch.ops.mkldnn._reorder_linear_weight(weight, None), bias

    def __call__(self, states: Tensor) -> Tensor:
        """Return W x + b."""
        return self._unary(states, "none")

    def silu(self, states: Tensor) -> Tensor:
        """Return silu(W x + b) (N, out)."""
        return self._unary(states, "swish")

    def times(self, states: Tensor, other: Tensor) -> Tensor:
        """Return (W x + b) other (N, out), number by number."""
        return self._binary(states, other, "mul")

    def plus(self, states: Tensor, other: Tensor) -> Tensor:
        """Return W x + b + other (N, out)."""
        return self._binary(states, other, "add")

    def _unary(self, states: Tensor, name: str) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(states, self._packed, self._bias, name, [], "")
        return result

    def _binary(self, states: Tensor, other: Tensor, name: str) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, other, self._packed, self._bias, name)
        return result
