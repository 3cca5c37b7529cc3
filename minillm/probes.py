"""Small questions put to a model right after loading: whether it is one that we can train, score and decode."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minillm.attention import keep_attention
from minillm.decoders import GenericDecoder
from minillm.errors import UserError
from minillm.heads import use_own_head
from minillm.logprobs import head_logits
from minillm.packed_model import packed_copy
from minillm.types import PromptBatch

_log = logging.getLogger(__name__)
_NUM_PROBE_TOKENS = 4
_LARGE_LOGIT = 100.0  # trained models reach it, and every known cap is below
_HEAD_TOLERANCE = 1e-4  # of the largest logit
_ROUNDED_HEAD_TOLERANCE = 1e-2  # bfloat16 heads round differently by less
_DECODING_TOLERANCE = 1e-3  # of the largest logit
_ROUNDED_DECODING_TOLERANCE = 0.1  # in bfloat16: layers add up what they round


@torch.no_grad()
def check_causal(model: Any, location: str) -> None:
    """Raise UserError when the model cannot run, its logits are not finite, or they change with a later token."""
    ids = _probe_ids(model)
    changed = ids.clone()
    changed[:, -1] = 0
    try:
        before, after = (model(input_ids=row).logits[:, :-1].float() for row in (ids, changed))
    except Exception as error:  # whatever a model's code may raise
        raise UserError(
            f"{location}: {type(model).__name__} fails to read a text of {ids.numel()} tokens: {_first_line(error)}"
        ) from error
    if not before.isfinite().all():
        raise UserError(f"{location}: {type(model).__name__} gives logits that are not finite; are its weights?")
    if not _agree(before, after, _head_tolerance(model)):
        raise UserError(f"{location}: {type(model).__name__} is no causal language model: a token sees those behind it")


@torch.no_grad()
def choose_head(model: Any, location: str) -> None:
    """Leave a model whose logits `Head` cannot make, for a transform that it does not know, to its own code.

    A warning says so. UserError when that code asks for more than the last states: every loss would be wrong.
    """
    ids = _probe_ids(model)
    logits, states = model(input_ids=ids).logits.float(), model.base_model(input_ids=ids).last_hidden_state
    large = states * (_LARGE_LOGIT / logits.abs().max().clamp(min=1e-6)).to(states.dtype)  # where a cap shows
    own, own_of_large = (_made_logits(model, part, states.shape[-1]) for part in (states, large))
    linear, linear_of_large = (_made_logits(model, part, None) for part in (states, large))
    tolerance = _head_tolerance(model)
    is_own = _agree(own, logits, tolerance)
    if _agree(linear, logits, tolerance) and (not is_own or _agree(linear_of_large, own_of_large, tolerance)):
        return
    if not is_own:
        raise UserError(
            f"{location}: {type(model).__name__} makes its logits in a way that is not supported: neither its linear"
            " head nor its own code makes them from its last states alone"
        )
    use_own_head(model, states.shape[-1])
    _warn_of_own_head(type(model).__name__)


def _made_logits(model: Any, states: Tensor, own_size: int | None) -> Tensor | None:
    """Return the logits that the model's own head or (None) the linear one makes of states; None if it cannot."""
    use_own_head(model, own_size)
    try:
        return head_logits(model, states)
    except Exception:  # whatever a model's code may raise, or a product of sizes that do not fit
        return None
    finally:
        use_own_head(model, None)


@torch.no_grad()
def check_decoding(model: Any, location: str) -> None:
    """Raise UserError unless texts can be read as they are decoded: padded on the left, in pieces, with a cache.

    Logits are compared without their mean, which no distribution shows. A model that only its own attention decodes
    right keeps that.
    """
    if not _decodes_right(model, location):
        keep_attention(model)
        if not _decodes_right(model, location):
            raise UserError(
                f"{location}: {type(model).__name__} cannot be decoded: in pieces with a cache, padded on the left, it"
                " does not read a text as it does at once"
            )


def _decodes_right(model: Any, location: str) -> bool:
    ids, mask = _padded_probe(model)
    whole = torch.cat([model(input_ids=row[kept][None]).logits[:, -1] for row, kept in zip(ids, mask, strict=True)])
    try:
        decoded = _decoded(model, PromptBatch(ids[:, :3], mask[:, :3], [0, 1]), ids[:, 3:])
    except Exception as error:  # whatever a model's code may raise
        raise UserError(
            f"{location}: {type(model).__name__} cannot be decoded: it fails to read a text in pieces with a cache:"
            f" {_first_line(error)}"
        ) from error
    decoded, whole = (logits.float() - logits.float().mean(dim=-1, keepdim=True) for logits in (decoded, whole))
    is_rounded = model.dtype == torch.bfloat16
    return _agree(decoded, whole, _ROUNDED_DECODING_TOLERANCE if is_rounded else _DECODING_TOLERANCE)


def _padded_probe(model: Any) -> tuple[Tensor, Tensor]:
    """Return two texts and the mask of their tokens (2, L), the first one padded with what no model knows as padding.

    The embedding of a model's own padding is often zero, which hides that it is seen.
    """
    first = 2 if getattr(model.config, "pad_token_id", None) == 1 else 1
    ids = torch.cat([_probe_ids(model)] * 2, dim=1)[:, first : first + _NUM_PROBE_TOKENS + 2].expand(2, -1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 0] = False
    return ids, mask


def _decoded(model: Any, prompts: PromptBatch, token_ids: Tensor) -> Tensor:
    """Return the last logits (2, V) behind prompts and tokens (2, 3), one and two at a time; the rows move between."""
    decoder = GenericDecoder(packed_copy(model), prompts, token_ids.shape[1])
    moved = torch.tensor([1, 0], device=token_ids.device)
    decoder.append(token_ids[:, :1])
    decoder.flush()
    decoder.keep(moved)
    decoder.append(token_ids[moved, 1:])
    return decoder.next_logits()[moved]


def _probe_ids(model: Any) -> Tensor:
    return torch.arange(_NUM_PROBE_TOKENS, device=next(model.parameters()).device)[None]


def _agree(ours: Tensor | None, logits: Tensor | None, tolerance: float) -> bool:
    if ours is None or logits is None or ours.shape != logits.shape:
        return False
    return bool((ours - logits).abs().max() <= tolerance * logits.abs().max())


def _head_tolerance(model: Any) -> float:
    return _ROUNDED_HEAD_TOLERANCE if model.dtype == torch.bfloat16 else _HEAD_TOLERANCE


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@cache
def _warn_of_own_head(kind: str) -> None:
    _log.warning("%s transforms its logits in a way of its own: its code makes them, unfused and slower", kind)
