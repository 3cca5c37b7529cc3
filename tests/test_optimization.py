"""The norm that gradients are clipped to, against float64."""

from __future__ import annotations

import torch

from minillm.optimization import total_norm


def test_the_norm_of_large_gradients_is_exact_to_the_rounding_of_a_number() -> None:
    """One sum of 8 million squares in float32 is off by 1e-4."""
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(*shape, generator=generator) for shape in ((20_000, 400), (7, 5, 3), (1000,), (1,))]
    exact = sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5
    assert abs(float(total_norm(gradients)) / exact - 1) < 1e-6
