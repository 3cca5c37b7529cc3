"""Supervised fine-tuning with token-weighted validation: the teacher's tuning and the student's warm-up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Self

import torch
from torch import Tensor

from minillm.batching import token_batches
from minillm.checkpoint import model_tensors, optimizer_tensors, restore_model, restore_optimizer
from minillm.checkpointing import recompute_layers
from minillm.config import SftConfig
from minillm.dataset import Example
from minillm.device import Compute
from minillm.draws import Stream, permutation
from minillm.halves import Halves
from minillm.heads import Readout, backward_through_head, logit_blocks
from minillm.logprobs import token_logprobs
from minillm.optimization import make_optimizer, optimizer_step
from minillm.padding import padded_texts
from minillm.schedules import warmed_up_rate
from minillm.types import StepReport, TrainingState

_BETAS = (0.9, 0.95)  # the paper's, arXiv:2306.08543, appendix


def fine_tune(
    model: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    config: SftConfig,
    seed: int,
    order: Stream,
    pad_id: int,
    compute: Compute,
    resumed: TrainingState | None = None,
) -> Iterator[StepReport]:
    """Train on responses given prompts, yielding a report per step; stops after `patience` validations without a gain.

    The report of step 0 carries the validation loss before training. `is_best` marks the lowest validation loss so far.
    Losses are nats per response token, means over all tokens of the global batch or of the validation rows. `order`
    keys the shuffling, so that stages with one seed see the rows in orders of their own. `resumed` is a state that an
    earlier call with the same arguments reported: training goes on behind its step, and ends with the same weights.
    """
    if compute.gradient_checkpointing:
        recompute_layers(model)
    optimizer = make_optimizer(model, beta1=_BETAS[0], beta2=_BETAS[1], weight_decay=config.weight_decay)
    score = partial(
        validation_loss, model, validation, batch_tokens=config.micro_batch_tokens, pad_id=pad_id, compute=compute
    )
    track = _Track.restored(model, optimizer, resumed) if resumed else _Track(model, optimizer, score())
    if not resumed:
        yield StepReport(0, {"validation/loss": track.best_loss}, is_best=True, state=track.state)
    batches = _batches(train, config.batch_size, config.num_steps, seed, order)
    for batch in islice(batches, track.step, None):
        if track.num_stale >= config.patience:
            return
        track.step += 1
        metrics = _train_step(model, optimizer, batch, step=track.step, config=config, pad_id=pad_id, compute=compute)
        is_best = False
        if track.step % config.validate_every_steps == 0 or track.step == config.num_steps:
            metrics["validation/loss"] = score()
            is_best = track.improves(metrics["validation/loss"])
        yield StepReport(track.step, metrics, is_best=is_best, state=track.state)


@dataclass
class _Track:
    """Where a run of supervised training stands."""

    model: Any
    optimizer: torch.optim.AdamW
    best_loss: float
    step: int = 0
    num_stale: int = 0

    @classmethod
    def restored(cls, model: Any, optimizer: torch.optim.AdamW, state: TrainingState) -> Self:
        """Return the track of a state, with weights and optimizer as they were."""
        restore_model(model, state.tensors["model"])
        restore_optimizer(optimizer, state.tensors["optimizer"])
        return cls(model, optimizer, state.values["best_loss"], state.step, state.values["num_stale"])

    def state(self) -> TrainingState:
        """Return what goes on from here."""
        tensors = {"model": model_tensors(self.model), "optimizer": optimizer_tensors(self.optimizer)}
        return TrainingState(self.step, tensors, {"best_loss": self.best_loss, "num_stale": self.num_stale})

    def improves(self, loss: float) -> bool:
        """Return whether a validation loss is the lowest so far, and count those in a row that are not."""
        is_best = loss < self.best_loss
        self.best_loss, self.num_stale = (loss, 0) if is_best else (self.best_loss, self.num_stale + 1)
        return is_best


def untuned(
    model: Any,
    validation: Sequence[Example],
    *,
    config: SftConfig,
    pad_id: int,
    compute: Compute,
    resumed: TrainingState | None = None,
) -> Iterator[StepReport]:
    """Yield the one report of a model that is used as it is: its validation loss. Nothing is ever resumed."""
    assert resumed is None
    loss = validation_loss(model, validation, batch_tokens=config.micro_batch_tokens, pad_id=pad_id, compute=compute)
    yield StepReport(0, {"validation/loss": loss}, is_best=True)


def _batches(
    rows: Sequence[Example], batch_size: int, num_batches: int, seed: int, order: Stream
) -> Iterator[list[Example]]:
    """Yield global batches from shuffled epochs; a batch may span two epochs."""
    queue: list[int] = []
    epoch = 0
    for _ in range(num_batches):
        while len(queue) < batch_size:
            queue += permutation(seed, order, epoch, len(rows))
            epoch += 1
        batch, queue = queue[:batch_size], queue[batch_size:]
        yield [rows[index] for index in batch]


def _train_step(
    model: Any,
    optimizer: torch.optim.AdamW,
    batch: Sequence[Example],
    *,
    step: int,
    config: SftConfig,
    pad_id: int,
    compute: Compute,
) -> dict[str, float]:
    num_tokens = sum(len(row.response_ids) for row in batch)
    halves, total = Halves(model, compute.dtype), 0.0
    for micro_batch in _micro_batches(batch, config.micro_batch_tokens):
        total += _backward(halves, micro_batch, num_tokens, pad_id=pad_id, compute=compute)
    rate = warmed_up_rate(
        step - 1,
        config.num_steps,
        peak=config.learning_rate,
        num_warmup_steps=config.num_warmup_steps,
        schedule=config.schedule,
        final_share=config.final_learning_rate_share,
    )
    norm = optimizer_step(
        model, optimizer, learning_rate=rate, gradient_clip=config.gradient_clip, step=step, loss=total
    )
    return {"train/loss": total, "optim/lr": rate, "optim/gradient_norm": norm, "train/tokens": float(num_tokens)}


def _micro_batches(rows: Sequence[Example], max_tokens: int) -> Iterator[list[Example]]:
    """Yield rows of similar length that share a forward pass."""
    for places in token_batches([len(row.prompt_ids) + len(row.response_ids) for row in rows], max_tokens):
        yield [rows[place] for place in places]


def _backward(halves: Halves, rows: Sequence[Example], num_tokens: int, *, pad_id: int, compute: Compute) -> float:
    """Add the gradient of the rows' negative log-likelihood in nats over `num_tokens`, and return it."""
    readout, token_ids = _readout(halves, rows, pad_id=pad_id, compute=compute)
    total = torch.zeros((), dtype=torch.float64, device=compute.device)

    def block_loss(places: slice, logits: list[Tensor]) -> Tensor:
        loss = -token_logprobs(logits[0], token_ids[places]).sum() / num_tokens
        total.add_(loss.detach())
        return loss

    backward_through_head(readout, [], block_loss, memory_mib=compute.loss_memory_mib)
    return float(total)


def _readout(halves: Halves, rows: Sequence[Example], *, pad_id: int, compute: Compute) -> tuple[Readout, Tensor]:
    """Return the states that predict every response token of the rows, and the tokens (N,)."""
    prompts, responses = [row.prompt_ids for row in rows], [row.response_ids for row in rows]
    texts = padded_texts(prompts, responses, pad_id, compute.device)
    return halves.readout(texts), texts.response_ids[texts.response_mask]


@torch.no_grad()
def validation_loss(model: Any, rows: Sequence[Example], *, batch_tokens: int, pad_id: int, compute: Compute) -> float:
    """Return the mean negative log-likelihood in nats per response token over all rows; NaN becomes infinity."""
    halves, total = Halves(model, compute.dtype), 0.0
    for batch in _micro_batches(rows, batch_tokens):
        readout, token_ids = _readout(halves, batch, pad_id=pad_id, compute=compute)
        for places, (logits,) in logit_blocks([readout], memory_mib=compute.loss_memory_mib):
            total -= float(token_logprobs(logits, token_ids[places]).sum())
    loss = total / sum(len(row.response_ids) for row in rows)
    return loss if not math.isnan(loss) else math.inf
