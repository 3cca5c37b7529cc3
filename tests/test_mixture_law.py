"""The law of a row under the draws that a run makes: one seed for tokens and components, neighbours share patterns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.generation import sampled_batches
from minillm.sampling import decodable
from tests import tiny
from tests.test_sampling import CHI_SQUARE_Z, chi_square_z, next_distribution
from tests.tiny_run import decoding

ALPHA, PROMPT = 0.4, [5, 9, 3]
NUM_BATCHES, NUM_ROWS = 1200, 3


def binned(first: Tensor, second: Tensor) -> Tensor:
    """Return which of fifteen cells pairs of tokens fall into."""
    return first % 3 * 5 + second % 5


def two_token_law(student: Any, teacher: Any) -> Tensor:
    """Return the probability of each cell under the mixture, both tokens summed over the whole vocabulary."""
    tokens = torch.arange(tiny.NUM_TOKENS)
    continued = torch.cat([torch.tensor(PROMPT).expand(len(tokens), -1), tokens[:, None]], dim=1)
    firsts = [next_distribution(model, PROMPT) for model in (teacher, student)]
    with torch.no_grad():
        seconds = [model(continued).logits[:, -1].double().softmax(-1) for model in (teacher, student)]
    first, second = (ALPHA * mine + (1 - ALPHA) * other for mine, other in (firsts, seconds))
    cells = binned(tokens[:, None], tokens[None]).flatten()
    return torch.zeros(15, dtype=torch.float64).index_add_(0, cells, (first[:, None] * second).flatten())


@pytest.mark.parametrize("prepared", [lambda model: model, decodable], ids=["generic", "chosen"])
def test_two_tokens_of_a_row_follow_the_mixture_jointly_whatever_its_neighbours_share(prepared: Any) -> None:
    student, teacher = tiny.tiny_llama(1), tiny.tiny_llama(2)
    settings = replace(decoding(seed=17, step=1, batch_size=NUM_ROWS, max_tokens=2), end_id=-1)
    rows = [PROMPT] * (NUM_ROWS * NUM_BATCHES)
    models = prepared(student), prepared(teacher)
    pairs, num_shared = [], 0
    for _, responses in sampled_batches(*models, rows, range(len(rows)), settings, ALPHA):
        pairs.append(responses.response_ids)
        num_shared += bool((responses.teacher_picks == responses.teacher_picks[0]).all())
    assert num_shared == NUM_BATCHES
    drawn, law = torch.stack(pairs), two_token_law(student, teacher)
    for row in range(NUM_ROWS):
        counts = torch.bincount(binned(drawn[:, row, 0], drawn[:, row, 1]), minlength=15)
        assert chi_square_z(counts, law) < CHI_SQUARE_Z
