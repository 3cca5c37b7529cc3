"""The answers of a black-box teacher, for the method seqkd: from the prepared file, or asked of an endpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from minillm.dataset import Answer, Example, read_prepared_answers
from minillm.distill_config import DistillConfig
from minillm.endpoint import Endpoint, ask_endpoint
from minillm.errors import UserError
from minillm.methods.interface import phase_indices
from tasks.progress import progress
from tasks.storage import ANSWERS_PATH, STATE_DIR

_TIMEOUT_S = 120.0
_STORE_PATH = STATE_DIR / "distill" / "answers.jsonl"


def black_box_answers(config: DistillConfig, rows: Sequence[Example], seed: int) -> Mapping[int, Answer]:
    """Return answers by row_id; none for methods that use this run's teacher."""
    if config.method != "seqkd" or config.seqkd.source == "teacher":
        return {}
    if config.seqkd.source == "file":
        return read_prepared_answers(ANSWERS_PATH)
    needed = [rows[index] for index in _needed(config, len(rows), seed)]
    asked = ask_endpoint(needed, _endpoint(config, seed), _STORE_PATH)
    return dict(progress(asked, "distill: ask the endpoint", len(needed)))


def _needed(config: DistillConfig, num_rows: int, seed: int) -> list[int]:
    """Return the rows that the phases of the run will read, each once."""
    num_picked = config.rollout.rollouts_per_phase * config.inner_epochs
    phases = range(1, config.num_phases + 1)
    return sorted({index for phase in phases for index in phase_indices(num_rows, num_picked, phase=phase, seed=seed)})


def _endpoint(config: DistillConfig, seed: int) -> Endpoint:
    return Endpoint(
        address=config.seqkd.endpoint,
        model=config.seqkd.endpoint_model,
        key=_key(config.seqkd.key_variable),
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        max_tokens=config.rollout.max_response_tokens,
        num_parallel=config.seqkd.num_parallel,
        max_retries=config.seqkd.max_retries,
        timeout_s=_TIMEOUT_S,
        seed=seed,
    )


def _key(variable: str) -> str:
    if variable and variable not in os.environ:
        raise UserError(f"distill.seqkd.key_variable: the environment has no {variable}; set it, or name none")
    return os.environ[variable] if variable else ""
