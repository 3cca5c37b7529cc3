"""Documents become blocks of one length, and every token is in a block or counted as left."""

from __future__ import annotations

import numpy as np
import pytest

from minillm.packing import pack_documents


def documents(*lengths: int) -> list[np.ndarray]:
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end, dtype=np.int32) for end, length in zip(ends, lengths, strict=True)]


def test_blocks_are_the_joined_documents_cut_into_equal_parts() -> None:
    corpus = pack_documents(documents(3, 5, 2), block_tokens=4, max_blocks=9)
    assert corpus.blocks.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert corpus.num_left == 2


def test_chosen_blocks_are_spread_evenly_over_the_corpus() -> None:
    corpus = pack_documents(documents(50, 53), block_tokens=10, max_blocks=4)
    assert corpus.blocks[:, 0].tolist() == [0, 20, 50, 70]  # blocks 0, 2, 5, 7 of 10
    assert corpus.num_left == 103 - 40


@pytest.mark.parametrize("lengths", [(), (3,)])
def test_less_than_a_block_is_left(lengths: tuple[int, ...]) -> None:
    corpus = pack_documents(documents(*lengths), block_tokens=4, max_blocks=2)
    assert corpus.blocks.shape == (0, 4)
    assert corpus.num_left == sum(lengths)
