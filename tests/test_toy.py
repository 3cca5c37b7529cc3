"""The toy's fits are the optima they are said to be, its numbers hold by other means, and its page shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from benchmarks import toy
from minillm.divergences import reverse_kl

FORWARD, GLOBAL, OTHER = range(3)
PAGE_PATH = toy.ROOT / "docs" / "toy" / "README.md"
TOLERANCE = 1e-6
NUM_STRIPS = 4000


@pytest.fixture(scope="module")
def table() -> list[toy.Row]:
    return toy.rows()


def fit_of(line: toy.Row) -> Tensor:
    return torch.tensor([line.mean, math.log(line.std)], dtype=torch.float64, requires_grad=True)


def divergence_of(index: int) -> Callable[[Tensor], Tensor]:
    return toy.forward_kl if index == FORWARD else toy.reverse_kl


def target_pdf(point: float) -> float:
    return sum(weight * NormalDist(mean, std).pdf(point) for weight, mean, std in toy.TARGET)


def strip_sum(first: Callable[[float], float], second: Callable[[float], float], left: float, right: float) -> float:
    """Return KL(first || second) by the midpoint rule over an interval, in plain Python."""
    width = (right - left) / NUM_STRIPS
    points = (left + width * (index + 0.5) for index in range(NUM_STRIPS))
    return width * math.fsum(first(point) * math.log(first(point) / second(point)) for point in points)


def test_the_forward_fit_is_the_moment_matched_gaussian(table: list[toy.Row]) -> None:
    # mean = 0.6 (-3) + 0.4 3; E[x^2] = 0.6 (9 + 0.36) + 0.4 (9 + 0.64)
    mean, second_moment = -0.6, 9.472
    std = math.sqrt(second_moment - mean**2)
    closed = toy.moment_matched()
    assert (closed[0].item(), closed[1].exp().item()) == pytest.approx((mean, std), abs=1e-12)
    assert (table[FORWARD].mean, table[FORWARD].std) == pytest.approx((mean, std), abs=TOLERANCE)


@pytest.mark.parametrize("index", [FORWARD, GLOBAL, OTHER])
def test_each_fit_is_a_local_minimum_of_its_divergence(table: list[toy.Row], index: int) -> None:
    fit, divergence = fit_of(table[index]), divergence_of(index)
    (gradient,) = torch.autograd.grad(divergence(fit), fit)
    assert gradient.norm() < TOLERANCE
    hessian = torch.autograd.functional.hessian(divergence, fit.detach())
    assert torch.linalg.eigvalsh(hessian).min() > 0.05


def test_the_reverse_optima_are_one_per_mode_and_the_heavier_mode_is_global(table: list[toy.Row]) -> None:
    assert len(table) == 3
    for line, (weight, mean, std) in zip(table[GLOBAL:], toy.TARGET, strict=True):
        assert (line.mean, line.std) == pytest.approx((mean, std), abs=1e-3)
        # A fit equal to a mode far from the others has KL(fit || target) = -log of the mode's weight.
        assert line.reverse_kl == pytest.approx(-math.log(weight), abs=1e-3)
    assert table[GLOBAL].reverse_kl < table[OTHER].reverse_kl < table[FORWARD].reverse_kl


def test_a_scan_of_means_and_deviations_finds_no_other_reverse_optimum(table: list[toy.Row]) -> None:
    means = torch.arange(-8, 8.1, 0.5, dtype=torch.float64)
    log_stds = torch.linspace(math.log(0.2), math.log(6.0), 17, dtype=torch.float64)
    fits = torch.cartesian_prod(means, log_stds)
    values = torch.vmap(toy.reverse_kl)(fits).view(len(means), len(log_stds))
    padded = torch.nn.functional.pad(values, (1, 1, 1, 1), value=math.inf)
    lowest = -torch.nn.functional.max_pool2d(-padded[None], 3, stride=1)[0]
    minima = fits.view(*values.shape, 2)[values == lowest]
    assert minima[:, 0].tolist() == [-3.0, 3.0]
    assert values.min() > table[GLOBAL].reverse_kl


@pytest.mark.parametrize("index", [FORWARD, GLOBAL, OTHER])
def test_both_divergences_equal_a_plain_sum_over_strips(table: list[toy.Row], index: int) -> None:
    line = table[index]
    fit = NormalDist(line.mean, line.std)
    assert strip_sum(target_pdf, fit.pdf, -8.0, 10.0) == pytest.approx(line.forward_kl, abs=TOLERANCE)
    left, right = line.mean - 8 * line.std, line.mean + 8 * line.std
    assert strip_sum(fit.pdf, target_pdf, left, right) == pytest.approx(line.reverse_kl, abs=TOLERANCE)


@pytest.mark.parametrize("index", [FORWARD, GLOBAL, OTHER])
def test_the_divergence_of_the_pipeline_gives_the_same_numbers(table: list[toy.Row], index: int) -> None:
    points = torch.linspace(-25, 25, 10_001, dtype=torch.float64)
    target, fit = toy.target_logpdf(points), toy.fit_logpdf(points, fit_of(table[index]).detach())
    assert reverse_kl(fit, target).item() == pytest.approx(table[index].reverse_kl, abs=TOLERANCE)
    assert reverse_kl(target, fit).item() == pytest.approx(table[index].forward_kl, abs=TOLERANCE)


def test_only_the_forward_fit_puts_mass_where_the_target_has_almost_none(table: list[toy.Row]) -> None:
    peak = max(target_pdf(-4 + index / 1000) for index in range(8001))
    for line in table:
        fit = NormalDist(line.mean, line.std)
        quantiles = (fit.inv_cdf((index + 0.5) / NUM_STRIPS) for index in range(NUM_STRIPS))
        share = sum(target_pdf(point) < toy.VOID_SHARE * peak for point in quantiles) / NUM_STRIPS
        assert share == pytest.approx(line.void_mass, abs=4 / NUM_STRIPS)
    assert table[FORWARD].void_mass > 50 * max(table[GLOBAL].void_mass, table[OTHER].void_mass)


def test_the_page_shows_what_the_script_prints(table: list[toy.Row]) -> None:
    assert f"```\n{toy.report(table)}```\n" in PAGE_PATH.read_text(encoding="utf-8")


def test_the_committed_picture_is_the_one_the_script_draws(table: list[toy.Row]) -> None:
    assert (toy.ROOT / toy.PICTURE_PATH).read_bytes() == toy.picture(table).encode()
