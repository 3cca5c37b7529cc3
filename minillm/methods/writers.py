"""Who writes the responses of sequence-level distillation: the run's teacher, or a black box that answered in text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from minillm.dataset import Answer
from minillm.generation import all_responses, generate_responses
from minillm.methods.interface import Run

Writer = Callable[[int, Sequence[int]], list[list[int]]]
"""Takes a phase and the indices of training rows, and returns response ids, a row each."""


def teacher_writer(run: Run, greedy: bool) -> Writer:
    """Return a writer that samples from the teacher at the rollout's settings, or decodes it greedily."""

    def write(phase: int, indices: Sequence[int]) -> list[list[int]]:
        decoding = replace(run.decoding_of(phase), seed=None) if greedy else run.decoding_of(phase)
        prompts = [run.data.rows[index].prompt_ids for index in indices]
        batches = list(generate_responses(run.actors.teacher_sampler, prompts, range(len(prompts)), decoding))
        run.stopwatch.count(teacher_calls=sum(max(len(response) for _, response in batch) for batch in batches))
        return all_responses(iter(batches))

    return write


def text_writer(run: Run, answers: Mapping[int, Answer]) -> Writer:
    """Return a writer that looks responses up by the training row's `row_id`.

    One that its author was not allowed to end, or of more tokens than `rollout.max_response_tokens`, is used up to
    there without an end token, as a sampled response is; `response/end_rate` counts the others.
    """

    def write(phase: int, indices: Sequence[int]) -> list[list[int]]:
        found = [answers[run.data.rows[index].row_id] for index in indices]
        texts = [answer.text for answer in found]
        # A special token spelled out in an answer is text, not control.
        encoded = run.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ends = [[] if answer.is_cut else [run.decoding.end_id] for answer in found]
        return [[*ids, *end][: run.decoding.max_tokens] for ids, end in zip(encoded, ends, strict=True)]

    return write
