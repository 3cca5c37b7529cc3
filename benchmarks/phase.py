"""A whole phase, rollouts and inner epochs, against the passes of the published code written plainly.

That code decodes once from the mixture and once more from the student for a line of the log, scores the responses three
times with each model, and runs the teacher again in every inner epoch, each time over the logits of all positions.
Both decode batches of the same rows; the pipeline's own, larger ones are timed beside them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks import baselines
from benchmarks.timing import interleaved, ratio
from benchmarks.workload import (
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    distill_run,
    prompt_batch,
    prompt_rows,
    smol_model,
    the_compute,
)
from minillm.device import Compute
from minillm.distiller import refresh_sampler
from minillm.methods import make_method
from minillm.methods.interface import Run
from minillm.types import Experience
from minillm.update import Updater

NUM_ROLLOUTS, NUM_SHORT = 256, 32
INNER_EPOCHS, NUM_SCORINGS = 4, 3
NUM_TOKENS, ALPHA = 64, 0.2
_BATCH = 16  # rows of a published batch, and of a minibatch of all


def measure(num_threads: int, num_rounds: int, is_short: bool) -> dict[str, Any]:
    """Return the ratio to the published structure."""
    compute, num_rollouts = the_compute(num_threads), NUM_SHORT if is_short else NUM_ROLLOUTS
    student, teacher = (smol_model(layers, compute, seed=layers) for layers in (STUDENT_LAYERS, TEACHER_LAYERS))
    teacher = teacher.to(compute.dtype)
    run, configured, small = (
        _run(student, teacher, compute, number, size)
        for number, size in ((num_rollouts, {"batch_size": _BATCH}), (num_rollouts, {}), (NUM_SHORT, {}))
    )
    half = partial(_published, run, num_rollouts // 2)
    competitors = {
        "first half": half,  # one before ours and one behind, as a machine's speed may change in the many minutes
        "ours": partial(_ours, run),
        "ours, batches as configured": partial(_ours, configured),
        "second half": half,
    }
    warm_ups = {"published": partial(_published, small, NUM_SHORT), "ours": partial(_ours, small)}
    times = interleaved(competitors, num_rounds, warm_ups)
    times = {"published": times.pop("first half") + times.pop("second half"), **times}
    return {
        "ratio_vs_published": ratio(times["published"], times["ours"])["wall"],
        "ratio": ratio(times["published"], times["ours"]),
        "ratio_with_batches_as_configured": ratio(times["published"], times["ours, batches as configured"]),
        "batch": _BATCH,
        "configured_batch": configured.decoding.batch_size,
        "rollouts": num_rollouts,
        "inner_epochs": INNER_EPOCHS,
        "times": {name: found.summary() for name, found in times.items()},
        "seconds_of_our_parts": _seconds_of_parts(run),
        "seconds_of_our_parts_as_configured": _seconds_of_parts(configured),
        "arithmetic": str(compute),
    }


def _run(student: Any, teacher: Any, compute: Compute, num_rollouts: int, batch: dict[str, int]) -> Run:
    lengths = {"max_response_tokens": NUM_TOKENS, "teacher_mix_alpha": ALPHA}
    return distill_run(
        student,
        teacher,
        compute,
        rows=prompt_rows(num_rollouts),
        inner_epochs=INNER_EPOCHS,
        rollout={"rollouts_per_phase": num_rollouts, **lengths, **batch},
        optimizer={"minibatch_size": _BATCH, "micro_batch_tokens": _BATCH * 128},
    )


def _seconds_of_parts(run: Run) -> dict[str, float]:
    return {name: round(value, 2) for name, value in run.stopwatch.taken().items()}


def _ours(run: Run) -> None:
    """Run a phase as the pipeline does; the stopwatch holds the last one."""
    run.stopwatch.taken()
    method = make_method(run)
    with run.stopwatch.part("rollout"):
        texts, _ = method.collect(1)
    with run.stopwatch.part("update"):
        Updater(run, method).update(texts, 1)
        refresh_sampler(run.actors)


def _published(run: Run, num_rollouts: int) -> None:
    optimizer = torch.optim.AdamW(run.actors.student.parameters(), lr=1e-9, fused=True)
    batches = [_published_rollout(run, seed) for seed in range(num_rollouts // _BATCH)]
    for _ in range(INNER_EPOCHS):
        for batch in batches:
            baselines.update_step(run.actors.student, run.actors.teacher, batch, run.compute)
            torch.nn.utils.clip_grad_norm_(run.actors.student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    refresh_sampler(run.actors)


@torch.no_grad()
def _published_rollout(run: Run, seed: int) -> Experience:
    actors, prompts = run.actors, prompt_batch(_BATCH, run.compute, seed=seed)
    responses = baselines.mixed_rollout(actors.sampler, actors.teacher, prompts, NUM_TOKENS, ALPHA)
    baselines.student_rollout(actors.sampler, prompts, NUM_TOKENS)
    mask = torch.ones_like(responses, dtype=torch.bool)
    parts = {"prompt_ids": prompts.prompt_ids, "prompt_mask": prompts.prompt_mask, "response_mask": mask}
    return baselines.scored(
        actors.student, actors.teacher, parts | {"response_ids": responses}, run.compute, NUM_SCORINGS
    )
