"""The gradient of an update against the step over whole logits, in time and in memory of the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks import baselines
from benchmarks.timing import interleaved, peak_memory_mib, ratio
from benchmarks.workload import (
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    VOCABULARY,
    distill_run,
    random_texts,
    smol_model,
    the_compute,
)
from minillm import spare_memory
from minillm.device import Compute
from minillm.gradients import put_away
from minillm.heads import Head, Readout, backward_through_head
from minillm.methods import make_method
from minillm.objective import policy_terms, surrogate_loss
from minillm.rollout import kept_logprobs, scored_by_teacher
from minillm.stopwatch import Stopwatch
from minillm.types import Experience
from minillm.update import Updater

NUM_ROWS, NUM_TOKENS = 16, 64
LARGEST_LOSS = 4096  # response tokens of the memory's comparison
VOCABULARIES = (50_257, 151_936)


def measure(num_threads: int, num_rounds: int, is_short: bool) -> dict[str, Any]:
    """Return the ratio to the naive step, and the share of its loss's peak memory at 4,096 response tokens."""
    compute = the_compute(num_threads)
    memory = {str(size): _memory(size, compute, is_short) for size in (VOCABULARY, *VOCABULARIES)}
    models = _models(compute)
    experience = made_up_experience(models[1], compute, NUM_ROWS, NUM_TOKENS)
    times = _times(models, experience, compute, num_rounds)
    _assert_same_gradient(models, experience, compute)
    return {
        "ratio_vs_naive": ratio(times["naive"], times["ours"])["wall"],
        "peak_memory_share": memory[str(VOCABULARY)]["share"],
        "ratio": ratio(times["naive"], times["ours"]),
        "ratio_with_teacher_states_kept": ratio(times["naive, teacher kept"], times["ours"]),
        "times": {name: found.summary() for name, found in times.items()},
        "loss_memory_mib": memory,
        "arithmetic": str(compute),
    }


def _models(compute: Compute) -> tuple[Any, Any]:
    student, teacher = (smol_model(layers, compute, seed=layers) for layers in (STUDENT_LAYERS, TEACHER_LAYERS))
    return student, teacher.to(compute.dtype)


def made_up_experience(teacher: Any, compute: Compute, num_rows: int, num_tokens: int) -> Experience:
    """Return random responses with the teacher's states and made-up advantages."""
    texts = random_texts(num_rows, num_tokens, compute)
    texts = scored_by_teacher(teacher, texts, max(texts.lengths()) * num_rows, compute, Stopwatch())
    shape, generator = texts.response_ids.shape, torch.Generator().manual_seed(4)
    old = torch.full(shape, -10.8, device=compute.device)
    advantages = torch.randn(shape, generator=generator).to(compute.device)
    head, states = Head.of(teacher, compute.dtype), texts.teacher_hidden[texts.response_mask]
    known = kept_logprobs(head, texts, states, 1.0, compute)
    return Experience(**vars(texts), **_terms(old, known, advantages), behavior_logprobs=old)


def _terms(old: Tensor, known: Tensor, advantages: Tensor) -> dict[str, Tensor]:
    ones = torch.ones_like(old)
    terms = {"old_logprobs": old, "teacher_logprobs": known, "advantages": advantages}
    return terms | {"ratios": ones, "single_step_weights": ones}


def _times(models: tuple[Any, Any], experience: Experience, compute: Compute, num_rounds: int) -> Any:
    student, teacher = models
    competitors: dict[str, Callable[[], float]] = {
        "naive": _fresh(student, partial(baselines.update_step, student, teacher, experience, compute)),
        "naive, teacher kept": _fresh(
            student,
            partial(
                baselines.update_step_with_logits, student, _kept(teacher, experience, compute), experience, compute
            ),
        ),
        "ours": our_step(models, compute, experience),
    }
    return interleaved(competitors, num_rounds)


@torch.no_grad()
def _kept(teacher: Any, experience: Experience, compute: Compute) -> Tensor:
    with compute.autocast():
        return baselines.all_logits(teacher, experience)


def _fresh(student: Any, step: Callable[[], Any]) -> Callable[[], Any]:
    """Return the step with the gradient of the one before cleared, as trainers do."""

    def compete() -> Any:
        student.zero_grad(set_to_none=True)
        return step()

    return compete


def our_step(models: tuple[Any, Any], compute: Compute, experience: Experience) -> Callable[[], float]:
    """Return what adds the gradient of all rows in one forward pass and returns the loss.

    The gradient of the one before is put away first, as a step of the optimizer does.
    """
    num_rows = len(experience.response_ids)
    sizes = {"minibatch_size": num_rows, "micro_batch_tokens": max(experience.lengths()) * num_rows}
    run = distill_run(*models, compute, optimizer=sizes, rollout={"rollouts_per_phase": num_rows})
    updater = Updater(run, make_method(run))

    def step() -> float:
        put_away(models[0].parameters())
        return updater.accumulate(experience, list(range(num_rows)))["train/loss"]

    return step


def _assert_same_gradient(models: tuple[Any, Any], experience: Experience, compute: Compute) -> None:
    """Stop when the two differ by more than the arithmetic explains."""
    gradients, losses = [], []
    naive = partial(baselines.update_step, *models, experience, compute)
    for step in (naive, our_step(models, compute, experience)):
        models[0].zero_grad(set_to_none=True)
        losses.append(step())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in models[0].parameters()]))
    allowed = 1e-4 if compute.dtype == torch.float32 else 0.05
    difference = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    assert difference < allowed and abs(losses[0] - losses[1]) < allowed, (difference, losses)


def _memory(vocabulary: int, compute: Compute, is_short: bool) -> dict[str, Any]:
    """Return MiB that the loss adds at its peak, the gradient of the head included."""
    sizes = (LARGEST_LOSS,) if is_short or vocabulary != VOCABULARY else (LARGEST_LOSS // 4, LARGEST_LOSS)
    ours = {str(size): _added_mib(_loss(vocabulary, size, compute, _chunked)) for size in sizes}
    if vocabulary != VOCABULARY:  # the naive loss would need up to 29 GB
        return {"ours": ours}
    naive = {str(size): _added_mib(_loss(vocabulary, size, compute, _naive)) for size in sizes}
    return {"ours": ours, "naive": naive, "share": round(ours[str(LARGEST_LOSS)] / naive[str(LARGEST_LOSS)], 4)}


def _added_mib(compete: Callable[[], None]) -> float:
    """Return by how many MiB the loss raises the memory when nothing is kept from one before."""
    spare_memory.give_back()
    return round(peak_memory_mib(compete), 1)


def _loss(vocabulary: int, num_tokens: int, compute: Compute, loss: Callable[..., None]) -> Callable[[], None]:
    """Return the loss and its gradient for states of both models; all that it reads is made here."""
    models = [smol_model(1, compute, seed=seed, vocabulary=vocabulary) for seed in (1, 2)]
    models[1].to(compute.dtype)  # as the pipeline keeps a teacher
    shape, generator = (num_tokens, 576), torch.Generator().manual_seed(1)
    states = [torch.randn(shape, generator=generator).to(compute.device, compute.dtype) for _ in models]
    ids = torch.randint(vocabulary, (num_tokens,), generator=generator).to(compute.device)
    zeros = torch.zeros(num_tokens, device=compute.device)
    return partial(loss, models, states, ids, _terms(zeros - 10, zeros - 10, zeros + 1), compute)


def _chunked(models: list[Any], states: list[Tensor], ids: Tensor, terms: dict[str, Tensor], compute: Compute) -> None:
    heads = [Head.of(model, compute.dtype) for model in models]

    def block_loss(rows: slice, logits: list[Tensor]) -> Tensor:
        losses = surrogate_loss(
            logits[0],
            logits[1],
            ids[rows],
            policy_terms({name: value[rows] for name, value in terms.items()}),
            clip_low=0.2,
            clip_high=0.2,
            single_step_weight=1.0,
            entropy_weight=0.0,
        )
        return losses.loss.sum() / len(ids)

    own, other = (Readout(*pair) for pair in zip(heads, states, strict=True))
    own.states.requires_grad_()
    backward_through_head(own, [other], block_loss, memory_mib=compute.loss_memory_mib, in_float32=False)


def _naive(models: list[Any], states: list[Tensor], ids: Tensor, terms: dict[str, Tensor], compute: Compute) -> None:
    own, other = (model.get_output_embeddings() for model in models)
    states[0].requires_grad_()
    with compute.autocast():
        logits, wanted = own(states[0]).float(), other(states[1]).detach().float()
    batch = SimpleNamespace(response_ids=ids, response_mask=torch.ones_like(ids, dtype=torch.bool), **terms)
    baselines.full_vocabulary_loss(logits, wanted, batch).backward()
