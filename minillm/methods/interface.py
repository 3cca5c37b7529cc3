"""What every method of distillation is to the training loop, and what it may draw on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from minillm.dataset import Answer, Example
from minillm.device import Compute
from minillm.distill_config import DistillConfig
from minillm.draws import Stream, permutation
from minillm.generation import Decoding
from minillm.rollout import Actors
from minillm.stopwatch import Stopwatch
from minillm.types import Texts, TokenBlock, TokenLosses


@dataclass(frozen=True)
class DistillData:
    """What a run learns from.

    rows: the training rows.
    corpus: packed plain-text blocks (K, L) for the language-model loss; may be empty when its weight is 0.
    answers: a black-box teacher's answers by `row_id`, for seqkd; otherwise empty.
    """

    rows: Sequence[Example]
    corpus: Tensor
    answers: Mapping[int, Answer]


@dataclass(frozen=True)
class Run:
    """One run of the stage: its models, data and settings. `decoding.step` is set anew for every phase."""

    actors: Actors
    data: DistillData
    config: DistillConfig
    seed: int
    decoding: Decoding
    tokenizer: Any
    compute: Compute
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def decoding_of(self, phase: int) -> Decoding:
        """Return how the responses of a phase (from 1) are drawn."""
        return replace(self.decoding, step=phase)

    def progress(self, phase: int) -> float:
        """Return where in the run a phase lies: 0 for the first, 1 for the last."""
        return (phase - 1) / max(self.config.num_phases - 1, 1)


@dataclass(frozen=True)
class Recipe:
    """How the update treats what a method collects.

    inner_epochs: passes over the texts of a phase.
    averaging: the mean over the tokens of the global minibatch, or over its responses' own means.
    language_model_weight: 0 for methods without that loss.
    in_float32: whether the losses want logits so; the others read them in the type that the head makes.
    """

    inner_epochs: int
    averaging: Literal["token", "response"]
    language_model_weight: float
    in_float32: bool = True


class Method(Protocol):
    """Collects texts phase by phase and says what each of their tokens costs."""

    @property
    def recipe(self) -> Recipe:
        """Return how the update treats the texts."""

    def collect(self, phase: int) -> tuple[Texts, Mapping[str, float]]:
        """Return the texts of a phase (from 1), scored as the losses need, and metrics about them."""

    def token_losses(self, block: TokenBlock) -> TokenLosses:
        """Return the losses of some tokens of the collected texts; they depend on no other token's logits."""

    def observe(self, scores: Mapping[str, float]) -> None:
        """Take notice of validation scores."""

    def state(self) -> Mapping[str, Any]:
        """Return what the method carries from phase to phase, for JSON."""

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take what `state` returned."""


def phase_indices(num_rows: int, num_picked: int, *, phase: int, seed: int) -> list[int]:
    """Return the rows of a phase (from 1): consecutive pieces of epochs, each epoch shuffled anew."""
    first = (phase - 1) * num_picked
    places = [divmod(index, num_rows) for index in range(first, first + num_picked)]
    orders = {epoch: permutation(seed, Stream.PROMPT_ORDER, epoch, num_rows) for epoch, _ in places}
    return [orders[epoch][place] for epoch, place in places]


def length_metrics(responses: Sequence[Sequence[int]], end_id: int) -> dict[str, float]:
    """Return the mean length in tokens and the share of responses that ended."""
    ended = sum(end_id in response for response in responses)
    return {
        "response/length_mean": sum(map(len, responses)) / len(responses),
        "response/end_rate": ended / len(responses),
    }
