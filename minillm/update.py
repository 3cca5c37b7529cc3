"""The update of a phase: inner epochs of clipped policy steps, each with its language-model batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from minillm.config import DistillConfig
from minillm.device import Compute
from minillm.draws import Stream, permutation
from minillm.logprobs import head_logits, response_hidden
from minillm.objective import LossSums, language_model_loss, policy_terms, surrogate_loss
from minillm.optimization import make_optimizer, optimizer_step
from minillm.rollout import Actors
from minillm.schedules import warmed_up_rate
from minillm.types import Experience

_METRICS = {
    "loss": "train/loss",
    "policy": "policy/loss",
    "reverse_kl": "kl/reverse",
    "clipped": "policy/clipped_frac",
    "log_ratio": "policy/log_ratio",
    "entropy": "policy/entropy",
}


class Updater:
    """Holds what outlives a phase: the optimizer and the number of its steps."""

    def __init__(self, actors: Actors, corpus: Tensor, config: DistillConfig, seed: int, compute: Compute) -> None:
        self._actors, self._corpus, self._config = actors, corpus, config
        self._seed, self._compute = seed, compute
        self._optimizer = make_optimizer(
            actors.student,
            beta1=config.optimizer.beta1,
            beta2=config.optimizer.beta2,
            weight_decay=config.optimizer.weight_decay,
        )
        self._num_steps = 0

    def update(self, experience: Experience, phase: int) -> dict[str, float]:
        """Run the inner epochs of a phase (from 1); the returned means are those of the first epoch."""
        size, num_rows = self._config.optimizer.minibatch_size, len(experience.response_ids)
        sums: dict[str, float] = defaultdict(float)
        for epoch in range(self._config.inner_epochs):
            key = (phase - 1) * self._config.inner_epochs + epoch
            order = permutation(self._seed, Stream.MINIBATCH_ORDER, key, num_rows)
            for start in range(0, num_rows, size):
                metrics = self._step(experience, order[start : start + size])
                for name, value in metrics.items() if epoch == 0 else ():
                    sums[name] += value * size / num_rows
        return dict(sums)

    def _step(self, experience: Experience, rows: list[int]) -> dict[str, float]:
        """Accumulate the gradient of one global minibatch and apply it; means are over its response tokens."""
        num_tokens = int(experience.response_mask[rows].sum())
        metrics: dict[str, float] = defaultdict(float)
        for micro_rows in self._micro_batches(experience, rows):
            sums = self._losses(experience.select(micro_rows))
            (sums.loss / num_tokens).backward()
            for field, name in _METRICS.items():
                metrics[name] += float(getattr(sums, field).detach()) / num_tokens
        metrics["train/language_model_loss"] = self._language_model_backward()
        weight = self._config.objective.language_model_weight
        metrics["train/loss"] += weight * metrics["train/language_model_loss"]
        return metrics | self._apply(metrics["train/loss"])

    def _micro_batches(self, experience: Experience, rows: list[int]) -> Iterator[Tensor]:
        """Yield rows of similar length together; which rows share a forward pass changes no loss."""
        lengths = experience.response_mask.sum(dim=1) + experience.prompt_mask.sum(dim=1)
        ordered = sorted(rows, key=lambda row: int(lengths[row]))
        size = self._config.optimizer.micro_batch_size
        for start in range(0, len(ordered), size):
            yield torch.tensor(ordered[start : start + size], device=experience.response_ids.device)

    def _losses(self, part: Experience) -> LossSums:
        mask, objective = part.response_mask, self._config.objective
        temperature = self._config.rollout.temperature
        with self._compute.autocast():
            hidden = response_hidden(self._actors.student, part.prompt_ids, part.prompt_mask, part.response_ids, mask)
            student_logits = head_logits(self._actors.student, hidden[mask]) / temperature
            with torch.no_grad():
                teacher_logits = head_logits(self._actors.teacher, part.teacher_hidden[mask]) / temperature
        return surrogate_loss(
            student_logits,
            teacher_logits,
            part.response_ids[mask],
            policy_terms(part),
            clip_low=objective.clip_low,
            clip_high=objective.clip_high,
            single_step_weight=objective.single_step_weight,
            entropy_weight=objective.entropy_weight,
        )

    def _language_model_backward(self) -> float:
        """Add the gradient of the weighted language-model loss and return the loss in nats per token."""
        objective = self._config.objective
        if objective.language_model_weight == 0:
            return 0.0
        blocks = self._corpus_blocks()
        targets, share = blocks[:, 1:], objective.language_model_teacher_share
        with self._compute.autocast():
            student_logits = _block_logits(self._actors.student, blocks)
            with torch.no_grad():
                teacher_logits = _block_logits(self._actors.teacher, blocks) if share else None
        loss = language_model_loss(student_logits, targets, teacher_logits, share) / targets.numel()
        (objective.language_model_weight * loss).backward()
        return float(loss.detach())

    def _corpus_blocks(self) -> Tensor:
        """Return the next blocks (K, L) of shuffled epochs over the corpus."""
        size, num_blocks = self._config.optimizer.language_model_batch_size, len(self._corpus)
        rows = [
            permutation(self._seed, Stream.CORPUS_ORDER, index // num_blocks, num_blocks)[index % num_blocks]
            for index in range(self._num_steps * size, (self._num_steps + 1) * size)
        ]
        return self._corpus[rows].to(self._compute.device)

    def _apply(self, loss: float) -> dict[str, float]:
        config = self._config.optimizer
        rate = warmed_up_rate(
            self._num_steps,
            self._num_steps + 1,
            peak=config.learning_rate,
            num_warmup_steps=config.num_warmup_steps,
            schedule="constant",
            final_share=1.0,
        )
        self._num_steps += 1
        norm = optimizer_step(
            self._actors.student,
            self._optimizer,
            learning_rate=rate,
            gradient_clip=config.gradient_clip,
            step=self._num_steps,
            loss=loss,
        )
        return {"optim/lr": rate, "optim/gradient_norm": norm}


def _block_logits(model: Any, blocks: Tensor) -> Tensor:
    """Return logits (K, L - 1, V) that predict each block's tokens from the second on."""
    hidden = model.base_model(input_ids=blocks, use_cache=False).last_hidden_state
    return head_logits(model, hidden[:, :-1])
