"""What can be compared: a variant is a name and the knobs that it sets; every other knob is that of params.yaml."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minillm.config import Params
from minillm.errors import UserError

Setting = str | int | float  # of one knob, named by its dotted key; a bool is an int

_METHOD = "distill.method"
DEFAULT_VARIANTS = ("sft", "kd", "seqkd", "reverse_kd", "gkd", "minillm", "grpo")
VARIANTS: dict[str, dict[str, Setting]] = {
    **{method: {_METHOD: method} for method in DEFAULT_VARIANTS},
    "minillm-no-length": {_METHOD: "minillm", "distill.objective.length_normalize": False},
    "minillm-no-mixing": {
        _METHOD: "minillm",
        "distill.rollout.teacher_mix_alpha": 0.0,
        "distill.rollout.teacher_mix_schedule": "constant",  # another one ends at a share of its own
    },
    "minillm-no-single-step": {  # the plain policy gradient: without the single-step term its reward is in the return
        _METHOD: "minillm",
        "distill.minillm.single_step_weight": 0.0,
        "distill.minillm.returns_from": "current",
    },
    "minillm-no-baseline": {_METHOD: "minillm", "distill.minillm.baseline": "none"},
    "minillm-whitened": {_METHOD: "minillm", "distill.minillm.scale": "std"},
}
DEFAULT_SEEDS = ("17", "18", "19")
_MAX_SEED = 2**31 - 1
_NOT_COMPARED = {"tracking", "report", "checkpoint"}  # sections that change no number


@dataclass(frozen=True)
class Run:
    """One variant under one seed."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its DVC experiment."""
        return f"compare-{self.variant}-{self.seed}"

    @property
    def settings(self) -> dict[str, Setting]:
        """Return the knobs that it sets."""
        return {"seed": self.seed, **VARIANTS[self.variant]}


def planned_runs(variants: Sequence[str], seeds: Sequence[str]) -> list[Run]:
    """Return the runs seed by seed, so that the stages before distill come from DVC's cache for all but the first."""
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        raise UserError(f"unknown variant {unknown[0]!r}; known: {', '.join(VARIANTS)}")
    numbers = dict.fromkeys(map(_seed, seeds))
    return [Run(variant, seed) for seed in numbers for variant in dict.fromkeys(variants)]


def set_param_arguments(settings: Mapping[str, Setting]) -> list[str]:
    """Return the arguments of `dvc exp run` that set the knobs."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return [argument for key, text in texts.items() for argument in ("--set-param", f"{key}={text}")]


def with_settings(content: Any, settings: Mapping[str, Setting]) -> Any:
    """Return the content of a params file with knobs set; each must be there."""
    changed = copy.deepcopy(content)
    for key, value in settings.items():
        *parents, name = key.split(".")
        section = changed
        for parent in parents:
            section = section[parent]
        if name not in section:
            raise KeyError(key)
        section[name] = value
    return changed


def params_digest(params: Params) -> str:
    """Return what two runs share when their params give the same numbers."""
    content = json.dumps(params.model_dump(mode="json", exclude=_NOT_COMPARED), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _MAX_SEED):
        raise UserError(f"seed {text!r}: an integer from 0 to {_MAX_SEED} is needed")
    return int(text)
