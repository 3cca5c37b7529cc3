"""Stage distill: the student learns from the teacher by the method of the params; publishes the best checkpoint."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import torch

from minillm.config import RuntimeConfig
from minillm.dataset import longest_text, read_corpus, read_examples
from minillm.device import choose_compute
from minillm.distill_config import DistillConfig
from minillm.distiller import distill as distillation
from minillm.distiller import make_actors
from minillm.generation import Decoding
from minillm.methods.interface import DistillData, Run
from minillm.models import check_context, check_corpus, load_saved, num_parameters
from minillm.tokenizers import load_saved_tokenizer
from minillm.validation import validation_scores
from tasks.answers import black_box_answers
from tasks.session import Session
from tasks.storage import (
    CORPUS_PATH,
    METRICS_DIR,
    PLOTS_DIR,
    STUDENT_DIR,
    TEACHER_DIR,
    TRAIN_PATH,
    VALIDATION_PATH,
    WARMUP_DIR,
    write_curve,
    write_json,
)
from tasks.supervised import best_row, publish_best

if TYPE_CHECKING:
    from tasks.tracking import Tracker

_log = logging.getLogger(__name__)


def run(seed: int, runtime: RuntimeConfig, distill: DistillConfig, tracker: Tracker, session: Session) -> None:
    """Write the distilled student, its curve, and its validation scores before training and at the best phase."""
    compute = choose_compute(**runtime.model_dump())
    tokenizer = load_saved_tokenizer(WARMUP_DIR)
    train, validation = read_examples(TRAIN_PATH), read_examples(VALIDATION_PATH, distill.validation.num_rows)
    answers = black_box_answers(distill, train, seed)
    student = load_saved(WARMUP_DIR, torch.float32, compute.device)
    teacher = load_saved(TEACHER_DIR, compute.dtype, compute.device)
    sizes = [num_parameters(model) / 1e6 for model in (student, teacher)]
    _log.info("distill: %s, %.1f M <- %.1f M parameters; %s", distill.method, *sizes, compute)
    corpus = torch.tensor(read_corpus(CORPUS_PATH))
    for name, model in (("student", student), ("teacher", teacher)):
        check_context(model, longest_text([*train, *validation], distill.rollout.max_response_tokens), name)
        if distill.uses_corpus:
            check_corpus(model, corpus.shape[1], name)
    tracker.dataset("train", TRAIN_PATH)
    setup = Run(
        make_actors(student, teacher, compute),
        DistillData(train, corpus, answers),
        distill,
        seed,
        _decoding(distill, seed, tokenizer.eos_token_id, tokenizer.pad_token_id),
        tokenizer,
        compute,
    )
    validate = partial(
        validation_scores,
        rows=validation,
        tokenizer=tokenizer,
        decoding=setup.decoding,
        score_batch_tokens=distill.optimizer.micro_batch_tokens,
        compute=compute,
    )
    curve = publish_best(
        "distill",
        lambda state: distillation(setup, validate, state),
        student,
        tokenizer,
        num_steps=distill.num_phases,
        published_dir=STUDENT_DIR,
        tracker=tracker,
        session=session,
    )
    scores = {"initial": _scores(curve[0]), "best": _scores(best_row(curve))}
    write_curve(PLOTS_DIR / "distill.tsv", curve)
    write_json(METRICS_DIR / "distill.json", {**scores, "best_step": int(best_row(curve)["step"])})
    tracker.summary({f"distill/{when}_{name}": value for when, row in scores.items() for name, value in row.items()})
    tracker.model("student", STUDENT_DIR)


def _decoding(config: DistillConfig, seed: int, end_id: int, pad_id: int) -> Decoding:
    rollout = config.rollout
    return Decoding(
        seed=seed,
        step=0,
        batch_size=rollout.batch_size,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        max_tokens=rollout.max_response_tokens,
        end_id=end_id,
        pad_id=pad_id,
        mask_groups=rollout.mask_groups,
    )


def _scores(row: dict[str, float]) -> dict[str, float]:
    return {name: row[f"validation/{name}"] for name in ("rougeL", "reverse_kl", "length_mean")}
