"""A Gaussian fitted to a mixture of two, by forward and by reverse KL (arXiv:2306.08543, figure 2): table and picture.

A fit is two parameters (2,): mean and log standard deviation, float64. Divergences in nats, by the trapezoid rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import NormalDist

import torch
from torch import Tensor

from tasks.storage import replacing

ROOT = Path(__file__).parent.parent
PICTURE_PATH = Path("docs/toy/gaussian_fit.svg")

# Weight, mean, standard deviation: two well separated modes, the lighter one wider.
TARGET = ((0.6, -3.0, 0.6), (0.4, 3.0, 0.8))
TARGET_FORMULA = " + ".join(f"{weight:g} N({mean:g}, {std:g}^2)" for weight, mean, std in TARGET)
VOID_SHARE = 0.01  # the void is where the target's density is below this share of its maximum

# The target's own grid, and the fit's in units of its standard deviation; what lies outside weighs less than 1e-20.
_TARGET_GRID = torch.linspace(-12.0, 12.0, 2401, dtype=torch.float64)
_STANDARD_GRID = torch.linspace(-10.0, 10.0, 1001, dtype=torch.float64)
_VOID_GRID = torch.linspace(-12.0, 12.0, 24001, dtype=torch.float64)  # an edge of the void lies between two points
_LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)

_STARTS = tuple(product((-5.0, -2.0, 0.0, 2.0, 5.0), (0.5, 1.5, 4.0)))  # means by standard deviations
_MAX_ITERATIONS, _GRADIENT_TOLERANCE = 200, 1e-9  # the fits need about 20 iterations
_SAME_OPTIMUM = 1e-5  # fits closer than this in both parameters are one optimum


@dataclass(frozen=True)
class Row:
    """A line of the table; `void_mass` is the probability that the fit gives to the void."""

    name: str
    mean: float
    std: float
    forward_kl: float
    reverse_kl: float
    void_mass: float


def target_logpdf(points: Tensor) -> Tensor:
    """Return the log density of the mixture at points (N,)."""
    weights, means, stds = torch.tensor(TARGET, dtype=torch.float64).T
    exponents = -0.5 * ((points[:, None] - means) / stds).square()
    return torch.logsumexp(weights.log() + exponents - stds.log() - _LOG_SQRT_TWO_PI, dim=-1)


@cache
def _target_on_grid() -> tuple[Tensor, Tensor]:
    """Return the target's density and log density on its grid: constants of every step of the forward fit."""
    logpdf = target_logpdf(_TARGET_GRID)
    return logpdf.exp(), logpdf


def fit_logpdf(points: Tensor, fit: Tensor) -> Tensor:
    """Return the log density of a fit (2,) at points (N,)."""
    return -0.5 * ((points - fit[0]) / fit[1].exp()).square() - fit[1] - _LOG_SQRT_TWO_PI


def forward_kl(fit: Tensor) -> Tensor:
    """Return KL(target || fit), differentiable in the fit (2,)."""
    pdf, logpdf = _target_on_grid()
    return torch.trapezoid(pdf * (logpdf - fit_logpdf(_TARGET_GRID, fit)), _TARGET_GRID)


def reverse_kl(fit: Tensor) -> Tensor:
    """Return KL(fit || target), differentiable in the fit (2,).

    The grid moves with the fit. On a fixed grid a fit that leaves it has no mass, and its integral is a false minimum.
    """
    points = fit[0] + fit[1].exp() * _STANDARD_GRID
    logpdf = fit_logpdf(points, fit)
    return torch.trapezoid(logpdf.exp() * (logpdf - target_logpdf(points)), points)


def moment_matched() -> Tensor:
    """Return the minimum of the forward KL in closed form: the fit with the target's mean and variance."""
    mean = math.fsum(weight * center for weight, center, _ in TARGET)
    variance = math.fsum(weight * (std**2 + (center - mean) ** 2) for weight, center, std in TARGET)
    return torch.tensor([mean, 0.5 * math.log(variance)], dtype=torch.float64)


def descended(divergence: Callable[[Tensor], Tensor], mean: float, std: float) -> Tensor:
    """Return the fit (2,) that gradient descent (L-BFGS) reaches from a mean and a standard deviation."""
    fit = torch.tensor([mean, math.log(std)], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [fit],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=_GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = divergence(fit)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return fit.detach()


def optima(divergence: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return the different fits (2,) that the starts lead to, the smallest divergence first."""
    found = [descended(divergence, mean, std) for mean, std in _STARTS]
    different: list[Tensor] = []
    for fit in sorted(found, key=lambda fit: divergence(fit).item()):
        if all((fit - other).abs().max() > _SAME_OPTIMUM for other in different):
            different.append(fit)
    return different


@cache
def void() -> list[tuple[float, float]]:
    """Return the intervals in which the target's density is below `VOID_SHARE` of its maximum; the outer are open."""
    logpdf = target_logpdf(_VOID_GRID)
    heights = logpdf - logpdf.max() - math.log(VOID_SHARE)
    left = torch.nonzero((heights[:-1] < 0) != (heights[1:] < 0)).squeeze(-1)
    slopes = (heights[left + 1] - heights[left]) / (_VOID_GRID[left + 1] - _VOID_GRID[left])
    edges = (_VOID_GRID[left] - heights[left] / slopes).tolist()
    return list(zip([-math.inf, *edges[1::2]], [*edges[::2], math.inf], strict=True))


def void_mass(mean: float, std: float) -> float:
    """Return the probability that a Gaussian gives to the void."""
    cdf = NormalDist(mean, std).cdf
    return math.fsum(cdf(right) - cdf(left) for left, right in void())


def row(name: str, fit: Tensor) -> Row:
    """Return a fit's line of the table."""
    mean, std = fit[0].item(), fit[1].exp().item()
    return Row(name, mean, std, forward_kl(fit).item(), reverse_kl(fit).item(), void_mass(mean, std))


def rows() -> list[Row]:
    """Return the table: the forward fit, then the optima of the reverse KL, the global one first."""
    (forward,), (best, *others) = optima(forward_kl), optima(reverse_kl)
    named = [("forward KL", forward), ("reverse KL, global", best), *(("reverse KL, other", fit) for fit in others)]
    return [row(name, fit) for name, fit in named]


def report(table: Sequence[Row]) -> str:
    """Return the printed text: the target, the table, and what to compare it with."""
    closed = moment_matched()
    header = f"{'fit':<18}  {'mean':>7}  {'std':>6}  KL(target||fit)  KL(fit||target)  void mass"
    lines = "\n".join(
        f"{line.name:<18}  {line.mean:7.4f}  {line.std:6.4f}  {line.forward_kl:15.4f}"
        f"  {line.reverse_kl:15.4f}  {line.void_mass:9.4f}"
        for line in table
    )
    own_mass = math.fsum(weight * void_mass(mean, std) for weight, mean, std in TARGET)
    return f"""target: {TARGET_FORMULA}, {len(_STARTS)} starts for each divergence

{header}
{"-" * len(header)}
{lines}

moment matching, the closed form of the forward fit: mean {closed[0]:.4f}, std {closed[1].exp():.4f}
void: target density below {VOID_SHARE:.0%} of its maximum; the target's own mass there: {own_mass:.4f}
"""


_WIDTH, _HEIGHT = 760, 480
_SIZE = f'width="{_WIDTH}" height="{_HEIGHT}"'
_LEFT, _RIGHT, _TOP, _BOTTOM, _LEGEND_STEP = 62, 18, 132, 54, 22
_X_LOW, _X_HIGH, _Y_HIGH, _Y_TICKS = -10, 10, 0.7, (0.0, 0.2, 0.4, 0.6)
_NUM_POINTS, _NUM_STDS = 321, 4.5  # of a curve, and how far from its mean a fit is drawn
_STYLE = """
  .page { fill: #ffffff; } text { fill: #1c2330; } .axis { stroke: #5d6778; } .grid { stroke: #e2e6ec; }
  .target { fill: #c9ced6; stroke: #8a93a3; } .forward { stroke: #c96a12; } .reverse { stroke: #14806a; }
  .void { fill: #c96a12; fill-opacity: 0.28; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #12161d; } text { fill: #e4e8ef; } .axis { stroke: #9aa5b6; } .grid { stroke: #2c3442; }
    .target { fill: #3d4757; stroke: #7b8798; } .forward { stroke: #eda45c; } .reverse { stroke: #52c7a9; }
    .void { fill: #eda45c; fill-opacity: 0.34; }
  }
  text { font: 13px system-ui, sans-serif; } .tick { font-size: 12px; } .middle { text-anchor: middle; }
  .end { text-anchor: end; } .forward, .reverse { fill: none; stroke-width: 2.4; stroke-linejoin: round; }
  .other { stroke-dasharray: 6 4; stroke-width: 1.8; }
"""


def picture(table: Sequence[Row]) -> str:
    """Return the SVG: the target filled, the fits as lines, the forward fit shaded in the void."""
    forward, best, *others = (NormalDist(round(line.mean, 6), round(line.std, 6)) for line in table)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_SIZE}>',
        f"<title>Forward and reverse KL fits of one Gaussian to {TARGET_FORMULA}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" {_SIZE}/>',
        *_axes(),
        _area("target", _curve(_target_pdf, _X_LOW, _X_HIGH)),
        *(_area("void", _curve(forward.pdf, left, right)) for left, right in void()),
        _line("forward", forward),
        *(_line("reverse other", other) for other in others),
        _line("reverse", best),
        *_legend(table),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _target_pdf(point: float) -> float:
    return math.fsum(weight * NormalDist(mean, std).pdf(point) for weight, mean, std in TARGET)


def _curve(pdf: Callable[[float], float], left: float, right: float) -> list[tuple[float, float]]:
    """Return the density at evenly spaced points of the interval's visible part."""
    left, right = max(left, _X_LOW), min(right, _X_HIGH)
    points = (left + (right - left) * index / (_NUM_POINTS - 1) for index in range(_NUM_POINTS))
    return [(point, pdf(point)) for point in points]


def _place(point: tuple[float, float]) -> str:
    x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (point[0] - _X_LOW) / (_X_HIGH - _X_LOW)
    y = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * point[1] / _Y_HIGH
    return f"{x:.1f} {y:.1f}"


def _path(style: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<path class="{style}" d="M{"L".join(_place(point) for point in points)}"/>'


def _line(style: str, fit: NormalDist) -> str:
    return _path(style, _curve(fit.pdf, fit.mean - _NUM_STDS * fit.stdev, fit.mean + _NUM_STDS * fit.stdev))


def _area(style: str, points: Sequence[tuple[float, float]]) -> str:
    return _path(style, [(points[0][0], 0.0), *points, (points[-1][0], 0.0)])


def _axes() -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [
        f'<text class="middle" x="{(_LEFT + right) // 2}" y="{_HEIGHT - 10}">x</text>',
        f'<text class="middle" transform="translate(18 {(_TOP + bottom) // 2}) rotate(-90)">density</text>',
    ]
    for value in _Y_TICKS:
        y = _place((0.0, value)).split()[1]
        parts.append(f'<path class="{"grid" if value else "axis"}" d="M{_LEFT} {y}H{right}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 8}" y="{y}" dy="4">{value:.1f}</text>')
    for value in range(_X_LOW, _X_HIGH + 1, 2):
        x = _place((value, 0.0)).split()[0]
        parts.append(f'<path class="axis" d="M{x} {bottom}v5"/>')
        parts.append(f'<text class="tick middle" x="{x}" y="{bottom + 20}">{_typeset(f"{value}")}</text>')
    return parts


def _legend(table: Sequence[Row]) -> list[str]:
    forward, best, *others = table
    shaded = f"the {forward.void_mass:.0%} of the forward fit where the target is below {VOID_SHARE:.0%} of its peak"
    entries = [
        ("target", f"target: {TARGET_FORMULA}"),
        ("forward", f"forward KL(target || fit): {_moments(forward)}"),
        ("void", shaded),
        ("reverse", f"reverse KL(fit || target), global optimum: {_moments(best)}"),
        *(("reverse other", f"reverse KL(fit || target), other optimum: {_moments(other)}") for other in others),
    ]
    return [part for index, entry in enumerate(entries) for part in _legend_line(index, *entry)]


def _legend_line(index: int, style: str, text: str) -> tuple[str, str]:
    y = _LEGEND_STEP * (index + 1)
    swatch = f"M{_LEFT} {y - 7}h28v14h-28Z" if style in ("target", "void") else f"M{_LEFT} {y}h28"
    return f'<path class="{style}" d="{swatch}"/>', f'<text x="{_LEFT + 38}" y="{y}" dy="4.5">{_typeset(text)}</text>'


def _moments(line: Row) -> str:
    return f"mean {line.mean:.2f}, std {line.std:.2f}"


def _typeset(text: str) -> str:
    """Return text with the signs of print: minus, parallel bars, squared."""
    return text.replace("-", "\N{MINUS SIGN}").replace("||", "\N{PARALLEL TO}").replace("^2", "\N{SUPERSCRIPT TWO}")


def main() -> None:
    """Print the table, write the picture, and say where."""
    table = rows()
    with replacing(ROOT / PICTURE_PATH) as temporary:
        temporary.write_text(picture(table), encoding="utf-8")
    print(report(table), f"picture: {PICTURE_PATH}", sep="\n")


if __name__ == "__main__":
    main()
