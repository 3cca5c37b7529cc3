"""Draw responses from one model or from the mixture of teacher and student, one model call a token.

The mixture alpha teacher + (1 - alpha) student is sampled through its components: which of the two picks the token at
a position is drawn before generation, independently of everything else, and only the picked model runs; the other takes
its pending tokens in one forward pass when it is next picked. Each row follows exactly the mixture. Rows that share
their component draws depend on each other through them, which leaves every mean over rows unbiased; where rows do not
agree on the model, both run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from minillm.decoders import Decoder, GenericDecoder, Reads
from minillm.errors import NonFiniteError
from minillm.heads import Head, LinearHead
from minillm.kernels.compiled import takes
from minillm.kernels.decoding import drawn
from minillm.lean_decoder import LeanDecoder, LeanModel
from minillm.llama_family import is_supported
from minillm.packed_model import packed_copy
from minillm.truncation import truncated
from minillm.types import PromptBatch

_BLOCK = 256  # tokens per block of the two-level cumulative distribution


@dataclass(frozen=True)
class Responses:
    """Sampled responses.

    response_ids: (B, T) int64, padded on the right.
    response_mask: (B, T) bool, true through the first end token.
    teacher_picks: (B, T) bool, whether the teacher supplied the distribution of each token.
    drawn_logprobs: (B, T) float32, of each token in the distribution it was drawn from; NaN for greedy ones.
    student_states, teacher_states: (B, T, H), from which each model predicts every token, if they were asked for.
    student_reads, teacher_reads: what drawing them took.
    """

    response_ids: Tensor
    response_mask: Tensor
    teacher_picks: Tensor
    drawn_logprobs: Tensor
    student_states: Tensor | None
    teacher_states: Tensor | None
    student_reads: Reads
    teacher_reads: Reads


def decodable(model: Any) -> Any:
    """Return the model as the fastest decoder reads it, with copies of most weights: good until the model changes."""
    if isinstance(model, LeanModel):
        return model
    is_lean = is_supported(model) and isinstance(Head.of(model), LinearHead)
    return LeanModel(model) if is_lean else packed_copy(model)


@torch.no_grad()
def sample_responses(
    student: Any,
    teacher: Any,
    prompts: PromptBatch,
    *,
    uniforms: Tensor | None,
    teacher_picks: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    end_id: int,
    pad_id: int,
    keep_student_states: bool = False,
    keep_teacher_states: bool = False,
) -> Responses:
    """Return one response per prompt of at most T tokens.

    student, teacher: what `decodable` returns for them, or the models themselves.
    uniforms: (B, T) draws in [0, 1) for the inverse cumulative distribution; None decodes greedily.
    teacher_picks: (B, T) bool, whether the teacher supplies the distribution (`teacher` may be None if it never does).
    temperature, top_k, top_p: applied inside each model, before mixing.
    keep_student_states, keep_teacher_states: the model then reads every token once, those after its last pick at the
        end.
    """
    (num_rows, num_tokens), device = teacher_picks.shape, prompts.prompt_ids.device
    own_states = _empty_states(student, num_rows, num_tokens) if keep_student_states else None
    states = _empty_states(teacher, num_rows, num_tokens) if keep_teacher_states else None
    decoders = [_decoder(student, prompts, num_tokens, own_states)]
    if teacher_picks.any():
        decoders.append(_decoder(teacher, prompts, num_tokens, states))
    choice = _Choice(decoders, teacher_picks)
    texts = _Drawn(num_rows, num_tokens, end_id, pad_id, device)
    uniforms = None if uniforms is None else uniforms.to(device)
    for position in range(num_tokens):
        logits = tempered(choice.next_logits(texts.active, texts.running, position), temperature)
        if uniforms is None:
            token_ids = _likeliest(logits)
        else:
            shares = uniforms[texts.active, position]
            token_ids, logprobs = drawn_tokens(truncated(logits, top_k, top_p).float(), shares)
            texts.logprobs[texts.active, position] = logprobs
        token_ids = texts.added(token_ids, position)
        if not texts.running.any() or position + 1 == num_tokens:
            break
        for decoder in decoders:
            decoder.append(token_ids[:, None])
        texts.retire_finished(decoders)
    num_tokens = int(texts.mask.any(dim=0).sum())
    ids, mask, logprobs = (values[:, :num_tokens] for values in (texts.ids, texts.mask, texts.logprobs))
    if own_states is not None:
        own_states = own_states[:, :num_tokens]
        decoders[0].flush()
    if states is not None:
        states = states[:, :num_tokens]
        if len(decoders) == 1:
            decoders.append(_reader(teacher, prompts, ids, states))
        decoders[1].flush()
    reads = [decoder.reads for decoder in decoders]
    picks = teacher_picks[:, :num_tokens].to(device)
    return Responses(ids, mask, picks, logprobs, own_states, states, reads[0], reads[1] if len(reads) > 1 else Reads())


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Return logits (..., V) at a temperature: as they are at 1."""
    return logits if temperature == 1 else logits / temperature


class _Choice:
    """Which models run at a position, and whose logits each row takes; decided before anything is drawn."""

    def __init__(self, decoders: Sequence[Decoder], teacher_picks: Tensor) -> None:
        self._student, self._teacher = decoders[0], decoders[-1]
        self._some, self._all = teacher_picks.any(dim=0).tolist(), teacher_picks.all(dim=0).tolist()
        self._picks = teacher_picks

    def next_logits(self, active: Tensor, running: Tensor, position: int) -> Tensor:
        """Return logits (n, V) of the next token of the active rows (n,); what ended rows get means nothing."""
        if self._all[position]:
            return self._teacher.next_logits()
        if not self._some[position]:
            return self._student.next_logits()
        picks = self._picks[:, position].to(active.device)[active]
        if picks[running].all():
            return self._teacher.next_logits()
        if not picks[running].any():
            return self._student.next_logits()
        return torch.where(picks[:, None], self._teacher.next_logits(), self._student.next_logits())


class _Drawn:
    """The tokens so far with their log-probabilities, the rows still decoded (`active`), and which of those run on."""

    def __init__(self, num_rows: int, num_tokens: int, end_id: int, pad_id: int, device: torch.device) -> None:
        self.ids = torch.full((num_rows, num_tokens), pad_id, device=device)
        self.mask = torch.zeros_like(self.ids, dtype=torch.bool)
        self.logprobs = torch.full((num_rows, num_tokens), torch.nan, device=device)
        self.active = torch.arange(num_rows, device=device)
        self.running = torch.ones_like(self.active, dtype=torch.bool)
        self._end_id, self._pad_id = end_id, pad_id

    def added(self, token_ids: Tensor, position: int) -> Tensor:
        """Store a token of each active row and return it, with padding for rows that have ended before."""
        token_ids = torch.where(self.running, token_ids, self._pad_id)
        self.ids[self.active, position], self.mask[self.active, position] = token_ids, self.running
        self.running = self.running & (token_ids != self._end_id)
        return token_ids

    def retire_finished(self, decoders: Sequence[Decoder]) -> None:
        """Drop finished rows once they are half of the batch; moving the caches costs about one step."""
        if 2 * int(self.running.sum()) > len(self.running):
            return
        rows = self.running.nonzero().squeeze(1)
        for decoder in decoders:
            decoder.keep(rows)
        self.active, self.running = self.active[rows], self.running[rows]


def _empty_states(model: Any, num_rows: int, num_tokens: int) -> Tensor:
    width = (model if isinstance(model, LeanModel) else Head.of(model)).state_size
    return torch.zeros(num_rows, num_tokens, width, dtype=model.dtype, device=model.device)


def _reader(teacher: Any, prompts: PromptBatch, response_ids: Tensor, states: Tensor) -> Decoder:
    """Return a decoder that has yet to read all prompts and responses."""
    decoder = _decoder(teacher, prompts, response_ids.shape[1], states)
    decoder.append(response_ids[:, :-1])
    return decoder


def _decoder(model: Any, prompts: PromptBatch, num_tokens: int, kept: Tensor | None = None) -> Decoder:
    if isinstance(model, LeanModel):
        return LeanDecoder(model, prompts, num_tokens, kept)
    return GenericDecoder(model, prompts, num_tokens, kept)


def _likeliest(logits: Tensor) -> Tensor:
    largest, token_ids = logits.max(dim=-1)
    _require_finite(largest)
    return token_ids


def drawn_tokens(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return token ids and their log-probabilities (B,) of logits (B, V) at uniforms (B,) in [0, 1)."""
    if takes(logits.dtype, logits.device):
        token_ids, logprobs = drawn(logits.contiguous(), uniforms.double())
        _require_finite(logprobs)
        return token_ids, logprobs
    probabilities = logits.softmax(dim=-1)
    token_ids = draw_tokens(probabilities, uniforms)
    return token_ids, probabilities.gather(1, token_ids[:, None]).squeeze(1).log()


def draw_tokens(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return token ids (B,) by inverting the cumulative distribution of (B, V) at uniforms (B,) in [0, 1).

    Two levels, blocks and then tokens, cumulated in float64: exact to the rounding of a block's sum in the type of the
    probabilities, and never a token of probability 0.
    """
    extra = -probabilities.shape[1] % _BLOCK
    blocks = (pad(probabilities, (0, extra)) if extra else probabilities).unflatten(1, (-1, _BLOCK))
    sums = blocks.sum(dim=-1).double().cumsum(dim=-1)
    _require_finite(sums[:, -1])
    block, rest = _invert(sums, uniforms)
    rows = torch.arange(len(block), device=block.device)
    inner = blocks[rows, block].double().cumsum(dim=-1)
    token, _ = _invert(inner, rest)
    return block * _BLOCK + token


def _require_finite(values: Tensor) -> None:
    """Raise NonFiniteError for what weights that are not finite predict: no token can be drawn from it."""
    if not values.isfinite().all():
        raise NonFiniteError("the logits of a token are not finite; are the weights?")


def _invert(cumulative: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index that each share of the total falls in, and how far into it the share lies, in [0, 1)."""
    total = cumulative[:, -1:]
    target = torch.minimum(shares[:, None].double() * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, target, right=True)
    below = torch.where(index > 0, cumulative.gather(1, (index - 1).clamp(min=0)), 0.0)
    width = cumulative.gather(1, index) - below
    return index.squeeze(1), ((target - below) / width).squeeze(1)
