"""What passes through each model while tokens are drawn, and the states that are kept of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.draws import component_draws, token_uniforms
from minillm.sampling import decodable
from tests import tiny
from tests.test_sampling import sample

KEPT = {"keep_student_states": True, "keep_teacher_states": True}


class CountingModel:
    """Counts the tokens that a model's body reads."""

    def __init__(self, model: Any) -> None:
        self.num_calls = self.num_columns = 0
        model.base_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.num_calls += 1
        self.num_columns += kwargs["input_ids"].shape[1]


def test_one_body_call_per_token_whichever_model_is_picked() -> None:
    student, teacher = tiny.tiny_llama(1), tiny.tiny_llama(2)
    counters = CountingModel(student), CountingModel(teacher)
    rows, num_tokens = tiny.random_rows(4, 3, 5, seed=3), 10
    picks = [False, True, False, False, True, False, False, False, True, False]
    out = sample(student, teacher, rows, picks, torch.full((4, num_tokens), 0.5, dtype=torch.float64))
    assert out.response_ids.shape[1] == num_tokens
    assert counters[0].num_calls + counters[1].num_calls == num_tokens
    assert counters[1].num_calls == sum(picks)


def test_without_mixing_the_teacher_is_never_called() -> None:
    student, teacher = tiny.tiny_llama(1), tiny.tiny_llama(2)
    counter = CountingModel(teacher)
    sample(student, teacher, [[3, 4]], [False] * 4, torch.full((1, 4), 0.5, dtype=torch.float64))
    assert counter.num_calls == 0


@pytest.mark.parametrize(
    ("prepared", "num_padding"), [(lambda model: model, 3), (decodable, 0)], ids=["generic", "chosen"]
)
def test_reads_count_calls_and_positions_with_what_padding_is_read(prepared: Any, num_padding: int) -> None:
    """Prompts of 2 and 5 tokens, 4 tokens drawn, of which the last is never read."""
    models = [prepared(tiny.tiny_llama(seed)) for seed in (1, 2)]
    out = sample(*models, [[3, 4], [3, 4, 5, 6, 7]], [False, True, False, False], torch.full((2, 4), 0.5).double())
    assert out.response_mask.all()
    assert out.student_reads == (3, 2 + 5 + num_padding + 2 * 3)  # the prompt, two tokens at once, and one
    assert out.teacher_reads == (1, 2 + 5 + num_padding + 2 * 1)


@pytest.mark.parametrize("prepared", [lambda model: model, decodable], ids=["generic", "chosen"])
def test_reading_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch, prepared: Any) -> None:
    models, rows = [prepared(tiny.tiny_llama(seed)) for seed in (1, 2)], tiny.random_rows(4, 1, 9, seed=3)
    picks = [False, True, False, False, True, False, False, False, False, False]

    def sampled() -> Any:
        return sample(*models, rows, picks, token_uniforms(8, 0, range(4), 10), end_id=-1, **KEPT)

    whole = sampled()
    monkeypatch.setattr("minillm.decoders._MAX_POSITIONS", 4 * 2)  # two columns a pass
    pieces = sampled()
    assert pieces.teacher_reads.num_calls > whole.teacher_reads.num_calls
    assert pieces.teacher_reads.num_positions == whole.teacher_reads.num_positions
    assert torch.equal(pieces.response_ids, whole.response_ids)
    for name in ("student_states", "teacher_states", "drawn_logprobs"):
        assert torch.allclose(getattr(pieces, name), getattr(whole, name), atol=2e-5)


@pytest.mark.parametrize(("num_ended", "num_long"), [(1, 2), (3, 1)], ids=["still decoded", "retired"])
def test_rows_that_have_ended_ask_for_no_model(num_ended: int, num_long: int) -> None:
    """Rows of one token, which alone want the teacher later on, before rows that want the student throughout."""
    student, teacher = tiny.tiny_llama(1), tiny.tiny_llama(2)
    short, *long = tiny.random_rows(1 + num_long, 3, 5, seed=3)
    rows, num_tokens = [short] * num_ended + long, 8
    uniforms = token_uniforms(3, 0, [0] * num_ended + list(range(1, 1 + num_long)), num_tokens)
    end_id = int(sample(student, None, rows, [False] * num_tokens, uniforms).response_ids[0, 0])
    counter = CountingModel(teacher)
    picks = [[False] + [True] * (num_tokens - 1)] * num_ended + [[False] * num_tokens] * num_long
    out = sample(student, teacher, rows, picks, uniforms, end_id=end_id)
    lengths = out.response_mask.sum(dim=1)
    assert lengths[:num_ended].tolist() == [1] * num_ended and int(lengths[num_ended:].min()) > 2
    assert counter.num_calls == 0


@pytest.mark.parametrize("prepared", [lambda model: model, decodable], ids=["generic", "chosen"])
@pytest.mark.parametrize("make_model", tiny.ARCHITECTURES.values(), ids=tiny.ARCHITECTURES.keys())
def test_the_logits_of_the_lazy_caches_are_those_of_one_forward(make_model: Any, prepared: Any) -> None:
    """The log-probability under which each token was drawn, by whichever model, after deferred reads of any length."""
    models, rows, num_tokens = (make_model(1), make_model(2)), tiny.random_rows(5, 1, 9, seed=3), 12
    picks = component_draws(1, 0, 0, num_tokens, 0.4)
    out = sample(*map(prepared, models), rows, picks, token_uniforms(8, 0, range(5), num_tokens), end_id=-1)
    exact = [model.double() for model in models]
    for row, prompt in enumerate(rows):
        ids = torch.tensor([prompt + out.response_ids[row].tolist()])
        with torch.no_grad():
            both = [model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for model in exact]
        expected = torch.stack([both[picked][place, ids[0, len(prompt) + place]] for place, picked in enumerate(picks)])
        assert torch.allclose(out.drawn_logprobs[row].double(), expected.double(), rtol=0, atol=1e-5)


def ended(ids: Tensor, end_id: int) -> Tensor:
    """Return the responses with padding after the first end token."""
    is_after = (ids == end_id).cumsum(dim=1) - (ids == end_id).long() > 0
    return torch.where(is_after, tiny.PAD_ID, ids)


@pytest.mark.parametrize("prepared", [lambda model: model, decodable], ids=["generic", "chosen"])
@pytest.mark.parametrize("make_model", tiny.ARCHITECTURES.values(), ids=tiny.ARCHITECTURES.keys())
@pytest.mark.parametrize(("alpha", "num_patterns"), [(0.0, 1), (0.4, 1), (0.4, 9), (0.9, 1)])
def test_the_kept_states_are_those_of_one_forward_of_each_row(
    make_model: Any, prepared: Any, alpha: float, num_patterns: int
) -> None:
    """Rows end at different places and retire; every state that predicts a token is there, whoever drew the token."""
    student, teacher = make_model(1), make_model(2)
    rows, num_tokens, num_rows = tiny.random_rows(9, 1, 9, seed=3), 12, 9
    picks = [component_draws(1, 0, key % num_patterns, num_tokens, alpha) for key in range(num_rows)]
    uniforms = token_uniforms(8, 0, range(num_rows), num_tokens)
    plain = sample(student, teacher, rows, picks, uniforms)
    end_id = int(plain.response_ids[:, 2:8].flatten().mode().values)  # then ends the rows that it is in
    out = sample(prepared(student), prepared(teacher), rows, picks, uniforms, end_id=end_id, **KEPT)
    assert out.response_ids.tolist() == ended(plain.response_ids, end_id)[:, : out.response_ids.shape[1]].tolist()
    assert out.teacher_states.shape[:2] == out.response_ids.shape
    assert len(set(out.response_mask.sum(dim=1).tolist())) > 1
    for row, prompt in enumerate(rows):
        length = int(out.response_mask[row].sum())
        ids = torch.tensor([prompt + out.response_ids[row, :length].tolist()])
        with torch.no_grad():
            expected = teacher.base_model(ids).last_hidden_state[0, len(prompt) - 1 : -1]
            own = student.base_model(ids).last_hidden_state[0, len(prompt) - 1 : -1]
        assert torch.allclose(out.student_states[row, :length], own, rtol=0, atol=2e-5)
        assert torch.allclose(out.teacher_states[row, :length], expected, rtol=0, atol=2e-5)
