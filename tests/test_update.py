from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm import sampling
from minillm.distiller import BestMetric, refresh_sampler
from minillm.divergences import reverse_kl
from minillm.errors import NonFiniteError
from minillm.logprobs import head_logits, token_logprobs
from minillm.methods.interface import phase_indices
from minillm.rollout import Actors
from minillm.types import Experience
from tests import tiny
from tests.minibatch import (
    ALPHA,
    actors,
    config,
    experience_of,
    gradients,
    largest_difference,
    loss_of,
    rollout_of,
    updater_of,
)
from tests.tiny_run import corpus, plain_logits


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("make_model", tiny.ARCHITECTURES.values(), ids=tiny.ARCHITECTURES.keys())
def test_recorded_logprobs_are_recomputed_row_by_row_from_plain_forwards(make_model: Any, temperature: float) -> None:
    models = actors(make_model)
    rollout = rollout_of(models, temperature)
    for row in range(6):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row]]
        response = rollout.response_ids[row][rollout.response_mask[row]]
        ids = torch.cat([prompt, response])[None]
        with torch.no_grad():
            own, other = (
                (model(ids).logits[0] / temperature).log_softmax(-1) for model in (models.student, models.teacher)
            )
        places = torch.arange(len(response)) + len(prompt) - 1
        own, other = own[places, response], other[places, response]
        mixed = (ALPHA * other.exp() + (1 - ALPHA) * own.exp()).log()
        kept = rollout.response_mask[row]
        for recorded, expected in (
            (rollout.old_logprobs, own),
            (rollout.teacher_logprobs, other),
            (rollout.behavior_logprobs, mixed),
        ):
            assert torch.allclose(recorded[row][kept], expected, rtol=0, atol=1e-5 / temperature)


def test_what_drawing_a_token_told_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []

    def counted(logits: Tensor, token_ids: Tensor) -> Tensor:
        computed.append(len(token_ids))
        return token_logprobs(logits, token_ids)

    monkeypatch.setattr("minillm.rollout.token_logprobs", counted)
    num_tokens = int(rollout_of(actors()).response_mask.sum())
    assert sum(computed) == num_tokens  # of twice as many: each token was drawn from one of the two models


def test_a_rollout_decodes_by_the_lean_decoder_and_calls_no_body_but_through_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models, called, made = actors(), [], []
    body = type(models.student.base_model)
    assert isinstance(models.teacher.base_model, body)
    own = body.forward
    monkeypatch.setattr(body, "forward", lambda *given, **named: called.append(1) or own(*given, **named))
    real = sampling.LeanDecoder

    def counted(*arguments: Any) -> Any:
        made.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(sampling, "LeanDecoder", counted)
    rollout_of(models)
    assert len(made) == 2 * 2 and not called  # two batches of two models


def test_fault_13_importance_ratios_are_bounded_by_the_mixture() -> None:
    rollout = rollout_of(actors())
    ratios = (rollout.old_logprobs - rollout.behavior_logprobs)[rollout.response_mask].exp()
    assert float(ratios.min()) > 0 and float(ratios.max()) <= 1 / (1 - ALPHA) + 1e-6


def test_the_kept_teacher_states_give_the_teachers_distribution() -> None:
    models = actors()
    rollout = rollout_of(models)
    mask = rollout.response_mask
    with torch.no_grad():
        logits = head_logits(models.teacher, rollout.teacher_hidden[mask])
    recomputed = token_logprobs(logits, rollout.response_ids[mask])
    assert torch.allclose(recomputed, rollout.teacher_logprobs[mask], atol=1e-5)


def scored_plainly(teacher: Any, experience: Experience, temperature: float) -> Experience:
    """Return the experience with what the teacher says in its own arithmetic, row by row without padding."""
    hidden = torch.zeros(*experience.response_ids.shape, teacher.config.hidden_size, dtype=teacher.dtype)
    logprobs = torch.zeros(experience.response_ids.shape, dtype=teacher.dtype)
    for row, mask in enumerate(experience.response_mask):
        prompt = experience.prompt_ids[row][experience.prompt_mask[row]]
        response = experience.response_ids[row][mask]
        with torch.no_grad():
            output = teacher(torch.cat([prompt, response])[None], output_hidden_states=True)
        places = slice(len(prompt) - 1, -1)
        hidden[row, mask] = output.hidden_states[-1][0, places]
        logprobs[row, mask] = token_logprobs(output.logits[0, places] / temperature, response)
    return replace(experience, teacher_hidden=hidden, teacher_logprobs=logprobs)


@pytest.mark.parametrize(
    ("make_model", "dtype", "tolerance"),
    [(tiny.tiny_llama, torch.float32, 1e-5), (tiny.tiny_gpt2, torch.float64, 1e-10)],  # Llama's own norms are float32
    ids=["llama", "gpt2"],
)
@pytest.mark.parametrize(("temperature", "entropy_weight", "teacher_share"), [(1.0, 0.0, 0.0), (0.7, 0.1, 0.3)])
def test_the_gradient_is_that_of_the_loss_written_plainly(
    temperature: float, entropy_weight: float, teacher_share: float, make_model: Any, dtype: Any, tolerance: float
) -> None:
    """One sequence at a time, without padding or chunks: means over the tokens of the whole minibatch."""
    models = actors(make_model)
    experience = experience_of(models, temperature)
    models = Actors(models.student.to(dtype), models.student, models.teacher.to(dtype))
    experience = scored_plainly(models.teacher, experience, temperature)
    changes = {"entropy_weight": entropy_weight, "language_model_teacher_share": teacher_share}
    settings = config(objective=changes, rollout={"temperature": temperature})
    produced, reported = gradients(models, settings, experience), loss_of(models, settings, experience)
    student = copy.deepcopy(models.student)
    num_tokens = int(experience.response_mask.sum())
    total = torch.zeros((), dtype=dtype)
    for row in range(6):
        part = experience.select(torch.tensor([row]))
        parts = part.prompt_ids[0].tolist(), part.response_ids[0].tolist()  # one row: nothing is padded
        own = plain_logits(student, *parts) / temperature
        with torch.no_grad():
            other = plain_logits(models.teacher, *parts) / temperature
        ratio = (token_logprobs(own, part.response_ids[0]) - part.old_logprobs[0]).exp() * part.ratios[0]
        advantages = part.advantages[0]
        policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).sum()
        spread = -(own.softmax(-1) * own.log_softmax(-1)).sum()
        total = total + (policy + reverse_kl(own, other).sum() - entropy_weight * spread) / num_tokens
    blocks = updater_of(Actors(student, student, models.teacher), settings)._corpus_blocks()
    logprobs = student(blocks).logits[:, :-1].log_softmax(-1)
    with torch.no_grad():
        wanted = models.teacher(blocks).logits[:, :-1].softmax(-1)
    towards_data, towards_teacher = (
        -logprobs.gather(-1, blocks[:, 1:, None]).mean(),
        -(wanted * logprobs).sum(-1).mean(),
    )
    language_model = (1 - teacher_share) * towards_data + teacher_share * towards_teacher
    total = total + settings.objective.language_model_weight * language_model
    assert reported == pytest.approx(float(total.detach()), rel=tolerance)
    expected = torch.autograd.grad(total, list(student.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest_difference(produced, list(expected)) < tolerance * largest


def test_minibatches_pass_through_all_rows_in_a_new_order_in_every_epoch_of_every_phase() -> None:
    models = actors()
    experience, updater = experience_of(models), updater_of(models, config({"minibatch_size": 2}, inner_epochs=2))
    seen: list[int] = []

    def keep(texts: Any, rows: list[int]) -> dict[str, float]:
        seen.extend(rows)
        return {}

    updater._step = keep  # type: ignore[method-assign]
    for phase in (1, 2):
        updater.update(experience, phase)
    epochs = [tuple(seen[first : first + 6]) for first in range(0, 24, 6)]
    assert len(set(epochs)) == 4 and all(sorted(epoch) == list(range(6)) for epoch in epochs)


def test_the_optimizer_has_the_knobs_of_the_params() -> None:
    updater = updater_of(actors(), config({"beta1": 0.8, "beta2": 0.97, "weight_decay": 0.02}))
    groups = updater._optimizer.param_groups
    assert [(*group["betas"], group["weight_decay"]) for group in groups] == [(0.8, 0.97, 0.02), (0.8, 0.97, 0.0)]
    assert all(parameter.ndim > 1 for parameter in groups[0]["params"])
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"])  # norms and biases do not decay


def test_a_step_towards_the_teacher_lowers_the_exact_divergence() -> None:
    models = actors()
    experience = experience_of(models)
    updater = updater_of(models, config({"learning_rate": 1e-3}))
    before = updater.update(experience, 1)["kl/reverse"]
    for _ in range(4):
        after = updater.update(experience, 1)["kl/reverse"]
    assert after < before


def test_fault_12_a_non_finite_gradient_stops_before_any_weight_changes() -> None:
    models = actors()
    experience = experience_of(models)
    bad = Experience(**{**vars(experience), "advantages": experience.advantages + float("nan")})
    weights = copy.deepcopy(models.student.state_dict())
    updater = updater_of(models, config())
    with pytest.raises(NonFiniteError, match="step 1"):
        updater.update(bad, 1)
    assert all(torch.equal(weights[name], value) for name, value in models.student.state_dict().items())


def test_phases_pass_through_every_prompt_before_repeating_one() -> None:
    flat = [index for phase in (1, 2, 3, 4, 5) for index in phase_indices(10, 4, phase=phase, seed=3)]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:] and flat[:10] != list(range(10))


def test_the_sampler_takes_over_the_students_weights() -> None:
    student = tiny.tiny_llama(1)
    sampler = copy.deepcopy(student).to(torch.bfloat16)
    with torch.no_grad():
        student.get_output_embeddings().weight.fill_(0.5)
    refresh_sampler(Actors(student, sampler, student))
    assert torch.equal(sampler.get_output_embeddings().weight, torch.full_like(sampler.lm_head.weight, 0.5))


def test_the_best_metric_is_lowest_divergence_or_highest_rouge_and_never_nan() -> None:
    lowest, highest = BestMetric("reverse_kl"), BestMetric("rougeL")
    values = (2.0, float("nan"), 1.0, 3.0)
    assert [lowest.improves({"validation/reverse_kl": value}) for value in values] == [True, False, True, False]
    assert [highest.improves({"validation/rougeL": value}) for value in values] == [True, False, False, True]


def test_successive_steps_read_successive_blocks_of_the_corpus() -> None:
    updater = updater_of(actors(), config())
    seen = []
    for step in range(2):
        updater._num_steps = step
        seen += updater._corpus_blocks().tolist()
    assert sorted(seen) == sorted(corpus().tolist())
