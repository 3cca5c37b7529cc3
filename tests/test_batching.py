"""Which texts share a forward pass."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minillm.batching import token_batches


def test_texts_of_similar_length_go_together_up_to_the_limit() -> None:
    assert token_batches([3, 10, 2, 4, 30, 3], 12) == [[2, 0, 5], [3], [1], [4]]


def test_no_texts_are_no_batches() -> None:
    assert token_batches([], 12) == []


@given(st.lists(st.integers(1, 50)), st.integers(1, 120))
def test_every_text_is_in_one_batch_that_fits_or_alone(lengths: list[int], max_tokens: int) -> None:
    batches = token_batches(lengths, max_tokens)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[place] for place in batch)
        assert padded <= max_tokens or len(batch) == 1
