"""The loops in C against the same in float64, written plainly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minillm.kernels.compiled import kernels
from minillm.kernels.decoding import Attention, RmsNorm, drawn
from tests.imports import ROOT

needs_kernels = pytest.mark.skipif(kernels() is None, reason="no C compiler")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}  # of the largest number; bfloat16 has steps of 2^-8
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(produced: Tensor, expected: Tensor) -> None:
    assert produced.shape == expected.shape
    error = float((produced.double() - expected).abs().max() / expected.abs().max())
    assert error < TOLERANCE[produced.dtype]


def normalised(states: Tensor, weight: Tensor, smallest: float) -> Tensor:
    states = states.double()
    return states / (states.square().mean(-1, keepdim=True) + smallest).sqrt() * weight.double()


@needs_kernels
@DTYPES
@pytest.mark.parametrize(("count", "width"), [(1, 1), (3, 5), (16, 576), (70, 1000)])
def test_norm(count: int, width: int, dtype: torch.dtype) -> None:
    states, weight = 1e-2 * numbers(count, width, dtype=dtype), 1 + 0.1 * numbers(width, seed=1)
    assert_near(RmsNorm(weight, 1e-4)(states), normalised(states, weight, 1e-4))


@needs_kernels
def test_numbers_are_rounded_to_the_nearest_ties_to_even() -> None:
    weight = torch.cat([1 + 2.0**-9 * torch.arange(64), numbers(1000, seed=7), torch.tensor([3.4e38, 1e-40])])
    rounded = RmsNorm(weight, 0.0)(torch.ones(1, len(weight), dtype=torch.bfloat16))
    assert torch.equal(rounded[0], weight.bfloat16())


class Case:
    """A pass of `num_new` columns over a cache: the first row has none before it, the second lacks one amid others."""

    def __init__(self, width: int, group: int, num_new: int, has_norms: bool, dtype: torch.dtype) -> None:
        self.num_rows, self.num_keys, self.group, self.num_new, self.width = 3, 2, group, num_new, width
        self.columns, self.old = 9, 9 - num_new
        self.mask = torch.ones(3, self.columns, dtype=torch.bool)
        self.mask[0, : self.old + (num_new > 1)] = False
        self.mask[1, 3] = False
        new = self.mask[:, self.old :]
        self.places = None if bool(new.all()) else new.flatten().nonzero().squeeze(1)
        count = int(new.sum())
        self.heads = numbers(count, (group + 2) * self.num_keys, width, seed=2, dtype=dtype)
        angles = numbers(count, 1, width // 2, seed=3)
        self.rotation = torch.polar(torch.ones_like(angles), angles)
        self.cache = torch.full((2, 2, 3, 2, 11, width), torch.nan, dtype=dtype)  # two layers, columns to spare
        self.cache[1, ..., : self.old, :] = numbers(2, 3, 2, self.old, width, seed=4, dtype=dtype)
        self.norms = [RmsNorm(1 + 0.1 * numbers(width, seed=5 + i), 1e-4 + i) for i in range(2)] if has_norms else []
        self.kernel = Attention(self.cache, self.rotation, self.mask, num_new, group * 2, self.places)

    def turned(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (N, heads, D) in float64."""
        queries, keys, values = self.heads.double().split([self.group * 2, 2, 2], dim=1)
        if self.norms:
            queries, keys = (
                normalised(part, norm.weight, norm.smallest)
                for part, norm in zip((queries, keys), self.norms, strict=True)
            )
        return *(self._times(part) for part in (queries, keys)), values

    def _times(self, heads: Tensor) -> Tensor:
        pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous()) * self.rotation
        return torch.view_as_real(pairs).flatten(-2)

    def in_rows(self, tokens: Tensor) -> Tensor:
        """Return (N, ...) as (B, n, ...), 0 where there is no token."""
        rows = tokens.new_zeros(self.num_rows * self.num_new, *tokens.shape[1:])
        rows[slice(None) if self.places is None else self.places] = tokens
        return rows.unflatten(0, (self.num_rows, self.num_new))

    def assert_stored(self) -> None:
        _, keys, values = self.turned()
        for stored, part in zip(self.cache[1, ..., self.old : self.columns, :], (keys, values), strict=True):
            assert_near(stored, self.in_rows(part).transpose(1, 2))
        assert bool(self.cache[0].isnan().all()) and bool(self.cache[1, ..., self.columns :, :].isnan().all())


CASES = pytest.mark.parametrize(
    ("width", "group", "has_norms"), [(64, 3, False), (64, 1, True), (128, 2, True), (6, 5, True), (2, 1, False)]
)


@needs_kernels
@DTYPES
@CASES
def test_attention_of_one_token_a_row(width: int, group: int, has_norms: bool, dtype: torch.dtype) -> None:
    case = Case(width, group, 1, has_norms, dtype)
    found = case.kernel.once(1, case.heads, case.norms)
    queries, _, _ = case.turned()
    keys, values = case.cache[1, ..., : case.columns, :].double()
    scores = torch.einsum("bkgd,bksd->bkgs", queries.unflatten(1, (2, group)), keys) / width**0.5
    weights = scores.masked_fill(~case.mask[:, None, None], -torch.inf).softmax(-1)
    assert_near(found, torch.einsum("bkgs,bksd->bkgd", weights, values).flatten(1))
    case.assert_stored()


@needs_kernels
@DTYPES
@CASES
def test_several_tokens_a_row_are_arranged_for_the_librarys_attention(
    width: int, group: int, has_norms: bool, dtype: torch.dtype
) -> None:
    case = Case(width, group, 4, has_norms, dtype)
    arranged = case.kernel.arranged(1, case.heads, case.norms)
    queries = case.in_rows(case.turned()[0].unflatten(1, (2, group)))  # (B, n, K, A / K, D)
    assert_near(arranged, queries.transpose(1, 2).flatten(2, 3))
    case.assert_stored()
    rows = numbers(3, 2, 4 * group, width, seed=9, dtype=dtype)
    back = rows.unflatten(2, (4, group)).transpose(1, 2).reshape(12, -1)
    assert torch.equal(case.kernel.gathered(rows), back[case.places])


@needs_kernels
def test_columns_in_which_no_row_has_a_token_are_cleared() -> None:
    cache = torch.full((1, 2, 3, 2, 8, 4), torch.nan)
    none = torch.empty(0, dtype=torch.int64)
    rotation, mask = torch.empty(0, 1, 2, dtype=torch.complex64), torch.zeros(3, 5, dtype=torch.bool)
    Attention(cache, rotation, mask, 5, 4, none).arranged(0, torch.empty(0, 8, 4), [])
    assert bool((cache[..., :5, :] == 0).all()) and bool(cache[..., 5:, :].isnan().all())


@needs_kernels
@DTYPES
def test_padding_in_a_pass_of_one_column_finds_and_stores_zeros(dtype: torch.dtype) -> None:
    case = Case(64, 3, 1, False, dtype)
    mask = case.mask.clone()
    mask[0] = False
    kernel = Attention(case.cache, case.rotation, mask, 1, 6, None)
    found = kernel.once(1, case.heads, [])
    assert bool((found[0] == 0).all()) and bool(found.isfinite().all())
    assert bool((case.cache[1, :, 0, :, case.columns - 1] == 0).all())
    assert torch.equal(found[1:], case.kernel.once(1, case.heads, [])[1:])


@needs_kernels
def test_no_context_is_too_long_for_a_threads_stack() -> None:
    heads, cache = numbers(1, 34, 2), numbers(1, 2, 1, 1, 65536, 2, seed=1)
    rotation, mask = torch.ones(1, 1, 1, dtype=torch.complex64), torch.ones(1, 65536, dtype=torch.bool)
    found = Attention(cache, rotation, mask, 1, 32, None).once(0, heads, [])
    weights = (heads[0, :32].double() @ cache[0, 0, 0, 0].double().t() / 2**0.5).softmax(-1)
    assert torch.allclose(found.double().view(32, 2), weights @ cache[0, 1, 0, 0].double(), atol=1e-5)


@needs_kernels
def test_padding_on_the_left_changes_no_bit_of_attention() -> None:
    cases = [Case(64, 3, 1, False, torch.bfloat16) for _ in range(2)]
    cases[1].cache[1, :, 0, :, : cases[1].old] = 1e30
    found = [case.kernel.once(1, case.heads, []) for case in cases]
    assert torch.equal(*found)


@needs_kernels
@pytest.mark.parametrize("num_tokens", [1, 7, 256, 1000])
def test_a_drawn_token_is_where_its_share_falls(num_tokens: int) -> None:
    logits = 3 * numbers(1, num_tokens, seed=num_tokens)
    logits[0, ::3] = -torch.inf if num_tokens > 1 else 0.0
    probabilities = logits[0].double().softmax(0)
    upper = probabilities.cumsum(0)
    inside = (upper - probabilities / 2)[probabilities > 1e-6]
    wanted = (probabilities > 1e-6).nonzero().squeeze(1)
    token_ids, logprobs = drawn(logits.expand(len(inside), -1).contiguous(), inside)
    assert torch.equal(token_ids, wanted)
    assert torch.allclose(logprobs.double(), probabilities[wanted].log(), atol=1e-5)


@needs_kernels
def test_the_ends_of_the_shares_and_logits_that_are_not_finite() -> None:
    logits = torch.full((4, 600), -torch.inf)
    logits[:, 301] = logits[:, 302] = 700.0
    logits[2, 5], logits[3, 599] = torch.nan, torch.inf
    shares = torch.tensor([0.0, 1 - 2.0**-53, 0.5, 0.5], dtype=torch.float64)
    token_ids, logprobs = drawn(logits, shares)
    assert token_ids[:2].tolist() == [301, 302]
    assert logprobs[:2].tolist() == pytest.approx([-0.6931472] * 2)
    assert logprobs[2:].isnan().all()


@needs_kernels
def test_no_rounding_of_sums_makes_a_token_of_probability_0_come() -> None:
    logits = numbers(200, 256, seed=8)
    logits[:, 250:] = -torch.inf
    token_ids, _ = drawn(logits, torch.full((200,), 1 - 2.0**-53, dtype=torch.float64))
    assert set(token_ids.tolist()) == {249}


def loaded(directory: Path, compiler: str) -> tuple[str, str]:
    """Return whether a new process has kernels, and what it says."""
    environment = {**os.environ, "CC": compiler, "XDG_CACHE_HOME": str(directory)}
    code = "from minillm.kernels.compiled import kernels\nkernels()\nprint(kernels() is not None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    return done.stdout.strip(), done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_where_there_is_a_compiler_there_are_kernels(tmp_path: Path) -> None:
    assert loaded(tmp_path, "cc -Wall -Wextra -Werror") == ("True", "")


def test_without_a_compiler_there_are_none_and_one_warning_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    for compiler, reason in ((str(broken), "it is broken"), (str(tmp_path / "missing"), "No such file")):
        found, said = loaded(tmp_path, compiler)
        assert found == "False" and said.count("no C kernels") == 1 and reason in said
    assert loaded(tmp_path, "") == ("False", "")
    found, said = loaded(tmp_path, "cc 'open")
    assert found == "False" and "No closing quotation" in said


@needs_kernels
def test_a_directory_that_others_can_write_to_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "minillm").mkdir(mode=0o700)
    (tmp_path / "minillm").chmod(0o777)
    found, said = loaded(tmp_path, "cc")
    assert found == "False" and "nobody else may write to it" in said


@needs_kernels
def test_they_are_compiled_once_and_again_if_the_compiler_changes(tmp_path: Path) -> None:
    directory = tmp_path / "minillm"
    assert [loaded(tmp_path, compiler) for compiler in ("cc", "env cc")] == [("True", "")] * 2
    (first,) = directory.iterdir()
    times = first.stat().st_mtime_ns
    assert loaded(tmp_path, "cc -march=x86-64 -DOTHER") == ("True", "")
    assert first.stat().st_mtime_ns == times and len(list(directory.iterdir())) == 2
