"""The update of a phase: inner epochs of optimizer steps on its texts, each with its language-model batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from minillm.batching import token_batches
from minillm.checkpoint import optimizer_tensors, restore_optimizer
from minillm.draws import Stream, permutation
from minillm.halves import Halves
from minillm.heads import Readout, backward_through_head
from minillm.methods.interface import Method, Run
from minillm.objective import language_model_loss
from minillm.optimization import make_optimizer, optimizer_step
from minillm.schedules import warmed_up_rate
from minillm.types import ScoredTexts, Texts, TokenBlock


class Updater:
    """Holds what outlives a phase: the optimizer and the number of its steps."""

    def __init__(self, run: Run, method: Method) -> None:
        optimizer = run.config.optimizer
        self._run, self._method, self._recipe = run, method, method.recipe
        self._optimizer = make_optimizer(
            run.actors.student, beta1=optimizer.beta1, beta2=optimizer.beta2, weight_decay=optimizer.weight_decay
        )
        self._num_steps = 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what outlives a phase: the optimizer's tensors, and the rest."""
        return optimizer_tensors(self._optimizer), {"num_steps": self._num_steps}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take what `state` returned."""
        restore_optimizer(self._optimizer, tensors)
        self._num_steps = values["num_steps"]

    def update(self, texts: Texts, phase: int) -> dict[str, float]:
        """Run the inner epochs of a phase (from 1); the returned means are those of the first epoch."""
        size, num_rows = self._run.config.optimizer.minibatch_size, len(texts.response_ids)
        sums: dict[str, float] = defaultdict(float)
        for epoch in range(self._recipe.inner_epochs):
            key = (phase - 1) * self._recipe.inner_epochs + epoch
            order = permutation(self._run.seed, Stream.MINIBATCH_ORDER, key, num_rows)
            for start in range(0, num_rows, size):
                rows = order[start : start + size]
                metrics = self._step(texts, rows)
                for name, value in metrics.items() if epoch == 0 else ():
                    sums[name] += value * len(rows) / num_rows
        return dict(sums)

    def _step(self, texts: Texts, rows: list[int]) -> dict[str, float]:
        """Accumulate the gradient of one global minibatch and apply it."""
        metrics = self.accumulate(texts, rows)
        return metrics | self._apply(metrics["train/loss"])

    def accumulate(self, texts: Texts, rows: list[int]) -> dict[str, float]:
        """Add the gradient of one global minibatch; the returned metrics are means over its response tokens."""
        mask = texts.response_mask[rows]
        num_tokens, total_weight = int(mask.sum()), float(token_weights(mask, self._recipe.averaging).sum())
        halves = self._halves()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=mask.device))
        for micro_rows in self._micro_batches(texts, rows):
            part = texts.select(micro_rows)
            lengths = part.lengths()
            self._run.stopwatch.count(
                update_positions=halves[0].body.num_positions(lengths), update_tokens=sum(lengths)
            )
            weights = token_weights(part.response_mask, self._recipe.averaging)[part.response_mask] / total_weight
            self._micro_batch_backward(part, weights, halves, sums)
        metrics = {name: float(total) / (1 if name == "train/loss" else num_tokens) for name, total in sums.items()}
        if self._recipe.language_model_weight > 0:
            language_model = self._language_model_backward(halves)
            metrics["train/language_model_loss"] = language_model
            metrics["train/loss"] += self._recipe.language_model_weight * language_model
        return metrics

    def _halves(self) -> tuple[Halves, Halves]:
        """Return student and teacher with the weights of now."""
        actors, compute = self._run.actors, self._run.compute
        return Halves(actors.student, compute.dtype), Halves(actors.teacher, compute.dtype)

    def _micro_batch_backward(
        self, part: Texts, weights: Tensor, halves: tuple[Halves, Halves], sums: dict[str, Tensor]
    ) -> None:
        """Add the gradient of the weighted losses (N,) of some rows, and to `sums` the loss and the diagnostics."""
        run, fields = self._run, part.at_tokens()
        found: dict[str, list[Tensor]] = defaultdict(list)
        student = halves[0].readout(part)
        teacher = [Readout(halves[1].head, fields.pop("teacher_hidden"))] if isinstance(part, ScoredTexts) else []

        def block_loss(rows: slice, logits: list[Tensor]) -> Tensor:
            at_rows = {name: values[rows] for name, values in fields.items()}
            losses = self._method.token_losses(
                TokenBlock(logits[0], logits[1] if teacher else None, at_rows["response_ids"], at_rows)
            )
            weighted = weights[rows] * losses.loss
            for name, values in (("train/loss", weighted.detach()), *losses.diagnostics.items()):
                found[name].append(values)
            return weighted.sum()

        memory_mib, in_float32 = run.compute.loss_memory_mib, self._recipe.in_float32
        backward_through_head(student, teacher, block_loss, memory_mib=memory_mib, in_float32=in_float32)
        for name, parts in found.items():
            sums[name] += torch.cat(parts).sum(dtype=torch.float64)

    def _micro_batches(self, texts: Texts, rows: list[int]) -> Iterator[Tensor]:
        """Yield rows of similar length together; which rows share a forward pass changes no loss."""
        lengths = texts.lengths()
        batches = token_batches([lengths[row] for row in rows], self._run.config.optimizer.micro_batch_tokens)
        for places in batches:
            yield torch.tensor([rows[place] for place in places], device=texts.response_ids.device)

    def _language_model_backward(self, halves: tuple[Halves, Halves]) -> float:
        """Add the gradient of the weighted language-model loss and return the loss in nats per token."""
        run, blocks = self._run, self._corpus_blocks()
        targets, share = blocks[:, 1:].flatten(), run.config.objective.language_model_teacher_share
        student, teacher = _corpus_readout(halves[0], blocks), []
        if share:
            with torch.no_grad():
                teacher = [_corpus_readout(halves[1], blocks)]
            run.stopwatch.count(teacher_calls=1)
        total = torch.zeros((), dtype=torch.float64, device=blocks.device)

        def block_loss(rows: slice, logits: list[Tensor]) -> Tensor:
            loss = language_model_loss(logits[0], targets[rows], logits[1] if share else None, share) / len(targets)
            total.add_(loss.detach())
            return self._recipe.language_model_weight * loss

        backward_through_head(student, teacher, block_loss, memory_mib=run.compute.loss_memory_mib)
        return float(total)

    def _corpus_blocks(self) -> Tensor:
        """Return the next blocks (K, L) of shuffled epochs over the corpus."""
        corpus = self._run.data.corpus
        size, num_blocks = self._run.config.optimizer.language_model_batch_size, len(corpus)
        places = [divmod(index, num_blocks) for index in range(self._num_steps * size, (self._num_steps + 1) * size)]
        epochs = {epoch for epoch, _ in places}
        orders = {epoch: permutation(self._run.seed, Stream.CORPUS_ORDER, epoch, num_blocks) for epoch in epochs}
        rows = [orders[epoch][place] for epoch, place in places]
        return corpus[rows].to(self._run.compute.device)

    def _apply(self, loss: float) -> dict[str, float]:
        config = self._run.config.optimizer
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
            self._run.actors.student,
            self._optimizer,
            learning_rate=rate,
            gradient_clip=config.gradient_clip,
            step=self._num_steps,
            loss=loss,
        )
        return {"optim/lr": rate, "optim/gradient_norm": norm}


def _corpus_readout(halves: Halves, blocks: Tensor) -> Readout:
    """Return what predicts the tokens of each block (K, L) from the second on, block after block."""
    lengths = torch.full((len(blocks),), blocks.shape[1], device=blocks.device)
    predicts = torch.ones_like(blocks, dtype=torch.bool)
    predicts[:, -1] = False
    return Readout(halves.head, halves.body.states(blocks.flatten(), lengths, predicts.flatten()))


def token_weights(response_mask: Tensor, averaging: Literal["token", "response"]) -> Tensor:
    """Return what each token (B, T) counts in the minibatch's mean: the same, or the same for each response."""
    kept = response_mask.double()
    return kept if averaging == "token" else kept / kept.sum(dim=1, keepdim=True)
