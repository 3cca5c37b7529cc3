"""Bodies of models: from whole texts to their states.

Shapes: B texts, L columns of texts padded on the right, N tokens of all texts, W of them wanted, H width of the states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.device import Compute
from minillm.logprobs import position_ids
from minillm.packed_rows import packed_states, packs, text_columns


class Body(ABC):
    """A model up to its last states, for training and scoring; good until the model changes."""

    @abstractmethod
    def states(self, token_ids: Tensor, lengths: Tensor, wanted: Tensor) -> Tensor:
        """Return the states (W, H) of the W wanted (N,) tokens in texts (N,) of the given lengths (B,), in a row."""

    @abstractmethod
    def num_positions(self, lengths: Sequence[int]) -> int:
        """Return how many positions are computed for texts of these lengths, padding included."""


@dataclass(frozen=True)
class LibraryBody(Body):
    """Any causal language model of transformers, with products in `dtype`."""

    model: Any
    dtype: torch.dtype

    def states(self, token_ids: Tensor, lengths: Tensor, wanted: Tensor) -> Tensor:
        """Return the states from one row without padding, where the model's attention can be laid out."""
        with Compute(token_ids.device, self.dtype).autocast():
            if packs(self.model):
                return packed_states(self.model, token_ids, lengths)[wanted]
            return self._padded_states(token_ids, text_columns(lengths))[wanted]

    def num_positions(self, lengths: Sequence[int]) -> int:
        """Return the real tokens, or those of padded rows."""
        return sum(lengths) if packs(self.model) else len(lengths) * max(lengths)

    def _padded_states(self, token_ids: Tensor, columns: Tensor) -> Tensor:
        padded = token_ids.new_zeros(columns.shape).masked_scatter(columns, token_ids)
        output = self.model.base_model(
            input_ids=padded, attention_mask=columns.long(), position_ids=position_ids(columns), use_cache=False
        )
        states: Tensor = output.last_hidden_state
        return states[columns]
