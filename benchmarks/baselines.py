"""The same work written plainly, as published code does it: what the pipeline is measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from minillm.attention import attention_of
from minillm.device import Compute
from minillm.logprobs import position_ids
from minillm.types import Experience, PromptBatch, Texts


class _Stepper:
    """A model with its cache, run at every token with the library's fused attention, the faster one in decoding."""

    def __init__(self, model: Any) -> None:
        self._model, self._cache = model, DynamicCache(config=model.config)

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        with attention_of(self._model.config, "sdpa"):
            output = self._model(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=position_ids(mask)[:, -ids.shape[1] :],
                cache=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: Tensor = output.logits[:, -1].float()
        return logits


def mixed_rollout(student: Any, teacher: Any, prompts: PromptBatch, num_tokens: int, alpha: float) -> Tensor:
    """Return responses (B, T): both models run at every token, and their mixed probabilities are drawn from."""
    return _rollout({student: 1 - alpha, teacher: alpha}, prompts, num_tokens)


def student_rollout(student: Any, prompts: PromptBatch, num_tokens: int) -> Tensor:
    """Return responses (B, T) of the student alone."""
    return _rollout({student: 1.0}, prompts, num_tokens)


@torch.no_grad()
def _rollout(shares: dict[Any, float], prompts: PromptBatch, num_tokens: int) -> Tensor:
    steppers = [(_Stepper(model), share) for model, share in shares.items()]
    ids, mask, drawn = prompts.prompt_ids, prompts.prompt_mask, []
    for _ in range(num_tokens):
        parts = [share * step(ids, mask).softmax(dim=-1) for step, share in steppers]
        ids = torch.multinomial(parts[0] if len(parts) == 1 else parts[0] + parts[1], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        drawn.append(ids)
    return torch.cat(drawn, dim=1)


def scored(student: Any, teacher: Any, parts: dict[str, Tensor], compute: Compute, num_passes: int) -> Experience:
    """Return responses with what the update needs, after so many full passes of each model over them."""
    texts = Texts(**parts)
    for _ in range(num_passes):
        with compute.autocast():
            own, other = (_logprobs(model, texts) for model in (student, teacher))
    rewards, ones = other - own, torch.ones_like(own)
    return Experience(
        **parts,
        teacher_hidden=ones[..., None],
        old_logprobs=own,
        teacher_logprobs=other,
        behavior_logprobs=own,
        advantages=rewards - rewards.mean(),
        ratios=ones,
        single_step_weights=ones,
    )


def _logprobs(model: Any, texts: Texts) -> Tensor:
    logits = all_logits(model, texts)[:, texts.prompt_ids.shape[1] - 1 : -1].log_softmax(dim=-1)
    return logits.gather(-1, texts.response_ids.unsqueeze(-1)).squeeze(-1)


def all_logits(model: Any, texts: Any) -> Tensor:
    """Return float32 logits (B, P + T, V) at every position of prompts and responses."""
    mask = torch.cat([texts.prompt_mask, texts.response_mask], dim=1)
    ids = torch.cat([texts.prompt_ids, texts.response_ids], dim=1)
    logits: Tensor = model(input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask)).logits
    return logits.float()


def update_step(student: Any, teacher: Any, batch: Experience, compute: Compute) -> float:
    """Add the gradient of the MiniLLM loss of a batch, over logits of every position, and return the loss."""
    with torch.no_grad(), compute.autocast():
        other = all_logits(teacher, batch)
    return update_step_with_logits(student, other, batch, compute)


def update_step_with_logits(student: Any, other: Tensor, batch: Experience, compute: Compute) -> float:
    """Add the same gradient with the teacher's logits (B, P + T, V) given."""
    with compute.autocast():
        own = all_logits(student, batch)
    predicting = slice(batch.prompt_ids.shape[1] - 1, -1)
    loss = full_vocabulary_loss(own[:, predicting], other[:, predicting], batch)
    loss.backward()
    return float(loss.detach())


def full_vocabulary_loss(own: Tensor, other: Tensor, batch: Any) -> Tensor:
    """Return the clipped policy loss plus the reverse KL, a mean over response tokens, from whole logits (B, T, V).

    batch: an Experience, or those of its fields (B, T) that are read here; B may be missing throughout.
    """
    own, other = own.log_softmax(dim=-1), other.log_softmax(dim=-1)
    logprobs = own.gather(-1, batch.response_ids.unsqueeze(-1)).squeeze(-1)
    ratio: Tensor = (logprobs - batch.old_logprobs).exp() * batch.ratios
    policy: Tensor = torch.maximum(-batch.advantages * ratio, -batch.advantages * ratio.clamp(0.8, 1.2))
    divergence = (own.exp() * (own - other)).sum(dim=-1)
    mask: Tensor = batch.response_mask
    return ((policy + divergence) * mask).sum() / mask.sum()
