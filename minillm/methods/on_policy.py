"""Method gkd: a divergence to the teacher on the student's own samples (GKD, DistiLLM, ABKD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.divergences import Divergence
from minillm.generation import all_responses, generate_responses
from minillm.methods.interface import Recipe, Run, length_metrics, phase_indices
from minillm.methods.replay import OnPolicyShare, ReplayBuffer, Sample, drawn_sources
from minillm.padding import padded_texts
from minillm.rollout import scored_by_teacher
from minillm.types import ScoredTexts, TokenBlock, TokenLosses


class GeneralizedDistillation:
    """A token-level divergence on data and on student samples (GKD, arXiv:2306.13649, algorithm 1).

    The share of student samples is drawn row by row, not batch by batch: the same expectation with less variance.
    With a replay buffer, a student row is sampled anew with a probability that falls linearly from 1 to 0 over the run,
    and otherwise drawn from the buffer (DistiLLM's adaptive off-policy scheme, arXiv:2402.03898, section 3.2).
    """

    def __init__(self, run: Run, divergence: Divergence) -> None:
        config = run.config
        self._run, self._divergence = run, divergence
        self._share = OnPolicyShare(config.gkd.on_policy_share, config.gkd.share_step)
        self._buffer = ReplayBuffer(config.gkd.replay_capacity)
        self.recipe = Recipe(config.inner_epochs, averaging="token", language_model_weight=0.0)

    def observe(self, scores: Mapping[str, float]) -> None:
        """Let the share follow the validation loss."""
        self._share.observe(scores)

    def state(self) -> Mapping[str, Any]:
        """Return the share of student samples and the samples kept for replay."""
        return {"share": self._share.state(), "replay": self._buffer.state()}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take both."""
        self._share.restore(values["share"])
        self._buffer.restore(values["replay"])

    def collect(self, phase: int) -> tuple[ScoredTexts, Mapping[str, float]]:
        """Return rows of data, fresh samples and replayed samples, with the teacher's states."""
        run = self._run
        indices = phase_indices(len(run.data.rows), run.config.rollout.rollouts_per_phase, phase=phase, seed=run.seed)
        sources = drawn_sources(len(indices), self._share.value, self._fresh_share(phase), seed=run.seed, phase=phase)
        data = [Sample(indices[place], run.data.rows[indices[place]].response_ids) for place in sources.data]
        fresh = self._sampled(phase, sources.fresh, indices)
        self._buffer.add(fresh)
        replayed = self._buffer.draw(len(sources.replayed), seed=run.seed, phase=phase)
        metrics = {
            "rollout/on_policy_share": self._share.value,
            "rollout/fresh_rows": float(len(fresh)),
            "rollout/replayed_rows": float(len(replayed)),
        }
        if fresh:
            metrics |= length_metrics([sample.response_ids for sample in fresh], run.decoding.end_id)
        return self._scored([*data, *fresh, *replayed]), metrics

    def _fresh_share(self, phase: int) -> float:
        """Return 1 without a buffer, and as long as it is empty."""
        return 1.0 if not len(self._buffer) else 1.0 - self._run.progress(phase)

    def _sampled(self, phase: int, places: Sequence[int], indices: Sequence[int]) -> list[Sample]:
        run = self._run
        if not places:
            return []
        prompts = [run.data.rows[indices[place]].prompt_ids for place in places]
        responses = all_responses(generate_responses(run.actors.sampler, prompts, places, run.decoding_of(phase)))
        return [Sample(indices[place], response) for place, response in zip(places, responses, strict=True)]

    def _scored(self, samples: Sequence[Sample]) -> ScoredTexts:
        run = self._run
        prompts = [run.data.rows[sample.index].prompt_ids for sample in samples]
        responses = [sample.response_ids for sample in samples]
        texts = padded_texts(prompts, responses, run.decoding.pad_id, run.compute.device)
        batch_tokens = run.config.optimizer.micro_batch_tokens
        return scored_by_teacher(run.actors.teacher, texts, batch_tokens, run.compute, run.stopwatch)

    def token_losses(self, block: TokenBlock) -> TokenLosses:
        """Return the divergence at every token; no gradient passes through the sampling."""
        loss = self._divergence(*block.tempered(self._run.config.rollout.temperature))
        return TokenLosses(loss, {"train/divergence": loss.detach()})
