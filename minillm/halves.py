"""A model in two halves, up to its last states and from them to logits, for training and scoring.

Shapes: N response tokens of a batch, H width of the states.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from minillm import lean_body
from minillm.bodies import Body, LibraryBody
from minillm.heads import Head, Readout
from minillm.types import Texts


@dataclass(frozen=True)
class Halves:
    """Body and head of a model, made when they are first asked for; good until the model changes.

    dtype: of products; float32 or None: that of the weights.
    """

    model: Any
    dtype: torch.dtype | None = None

    @cached_property
    def body(self) -> Body:
        """Return the half up to the last states."""
        return body_of(self.model, self.dtype)

    @cached_property
    def head(self) -> Head:
        """Return the half from states to logits."""
        return Head.of(self.model, self.dtype)

    def readout(self, texts: Texts) -> Readout:
        """Return what predicts every response token, row after row."""
        return Readout(self.head, response_states(self.body, texts))


def body_of(model: Any, dtype: torch.dtype | None = None) -> Body:
    """Return the body of a model, our own layers where it is of a family that we know."""
    if not lean_body.is_supported(model):
        return LibraryBody(model, torch.float32 if dtype is None else dtype)
    return lean_body.LeanBody(model, model.dtype if dtype in (None, torch.float32) else dtype)


def response_states(body: Body, texts: Texts) -> Tensor:
    """Return the states (N, H) from which the head predicts each response token, row after row.

    The state that predicts response token t is the one at token t - 1; the first is predicted from the prompt's last,
    wherever its padding stands.
    """
    ids = torch.cat([texts.prompt_ids, texts.response_ids], dim=1)
    mask = torch.cat([texts.prompt_mask, texts.response_mask], dim=1)
    is_response = torch.cat([torch.zeros_like(texts.prompt_mask), texts.response_mask], dim=1)[mask]
    assert texts.prompt_mask.any(dim=1).all(), "a prompt is empty: nothing predicts its response's first token"
    predicts = is_response.roll(-1)  # behind a row's last token comes the first of a prompt
    return body.states(ids[mask], mask.sum(dim=1), predicts)
