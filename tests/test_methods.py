"""Each method of the family on tiny models: where its texts come from and what its tokens cost, written plainly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.dataset import Answer, Example
from minillm.distiller import distill
from minillm.divergences import forward_kl, named_divergence, reverse_kl
from minillm.generation import all_responses, generate_responses
from minillm.methods import make_method
from minillm.methods.interface import Run, phase_indices
from minillm.methods.replay import drawn_sources
from minillm.types import Texts
from minillm.update import Updater, token_weights
from tests import tiny
from tests.method_runs import ROWS, TEMPERATURE, pairs_of, run_of, settings
from tests.tiny_run import decoding, plain_logits, tiny_run, whole_block


def plain_loss(run: Run, texts: Texts, loss_of: Any) -> Tensor:
    """Return the mean over tokens of loss_of(student logits, teacher logits, ids), row after row."""
    losses = []
    for prompt, response in pairs_of(texts):
        with torch.no_grad():
            teacher = plain_logits(run.actors.teacher, prompt, response)
        losses.append(loss_of(plain_logits(run.actors.student, prompt, response), teacher, torch.tensor(response)))
    return torch.cat(losses).mean()


def data_loss(student: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(student, ids, reduction="none")


def first_step_gradient(run: Run, texts: Texts) -> list[Tensor]:
    """Return the gradient that the production update makes of all the texts as one minibatch."""
    updater = Updater(run, make_method(run))
    taken: list[Tensor] = []

    def keep(loss: float) -> dict[str, float]:
        taken.extend(parameter.grad.clone() for parameter in run.actors.student.parameters())
        run.actors.student.zero_grad()
        return {}

    updater._apply = keep  # type: ignore[method-assign]
    updater._step(texts, list(range(len(texts.response_ids))))
    return taken


LOSSES = {
    "sft": lambda s, t, ids: data_loss(s, ids),
    "seqkd": lambda s, t, ids: data_loss(s, ids),
    "kd": lambda s, t, ids: 0.75 * forward_kl(s / TEMPERATURE, t / TEMPERATURE) + 0.25 * data_loss(s, ids),
    "reverse_kd": lambda s, t, ids: 0.9 * reverse_kl(s / TEMPERATURE, t / TEMPERATURE) + 0.1 * data_loss(s, ids),
    "gkd": lambda s, t, ids: named_divergence("skewed_reverse_kl", skew=0.1)(s / TEMPERATURE, t / TEMPERATURE),
}
KNOBS = {
    "kd": {"data_weight": 0.25},
    "reverse_kd": {"data_weight": 0.1},
    "gkd": {"divergence": {"name": "skewed_reverse_kl", "skew": 0.1}, "on_policy_share": 0.5},
}


@pytest.mark.parametrize("method", sorted(LOSSES))
def test_the_gradient_is_that_of_the_methods_loss_written_plainly(method: str) -> None:
    """Micro-batches of 2, padding on both sides, ragged lengths: the mean is over the tokens of all rows."""
    run = run_of(settings(method, **{method: KNOBS[method]} if method in KNOBS else {}))
    texts, _ = make_method(run).collect(1)
    produced = first_step_gradient(run, texts)
    expected = torch.autograd.grad(plain_loss(run, texts, LOSSES[method]), list(run.actors.student.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert max(float((a - b).abs().max()) for a, b in zip(produced, expected, strict=True)) < 1e-5 * largest


@pytest.mark.parametrize("method", ["sft", "kd", "reverse_kd"])
def test_methods_on_data_take_as_many_fresh_rows_as_others_take_inner_epochs(method: str) -> None:
    run = run_of(settings(method))
    texts, _ = make_method(run).collect(1)
    order = phase_indices(10, 16, phase=1, seed=5)
    assert pairs_of(texts) == [(ROWS[index].prompt_ids, ROWS[index].response_ids) for index in order]
    assert Counter(order[:10]) == Counter(range(10))
    assert make_method(run).recipe.inner_epochs == 1


@pytest.mark.parametrize("greedy", [False, True])
def test_seqkd_learns_from_the_teachers_own_responses_to_the_training_prompts(greedy: bool) -> None:
    run = run_of(settings("seqkd", seqkd={"greedy": greedy}))
    texts, metrics = make_method(run).collect(2)
    prompts = [ROWS[index].prompt_ids for index in phase_indices(10, 16, phase=2, seed=5)]
    drawn = decoding(seed=None if greedy else 5, step=2, temperature=TEMPERATURE, max_tokens=6)
    responses = all_responses(generate_responses(run.actors.teacher, prompts, range(16), drawn))
    assert pairs_of(texts) == list(zip(prompts, responses, strict=True))
    assert metrics["response/length_mean"] == sum(map(len, responses)) / 16


def test_a_black_boxs_texts_are_encoded_ended_and_cut_at_the_limit_without_an_end_token() -> None:
    answers = {row.row_id: Answer(" ".join(["w7"] * (1 + row.row_id)), is_cut=row.row_id == 2) for row in ROWS}
    run = run_of(settings("seqkd", seqkd={"source": "file"}), answers=answers)
    texts, metrics = make_method(run).collect(1)
    for index, (prompt, response) in zip(phase_indices(10, 16, phase=1, seed=5), pairs_of(texts), strict=True):
        assert prompt == ROWS[index].prompt_ids
        assert response == ([7] * 3 if index == 2 else ([7] * (1 + index) + [tiny.END_ID])[:6])
    ended = [index < 5 and index != 2 for index in phase_indices(10, 16, phase=1, seed=5)]
    assert metrics["response/end_rate"] == sum(ended) / 16


def test_gkd_mixes_data_and_fresh_student_samples_row_by_row() -> None:
    run = run_of(settings("gkd", gkd={"on_policy_share": 0.5}))
    texts, metrics = make_method(run).collect(1)
    order = phase_indices(10, 8, phase=1, seed=5)
    sources = drawn_sources(8, 0.5, 1.0, seed=5, phase=1)
    assert sources.data and sources.fresh and not sources.replayed
    prompts = [ROWS[order[place]].prompt_ids for place in sources.fresh]
    drawn = decoding(step=1, temperature=TEMPERATURE, max_tokens=6)
    own = all_responses(generate_responses(run.actors.student, prompts, sources.fresh, drawn))
    expected = [(ROWS[order[place]].prompt_ids, ROWS[order[place]].response_ids) for place in sources.data]
    assert pairs_of(texts) == expected + list(zip(prompts, own, strict=True))
    assert metrics["rollout/fresh_rows"] == len(sources.fresh)


def test_grpo_answers_each_prompt_with_a_group_and_scores_whole_responses() -> None:
    run = run_of(settings("grpo", objective={"importance": "none"}))
    experience, _ = make_method(run).collect(1)
    prompts = [prompt for prompt, _ in pairs_of(experience)]
    assert prompts[0:4] == [prompts[0]] * 4 and prompts[4:8] == [prompts[4]] * 4 and prompts[0] != prompts[4]
    mask = experience.response_mask
    rewards = torch.where(mask, experience.teacher_logprobs - experience.old_logprobs, 0.0).sum(1) / mask.sum(1)
    for group in (slice(0, 4), slice(4, 8)):
        part = rewards[group]
        expected = (part - part.mean()) / part.std(correction=0)
        assert torch.allclose(experience.advantages[group, 0], expected, atol=1e-5)
    assert all(
        torch.allclose(row[kept], row[0].expand(int(kept.sum()))) and not row[~kept].any()
        for row, kept in zip(experience.advantages, mask, strict=True)
    )


def test_a_task_reward_is_added_with_its_weight_to_every_return() -> None:
    plain = run_of(settings("minillm", minillm={"baseline": "none"}))
    weighted = run_of(
        settings(
            "minillm",
            minillm={"baseline": "none"},
            objective={"task_reward": "rougeL", "task_reward_weight": 0.5},
        )
    )
    before, _ = make_method(plain).collect(1)
    texts = plain.tokenizer.batch_decode(
        [ids[kept] for ids, kept in zip(before.response_ids, before.response_mask, strict=True)], True
    )
    order = phase_indices(10, 8, phase=1, seed=5)
    answered = {index: text for index, text in zip(order[:4], texts[:4], strict=True)}
    rows = [row if row.row_id not in answered else replaced(row, answered[row.row_id]) for row in ROWS]
    run = tiny_run(weighted.config, weighted.actors.student, weighted.actors.teacher, rows)
    after, _ = make_method(run).collect(1)
    gained = after.advantages - before.advantages
    for row in range(8):
        kept = before.response_mask[row]
        assert torch.allclose(
            gained[row][kept], torch.tensor(0.5 if row < 4 else 0.0).expand(int(kept.sum())), atol=1e-6
        )


def replaced(row: Any, reference: str) -> Any:
    return type(row)(**{**vars(row), "references": [reference]})


def test_groups_without_signal_are_replaced_by_groups_of_other_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.methods import policy

    real, calls = policy.collect_rollout, []

    def flat_first(actors: Any, prompts: Any, *arguments: Any, **options: Any) -> Any:
        """The second group of the first call, and every group of the second, gets no rewards at all."""
        rollout = real(actors, prompts, *arguments, **options)
        calls.append((options["first_row_id"], len(prompts)))
        if len(calls) <= 2:
            start = 4 if len(calls) == 1 else 0
            rollout.teacher_logprobs[start:] = rollout.old_logprobs[start:]
        return rollout

    monkeypatch.setattr(policy, "collect_rollout", flat_first)
    run = run_of(settings("grpo", objective={"max_refills": 3}))
    experience, metrics = make_method(run).collect(1)
    assert calls == [(0, 8), (8, 4), (16, 4)]
    assert metrics["rollout/refills"] == 2 and metrics["rollout/groups_without_signal"] == 0
    assert all(bool(experience.advantages[group].any()) for group in (slice(0, 4), slice(4, 8)))
    prompts = [prompt for prompt, _ in pairs_of(experience)]
    assert prompts[4:8] == [prompts[4]] * 4
    calls.clear()
    bounded = run_of(settings("grpo", objective={"max_refills": 1}))
    experience, metrics = make_method(bounded).collect(1)
    assert metrics["rollout/refills"] == 1 and metrics["rollout/groups_without_signal"] == 1
    assert not experience.advantages[4:8].any() and bool(experience.advantages[0:4].any())


def test_averaging_by_response_gives_each_response_the_same_say() -> None:
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    assert token_weights(mask, "token").tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert token_weights(mask, "response").tolist() == [[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0]]


def test_the_update_averages_as_the_recipe_says() -> None:
    run = run_of(settings("minillm", objective={"averaging": "response", "language_model_weight": 0.0}))
    method = make_method(run)
    experience, _ = method.collect(1)
    mask = experience.response_mask.clone()
    for row, length in enumerate((6, 2, 5, 1, 6, 3, 4, 1)):
        mask[row, length:] = False
    ragged = type(experience)(**{**vars(experience), "response_mask": mask})
    produced = first_step_gradient(run, ragged)
    per_row = [
        method.token_losses(whole_block(run, ragged.select(torch.tensor([row])))).loss.mean() for row in range(8)
    ]
    expected = torch.autograd.grad(torch.stack(per_row).mean(), list(run.actors.student.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert max(float((a - b).abs().max()) for a, b in zip(produced, expected, strict=True)) < 1e-5 * largest


@pytest.mark.parametrize("method", ["sft", "kd", "seqkd", "reverse_kd", "gkd", "minillm", "grpo"])
def test_every_method_makes_the_same_number_of_updates_and_learns_what_it_minimises(method: str) -> None:
    """On one small set, seen often: the loss that the method reports falls."""
    rate = {"learning_rate": 3e-3, "num_warmup_steps": 0}
    run = run_of(settings(method, num_phases=6, optimizer=rate, validation={"every_phases": 6}))
    losses: list[float] = []
    scores = iter([{"validation/reverse_kl": 1.0, "validation/loss": 1.0}] * 2)
    for report in distill(run, lambda actors: next(scores)):
        losses.append(report.metrics.get("kl/reverse", report.metrics.get("train/loss", float("nan"))))
    assert losses[-1] < losses[1]


def test_updates_are_equal_across_methods() -> None:
    counts = {}
    for method in ("sft", "seqkd", "gkd", "minillm", "grpo"):
        run = run_of(settings(method))
        made, texts = make_method(run), make_method(run).collect(1)[0]
        updater = Updater(run, made)
        updater.update(texts, 1)
        counts[method] = updater._num_steps
    assert set(counts.values()) == {4}


def _teacher_calls(method: str, alpha: float = 0.0, **sections: Any) -> int:
    run = run_of(settings(method, rollout={"rollouts_per_phase": 8, "teacher_mix_alpha": alpha}, **sections))
    make_method(run).collect(1)
    return run.stopwatch.counted()["teacher_calls"]


def test_the_teachers_forward_passes_are_counted() -> None:
    """Without mixing it reads a batch of 4 once; else once more for every stretch of tokens that it is picked after."""
    assert _teacher_calls("sft") == 0
    assert _teacher_calls("minillm") == 8 // 4
    assert 8 // 4 < _teacher_calls("minillm", alpha=0.5) <= (8 // 4) * 6
    whole = {"minibatch_size": 4, "micro_batch_tokens": 1000, "language_model_batch_size": 1}
    assert _teacher_calls("kd", optimizer=whole) == _teacher_calls("gkd", optimizer=whole) == 1
    assert 8 // 4 * 2 <= _teacher_calls("seqkd") <= 16 // 4 * 6


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_teachers_body_runs_as_often_whatever_the_inner_epochs(alpha: float) -> None:
    """Calls of the body itself are counted, not those that we report; GPT-2 runs through the library's own forward."""
    counts = []
    for inner_epochs in (1, 3):
        rollout = {"rollouts_per_phase": 8, "teacher_mix_alpha": alpha}
        config = settings("minillm", rollout=rollout, num_phases=1, inner_epochs=inner_epochs)
        teacher, calls = tiny.tiny_gpt2(2), []
        teacher.base_model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        run = tiny_run(config, tiny.tiny_gpt2(1), teacher, ROWS)
        *_, last = distill(run, lambda actors: {"validation/reverse_kl": 1.0, "validation/loss": 1.0})
        counts.append((len(calls), last.metrics["teacher/calls"]))
    assert counts[0] == counts[1] and counts[0][0] == counts[0][1] > 0
    assert alpha or counts[0][0] == 8 // 4


def test_a_phase_reports_padding_and_the_teachers_calls() -> None:
    """Prompts of one length and no early end leave no padding; the update has none in any case."""
    same = [Example(row, "", "", [""], "", [3, 4, 5 + row], [6, 7]) for row in range(10)]
    config = settings("minillm", rollout={"rollouts_per_phase": 8, "teacher_mix_alpha": 0.0}, num_phases=1)
    run = tiny_run(config, tiny.tiny_llama(1), tiny.tiny_llama(2), same)
    run = replace(run, decoding=replace(run.decoding, end_id=-1))
    *_, last = distill(run, lambda actors: {"validation/reverse_kl": 1.0, "validation/loss": 1.0})
    assert last.metrics["padding/rollout_share"] == last.metrics["padding/update_share"] == 0
    assert last.metrics["teacher/calls"] == 2
    run = tiny_run(config, tiny.tiny_gpt2(1), tiny.tiny_gpt2(2), ROWS)  # the Llama family's decoder sees no padding
    *_, last = distill(run, lambda actors: {"validation/reverse_kl": 1.0, "validation/loss": 1.0})
    assert 0 < last.metrics["padding/rollout_share"] < 1
    assert last.metrics["padding/update_share"] == 0
