"""Methods that learn from texts fixed in advance: sft, seqkd, kd and reverse_kd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.divergences import Divergence
from minillm.logprobs import token_logprobs
from minillm.methods.interface import Recipe, Run, length_metrics, phase_indices
from minillm.methods.writers import Writer
from minillm.padding import padded_texts
from minillm.rollout import scored_by_teacher
from minillm.types import ScoredTexts, Texts, TokenBlock, TokenLosses


class _Supervised:
    """Takes as many rows in a phase as other methods update on, each once: updates are equal, rows fresh."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.recipe = Recipe(inner_epochs=1, averaging="token", language_model_weight=0.0)

    def observe(self, scores: Mapping[str, float]) -> None:
        """Nothing adapts."""

    def state(self) -> Mapping[str, Any]:
        """Return nothing: every phase is a function of its number and the weights."""
        return {}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Nothing to take."""

    def _rows(self, phase: int) -> list[int]:
        config = self._run.config
        num_rows = config.rollout.rollouts_per_phase * config.inner_epochs
        return phase_indices(len(self._run.data.rows), num_rows, phase=phase, seed=self._run.seed)

    def _texts(self, indices: Sequence[int], responses: Sequence[Sequence[int]]) -> Texts:
        prompts = [self._run.data.rows[index].prompt_ids for index in indices]
        return padded_texts(prompts, responses, self._run.decoding.pad_id, self._run.compute.device)

    def _data(self, phase: int) -> Texts:
        indices = self._rows(phase)
        return self._texts(indices, [self._run.data.rows[index].response_ids for index in indices])


class FineTuning(_Supervised):
    """Supervised fine-tuning (sft), or sequence-level distillation on a teacher's texts (seqkd, arXiv:1606.07947)."""

    def __init__(self, run: Run, writer: Writer | None = None) -> None:
        super().__init__(run)
        self._writer = writer

    def collect(self, phase: int) -> tuple[Texts, Mapping[str, float]]:
        """Return rows of the data, or their prompts with the writer's responses."""
        if self._writer is None:
            return self._data(phase), {}
        indices = self._rows(phase)
        responses = self._writer(phase, indices)
        return self._texts(indices, responses), length_metrics(responses, self._run.decoding.end_id)

    def token_losses(self, block: TokenBlock) -> TokenLosses:
        """Return the negative log-likelihood of every token."""
        loss = -token_logprobs(block.student_logits, block.token_ids)
        return TokenLosses(loss, {"train/data_loss": loss.detach()})


class WordLevel(_Supervised):
    """Word-level distillation on the data: a divergence to the teacher, mixed with the likelihood of the data.

    kd: the forward KL (arXiv:1606.07947); reverse_kd: the reverse KL.
    """

    def __init__(self, run: Run, divergence: Divergence, data_weight: float) -> None:
        super().__init__(run)
        self._divergence, self._data_weight = divergence, data_weight

    def collect(self, phase: int) -> tuple[ScoredTexts, Mapping[str, float]]:
        """Return rows of the data with the teacher's states."""
        run = self._run
        texts, batch_tokens = self._data(phase), run.config.optimizer.micro_batch_tokens
        return scored_by_teacher(run.actors.teacher, texts, batch_tokens, run.compute, run.stopwatch), {}

    def token_losses(self, block: TokenBlock) -> TokenLosses:
        """Return (1 - data_weight) divergence + data_weight negative log-likelihood; the latter at temperature 1."""
        divergence = self._divergence(*block.tempered(self._run.config.rollout.temperature))
        data_loss = -token_logprobs(block.student_logits, block.token_ids)
        loss = (1 - self._data_weight) * divergence + self._data_weight * data_loss
        return TokenLosses(loss, {"train/divergence": divergence.detach(), "train/data_loss": data_loss.detach()})
