"""Teacher-mixed decoding against the plain loop that runs both models at every token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import baselines
from benchmarks.floor import Ceilings, measured_ceilings, rollout_floor_s
from benchmarks.timing import interleaved, ratio
from benchmarks.workload import (
    NO_END,
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    prompt_batch,
    smol_model,
    teacher_picks,
    the_compute,
    uniforms,
)
from minillm.attention import attention_of
from minillm.device import Compute
from minillm.packed_model import packed_copy
from minillm.sampling import decodable, sample_responses
from minillm.types import PromptBatch

MAIN_CASE = (16, 64)  # rows, new tokens
OTHER_CASES = ((8, 64), (32, 64), (16, 256))
ALPHAS = (0.2, 0.5)


def measure(num_threads: int, num_rounds: int, is_short: bool) -> dict[str, Any]:
    """Return the ratio to the plain loop by share of the teacher, and how the parts compare."""
    compute = the_compute(num_threads)
    models = [smol_model(layers, compute, seed=layers).to(compute.dtype) for layers in (STUDENT_LAYERS, TEACHER_LAYERS)]
    ceilings = measured_ceilings(compute)
    cases = [_case(models, compute, ceilings, *MAIN_CASE, alpha, num_rounds) for alpha in ALPHAS]
    if not is_short:
        cases += [_case(models, compute, ceilings, *case, ALPHAS[0], num_rounds) for case in OTHER_CASES]
    return {
        "ratio_vs_plain": {str(case["alpha"]): case["plain/lean"]["wall"] for case in cases[: len(ALPHAS)]},
        "generic_ratio_vs_plain": {str(case["alpha"]): case["plain/generic"]["wall"] for case in cases[: len(ALPHAS)]},
        "ratio_vs_generate": cases[0]["generate/lean"]["wall"],
        "floor_share": {str(case["alpha"]): case["floor_share"] for case in cases[: len(ALPHAS)]},
        "ceilings": ceilings.summary(),
        "cases": cases,
        "arithmetic": str(compute),
    }


def _case(
    models: list[Any],
    compute: Compute,
    ceilings: Ceilings,
    num_rows: int,
    num_tokens: int,
    alpha: float,
    num_rounds: int,
) -> dict[str, Any]:
    """Return how the ways to sample compare, and the least time that ours could take as a share of what it took."""
    prompts = prompt_batch(num_rows, compute)
    competitors: dict[str, Callable[[], Any]] = {
        "plain": partial(baselines.mixed_rollout, models[0], models[1], prompts, num_tokens, alpha),
        "generic": _ours(models, prompts, num_tokens, alpha, packed_copy),
        "lean": _ours(models, prompts, num_tokens, alpha, decodable),
        "generate": partial(_generate, models[0], prompts, num_tokens),
    }
    times = interleaved(competitors, num_rounds)
    new_tokens = num_rows * num_tokens
    picks = teacher_picks(1, num_tokens, alpha)[0].tolist()
    floor_s = rollout_floor_s(models, num_rows, int(prompts.prompt_mask.sum()), picks, ceilings)
    return {
        "rows": num_rows,
        "new_tokens": num_tokens,
        "alpha": alpha,
        "plain/lean": ratio(times["plain"], times["lean"]),
        "plain/generic": ratio(times["plain"], times["generic"]),
        "generate/lean": ratio(times["generate"], times["lean"]),
        "floor_s": round(floor_s, 4),
        "floor_share": round(floor_s / times["lean"].summary()["wall_s"], 3),
        "times": {name: found.summary() for name, found in times.items()},
        "tokens_per_s": {name: round(new_tokens / found.summary()["wall_s"], 1) for name, found in times.items()},
    }


def _ours(
    models: list[Any], prompts: PromptBatch, num_tokens: int, alpha: float, prepared: Callable[[Any], Any]
) -> Callable[[], Any]:
    """Return a rollout of ours, the teacher prepared once."""
    return partial(our_rollout, [models[0], prepared(models[1])], prompts, num_tokens, alpha, prepared=prepared)


def our_rollout(
    models: list[Any], prompts: PromptBatch, num_tokens: int, alpha: float, prepared: Callable[[Any], Any]
) -> None:
    """Sample as the pipeline does, the student's weights packed anew; check that no response ended early."""
    student, teacher = map(prepared, models)
    responses = sample_responses(
        student,
        teacher,
        prompts,
        uniforms=uniforms(len(prompts.row_ids), num_tokens),
        teacher_picks=teacher_picks(len(prompts.row_ids), num_tokens, alpha),
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        end_id=NO_END,
        pad_id=0,
        keep_student_states=student.dtype == torch.float32,
        keep_teacher_states=True,
    )
    assert int(responses.response_mask.sum()) == num_tokens * len(prompts.row_ids)


def _generate(student: Any, prompts: PromptBatch, num_tokens: int) -> None:
    """Sample from the student alone with the library's own loop and fused attention."""
    with attention_of(student.config, "sdpa"):
        student.generate(
            input_ids=prompts.prompt_ids,
            attention_mask=prompts.prompt_mask.long(),
            do_sample=True,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            pad_token_id=0,
        )
