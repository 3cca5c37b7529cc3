"""What a campaign of kills counts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Findings:
    """What a campaign found; a lost step is one that a checkpoint held and that was trained again."""

    kills: int = 0
    divergences: int = 0
    lost_steps: int = 0
    manual_repairs: int = 0
    control_detected: bool = False
    cases: list[str] = field(default_factory=list)
