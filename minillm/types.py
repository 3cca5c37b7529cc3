"""The records that pass between the parts of the library.

Shapes: B batch, P prompt, T response, H hidden, N response tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from torch import Tensor


@dataclass(frozen=True)
class PromptBatch:
    """Prompts padded on the left.

    prompt_ids: (B, P) int64.
    prompt_mask: (B, P) bool, true on real tokens; an end token inside a prompt is real.
    row_ids: keys of the rows' random draws, one a row.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    row_ids: list[int]


@dataclass(frozen=True)
class Texts:
    """Responses to prompts, whoever wrote them.

    prompt_ids, prompt_mask: (B, P), padded on the left.
    response_ids, response_mask: (B, T), padded on the right; the mask is true through the first end token.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor

    def lengths(self) -> list[int]:
        """Return the tokens of each row, prompt and response together."""
        lengths: list[int] = (self.prompt_mask.sum(dim=1) + self.response_mask.sum(dim=1)).tolist()
        return lengths

    def select(self, rows: Tensor) -> Self:
        """Return the given rows, without columns that are padding in all of them."""
        prompt, response = self.prompt_mask[rows].any(dim=0), self.response_mask[rows].any(dim=0)
        columns = {item.name: prompt if item.name.startswith("prompt") else response for item in fields(self)}
        return type(self)(**{name: getattr(self, name)[rows][:, kept] for name, kept in columns.items()})

    def at_tokens(self) -> dict[str, Tensor]:
        """Return the fields of the response at its N tokens, (N, ...), row after row."""
        names = [item.name for item in fields(self) if not item.name.startswith("prompt")]
        return {name: getattr(self, name)[self.response_mask] for name in names}


@dataclass(frozen=True)
class ScoredTexts(Texts):
    """Texts that the teacher has read.

    teacher_hidden: (B, T, H), the states from which the teacher's head predicts each response token.
    """

    teacher_hidden: Tensor


@dataclass(frozen=True)
class Rollout(ScoredTexts):
    """Sampled responses and what was known when they were sampled; log-probabilities in nats, float32.

    old_logprobs: (B, T), the student's, of the sampled tokens.
    teacher_logprobs: (B, T), the teacher's.
    behavior_logprobs: (B, T), of the distribution that sampled.
    """

    old_logprobs: Tensor
    teacher_logprobs: Tensor
    behavior_logprobs: Tensor


@dataclass(frozen=True)
class Experience(Rollout):
    """A rollout with what the update takes from it; all (B, T), detached, 0 outside the response mask.

    advantages: of each token; under `per_decision` importance they carry the prefix weights of the rewards.
    ratios: factor of the probability ratio: rho_t under `per_token` importance, else 1.
    single_step_weights: factor of the exact reverse KL at each token.
    """

    advantages: Tensor
    ratios: Tensor
    single_step_weights: Tensor


@dataclass(frozen=True)
class TokenBlock:
    """Some response tokens and the logits that predict them.

    student_logits, teacher_logits: (N, V), before any temperature, in float32 unless the method's recipe has them as
        they are made; the teacher's only for methods that ask.
    token_ids: (N,), the tokens themselves.
    fields: what the texts hold at these tokens, by the name of the field, (N,).
    """

    student_logits: Tensor
    teacher_logits: Tensor | None
    token_ids: Tensor
    fields: Mapping[str, Tensor]

    def tempered(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's logits at a temperature."""
        assert self.teacher_logits is not None
        if temperature == 1:
            return self.student_logits, self.teacher_logits
        return self.student_logits / temperature, self.teacher_logits / temperature


@dataclass(frozen=True)
class TokenLosses:
    """What a method makes of N response tokens, one value each.

    loss: (N,), carries the gradient; the update takes its mean over the global minibatch.
    diagnostics: metric name to (N,) detached values, logged as means over the tokens.
    """

    loss: Tensor
    diagnostics: Mapping[str, Tensor]


@dataclass(frozen=True)
class TrainingState:
    """What a training loop needs to go on after a step as if it had never stopped.

    tensors: by group and name. values: what JSON can hold, infinities included.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class StepReport:
    """What a training loop tells after a step.

    metrics: `group/name` to a finite float.
    is_best: the weights are now the best seen on the validation metric; the caller saves them.
    state: returns the loop's state until the next step begins, its tensors being those in use; None without a loop.
    """

    step: int
    metrics: Mapping[str, float]
    is_best: bool
    state: Callable[[], TrainingState] | None = None
