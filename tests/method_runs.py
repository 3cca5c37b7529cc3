"""Small runs of any method: ten rows, eight a phase, on the tiny models."""

from __future__ import annotations

from typing import Any

from minillm.distill_config import DistillConfig
from minillm.methods.interface import Run
from minillm.types import Texts
from tests import tiny
from tests.tiny_run import DEFAULTS, changed, examples, tiny_run

ROWS = examples(10, seed=3)
TEMPERATURE = 0.7


def settings(method: str, **sections: Any) -> DistillConfig:
    base = {
        "method": method,
        "num_phases": 3,
        "inner_epochs": 2,
        "rollout": {"rollouts_per_phase": 8, "batch_size": 4, "max_response_tokens": 6, "temperature": TEMPERATURE},
        "optimizer": {"minibatch_size": 4, "micro_batch_tokens": 30, "language_model_batch_size": 1},
        "grpo": {"group_size": 4},
    }
    return changed(changed(DEFAULTS, base), sections)


def run_of(config: DistillConfig, **options: Any) -> Run:
    return tiny_run(config, tiny.tiny_llama(1), tiny.tiny_llama(2, num_layers=3), ROWS, **options)


def pairs_of(texts: Texts) -> list[tuple[list[int], list[int]]]:
    """Return (prompt, response) of every row."""
    return [
        (ids[mask].tolist(), response[kept].tolist())
        for ids, mask, response, kept in zip(
            texts.prompt_ids, texts.prompt_mask, texts.response_ids, texts.response_mask, strict=True
        )
    ]
