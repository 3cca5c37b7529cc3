"""Samples of the student that are learnt from again: which rows, how many, and when (DistiLLM)."""

from __future__ import annotations

import pytest

from minillm.methods import make_method
from minillm.methods.replay import OnPolicyShare, ReplayBuffer, Sample, drawn_sources
from tests.method_runs import pairs_of, run_of, settings


def test_sources_are_drawn_with_their_probabilities() -> None:
    """20,000 draws; the tolerance is five standard deviations."""
    sources = drawn_sources(20_000, 0.3, 0.25, seed=1, phase=1)
    for places, share in ((sources.data, 0.7), (sources.fresh, 0.075), (sources.replayed, 0.225)):
        assert abs(len(places) / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5
    assert sorted(sources.data + sources.fresh + sources.replayed) == list(range(20_000))


def test_replayed_rows_are_earlier_samples_and_replace_all_fresh_ones_at_the_end() -> None:
    run = run_of(settings("gkd", gkd={"on_policy_share": 1.0, "replay_capacity": 64}))
    method = make_method(run)
    first, counts = method.collect(1)
    assert counts["rollout/fresh_rows"] == 8
    second, counts = method.collect(2)
    assert 0 < counts["rollout/fresh_rows"] < 8
    last, counts = method.collect(3)
    assert counts["rollout/fresh_rows"] == 0 and counts["rollout/replayed_rows"] == 8
    assert all(pair in pairs_of(first) + pairs_of(second) for pair in pairs_of(last))


def test_the_buffer_keeps_the_latest_samples_up_to_its_capacity() -> None:
    buffer = ReplayBuffer(3)
    buffer.add([Sample(index, [index]) for index in range(5)])
    assert {sample.index for sample in buffer.draw(200, seed=1, phase=1)} == {2, 3, 4}


def test_the_share_rises_only_when_the_validation_loss_does_and_never_above_one() -> None:
    share = OnPolicyShare(0.5, 0.3)
    values = []
    for loss in (2.0, 1.5, 1.6, 1.6, 1.4, 1.7, 1.8):
        share.observe({"validation/loss": loss})
        values.append(share.value)
    assert values == pytest.approx([0.5, 0.5, 0.8, 0.8, 0.8, 1.0, 1.0])
