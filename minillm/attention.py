"""Which implementation of attention a model runs: not one for all that it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_KEEPS = "minillm_keeps_attention"  # attribute of a model whose decoding must not change it


def loading_attention(device_type: str) -> str | None:
    """Return what models are loaded with; None leaves the choice to the library.

    On CPUs the backward pass of fused attention over short masked sequences is slower than the plain products.
    """
    return "eager" if device_type == "cpu" else None


def decoding_attention(model: Any) -> str:
    """Return what decoding runs: the library's fused one, which is faster there, for a model that has it."""
    own: str = model.config._attn_implementation
    can_change = own == "eager" and getattr(model, "_supports_sdpa", False) and not getattr(model, _KEEPS, False)
    return "sdpa" if can_change else own


def keep_attention(model: Any) -> None:
    """Let decoding run what the model was loaded with."""
    setattr(model, _KEEPS, True)


@contextmanager
def attention_of(config: Any, implementation: str) -> Iterator[None]:
    """Let a model with this configuration attend by another implementation for a while."""
    kept, config._attn_implementation = config._attn_implementation, implementation
    try:
        yield
    finally:
        config._attn_implementation = kept
