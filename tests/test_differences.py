from __future__ import annotations

import pytest
import torch

from tests import shared_draws, tabular
from tests.differences import table
from tests.imports import ROOT


def test_the_page_shows_the_numbers_that_the_enumeration_gives() -> None:
    assert table() in (ROOT / "docs/differences.md").read_text(encoding="utf-8")


def test_the_page_on_sampling_shows_the_noise_that_the_enumeration_gives() -> None:
    assert shared_draws.table() in (ROOT / "docs/decisions/sampling.md").read_text(encoding="utf-8")


def test_noise_between_and_within_patterns_is_that_of_a_row_under_the_mixture() -> None:
    student, teacher = tabular.random_table(1), tabular.random_table(2)
    gradients = torch.stack([shared_draws.row_gradient(sequence, 0.2) for sequence in tabular.sequences()])
    chances = [tabular.mixture_probability(student, teacher, sequence, 0.2) for sequence in tabular.sequences()]
    chance = torch.stack(chances)
    total = float(chance @ (gradients - chance @ gradients).square().sum(1))
    assert sum(shared_draws.moments(0.2)) == pytest.approx(total, rel=1e-12)
