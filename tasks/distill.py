"""Stage distill: MiniLLM from the warmed-up student and the frozen teacher; publishes the best checkpoint."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import torch

from minillm.config import DistillConfig, RuntimeConfig
from minillm.dataset import longest_text, read_corpus, read_examples
from minillm.device import choose_compute
from minillm.distiller import DistillData
from minillm.distiller import distill as distillation
from minillm.generation import Decoding
from minillm.models import check_context, load_saved, num_parameters
from minillm.tokenizers import load_saved_tokenizer
from minillm.validation import validation_scores
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


def run(seed: int, runtime: RuntimeConfig, distill: DistillConfig, tracker: Tracker) -> None:
    """Write the distilled student, its curve, and its validation scores before training and at the best phase."""
    compute = choose_compute(runtime.device, runtime.precision, runtime.num_threads)
    tokenizer = load_saved_tokenizer(WARMUP_DIR)
    student = load_saved(WARMUP_DIR, torch.float32, compute.device)
    teacher = load_saved(TEACHER_DIR, compute.dtype, compute.device)
    sizes = [num_parameters(model) / 1e6 for model in (student, teacher)]
    _log.info("distill: %.1f M <- %.1f M parameters; %s", *sizes, compute)
    train, validation = read_examples(TRAIN_PATH), read_examples(VALIDATION_PATH, distill.validation.num_rows)
    for name, model in (("student", student), ("teacher", teacher)):
        check_context(model, longest_text([*train, *validation], distill.rollout.max_response_tokens), name)
    tracker.dataset("train", TRAIN_PATH)
    end_id, pad_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    validate = partial(
        validation_scores,
        rows=validation,
        tokenizer=tokenizer,
        decoding=Decoding(
            seed=seed,
            step=0,
            batch_size=distill.rollout.batch_size,
            temperature=distill.rollout.temperature,
            max_tokens=distill.rollout.max_response_tokens,
            end_id=end_id,
            pad_id=pad_id,
        ),
        score_batch_size=distill.optimizer.micro_batch_size,
        compute=compute,
    )
    data = DistillData([row.prompt_ids for row in train], torch.tensor(read_corpus(CORPUS_PATH)))
    reports = distillation(
        student, teacher, data, validate, config=distill, seed=seed, end_id=end_id, pad_id=pad_id, compute=compute
    )
    curve = publish_best(
        "distill", reports, student, tokenizer, num_steps=distill.num_phases, published_dir=STUDENT_DIR, tracker=tracker
    )
    scores = {"initial": _scores(curve[0]), "best": _scores(best_row(curve))}
    write_curve(PLOTS_DIR / "distill.tsv", curve)
    write_json(METRICS_DIR / "distill.json", {**scores, "best_step": int(best_row(curve)["step"])})
    tracker.summary({f"distill/{when}_{name}": value for when, row in scores.items() for name, value in row.items()})
    tracker.model("student", STUDENT_DIR)


def _scores(row: dict[str, float]) -> dict[str, float]:
    return {name: row[f"validation/{name}"] for name in ("rougeL", "reverse_kl", "length_mean")}
