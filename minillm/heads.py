"""The output head: from states to logits, whole or a few rows at a time.

Logits of every token at once are the largest tensors of a distillation by far (N x V), and most of the time of a loss
goes into moving them. Here only a chunk of them exists, in the arithmetic of matrix products; losses read it in blocks
of rows that stay in a CPU's cache, and leave their gradient in its place (docs/decisions/losses.md has measurements).

Shapes: N tokens, H width of the states, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from minillm.gradients import accumulate, accumulate_product
from minillm.spare_memory import lent

_BLOCK_LOGITS = 2**20  # float32 numbers of a block on a CPU: 4 MiB, so that a few of its size fit the caches
_ACCELERATOR_BLOCK_LOGITS = 2**24  # 64 MiB: large for a kernel, small beside the chunk, which is of a few
_PIECE_LOGITS = 2048  # of the vocabulary, a product on a CPU: with more, the library falls behind by a seventh
_PIECE_TOKENS = 256  # of a product with the head's weights by the vocabulary, in bfloat16 on a CPU: twice as fast
_OWN_HEAD = "minillm_own_head_state_size"  # attribute of a model whose own code makes its logits
_LINE_BYTES = 64  # of a cache
_ROUND_TOKENS = 128  # a chunk is a multiple of this: products of odd sizes take up to a third longer

BlockLoss = Callable[[slice, list[Tensor]], Tensor]
"""Takes rows and their logits (n, V), student first, and returns the summed loss of the rows, a scalar."""


class Head(ABC):
    """From states to logits in two steps, and back: the projection, which fills the memory, and the rest of it."""

    @staticmethod
    def of(model: Any, dtype: torch.dtype | None = None) -> Head:
        """Return the head of a model, for products in `dtype` (float32 or None: in that of its weights)."""
        layer, state_size = model.get_output_embeddings(), getattr(model, _OWN_HEAD, None)
        weight, bias = layer.weight, getattr(layer, "bias", None)
        if state_size is not None:
            return OwnHead(model, weight, state_size)
        if dtype in (None, torch.float32):
            dtype = weight.dtype
        parts = [None if part is None else part.detach().to(dtype) for part in (weight, bias)]
        assert parts[0] is not None
        return LinearHead(parts[0], parts[1], getattr(model.config, "final_logit_softcapping", None), (weight, bias))

    weight: Tensor
    """(V, H) of the last layer: it tells the number of logits and the arithmetic of the projection."""

    @property
    def state_size(self) -> int:
        """Return H; some models project their states down before the head (OPT-350m)."""
        return int(self.weight.shape[1])

    @abstractmethod
    def projected(self, states: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the projection (..., V) without gradient, in the first rows of `out` (N, V) if it is given."""

    @abstractmethod
    def capped(self, projected: Tensor) -> Tensor:
        """Return logits, at least in float32, differentiable."""

    def as_made(self, projected: Tensor) -> Tensor:
        """Return logits in the type of the projection, unless they take more than it."""
        return projected

    @abstractmethod
    def backward(self, gradient: Tensor, states: Tensor) -> Tensor:
        """Add to the parameters' gradient what that of the projection (n, V) means, and return the states' (n, H)."""


def use_own_head(model: Any, state_size: int | None) -> None:
    """Let the model's own code make its logits, from states of this width; None: the linear head."""
    setattr(model, _OWN_HEAD, state_size)


@dataclass(frozen=True)
class OwnHead(Head):
    """Any function of the states, made by the model's own code: it runs with a body that returns the given states.

    The plain path: nothing of it is fused, and a backward pass makes the logits of a chunk once more.
    """

    model: Any
    weight: Tensor
    num_inputs: int

    @property
    def state_size(self) -> int:
        """Return H, which need not be the width of the weights here."""
        return self.num_inputs

    def projected(self, states: Tensor, out: Tensor | None = None) -> Tensor:
        """Return logits; there is no projection of their own to tell."""
        with torch.no_grad():
            logits = self._logits(states.flatten(0, -2))
        result = logits if out is None else out[: len(logits)].copy_(logits)
        return result.view(*states.shape[:-1], -1)

    def capped(self, projected: Tensor) -> Tensor:
        """Return the logits in float32."""
        return wide(projected)

    def backward(self, gradient: Tensor, states: Tensor) -> Tensor:
        """Run the model's own head once more, with gradient."""
        leaf = states.detach().to(self.weight.dtype).requires_grad_()
        with torch.enable_grad():
            logits = self._logits(leaf)
        logits.backward(gradient.to(logits.dtype))
        assert leaf.grad is not None
        return leaf.grad

    def _logits(self, states: Tensor) -> Tensor:
        with _body_returns(self.model.base_model, states.to(self.weight.dtype)[None]):
            logits: Tensor = self.model(input_ids=torch.zeros_like(states[None, :, 0], dtype=torch.long)).logits
        return logits[0]


class _States(BaseModelOutputWithPast):  # type: ignore[misc]  # the library has no types
    """The states of a body, and None for whatever else a head may ask of it: weights of experts, of attention, ..."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


@contextmanager
def _body_returns(body: Any, states: Tensor) -> Iterator[None]:
    kept = vars(body).get("forward")  # only where somebody has put another in the place of the class's
    body.forward = lambda *_, **__: _States(last_hidden_state=states)
    try:
        yield
    finally:
        del body.forward
        if kept is not None:
            body.forward = kept


@dataclass(frozen=True)
class LinearHead(Head):
    """A linear head with an optional soft cap: logits = cap tanh((W h + b) / cap).

    weight: (V, H), of the model, in the arithmetic of products.
    parameters: the model's own weight and bias, which gradients go to.
    """

    weight: Tensor
    bias: Tensor | None
    soft_cap: float | None
    parameters: tuple[Tensor, Tensor | None]

    def projected(self, states: Tensor, out: Tensor | None = None) -> Tensor:
        """Return W h + b (..., V) in the arithmetic of products, in the first rows of `out` (N, V) if it is given."""
        states = states.detach().to(self.weight.dtype)
        rows = states.flatten(0, -2)
        result = rows.new_empty(len(rows), len(self.weight)) if out is None else out[: len(rows)]
        for piece in self._pieces():
            weight, into = self.weight[piece].t(), result[:, piece]
            if self.bias is None:
                torch.mm(rows, weight, out=into)
            else:
                torch.addmm(self.bias[piece], rows, weight, out=into)
        return result.view(*states.shape[:-1], -1)

    def _pieces(self) -> Iterator[slice]:
        """Yield the parts of the vocabulary that products take in turn."""
        num_logits = len(self.weight)
        size = _PIECE_LOGITS if self.weight.device.type == "cpu" and self.weight.dtype == torch.float32 else num_logits
        for start in range(0, num_logits, size):
            yield slice(start, min(start + size, num_logits))

    def capped(self, projected: Tensor) -> Tensor:
        """Return logits, at least in float32."""
        logits = wide(projected)
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def as_made(self, projected: Tensor) -> Tensor:
        """Return logits in the type of the projection, with a cap at least in float32."""
        return projected if self.soft_cap is None else self.capped(projected)

    def backward(self, gradient: Tensor, states: Tensor) -> Tensor:
        """Add the gradient of weight and bias in place."""
        weight, bias = self.parameters
        accumulate_product([weight], gradient, states.detach().to(gradient.dtype))
        if bias is not None:
            accumulate(bias, wide(gradient).sum(dim=0))
        is_whole = gradient.device.type != "cpu" or gradient.dtype != torch.bfloat16
        size = len(gradient) if is_whole else _PIECE_TOKENS
        return torch.cat([piece @ self.weight for piece in gradient.split(size)])


def wide(values: Tensor) -> Tensor:
    """Return the values in float32, or in float64 where they are."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(frozen=True)
class Readout:
    """States (N, H) and the head that makes their logits."""

    head: Head
    states: Tensor


def backward_through_head(
    student: Readout, others: Sequence[Readout], block_loss: BlockLoss, *, memory_mib: int, in_float32: bool = True
) -> None:
    """Add the gradient of the summed block losses to the student's head and to all that its states came from.

    block_loss: called once for each block of rows; its logits are leaves, those of `others` carry no gradient.
    memory_mib: of the logits of all readouts that are alive at a time; more tokens are taken in turns.
    in_float32: whether blocks of logits are widened, which costs a pass over each; else they come as they are made.
    """
    states_gradient = torch.empty_like(student.states)
    for start, chunks in _chunks([student, *others], memory_mib):
        own = chunks[0]
        for rows in _blocks(own):
            leaf = (wide(own[rows]) if in_float32 else own[rows]).detach().requires_grad_()
            made = zip([student, *others], [leaf, *(chunk[rows] for chunk in chunks[1:])], strict=True)
            logits = [readout.head.capped(part) if in_float32 else readout.head.as_made(part) for readout, part in made]
            block_loss(slice(start + rows.start, start + rows.stop), logits).backward()
            assert leaf.grad is not None
            own[rows] = leaf.grad
        places = slice(start, start + len(own))
        states_gradient[places] = student.head.backward(own, student.states[places])
    student.states.backward(states_gradient)


@torch.no_grad()
def logit_blocks(readouts: Sequence[Readout], *, memory_mib: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield rows and their logits (n, V), one tensor a readout, until every row was there.

    The logits are good until the next ones are asked for, or the end.
    """
    for start, chunks in _chunks(readouts, memory_mib):
        for rows in _blocks(chunks[0]):
            logits = [readout.head.capped(chunk[rows]) for readout, chunk in zip(readouts, chunks, strict=True)]
            yield slice(start + rows.start, start + rows.stop), logits


@torch.no_grad()
def _chunks(readouts: Sequence[Readout], memory_mib: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield the first token of each chunk and its projections, one a readout."""
    num_tokens, heads = len(readouts[0].states), [readout.head for readout in readouts]
    size = _chunk_size(num_tokens, sum(len(head.weight) * head.weight.element_size() for head in heads), memory_mib)
    with _lent([head.weight for head in heads], min(size, num_tokens)) as buffers:  # the same for every chunk
        for start in range(0, num_tokens, max(size, 1)):
            pairs = zip(readouts, buffers, strict=True)
            yield start, [readout.head.projected(readout.states[start : start + size], out) for readout, out in pairs]


@contextmanager
def _lent(weights: Sequence[Tensor], num_tokens: int) -> Iterator[list[Tensor]]:
    """Lend memory for logits (N, V) of each head, whose rows do not begin at the same place of a CPU's caches.

    They would where V is a multiple of a large power of two, and products that read a column of them would be slower.
    """
    row_bytes = [(math.ceil(weight[:, 0].nbytes / _LINE_BYTES) | 1) * _LINE_BYTES for weight in weights]
    with lent(num_tokens * sum(row_bytes), weights[0].device) as memory:
        parts = memory.split([num_tokens * size for size in row_bytes])
        rows = [part.view(num_tokens, size) for part, size in zip(parts, row_bytes, strict=True)]
        yield [part.view(weight.dtype)[:, : len(weight)] for part, weight in zip(rows, weights, strict=True)]


def _chunk_size(num_tokens: int, bytes_per_token: int, memory_mib: int) -> int:
    """Return the tokens of a chunk: as few chunks as fit, about equal, of a round size if that many fit."""
    fitting = max(1, memory_mib * 2**20 // bytes_per_token)
    step = min(_ROUND_TOKENS, fitting)
    num_chunks = math.ceil(num_tokens / (fitting // step * step))
    return math.ceil(num_tokens / (max(num_chunks, 1) * step)) * step


def _blocks(chunk: Tensor) -> Iterator[slice]:
    """Yield the rows of each block."""
    num_rows, num_logits = chunk.shape
    size = max(1, (_BLOCK_LOGITS if chunk.device.type == "cpu" else _ACCELERATOR_BLOCK_LOGITS) // num_logits)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
