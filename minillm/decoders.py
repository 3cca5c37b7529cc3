"""Decoders: a model, its cache, and the tokens that it has not seen yet.

Shapes: B rows, n tokens of a forward pass, P prompt, T response, H width of the states, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from minillm.attention import attention_of, decoding_attention
from minillm.heads import Head, LinearHead
from minillm.logprobs import position_ids
from minillm.packed_model import is_packed
from minillm.types import PromptBatch

_MAX_POSITIONS = 2048  # of a forward pass: enough for products at full speed


class Reads(NamedTuple):
    """What a decoder has put its model through: forward passes and positions.

    Idle rows are included, and padding where the model sees it.
    """

    num_calls: int = 0
    num_positions: int = 0


class Decoder(ABC):
    """Runs a model over tokens that come one by one, as late as it is asked to: several then go in one forward pass.

    kept: (B, T, H), where the states go from which the model predicts each response token; None keeps none.
    """

    def __init__(self, prompts: PromptBatch, kept: Tensor | None) -> None:
        self._pending, self._mask = prompts.prompt_ids, prompts.prompt_mask
        self._kept, self._rows = kept, torch.arange(len(prompts.row_ids), device=self._mask.device)
        self._first = 1 - self._mask.shape[1]  # the response token that the first state predicts
        self._last: Tensor | None = None  # (B, H), the latest states
        self.reads = Reads()

    @torch.inference_mode()
    def next_logits(self) -> Tensor:
        """Return float32 logits (B, V) of the next token after running the pending ones; not for autograd."""
        self.flush()
        assert self._last is not None
        return self._logits(self._last)

    @torch.inference_mode()
    def flush(self) -> None:
        """Run the pending tokens, if there are any: in one pass, or in as many as bound the memory of attention."""
        num_rows, num_pending = self._pending.shape
        num_read, width = self._mask.shape[1] - num_pending, max(_MAX_POSITIONS // max(num_rows, 1), 1)
        for first in range(0, num_pending, width):
            piece = self._pending[:, first : first + width]
            self._read(piece, self._mask[:, : num_read + first + piece.shape[1]])
        self._pending = self._pending[:, :0]

    def _read(self, token_ids: Tensor, mask: Tensor) -> None:
        states = self._forward(token_ids, mask)
        num_positions = self._num_positions(token_ids, mask)
        self.reads = Reads(self.reads.num_calls + 1, self.reads.num_positions + num_positions)
        self._last = states[:, -1]
        if self._kept is not None:
            self._keep_states(self._kept, states, mask.shape[1])

    def append(self, token_ids: Tensor) -> None:
        """Add tokens (B, n) to every row."""
        self._pending = torch.cat([self._pending, token_ids], dim=1)
        self._mask = torch.cat([self._mask, torch.ones_like(token_ids, dtype=torch.bool)], dim=1)

    def keep(self, rows: Tensor) -> None:
        """Retire all rows but the given ones; where states are kept, theirs are completed first."""
        if self._kept is not None:
            self.flush()
        self._pending, self._mask, self._rows = self._pending[rows], self._mask[rows], self._rows[rows]
        self._last = None if self._last is None else self._last[rows]
        self._keep_cache(rows)

    def _keep_states(self, kept: Tensor, states: Tensor, num_columns: int) -> None:
        first = self._first + num_columns - states.shape[1]
        start, stop = max(first, 0), min(self._first + num_columns, kept.shape[1])
        if start < stop:
            kept[self._rows, start:stop] = states[:, start - first : stop - first].to(kept.dtype)

    def _num_positions(self, token_ids: Tensor, mask: Tensor) -> int:
        """Return how many positions a forward pass over the last tokens of the rows takes."""
        return token_ids.numel()

    @abstractmethod
    def _forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states (B, n, H) of the last tokens of the rows, whose real tokens the mask (B, S) tells."""

    @abstractmethod
    def _logits(self, states: Tensor) -> Tensor:
        """Return logits (B, V) of states (B, H)."""

    @abstractmethod
    def _keep_cache(self, rows: Tensor) -> None:
        """Retire the other rows from the cache."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # the library has no types
    """The library's cache of one layer, in memory for as many columns as it will ever have: growing copies nothing."""

    def __init__(self, num_columns: int) -> None:
        super().__init__()
        self._num_columns = num_columns
        self._memory: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory for keys and values like these (B, K, n, D)."""
        super().lazy_initialization(key_states, value_states)
        parts = (key_states, value_states)
        self._memory = tuple(part.new_empty(*part.shape[:2], self._num_columns, part.shape[3]) for part in parts)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, K, n, D) and return all so far (B, K, S, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, num_new = self.get_seq_length(), key_states.shape[2]
        stop = start + num_new
        for memory, part in zip(self._memory, (key_states, value_states), strict=True):
            memory.narrow(2, start, num_new).copy_(part)
        self.keys, self.values = (memory[:, :, :stop] for memory in self._memory)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Retire all rows but these."""
        if not self.is_initialized:  # it shares those of another layer
            return
        num_columns, self._memory = self.get_seq_length(), tuple(memory[indices] for memory in self._memory)
        self.keys, self.values = (memory[:, :, :num_columns] for memory in self._memory)


def growing_cache(config: Any, num_columns: int) -> DynamicCache:
    """Return a cache for a model; layers that keep anything but all keys and values are as the library makes them."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer(num_columns) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class GenericDecoder(Decoder):
    """Any causal language model of transformers, or a packed copy of it."""

    def __init__(self, model: Any, prompts: PromptBatch, num_tokens: int, kept: Tensor | None = None) -> None:
        super().__init__(prompts, kept)
        self._model, self._cache = model, growing_cache(model.config, prompts.prompt_ids.shape[1] + num_tokens)
        self._attention = decoding_attention(model)

    def _forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        with attention_of(self._model.config, self._attention):
            output = self._model.base_model(
                input_ids=token_ids,
                attention_mask=mask.long(),
                position_ids=position_ids(mask)[:, -token_ids.shape[1] :],
                cache=self._cache,
                use_cache=True,
            )
        states: Tensor = output.last_hidden_state
        return states

    def _logits(self, states: Tensor) -> Tensor:
        head, layer = Head.of(self._model), self._model.get_output_embeddings()
        is_linear = isinstance(head, LinearHead) and is_packed(layer)
        return head.capped(layer(states.to(layer.weight.dtype)) if is_linear else head.projected(states))

    def _keep_cache(self, rows: Tensor) -> None:
        if self._cache.get_seq_length() > 0:
            self._cache.batch_select_indices(rows)
