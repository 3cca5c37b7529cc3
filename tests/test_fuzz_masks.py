"""Padding and masks of texts of any lengths: no token is lost or gained, and padding is never among them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.halves import body_of, response_states
from minillm.logprobs import position_ids
from minillm.packed_rows import _layout, text_columns
from minillm.padding import pad_left, pad_right, padded_texts
from minillm.sampling import _Drawn
from minillm.types import Texts

# Few ids, so that the padding and the end token are also tokens of the texts, as in models whose padding is the end.
ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=6)
PAIRS = st.lists(st.tuples(*[st.lists(st.integers(0, 3), min_size=1, max_size=9)] * 2), min_size=1, max_size=6)
PAD_ID, END_ID = 0, 1
CPU = torch.device("cpu")


def texts_of(pairs: list[tuple[list[int], list[int]]]) -> Texts:
    return padded_texts([prompt for prompt, _ in pairs], [response for _, response in pairs], PAD_ID, CPU)


@given(ROWS)
def test_padding_on_either_side_keeps_every_token_at_its_edge(rows: list[list[int]]) -> None:
    for pad, is_left in ((pad_left, True), (pad_right, False)):
        ids, mask = pad(rows, PAD_ID)
        width = max(map(len, rows))
        assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
        for row, found, kept in zip(rows, ids.tolist(), mask.tolist(), strict=True):
            padding, real = [PAD_ID] * (width - len(row)), [True] * len(row)
            assert found == (padding + row if is_left else row + padding)
            hidden = [False] * len(padding)
            assert kept == (hidden + real if is_left else real + hidden)


@given(PAIRS, st.data())
def test_selected_texts_keep_their_tokens_and_no_column_without_any(
    pairs: list[tuple[list[int], list[int]]], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=5))
    texts = texts_of(pairs).select(torch.tensor(chosen))
    alone = texts_of([pairs[place] for place in chosen])
    for name in ("prompt_ids", "prompt_mask", "response_ids", "response_mask"):
        assert torch.equal(getattr(texts, name), getattr(alone, name))
    assert texts.lengths() == [sum(map(len, pairs[place])) for place in chosen]
    assert texts.at_tokens()["response_ids"].tolist() == [token for place in chosen for token in pairs[place][1]]


@given(ROWS)
def test_the_columns_of_texts_and_the_layout_of_their_tokens_are_each_others_inverse(rows: list[list[int]]) -> None:
    columns = text_columns(torch.tensor([len(row) for row in rows]))
    padded, mask = pad_right(rows, PAD_ID)
    assert torch.equal(columns, mask)
    layout, packed = _layout(columns), padded[mask]
    laid = packed[layout.tokens].view(len(rows), layout.width)
    assert torch.equal(laid[columns], packed) and torch.equal(laid.flatten()[layout.places], packed)
    assert (layout.tokens.view_as(laid)[~columns] == 0).all()  # padding repeats a token that the bias hides
    looks_at = layout.bias == 0
    for row, kept in enumerate(columns):
        assert not looks_at[: len(rows[row])][:, ~kept].any()  # no token sees padding


class Positions(torch.nn.Module):
    """A body whose state at a token is the token's id and its position."""

    config: Any = None

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, **_: Any
    ) -> Any:
        self.attention_mask = attention_mask
        states = torch.stack([input_ids, position_ids], dim=-1)
        return type("Output", (), {"last_hidden_state": states})

    @property
    def base_model(self) -> Positions:
        return self


@given(PAIRS)
def test_each_response_token_is_predicted_from_the_token_before_it_in_its_own_text(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    model = Positions()
    model.config = type("Config", (), {})()
    states = response_states(body_of(model), texts_of(pairs))
    texts = [prompt + response for prompt, response in pairs]
    expected = [
        [text[place - 1], place - 1]
        for text, (prompt, _) in zip(texts, pairs, strict=True)
        for place in range(len(prompt), len(text))
    ]
    assert states.tolist() == expected
    assert model.attention_mask.sum(dim=1).tolist() == [len(text) for text in texts]


@given(ROWS)
def test_positions_count_the_real_tokens_before_a_token(rows: list[list[int]]) -> None:
    for pad in (pad_left, pad_right):
        mask = pad(rows, PAD_ID)[1]
        assert position_ids(mask)[mask].tolist() == [place for row in rows for place in range(len(row))]


class Decoder:
    def __init__(self) -> None:
        self.num_kept: list[int] = []

    def keep(self, rows: torch.Tensor) -> None:
        self.num_kept.append(len(rows))


@settings(max_examples=200)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_a_drawn_response_is_masked_through_its_first_end_token_whichever_rows_are_retired(
    num_rows: int, num_tokens: int, seed: int
) -> None:
    tokens = torch.randint(0, 4, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))
    drawn, decoder = _Drawn(num_rows, num_tokens, END_ID, PAD_ID, CPU), Decoder()
    for position in range(num_tokens):
        drawn.added(tokens[drawn.active, position], position)
        if not drawn.running.any():
            break
        drawn.retire_finished([decoder])  # type: ignore[list-item]
    for row, ids, mask in zip(tokens.tolist(), drawn.ids.tolist(), drawn.mask.tolist(), strict=True):
        length = row.index(END_ID) + 1 if END_ID in row else num_tokens
        assert mask == [True] * length + [False] * (num_tokens - length)
        assert ids == row[:length] + [PAD_ID] * (num_tokens - length)
