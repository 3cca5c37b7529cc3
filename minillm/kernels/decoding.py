"""A decoder's operations beside its products, for CPUs; decoding.c has the loops.

Shapes: N tokens, H width, B rows, n columns of a forward pass, A heads of queries, K of keys and as many of values, D
width of a head, S columns so far, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.kernels.compiled import KINDS, check, functions, room


class RmsNorm:
    """x weight / sqrt(mean(x^2) + smallest).

    weight: (H,), float32.
    """

    def __init__(self, weight: Tensor, smallest: float) -> None:
        check(weight, (len(weight),), torch.float32)
        self.weight, self.smallest = weight, smallest  # the weight is kept for its memory
        self.address = weight.data_ptr()

    def __call__(self, states: Tensor) -> Tensor:
        """Return normalised states (N, H), contiguous."""
        (count, width), dtype, result = states.shape, states.dtype, torch.empty_like(states)
        assert states.is_contiguous() and width == len(self.weight)
        pointers = states.data_ptr(), self.address, result.data_ptr()
        functions().norm(*pointers, KINDS[dtype], count, width, self.smallest)
        return result


class _Attention(ctypes.Structure):
    """As in decoding.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("heads", "rotation", "query_norm", "key_norm")),
        *((name, ctypes.c_float) for name in ("query_smallest", "key_smallest")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "visible", "places", "weights", "result")),
        *((name, ctypes.c_long) for name in ("tokens", "rows", "num_new", "queries", "num_keys")),
        *((name, ctypes.c_long) for name in ("width", "capacity", "columns")),
        ("kind", ctypes.c_int),
    )


class Attention:
    """What the layers of one forward pass share: where its tokens stand, how they turn and what they see.

    cache: (L, 2, B, K, C, D), each layer's keys and values, of whose C columns S are in use with the new ones.
    rotation: (N, 1, D / 2) complex.
    visible: (B, S) bool, which columns a row may see; it sees the last.
    places: (N,), where in (B, n) the tokens stand; None if all are there.
    """

    def __init__(
        self, cache: Tensor, rotation: Tensor, visible: Tensor, num_new: int, num_queries: int, places: Tensor | None
    ) -> None:
        (_, _, num_rows, num_keys, capacity, width), count = cache.shape, len(rotation)
        visible, columns = visible.contiguous(), visible.shape[1]
        assert num_queries % num_keys == 0 and num_new <= columns <= capacity
        assert places is not None or count == num_rows * num_new
        check(cache, cache.shape, cache.dtype)
        check(rotation, (count, 1, width // 2), torch.complex64)
        check(visible, (num_rows, columns), torch.bool)
        weights = room([num_rows * num_queries * columns if num_new == 1 else 0])
        self._kept = cache, rotation, visible, places, weights
        self._address, self._layer_bytes = cache.data_ptr(), cache.stride(0) * cache.element_size()
        self._shape, self._dtype = (count, num_queries + 2 * num_keys, width), cache.dtype
        self._given = given = _Attention()
        given.rotation, given.visible, given.kind = rotation.data_ptr(), visible.data_ptr(), KINDS[cache.dtype]
        given.weights = weights.data_ptr()
        if places is not None:
            given.places = check(places, (count,), torch.int64)
        sizes = {"tokens": count, "rows": num_rows, "num_new": num_new, "queries": num_queries, "num_keys": num_keys}
        for name, value in (sizes | {"width": width, "capacity": capacity, "columns": columns}).items():
            setattr(given, name, value)

    def once(self, layer: int, heads: Tensor, norms: Sequence[RmsNorm]) -> Tensor:
        """Store the keys and values of one new token a row, and return what its queries find (B, A D).

        heads: (N, A + 2 K, D): queries, keys and values before their norms, if there are any, and before they turn.
        norms: of queries and of keys, or none.
        """
        assert self._given.num_new == 1 and not self._given.places
        result = heads.new_empty(len(heads), self._given.queries * self._given.width)
        functions().attend_once(self._about(layer, heads, norms, result))
        return result

    def arranged(self, layer: int, heads: Tensor, norms: Sequence[RmsNorm]) -> Tensor:
        """Store the new keys and values; return the queries (B, K, n A / K, D), each token's of a key side by side.

        Where there is no token they are 0. heads, norms: as of `once`.
        """
        given = self._given
        group = given.queries // given.num_keys
        make = heads.new_empty if given.places is None else heads.new_zeros
        result = make(given.rows, given.num_keys, given.num_new * group, given.width)
        functions().arrange(self._about(layer, heads, norms, result))
        return result

    def gathered(self, rows: Tensor) -> Tensor:
        """Return what the queries found (B, K, n A / K, D) as (N, A D)."""
        given, rows = self._given, rows.contiguous()
        group = given.queries // given.num_keys
        check(rows, (given.rows, given.num_keys, given.num_new * group, given.width), self._dtype)
        result = rows.new_empty(given.tokens, given.queries * given.width)
        given.heads, given.result = rows.data_ptr(), result.data_ptr()
        functions().gather(ctypes.byref(given))
        return result

    def _about(self, layer: int, heads: Tensor, norms: Sequence[RmsNorm], result: Tensor) -> Any:
        assert heads.shape == self._shape and heads.dtype == self._dtype and heads.is_contiguous()
        given = self._given
        given.heads, given.result = heads.data_ptr(), result.data_ptr()
        given.keys = self._address + layer * self._layer_bytes
        given.values = given.keys + self._layer_bytes // 2
        if norms:
            query, key = norms
            assert len(query.weight) == len(key.weight) == given.width
            given.query_norm, given.query_smallest = query.address, query.smallest
            given.key_norm, given.key_smallest = key.address, key.smallest
        return ctypes.byref(given)


def drawn(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return token ids and their log-probabilities (B,) by inverting the cumulative distribution at uniforms (B,).

    logits: (B, V), float32. uniforms: float64 in [0, 1). A token of probability 0 never comes; of logits that are not
    finite the log-probability is NaN. Sums of 256 tokens are float32, all else float64.
    """
    num_rows, num_tokens = logits.shape
    check(logits, (num_rows, num_tokens), torch.float32)
    check(uniforms, (num_rows,), torch.float64)
    token_ids, logprobs = logits.new_empty(num_rows, dtype=torch.int64), logits.new_empty(num_rows)
    pointers = (part.data_ptr() for part in (logits, uniforms, token_ids, logprobs))
    functions().draw(*pointers, num_rows, num_tokens)
    return token_ids, logprobs
