"""Training that was stopped and goes on ends with the same weights and the same numbers, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from minillm.checkpoint import Checkpoints
from minillm.distiller import distill
from minillm.draws import Stream
from minillm.params import load_params
from minillm.rollout import Actors
from minillm.sft import fine_tune
from minillm.types import StepReport, TrainingState
from tests import tiny
from tests.imports import ROOT
from tests.tiny_run import CPU, DEFAULTS, changed, examples, tiny_run

READINGS = ("time/", "memory/")
SFT = load_params(ROOT / "params.yaml").warmup.sft


def supervised(model: Any, resumed: TrainingState | None = None) -> Iterator[StepReport]:
    changes = {"num_steps": 7, "batch_size": 3, "validate_every_steps": 2, "num_warmup_steps": 2, "learning_rate": 3e-2}
    config = SFT.model_copy(update={**changes, "micro_batch_tokens": 20, "patience": 3})
    rows, order = examples(10, seed=3), Stream.WARMUP_ORDER
    options: dict[str, Any] = {"config": config, "seed": 5, "order": order, "pad_id": tiny.PAD_ID, "compute": CPU}
    return fine_tune(model, rows, examples(4, seed=8), **options, resumed=resumed)


def distilled(method: str, model: Any, resumed: TrainingState | None = None, **sections: Any) -> Iterator[StepReport]:
    base = {
        "method": method,
        "num_phases": 5,
        "inner_epochs": 2,
        "rollout": {"rollouts_per_phase": 8, "batch_size": 4, "max_response_tokens": 6},
        "optimizer": {"minibatch_size": 4, "micro_batch_tokens": 30, "language_model_batch_size": 1},
        "grpo": {"group_size": 4},
        "validation": {"every_phases": 2},
    }
    config = changed(changed(DEFAULTS, base), sections)
    run = tiny_run(config, model, tiny.tiny_llama(2, num_layers=3), examples(10, seed=3))

    def validate(actors: Actors) -> dict[str, float]:
        value = float(sum(parameter.detach().double().abs().mean() for parameter in actors.student.parameters()))
        return {"validation/reverse_kl": abs(value - 1.7), "validation/loss": value}

    return distill(run, validate, resumed)


GKD = {"gkd": {"on_policy_share": 0.4, "share_step": 0.2, "replay_capacity": 6}}
LOOPS = {
    "sft stage": supervised,
    **{
        name: lambda model, resumed=None, name=name: distilled(name, model, resumed)
        for name in ("sft", "kd", "seqkd", "reverse_kd", "minillm", "grpo")
    },
    "gkd": lambda model, resumed=None: distilled("gkd", model, resumed, **GKD),
    "alpha schedule": lambda model, resumed=None: distilled(
        "minillm", model, resumed, rollout={"teacher_mix_schedule": "linear", "teacher_mix_alpha_end": 0.0}
    ),
}


def told(report: StepReport) -> tuple[int, bool, dict[str, float]]:
    metrics = {name: value for name, value in report.metrics.items() if not name.startswith(READINGS)}
    return report.step, report.is_best, metrics


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def kept(directory: Path, report: StepReport) -> TrainingState:
    """Return the report's state as it comes back from the disk."""
    best = directory / "best"
    best.mkdir(exist_ok=True)
    assert report.state is not None
    Checkpoints(directory / "run").save(report.state(), best)
    found = Checkpoints(directory / "run").newest()
    assert found is not None
    return found[0]


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS.keys())
def test_training_goes_on_from_every_step_as_if_it_had_never_stopped(loop: Any, tmp_path: Path) -> None:
    whole = tiny.tiny_llama(1)
    states, reports = [], []
    for report in loop(whole):
        reports.append(told(report))
        states.append(kept(tmp_path, report))
    assert len(reports) >= 5
    for step, state in enumerate(states):
        again = tiny.tiny_llama(7)
        rest = [told(report) for report in loop(again, resumed=state)]
        assert rest == reports[step + 1 :]
        assert all(torch.equal(*pair) for pair in zip(weights(again), weights(whole), strict=True))


@pytest.mark.parametrize("lost", ["optimizer", "updater", "method", "best"])
def test_a_state_without_one_of_its_parts_leads_elsewhere(lost: str, tmp_path: Path) -> None:
    """So the test above would notice each of them."""
    whole = tiny.tiny_llama(1)
    reports, states = [], []
    for report in distilled("gkd", whole, **GKD):
        reports.append(told(report))
        states.append(kept(tmp_path, report))
    state, fresh = states[3], states[0]
    tensors, values = dict(state.tensors), dict(state.values)
    if lost == "optimizer":
        tensors[lost] = {name: torch.zeros_like(tensor) for name, tensor in state.tensors[lost].items()}
    else:
        values[lost] = fresh.values[lost] if lost != "best" else float("inf")
    rest = [
        told(report)
        for report in distilled("gkd", tiny.tiny_llama(7), TrainingState(state.step, tensors, values), **GKD)
    ]
    assert rest != reports[4:]
