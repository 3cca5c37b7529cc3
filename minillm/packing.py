"""The plain-text corpus: documents of any length cut into blocks of one length, with nothing lost uncounted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PackedCorpus:
    """blocks: (num_blocks, block_tokens) int32. num_left: tokens in no block, at the end or between chosen blocks."""

    blocks: NDArray[np.int32]
    num_left: int


def pack_documents(documents: Iterable[NDArray[np.int32]], block_tokens: int, max_blocks: int) -> PackedCorpus:
    """Return at most `max_blocks` blocks, spread evenly over the documents joined in their order.

    Documents carry their end token. A block may hold the end of one document and the start of the next.
    """
    tokens = np.concatenate([np.zeros(0, np.int32), *documents])
    num_blocks = len(tokens) // block_tokens
    num_chosen = min(num_blocks, max_blocks)
    chosen = np.arange(num_chosen) * num_blocks // max(num_chosen, 1)
    blocks = tokens[: num_blocks * block_tokens].reshape(num_blocks, block_tokens)[chosen]
    return PackedCorpus(blocks, len(tokens) - blocks.size)
