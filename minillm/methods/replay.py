"""Where the texts of on-policy distillation come from: data, fresh samples, or samples kept from earlier phases."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minillm.draws import Stream, generator


@dataclass(frozen=True)
class Sample:
    """A student's response to the prompt of a training row."""

    index: int
    response_ids: list[int]


class ReplayBuffer:
    """The latest samples of the student, at most `capacity` of them (DistiLLM, arXiv:2402.03898, section 3.2)."""

    def __init__(self, capacity: int) -> None:
        self._samples: deque[Sample] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, samples: list[Sample]) -> None:
        """Keep the samples, dropping the oldest beyond the capacity."""
        self._samples.extend(samples)

    def state(self) -> list[list[Any]]:
        """Return the samples, oldest first, for JSON."""
        return [[sample.index, sample.response_ids] for sample in self._samples]

    def restore(self, samples: Sequence[Sequence[Any]]) -> None:
        """Take what `state` returned in the place of what there is."""
        self._samples.clear()
        self._samples.extend(Sample(index, response_ids) for index, response_ids in samples)

    def draw(self, num_samples: int, *, seed: int, phase: int) -> list[Sample]:
        """Return kept samples, each drawn uniformly with replacement."""
        places = generator(seed, Stream.REPLAY, phase).integers(len(self._samples), size=num_samples)
        return [self._samples[int(place)] for place in places]


class OnPolicyShare:
    """The probability that a row is the student's own, raised by `step` when the validation loss rises.

    DistiLLM starts at 0 and raises it so (arXiv:2402.03898, section 3.2); with a step of 0 it is GKD's constant lambda.
    """

    def __init__(self, start: float, step: float) -> None:
        self.value = start
        self._step = step
        self._last_loss = float("inf")

    def state(self) -> list[float]:
        """Return the share and the last loss."""
        return [self.value, self._last_loss]

    def restore(self, values: Sequence[float]) -> None:
        """Take what `state` returned."""
        self.value, self._last_loss = values

    def observe(self, scores: Mapping[str, float]) -> None:
        """Raise the share if the validation loss is above the one before."""
        loss = scores["validation/loss"]
        if loss > self._last_loss:
            self.value = min(self.value + self._step, 1.0)
        self._last_loss = loss


@dataclass(frozen=True)
class Sources:
    """Which rows of a phase take their response from where; lists of places within the phase."""

    data: list[int]
    fresh: list[int]
    replayed: list[int]


def drawn_sources(num_rows: int, on_policy_share: float, fresh_share: float, *, seed: int, phase: int) -> Sources:
    """Return independent draws per row: on-policy with its share, and then fresh (else replayed) with its own."""
    draws = generator(seed, Stream.SOURCES, phase).random((num_rows, 2))
    own, fresh = draws[:, 0] < on_policy_share, draws[:, 1] < fresh_share
    places = range(num_rows)
    return Sources(
        data=[place for place in places if not own[place]],
        fresh=[place for place in places if own[place] and fresh[place]],
        replayed=[place for place in places if own[place] and not fresh[place]],
    )
