"""Random numbers by counter: a draw depends on its key alone, never on batch composition, order or earlier draws."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """Independent uses of one seed."""

    TOKENS = 1
    COMPONENTS = 2
    TEACHER_ORDER = 3
    CORPUS_ORDER = 4
    MINIBATCH_ORDER = 5
    WARMUP_ORDER = 6
    PROMPT_ORDER = 7
    REFILL_ORDER = 8
    SOURCES = 9
    REPLAY = 10


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Return a generator that is a pure function of (seed, stream, key)."""
    sequence = np.random.SeedSequence([seed, int(stream), *key])
    return np.random.Generator(np.random.Philox(sequence))


def token_uniforms(seed: int, step: int, row_ids: Sequence[int], num_tokens: int) -> Tensor:
    """Return uniforms (B, T) float64 in [0, 1) for drawing tokens; row b depends on (seed, step, row_ids[b]) alone."""
    rows = [generator(seed, Stream.TOKENS, step, row_id).random(num_tokens) for row_id in row_ids]
    return torch.from_numpy(np.stack(rows))


def component_draws(seed: int, step: int, group: int, num_tokens: int, teacher_mix_alpha: float) -> list[bool]:
    """Return, per position, whether the teacher is the component that the mixture picked: i.i.d. with share alpha."""
    draws = generator(seed, Stream.COMPONENTS, step, group).random(num_tokens)
    return [bool(draw < teacher_mix_alpha) for draw in draws]


def permutation(seed: int, stream: Stream, epoch: int, num_items: int) -> list[int]:
    """Return a shuffled order of `num_items` items."""
    return [int(index) for index in generator(seed, stream, epoch).permutation(num_items)]
