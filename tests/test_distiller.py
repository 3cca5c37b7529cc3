"""The whole loop on tiny models, with every setting away from its default, so that none can be ignored unseen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from minillm import update
from minillm.device import Compute
from minillm.distill_config import DistillConfig
from minillm.distiller import distill
from minillm.evaluation.distance import mean_reverse_kl, summed_reverse_kl
from minillm.generation import Decoding, all_responses, generate_responses
from minillm.methods import policy
from minillm.params import load_params
from minillm.rollout import Actors
from minillm.sft import validation_loss
from minillm.types import Rollout, StepReport
from minillm.validation import validation_scores
from tests import tiny
from tests.imports import ROOT
from tests.tiny_run import DEFAULTS, WordTokenizer, changed, decoding, examples, tiny_run

BFLOAT16 = Compute(torch.device("cpu"), torch.bfloat16)
PEAK = 1e-3
SCRIPTED = (3.0, 1.0, 2.0, 0.5)  # validation scores before training and after each phase


def settings() -> DistillConfig:
    return changed(
        DEFAULTS,
        {
            "num_phases": 3,
            "inner_epochs": 2,
            "rollout": {
                "rollouts_per_phase": 8,
                "batch_size": 4,
                "max_response_tokens": 8,
                "temperature": 0.7,
                "teacher_mix_alpha": 0.1,
                "teacher_mix_alpha_end": 0.5,
                "teacher_mix_schedule": "linear",
            },
            "minillm": {"group_size": 2, "baseline": "group_mean"},
            "optimizer": {
                "minibatch_size": 4,
                "micro_batch_tokens": 30,
                "language_model_batch_size": 1,
                "learning_rate": PEAK,
                "num_warmup_steps": 4,
            },
            "validation": {"every_phases": 1},
        },
    )


class Watched:
    """One run of the real loop, with what passed between its parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rollouts: list[Rollout] = []
        self.alphas: list[float] = []
        self.decodings: list[Decoding] = []
        self.num_steps = 0
        self.sampler_follows: list[bool] = []
        self._watch(monkeypatch)
        self.reports = list(self._reports())

    def _watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        collect, step = policy.collect_rollout, update.optimizer_step

        def watched_collect(actors: Any, prompts: Any, decoding: Decoding, **options: Any) -> Rollout:
            self.rollouts.append(collect(actors, prompts, decoding, **options))
            self.alphas.append(options["teacher_mix_alpha"])
            self.decodings.append(decoding)
            return self.rollouts[-1]

        def watched_step(*arguments: Any, **options: Any) -> float:
            self.num_steps += 1
            return step(*arguments, **options)

        monkeypatch.setattr(policy, "collect_rollout", watched_collect)
        monkeypatch.setattr(update, "optimizer_step", watched_step)

    def _reports(self) -> Any:
        scores = iter(SCRIPTED)

        def validate(actors: Actors) -> dict[str, float]:
            pairs = zip(actors.sampler.parameters(), actors.student.parameters(), strict=True)
            self.sampler_follows.append(all(torch.equal(a, b.to(torch.bfloat16)) for a, b in pairs))
            return {"validation/reverse_kl": next(scores)}

        student, teacher = tiny.tiny_llama(1), tiny.tiny_llama(2).to(torch.bfloat16)
        return distill(tiny_run(settings(), student, teacher, examples(4, seed=3), compute=BFLOAT16), validate)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def responses_by_prompt(rollout: Rollout) -> dict[tuple[int, ...], list[list[int]]]:
    found: dict[tuple[int, ...], list[list[int]]] = {}
    for row in range(len(rollout.prompt_ids)):
        prompt = tuple(rollout.prompt_ids[row][rollout.prompt_mask[row]].tolist())
        response = rollout.response_ids[row][rollout.response_mask[row]].tolist()
        found.setdefault(prompt, []).append(response)
    return found


def test_groups_are_consecutive_rows_of_one_prompt_with_draws_of_their_own(run: Watched) -> None:
    for rollout in run.rollouts:
        groups = [tuple(rollout.prompt_ids[row].tolist()) for row in range(8)]
        assert groups[0::2] == groups[1::2] and len(set(groups)) == 4
        assert all(first != second for first, second in responses_by_prompt(rollout).values())


def test_every_phase_draws_anew(run: Watched) -> None:
    first, second, third = (responses_by_prompt(rollout) for rollout in run.rollouts)
    assert first.keys() == second.keys() == third.keys()
    assert all(first[prompt] != second[prompt] != third[prompt] for prompt in first)
    assert [decoding.step for decoding in run.decodings] == [1, 2, 3]


def test_the_teachers_share_follows_its_schedule(run: Watched) -> None:
    assert run.alphas == pytest.approx([0.1, 0.3, 0.5])


def test_every_inner_epoch_updates_on_every_minibatch_with_a_warmed_up_rate(run: Watched) -> None:
    assert run.num_steps == 3 * 2 * 2
    rates = [report.metrics["optim/lr"] for report in run.reports[1:]]
    assert rates == pytest.approx([PEAK * (1 + 2) / 2 / 4, PEAK, PEAK])  # the mean of the first epoch's two steps


def test_the_sampler_has_the_students_weights_whenever_it_samples(run: Watched) -> None:
    assert run.sampler_follows == [True] * 4


def test_only_reports_that_improve_the_validation_metric_are_best(run: Watched) -> None:
    assert [report.is_best for report in run.reports] == [True, True, False, True]
    assert [report.step for report in run.reports] == [0, 1, 2, 3]


def test_the_reports_hold_finite_numbers_and_the_documented_names(run: Watched) -> None:
    names = {"kl/reverse", "reward/mean", "policy/clipped_frac", "response/length_mean", "optim/lr"}
    names |= {"time/rollout_s", "time/score_s", "time/update_s", "time/rollout_tokens_per_s", "memory/peak_mib"}
    for report in run.reports[1:]:
        assert names <= set(report.metrics)
        assert all(torch.isfinite(torch.tensor(value)) for value in report.metrics.values())


def test_one_phase_again_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Watched(monkeypatch), Watched(monkeypatch)
    kept = [{n: v for n, v in r.metrics.items() if not n.startswith(("time/", "memory/"))} for r in first.reports]
    assert kept == [
        {n: v for n, v in r.metrics.items() if not n.startswith(("time/", "memory/"))} for r in second.reports
    ]
    assert isinstance(first.reports[0], StepReport)


def test_validation_scores_the_students_own_samples_at_the_rollouts_temperature() -> None:
    student, teacher = tiny.tiny_llama(1), tiny.tiny_llama(2)
    held_out = examples(5, seed=50)
    settings_of = decoding(batch_size=3, temperature=0.7, max_tokens=6)
    prompts, ids = [row.prompt_ids for row in held_out], [row.row_id for row in held_out]
    responses = all_responses(generate_responses(student, prompts, ids, settings_of))
    texts = WordTokenizer().batch_decode(responses, skip_special_tokens=True)
    answered = [replace(row, references=[text]) for row, text in zip(held_out, texts, strict=True)]
    compute = Compute(torch.device("cpu"), torch.float32)
    scores = validation_scores(Actors(student, student, teacher), answered, WordTokenizer(), settings_of, 2, compute)
    options = {"temperature": 0.7, "batch_tokens": 30, "pad_id": tiny.PAD_ID, "compute": compute}
    expected = mean_reverse_kl(summed_reverse_kl(student, teacher, prompts, responses, **options))
    assert scores["validation/rougeL"] == pytest.approx(100)
    assert scores["validation/reverse_kl"] == pytest.approx(expected, rel=1e-5)
    expected = validation_loss(student, held_out, batch_tokens=30, pad_id=tiny.PAD_ID, compute=compute)
    assert scores["validation/loss"] == pytest.approx(expected, rel=1e-5)
    assert scores["validation/length_mean"] == sum(map(len, responses)) / 5


def test_the_delivered_defaults_are_the_methods_own() -> None:
    method, objective, rollout = DEFAULTS.minillm, DEFAULTS.objective, DEFAULTS.rollout
    assert (method.returns_from, objective.importance, objective.length_normalize) == ("next", "per_token", True)
    assert (objective.clip_low, objective.clip_high, method.single_step_weight, method.gamma) == (0.2, 0.2, 1, 1)
    assert (rollout.teacher_mix_alpha, rollout.temperature) == (0.2, 1.0)


def test_evaluation_draws_each_sampling_seed_and_the_greedy_pass_for_itself() -> None:
    from minillm.evaluation.scores import summarized_scores
    from tasks.evaluate import _decode

    config = load_params(ROOT / "params.yaml").evaluate.model_copy(
        update={"sampling_seeds": [10, 20], "temperature": 0.7, "max_response_tokens": 6, "batch_size": 2}
    )
    model, held_out = tiny.tiny_llama(1), examples(5, seed=50)
    decoded = _decode("test", model, held_out, WordTokenizer(), config)
    prompts, ids = [row.prompt_ids for row in held_out], [row.row_id for row in held_out]
    for name, seed in (("seed-10", 10), ("seed-20", 20), ("greedy", None)):
        settings_of = decoding(seed=seed, batch_size=5, temperature=0.7, max_tokens=6)
        assert decoded[name] == all_responses(generate_responses(model, prompts, ids, settings_of))
    assert decoded["seed-10"] != decoded["seed-20"]
    texts = WordTokenizer().batch_decode(decoded["seed-10"], skip_special_tokens=True)
    answered = [replace(row, references=[text]) for row, text in zip(held_out, texts, strict=True)]
    scores = summarized_scores(decoded, answered, WordTokenizer())
    other = summarized_scores({"seed-20": decoded["seed-20"]}, answered, WordTokenizer())["sampled"]["rougeL"]
    assert scores["sampled"]["rougeL"] == pytest.approx((100 + other) / 2)
    assert scores["sampled"]["rougeL_std"] == pytest.approx((100 - other) / 2**0.5)
