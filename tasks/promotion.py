"""The rule by which a student becomes @champion; pure, and the only place where it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_IS_BETTER_HIGH = {"final/student_rougeL": True, "final/student_reverse_kl": False}
METRICS = tuple(_IS_BETTER_HIGH)


@dataclass(frozen=True)
class Version:
    """A student in the registry, with what it scored by one metric."""

    number: int
    md5: str  # of its directory, as DVC gives it
    evaluation: str | None  # digest of the evaluation that judged it last; None = it was not judged
    values: Mapping[str, float]  # digest of an evaluation -> what it scored there
    decision: str | None  # the words of the decision upon its last evaluation; None before there was one
    is_loadable: bool  # its weights are in MLflow

    @property
    def value(self) -> float:
        """Return what it scored last, NaN when it was not judged."""
        return self.values.get(self.evaluation or "", math.nan)


@dataclass(frozen=True)
class Decision:
    """What became of a student in the registry."""

    model: str
    version: int
    was_promoted: bool
    reason: str

    @property
    def line(self) -> str:
        """Return it for the terminal."""
        verb = "is" if self.was_promoted else "is not"
        return f"registry: {self.model} version {self.version} {verb} @champion: {self.reason}"


def judged(metric: str, student: Version, champion: Version | None) -> tuple[bool, str]:
    """Return whether a student takes the champion's place, and why.

    It does when its metric is finite and strictly better than the champion's on the same evaluation, or when there is
    no champion. Students that were judged on different evaluations are not compared.
    """
    value = student.value
    if not math.isfinite(value):
        return False, f"it has no finite {metric}"
    if champion is None:
        return True, f"{metric} {value:.4f}, the first that was judged"
    other = champion.values.get(student.evaluation or "", math.nan)
    if not math.isfinite(other):
        return False, f"version {champion.number} was judged on another evaluation; `minillm promote` decides by hand"
    is_high = _IS_BETTER_HIGH[metric]
    if value > other if is_high else value < other:
        return True, f"{metric} {value:.4f} {'>' if is_high else '<'} {other:.4f} of version {champion.number}"
    return False, f"{metric} {value:.4f} is not better than {other:.4f} of version {champion.number}"
