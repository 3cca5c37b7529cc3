"""A run of the stage distill on tiny models, and params changed knob by knob, validated as a user's are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from minillm.dataset import Answer, Example
from minillm.device import Compute
from minillm.distill_config import DistillConfig
from minillm.distiller import make_actors
from minillm.generation import Decoding
from minillm.methods.interface import DistillData, Run
from minillm.params import load_params
from minillm.types import Texts, TokenBlock
from tests import tiny
from tests.imports import ROOT

CPU = Compute(torch.device("cpu"), torch.float32)
DEFAULTS = load_params(ROOT / "params.yaml").distill


def changed(config: DistillConfig, changes: Mapping[str, Any]) -> DistillConfig:
    """Return the config with knobs of sections replaced; {"rollout": {"batch_size": 4}, "num_phases": 3}."""
    content = config.model_dump()
    for name, value in changes.items():
        inner = isinstance(value, Mapping) and name != "divergence"
        content[name] = {**content[name], **value} if inner else value
    return DistillConfig.model_validate(content)


def decoding(**changes: Any) -> Decoding:
    base = {"seed": 5, "step": 0, "batch_size": 4, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_tokens": 8}
    return Decoding(**(base | changes), end_id=tiny.END_ID, pad_id=tiny.PAD_ID)


def examples(num_rows: int, seed: int) -> list[Example]:
    """Return rows of random ids; responses end with the end token."""
    prompts, responses = tiny.random_rows(num_rows, 2, 9, seed), tiny.random_rows(num_rows, 1, 6, seed + 1)
    return [
        Example(index, "", "", [""], "", prompt, [*response, tiny.END_ID])
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]


def corpus() -> torch.Tensor:
    return torch.tensor(tiny.random_rows(4, 12, 12, seed=9))


def plain_logits(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Return the logits that predict each response token, from one row without padding."""
    return model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]


def whole_block(run: Run, part: Texts) -> TokenBlock:
    """Return all response tokens of some rows with the logits that the models give, gradient and all."""
    mask = torch.cat([part.prompt_mask, part.response_mask], dim=1)
    ids, positions = torch.cat([part.prompt_ids, part.response_ids], dim=1), (mask.long().cumsum(1) - 1).clamp(min=0)
    own, other = (
        model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits[
            :, part.prompt_ids.shape[1] - 1 : -1
        ][part.response_mask]
        for model in (run.actors.student, run.actors.teacher)
    )
    return TokenBlock(own, other.detach(), part.response_ids[part.response_mask], part.at_tokens())


class WordTokenizer:
    """Spells ids as words."""

    eos_token_id, pad_token_id = tiny.END_ID, tiny.PAD_ID

    def batch_decode(self, rows: Sequence[Any], skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(f"w{int(token)}" for token in row if int(token) != tiny.END_ID) for row in rows]

    def __call__(self, texts: Sequence[str], **options: bool) -> dict[str, list[list[int]]]:
        assert options == {"add_special_tokens": False, "split_special_tokens": True}
        return {"input_ids": [[int(word[1:]) for word in text.split()] for text in texts]}


def tiny_run(
    config: DistillConfig,
    student: Any,
    teacher: Any,
    rows: Sequence[Example],
    *,
    seed: int = 5,
    compute: Compute = CPU,
    answers: Mapping[int, Answer] | None = None,
) -> Run:
    """Return a run with the rollout settings of the config."""
    rollout = config.rollout
    settings = decoding(
        seed=seed,
        batch_size=rollout.batch_size,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        max_tokens=rollout.max_response_tokens,
    )
    data = DistillData(rows, corpus(), answers or {})
    return Run(make_actors(student, teacher, compute), data, config, seed, settings, WordTokenizer(), compute)
