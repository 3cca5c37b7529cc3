"""Losses through the output head by chunks and blocks: the gradient of the whole, without its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_outputs import CausalLMOutput

from minillm import gradients, heads
from minillm.divergences import entropy, named_divergence
from minillm.heads import Head, Readout, backward_through_head, logit_blocks, use_own_head
from minillm.logprobs import token_logprobs
from tests.test_divergences import FAMILY

TOKENS, WIDTH, VOCABULARY = 23, 6, 37
SIZES = [
    (1000, 2**20),
    (5, 2 * VOCABULARY),
    (1, VOCABULARY),
    (64, 4 * VOCABULARY),
]  # tokens of a chunk, logits of a block


class OneHead(torch.nn.Module):
    """What the library asks of a model about its head."""

    def __init__(self, seed: int, dtype: torch.dtype, bias: bool, soft_cap: float | None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.base_model = torch.nn.Module()  # has states only when they are put in its place
        self.layer = torch.nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
        self.config = type("Config", (), {"final_logit_softcapping": soft_cap})
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.layer

    def plain_logits(self, states: Tensor) -> Tensor:
        cap, logits = self.config.final_logit_softcapping, self.layer(states)
        return logits if cap is None else cap * (logits / cap).tanh()

    def forward(self, input_ids: Tensor) -> CausalLMOutput:
        return CausalLMOutput(logits=self.plain_logits(self.base_model(input_ids).last_hidden_state))


class StrangeHead(OneHead):
    """A head that no linear layer with a soft cap makes: it mixes the logits of a token, and narrows its states."""

    def __init__(self, seed: int, dtype: torch.dtype, bias: bool, soft_cap: float | None) -> None:
        super().__init__(seed, dtype, bias, soft_cap)
        use_own_head(self, 2 * WIDTH)

    def plain_logits(self, states: Tensor) -> Tensor:
        narrow = states[..., :WIDTH] * states[..., WIDTH:].sigmoid()
        logits = super().plain_logits(narrow)
        return logits + logits.roll(1, dims=-1).sin()


def random_states(seed: int, dtype: torch.dtype, width: int = WIDTH) -> Tensor:
    return torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def token_ids() -> Tensor:
    return torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(9))


def losses(name: str, student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
    """Return a divergence, a clipped policy term and an entropy bonus, token by token."""
    logprobs = token_logprobs(student, ids)
    ratio = (logprobs - logprobs.detach() + 0.1 * (ids % 5 - 2)).exp()
    policy = torch.maximum(-ratio, -ratio.clamp(0.8, 1.2)) * (1 + ids % 3)
    return named_divergence(name, **FAMILY[name])(student, teacher) + policy - 0.1 * entropy(student)


def by_blocks(
    name: str, student: OneHead, teacher: OneHead, dtype: torch.dtype, in_float32: bool = True
) -> tuple[list[Tensor], float]:
    """Return the gradients of states and parameters, the states' first, and the loss."""
    (head, other_head), ids, total = (Head.of(model, dtype) for model in (student, teacher)), token_ids(), []
    own = random_states(1, dtype, head.state_size).requires_grad_()

    def block_loss(rows: slice, logits: list[Tensor]) -> Tensor:
        loss = losses(name, *logits, ids[rows]).sum()
        total.append(loss.detach())
        return loss

    readouts = Readout(head, 2 * own), [Readout(other_head, random_states(2, dtype, other_head.state_size))]
    backward_through_head(*readouts, block_loss, memory_mib=0, in_float32=in_float32)
    return [own.grad, *(parameter.grad for parameter in student.parameters())], float(torch.stack(total).sum())


@pytest.fixture(params=SIZES, ids=str)
def sizes(request: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    chunk, block = request.param
    monkeypatch.setattr(heads, "_chunk_size", lambda *_: chunk)
    monkeypatch.setattr(heads, "_BLOCK_LOGITS", block)
    return chunk, block


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("name", sorted(FAMILY))
@pytest.mark.parametrize(("bias", "soft_cap"), [(False, None), (True, None), (True, 3.0)])
@pytest.mark.parametrize("kinds", [(OneHead, OneHead), (StrangeHead, OneHead), (StrangeHead, StrangeHead)])
def test_loss_and_gradient_are_those_of_all_logits_at_once(
    name: str, bias: bool, soft_cap: float | None, kinds: Sequence[type[OneHead]]
) -> None:
    student, teacher = (kind(seed, torch.float64, bias, soft_cap) for kind, seed in zip(kinds, (3, 4), strict=True))
    produced, loss = by_blocks(name, student, teacher, torch.float64)
    student.zero_grad()
    as_made, same_loss = by_blocks(name, student, teacher, torch.float64, in_float32=False)
    assert same_loss == loss and all(torch.equal(*pair) for pair in zip(as_made, produced, strict=True))
    own = random_states(1, torch.float64, Head.of(student).state_size).requires_grad_()
    other = teacher.plain_logits(random_states(2, torch.float64, Head.of(teacher).state_size)).detach()
    plain = losses(name, student.plain_logits(2 * own), other, token_ids()).sum()
    expected = torch.autograd.grad(plain, [own, *student.parameters()])
    assert loss == pytest.approx(float(plain.detach()), abs=1e-10)
    assert max(float((a - b).abs().max()) for a, b in zip(produced, expected, strict=True)) < 1e-10
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_products_stay_within_their_rounding(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64 from the same rounded weights and states: a unit in the last place is 2^-8.

    The gradient of weights in float32 is made by pieces, of a size that does not divide the vocabulary, and that of
    states by pieces of a size that does not divide the tokens.
    """
    monkeypatch.setattr(gradients, "_PIECE_ROWS", 5)
    monkeypatch.setattr(heads, "_PIECE_TOKENS", 3)
    student, teacher = (OneHead(seed, torch.bfloat16, False, None).to(dtype) for seed in (3, 4))
    produced, _ = by_blocks("reverse_kl", student, teacher, torch.bfloat16)
    own = random_states(1, torch.bfloat16).double().requires_grad_()
    weight = student.layer.weight.detach().double().requires_grad_()
    other = random_states(2, torch.bfloat16).double() @ teacher.layer.weight.detach().double().t()
    plain = losses("reverse_kl", 2 * own @ weight.t(), other, token_ids()).sum()
    for value, exact in zip(produced, torch.autograd.grad(plain, [own, weight]), strict=True):
        assert float((value.double() - exact).norm() / exact.norm()) < 2**-6


def test_gradients_add_to_those_that_are_there() -> None:
    student, teacher = (OneHead(seed, torch.float64, True, None) for seed in (3, 4))
    once, _ = by_blocks("forward_kl", student, teacher, torch.float64)
    once = [gradient.clone() for gradient in once]
    twice, _ = by_blocks("forward_kl", student, teacher, torch.float64)
    assert all(torch.allclose(second, 2 * first) for first, second in zip(once[1:], twice[1:], strict=True))


@pytest.mark.parametrize("bias", [False, True])
def test_a_vocabulary_is_multiplied_by_pieces_and_none_is_left_out(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_PIECE_LOGITS", 4)  # of a vocabulary that it does not divide
    model, states = OneHead(3, torch.float32, bias, None), random_states(1, torch.float32)
    assert model.layer.out_features % 4 != 0
    memory = torch.full((TOKENS + 2, model.layer.out_features), torch.nan)
    found = Head.of(model).projected(states, memory)
    exact = states.double() @ model.layer.weight.detach().double().t()
    if bias:
        exact += model.layer.bias.detach().double()
    assert found.data_ptr() == memory.data_ptr() and torch.allclose(found.double(), exact, rtol=0, atol=1e-5)
    assert torch.equal(Head.of(model).projected(states[None]), found[None])


@pytest.mark.parametrize("kind", [OneHead, StrangeHead])
def test_frozen_heads_take_no_gradient(kind: type[OneHead]) -> None:
    student, teacher = (kind(seed, torch.float64, True, None) for seed in (3, 4))
    student.requires_grad_(False)
    produced, _ = by_blocks("forward_kl", student, teacher, torch.float64)
    assert produced[1:] == [None, None] and float(produced[0].abs().max()) > 0


@pytest.mark.usefixtures("sizes")
def test_logit_blocks_hold_every_row_once_and_in_order() -> None:
    student, teacher = (OneHead(seed, torch.float64, True, 3.0) for seed in (3, 4))
    states = random_states(1, torch.float64), random_states(2, torch.float64)
    readouts = [Readout(Head.of(model), part) for model, part in zip((student, teacher), states, strict=True)]
    blocks = list(logit_blocks(readouts, memory_mib=0))
    assert [row for rows, _ in blocks for row in range(rows.start, rows.stop)] == list(range(TOKENS))
    for place, (model, part) in enumerate(zip((student, teacher), states, strict=True)):
        assert torch.allclose(torch.cat([logits[place] for _, logits in blocks]), model.plain_logits(part))


@pytest.mark.parametrize(
    ("num_tokens", "memory_mib", "expected"),
    [(100, 128, 128), (1024, 128, 512), (640, 128, 640), (641, 128, 384), (4096, 128, 640), (0, 1, 0)],
)
def test_chunks_are_few_about_equal_and_round(num_tokens: int, memory_mib: int, expected: int) -> None:
    """At 49,152 logits in bfloat16 from two models, 128 MiB hold 682 tokens."""
    assert heads._chunk_size(num_tokens, 2 * 2 * 49_152, memory_mib) == expected


@pytest.mark.parametrize("memory_mib", [1, 20, 192])
@pytest.mark.parametrize("bytes_per_token", [2 * 2 * 49_152, 4 * 2 * 256_000])
def test_a_chunk_fits_the_budget_however_small_that_is(bytes_per_token: int, memory_mib: int) -> None:
    """A large vocabulary in float32 takes 2 MiB a token of two models: 192 MiB hold 98, and 1 MiB not one."""
    for num_tokens in (1, 97, 1024, 4096):
        size = heads._chunk_size(num_tokens, bytes_per_token, memory_mib)
        assert size >= 1 and (size == 1 or min(size, num_tokens) * bytes_per_token <= memory_mib * 2**20)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", [49_152, 50_257])
def test_rows_of_a_chunk_lie_an_odd_number_of_cache_lines_apart(vocabulary: int, dtype: torch.dtype) -> None:
    with heads._lent([torch.empty(vocabulary, 1, dtype=dtype), torch.empty(7, 1, dtype=dtype)], 3) as (chunk, other):
        chunk.fill_(1)
        other.fill_(2)
        assert bool((chunk == 1).all()) and other.shape == (3, 7)
    num_lines, rest = divmod(chunk.stride(0) * chunk.element_size(), 64)
    assert chunk.shape == (3, vocabulary) and rest == 0 and num_lines % 2 == 1
    assert chunk.stride(0) - vocabulary < 2 * 64


class _LargestTensors(TorchDispatchMode):
    """Remembers the largest result of any operation, in numbers, by its type."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, Tensor):
                self.largest[item.dtype] = max(self.largest.get(item.dtype, 0), item.numel())
        return result


def test_no_tensor_of_all_logits_is_ever_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 5 tokens in bfloat16, blocks of 2 in float32; the head itself has 6 x 37 weights."""
    monkeypatch.setattr(heads, "_chunk_size", lambda *_: 5)
    monkeypatch.setattr(heads, "_BLOCK_LOGITS", 2 * VOCABULARY)
    monkeypatch.setattr(heads, "_LINE_BYTES", 2)
    student, teacher = (OneHead(seed, torch.bfloat16, False, None) for seed in (3, 4))
    with _LargestTensors() as seen:
        by_blocks("jsd", student, teacher, torch.bfloat16)
    assert seen.largest[torch.float32] == 2 * VOCABULARY
    assert seen.largest[torch.bfloat16] == WIDTH * VOCABULARY > 5 * VOCABULARY
