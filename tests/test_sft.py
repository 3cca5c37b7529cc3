from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from minillm.config import SftConfig
from minillm.dataset import Example
from minillm.device import Compute
from minillm.draws import Stream, permutation
from minillm.schedules import scheduled_value, warmed_up_rate
from minillm.sft import fine_tune, untuned, validation_loss
from tests import tiny
from tests.tiny_run import examples as rows
from tests.tiny_run import plain_logits

CPU = Compute(torch.device("cpu"), torch.float32)


def settings(**changes: Any) -> SftConfig:
    base = {
        "num_steps": 4,
        "batch_size": 6,
        "micro_batch_tokens": 1000,
        "learning_rate": 1e-3,
        "num_warmup_steps": 0,
        "schedule": "constant",
        "final_learning_rate_share": 1.0,
        "weight_decay": 0.0,
        "gradient_clip": 1.0,
        "validate_every_steps": 2,
        "patience": 3,
    }
    return SftConfig(**(base | changes))


def train(model: Any, config: SftConfig, validation: list[Example] | None = None) -> list[Any]:
    held_out = rows(5, seed=50) if validation is None else validation
    return list(
        fine_tune(
            model,
            rows(13, 1),
            held_out,
            config=config,
            seed=3,
            order=Stream.WARMUP_ORDER,
            pad_id=tiny.PAD_ID,
            compute=CPU,
        )
    )


def test_the_validation_loss_is_the_mean_over_tokens_not_over_rows() -> None:
    model, held_out = tiny.tiny_gpt2(1), rows(7, seed=50)
    total, count = 0.0, 0
    for row in held_out:
        ids = torch.tensor([row.prompt_ids + row.response_ids])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        for step, token in enumerate(row.response_ids):
            total -= float(logprobs[len(row.prompt_ids) + step - 1, token])
            count += 1
    produced = validation_loss(model, held_out, batch_tokens=30, pad_id=tiny.PAD_ID, compute=CPU)
    assert produced == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("micro_batch_tokens", [1, 20, 45])
def test_the_size_of_micro_batches_does_not_change_what_is_learnt(micro_batch_tokens: int) -> None:
    whole, split = tiny.tiny_llama(1), tiny.tiny_llama(1)
    first = train(whole, settings(num_steps=2))
    second = train(split, settings(num_steps=2, micro_batch_tokens=micro_batch_tokens))
    assert [r.metrics["train/loss"] for r in first[1:]] == pytest.approx(
        [r.metrics["train/loss"] for r in second[1:]], rel=1e-4
    )
    pairs = zip(whole.parameters(), split.parameters(), strict=True)
    difference = max(float((a - b).detach().abs().max()) for a, b in pairs)
    assert difference < 1e-3 * 2 * 0.1  # two steps of AdamW move a weight by up to 2e-3


def test_training_follows_the_gradient_of_the_token_mean() -> None:
    """One plain SGD-like check: the first reported loss is the mean over the tokens of the drawn batch."""
    model = tiny.tiny_llama(1)
    fresh = copy.deepcopy(model)
    report = train(model, settings(num_steps=1, batch_size=13))[1]
    expected = validation_loss(fresh, rows(13, 1), batch_tokens=30, pad_id=tiny.PAD_ID, compute=CPU)
    assert report.metrics["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert report.metrics["train/tokens"] == sum(len(row.response_ids) for row in rows(13, 1))


def test_the_best_report_is_the_one_with_the_lowest_validation_loss() -> None:
    reports = train(tiny.tiny_llama(1), settings(num_steps=40, learning_rate=3e-2, validate_every_steps=1, patience=40))
    losses = {report.step: report.metrics["validation/loss"] for report in reports}
    best = [report.step for report in reports if report.is_best][-1]
    assert losses[best] == min(losses.values())
    assert max(losses) > best  # it got worse afterwards, or the test shows nothing


def test_training_stops_when_validation_no_longer_improves() -> None:
    config = settings(num_steps=500, learning_rate=0.3, validate_every_steps=1, patience=3)
    reports = train(tiny.tiny_llama(1), config)
    best = [report.step for report in reports if report.is_best][-1]
    assert reports[-1].step == best + 3 < 500


def test_fault_12_a_loss_that_is_not_a_number_is_never_the_best() -> None:
    model = tiny.tiny_llama(1)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    assert validation_loss(model, rows(3, 1), batch_tokens=30, pad_id=tiny.PAD_ID, compute=CPU) == math.inf


def test_an_untuned_model_is_reported_and_left_as_it_is() -> None:
    model = tiny.tiny_llama(1)
    before = copy.deepcopy(model.state_dict())
    held_out = rows(5, seed=50)
    (report,) = untuned(model, held_out, config=settings(), pad_id=tiny.PAD_ID, compute=CPU)
    expected = validation_loss(model, held_out, batch_tokens=30, pad_id=tiny.PAD_ID, compute=CPU)
    assert report.is_best and report.metrics["validation/loss"] == pytest.approx(expected, rel=1e-5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_learning_rate_rises_linearly_and_falls_to_its_share() -> None:
    rates = [
        warmed_up_rate(step, 6, peak=1.0, num_warmup_steps=2, schedule="linear", final_share=0.1) for step in range(6)
    ]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.7, 0.4, 0.1])


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 0.2, 0.2), ("linear", 0.4, 0.6), ("cosine", 0.4, 0.6)]
)
def test_schedules_start_and_end_where_they_should(schedule: Any, middle: float, end: float) -> None:
    assert scheduled_value(schedule, 0.2, 0.6, 0.0) == pytest.approx(0.2)
    assert scheduled_value(schedule, 0.2, 0.6, 0.5) == pytest.approx(middle)
    assert scheduled_value(schedule, 0.2, 0.6, 1.0) == pytest.approx(end)
    assert scheduled_value("cosine", 0.0, 1.0, 0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("gradient_clip", [0.5, 1e3], ids=["clipped", "not clipped"])
def test_two_steps_are_those_of_a_plain_adamw_loop(gradient_clip: float) -> None:
    """Whole batches, no micro-batches: clip to the norm, rates 1/2 and 1 of the peak, decay on matrices only."""
    model = tiny.tiny_llama(1)
    config = settings(num_steps=2, weight_decay=0.1, num_warmup_steps=2, gradient_clip=gradient_clip)
    plain = copy.deepcopy(model)
    train(model, config)
    decayed = [p for p in plain.parameters() if p.ndim >= 2]
    others = [p for p in plain.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
    order = permutation(3, Stream.WARMUP_ORDER, 0, 13)
    for step in range(2):
        batch = [rows(13, 1)[index] for index in order[6 * step : 6 * step + 6]]
        pairs = [(plain_logits(plain, r.prompt_ids, r.response_ids), torch.tensor(r.response_ids)) for r in batch]
        losses = [cross_entropy(logits, ids, reduction="sum") for logits, ids in pairs]
        loss = torch.stack(losses).sum() / sum(len(r.response_ids) for r in batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (step + 1) / 2
        optimizer.step()
    weights = zip(model.parameters(), plain.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in weights) < 1e-5


def test_stages_with_one_seed_see_the_rows_in_orders_of_their_own() -> None:
    streams = (Stream.TEACHER_ORDER, Stream.WARMUP_ORDER, Stream.PROMPT_ORDER)
    orders = [permutation(3, stream, 0, 50) for stream in streams]
    assert len({tuple(order) for order in orders}) == 3
