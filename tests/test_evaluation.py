from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.device import Compute
from minillm.divergences import cross_entropy, entropy, reverse_kl
from minillm.draws import Stream, component_draws, permutation, token_uniforms
from minillm.evaluation.distance import mean_reverse_kl, summed_reverse_kl
from minillm.evaluation.diversity import distinct_share
from minillm.evaluation.rouge import mean_rouge_l, rouge_l
from tests import tiny


def test_rouge_l_by_hand() -> None:
    """Longest common subsequence 'the cat sat' (3) of 4 and 5 words: P 3/4, R 3/5, F1 2/3."""
    assert rouge_l("the cat sat quietly", ["the black cat sat down"]) == pytest.approx(100 * 2 / 3)


def test_rouge_l_stems_words_and_takes_the_best_reference() -> None:
    assert rouge_l("dogs running", ["dog run"]) == pytest.approx(100)
    assert rouge_l("a b", ["x y", "a b"]) == pytest.approx(100)


def test_an_empty_response_scores_zero() -> None:
    assert rouge_l("", ["something"]) == 0


@pytest.mark.parametrize(
    ("response", "reference", "score"),
    [
        ("Москва столица", "Москва - столица России", 80),  # P 2/2, R 2/3
        ("ЯД", "яд", 100),
        ("東京都", "東京", 80),  # by characters: P 2/3, R 2/2
        ("ดี", "ไม่", 0),
        ("Moscow", "Москва", 0),
        ("!", "?", 0),
        ("la niña", "la nina", 40),  # where there is one, rouge_score's own reading stays: la, ni, a
    ],
)
def test_a_reference_without_a_latin_word_is_compared_by_its_own(response: str, reference: str, score: float) -> None:
    assert rouge_l(response, [reference]) == pytest.approx(score)


def test_distinct_grams_are_counted_over_all_responses_together() -> None:
    """Pairs of (1 2 1 2): 12 21 12; of (1 2): 12; of (5): none. Two distinct of four."""
    assert distinct_share([[1, 2, 1, 2], [1, 2], [5]], 2) == 2 / 4
    assert distinct_share([[1, 2], []], 4) == 0.0


def test_the_mean_is_over_rows_and_lists_of_different_lengths_are_refused() -> None:
    assert mean_rouge_l(["a b", "z"], [["a b"], ["y"]]) == pytest.approx(50)
    with pytest.raises(ValueError):
        mean_rouge_l(["a"], [["a"], ["b"]])


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ab ", max_size=12), st.text(alphabet="ab ", max_size=12))
def test_rouge_l_is_symmetric_and_within_bounds(first: str, second: str) -> None:
    score = rouge_l(first, [second])
    assert 0 <= score <= 100
    assert score == pytest.approx(rouge_l(second, [first]))


@pytest.mark.parametrize("batch_tokens", [1, 20, 1000])
def test_the_distance_is_the_token_mean_of_the_exact_divergence(batch_tokens: int) -> None:
    student, teacher = tiny.tiny_gpt2(1), tiny.tiny_gpt2(2)
    prompts, responses = tiny.random_rows(5, 1, 9, seed=1), tiny.random_rows(5, 1, 7, seed=2)
    total, count = 0.0, 0
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            own, other = ((model(ids).logits[0].double() / 0.7).log_softmax(-1) for model in (student, teacher))
        for place in range(len(prompt) - 1, len(prompt) + len(response) - 1):
            total += sum(float(own[place, v].exp() * (own[place, v] - other[place, v])) for v in range(tiny.NUM_TOKENS))
            count += 1
    compute = Compute(torch.device("cpu"), torch.float32)
    parts = summed_reverse_kl(
        student,
        teacher,
        prompts,
        responses,
        temperature=0.7,
        batch_tokens=batch_tokens,
        pad_id=tiny.PAD_ID,
        compute=compute,
    )
    assert mean_reverse_kl(parts) == pytest.approx(total / count, rel=1e-4)


def test_reverse_kl_by_hand() -> None:
    """Student (1/2, 1/2), teacher (1/4, 3/4): 1/2 log 2 + 1/2 log(2/3)."""
    student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    expected = 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))
    assert float(reverse_kl(student, teacher)) == pytest.approx(float(expected), abs=1e-6)
    assert float(entropy(student)) == pytest.approx(0.693147, abs=1e-5)
    assert float(cross_entropy(student, teacher)) == pytest.approx(0.836988, abs=1e-5)  # -(log 1/4 + log 3/4) / 2


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 30))
def test_reverse_kl_is_never_negative_and_zero_only_when_equal(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, 7, generator=generator, dtype=torch.float64)
    assert float(reverse_kl(student, teacher)) > 0
    assert float(reverse_kl(student, student + 3)) == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_the_reverse_kl_is_right() -> None:
    student, teacher = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda logits: reverse_kl(logits, teacher), student.requires_grad_())


def test_draws_depend_on_their_key_alone() -> None:
    whole, part = token_uniforms(1, 2, [3, 4, 5], 6), token_uniforms(1, 2, [5, 3], 6)
    assert torch.equal(whole[[2, 0]], part)
    assert torch.equal(token_uniforms(1, 2, [3], 4), whole[:1, :4])
    for other in (token_uniforms(2, 2, [3], 6), token_uniforms(1, 3, [3], 6), token_uniforms(1, 2, [4], 6)):
        assert not torch.equal(other, whole[:1])


def test_component_draws_are_independent_with_the_given_share() -> None:
    draws = torch.tensor([component_draws(1, 0, batch, 40, 0.3) for batch in range(500)]).double()
    assert float(draws.mean()) == pytest.approx(0.3, abs=0.01)
    centred = draws - draws.mean()
    assert abs(float((centred[:, 1:] * centred[:, :-1]).mean())) < 0.01
    assert not any(component_draws(1, 0, 0, 40, 0.0))


def test_permutations_hold_every_item_and_differ_between_epochs() -> None:
    first, second = (permutation(1, Stream.PROMPT_ORDER, epoch, 20) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20)) and first != second
