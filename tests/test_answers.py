"""The black-box teacher of a run: which rows are asked for, and what reaches the endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minillm.dataset import Answer
from minillm.errors import UserError
from minillm.methods.interface import phase_indices
from tasks.answers import black_box_answers
from tasks.distill import _decoding
from tests.fake_endpoint import FakeEndpoint, example, good
from tests.tiny_run import DEFAULTS, changed

ROWS = [example(index, f"question {index}") for index in range(30)]


def settings(endpoint: FakeEndpoint, **changes: Any) -> Any:
    return changed(
        DEFAULTS,
        {
            "method": "seqkd",
            "num_phases": 2,
            "inner_epochs": 2,
            "rollout": {"rollouts_per_phase": 4, "temperature": 0.7, "top_p": 0.9, "max_response_tokens": 11},
            "optimizer": {"minibatch_size": 4, "micro_batch_tokens": 30},
            "seqkd": {
                "source": "endpoint",
                "endpoint": endpoint.address,
                "endpoint_model": "m",
                "key_variable": "",
                **changes,
            },
        },
    )


def test_exactly_the_rows_of_all_phases_are_asked_with_the_rollouts_settings(
    endpoint: FakeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    endpoint.reply = lambda prompt: good(prompt.upper())
    answers = black_box_answers(settings(endpoint), ROWS, seed=3)
    read = {index for phase in (1, 2) for index in phase_indices(30, 8, phase=phase, seed=3)}
    assert answers == {index: Answer(f"QUESTION {index}", is_cut=False) for index in read} and len(read) == 16
    body = endpoint.requests[0][2]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["model"]) == (0.7, 0.9, 11, "m")


def test_a_key_variable_that_is_not_set_is_named_before_anything_is_asked(
    endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINILLM_TEST_KEY", raising=False)
    with pytest.raises(UserError, match=r"^distill\.seqkd\.key_variable: the environment has no MINILLM_TEST_KEY"):
        black_box_answers(settings(endpoint, key_variable="MINILLM_TEST_KEY"), ROWS, seed=3)
    assert endpoint.requests == []


def test_methods_with_a_teacher_of_their_own_ask_nobody(endpoint: FakeEndpoint) -> None:
    assert black_box_answers(DEFAULTS, ROWS, seed=3) == {}


def test_the_stages_decoding_is_that_of_its_params(endpoint: FakeEndpoint) -> None:
    found = _decoding(settings(endpoint), 7, end_id=2, pad_id=1)
    assert (found.temperature, found.top_p, found.top_k, found.max_tokens) == (0.7, 0.9, 0, 11)
    assert (found.seed, found.end_id, found.pad_id, found.batch_size) == (7, 2, 1, DEFAULTS.rollout.batch_size)
