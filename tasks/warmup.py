"""Stage warmup: make the student, heal it by supervised fine-tuning, publish the best-validation checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minillm.config import RuntimeConfig, StudentModelConfig, WarmupConfig
from minillm.dataset import Example, longest_text, read_examples
from minillm.device import Compute, choose_compute
from minillm.draws import Stream
from minillm.models import check_context, cut_head_to_tokenizer, load_model, load_saved, num_parameters
from minillm.padding import pad_left
from minillm.sft import fine_tune
from minillm.student import block_influence, cut_model, most_influential_layers
from minillm.tokenizers import check_same_vocabulary, load_saved_tokenizer, load_tokenizer
from tasks.session import Session
from tasks.storage import (
    METRICS_DIR,
    PLOTS_DIR,
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


def run(
    seed: int,
    runtime: RuntimeConfig,
    student_model: StudentModelConfig,
    warmup: WarmupConfig,
    tracker: Tracker,
    session: Session,
) -> None:
    """Write the warmed-up student, its size and its validation losses right after the cut and at the best step."""
    compute = choose_compute(**runtime.model_dump())
    tokenizer = load_saved_tokenizer(TEACHER_DIR)
    train, validation = read_examples(TRAIN_PATH), read_examples(VALIDATION_PATH)
    model, kept_layers = _student(student_model, tokenizer, train, compute)
    check_context(model, longest_text([*train, *validation]), "student")
    _log.info("student: %.1f M parameters, layers %s", num_parameters(model) / 1e6, kept_layers)
    tracker.dataset("train", TRAIN_PATH)
    tracker.dataset("validation", VALIDATION_PATH)
    loop = partial(
        fine_tune,
        model,
        train,
        validation,
        config=warmup.sft,
        seed=seed,
        order=Stream.WARMUP_ORDER,
        pad_id=tokenizer.pad_token_id,
        compute=compute,
    )
    curve = publish_best(
        "warmup",
        lambda state: loop(resumed=state),
        model,
        tokenizer,
        num_steps=warmup.sft.num_steps,
        published_dir=WARMUP_DIR,
        tracker=tracker,
        session=session,
    )
    metrics = {
        "parameters": num_parameters(model),
        "num_layers": model.config.num_hidden_layers,
        "loss_cut": curve[0]["validation/loss"],
        "loss": best_row(curve)["validation/loss"],
        "best_step": int(best_row(curve)["step"]),
    }
    write_curve(PLOTS_DIR / "warmup.tsv", curve)
    write_json(METRICS_DIR / "warmup.json", {**metrics, "kept_layers": kept_layers})
    tracker.summary({f"warmup/{name}": value for name, value in metrics.items()})
    tracker.model("warmup", WARMUP_DIR)
    _log.info("warmup: validation loss %(loss_cut).3f -> %(loss).3f (step %(best_step)d)", metrics)


def _student(
    config: StudentModelConfig, tokenizer: Any, train: Sequence[Example], compute: Compute
) -> tuple[Any, list[int]]:
    """Return the float32 student before training and the teacher's layers it keeps (all of them when loaded)."""
    if config.source == "cut":
        teacher = load_saved(TEACHER_DIR, torch.float32, compute.device)
        rows = train[: config.num_calibration_rows]
        influence = block_influence(teacher, _calibration_batches(rows, tokenizer.pad_token_id, compute))
        kept = most_influential_layers(influence, config.num_layers)
        return cut_model(teacher, kept), kept
    check_same_vocabulary(tokenizer, load_tokenizer(config.source, config.location, config.revision))
    student = load_model(config.source, config.location, config.revision, torch.float32, compute.device)
    cut_head_to_tokenizer(student, tokenizer)
    return student, list(range(student.config.num_hidden_layers))


def _calibration_batches(
    rows: Sequence[Example], pad_id: int, compute: Compute, batch_size: int = 16
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(rows), batch_size):
        texts = [row.prompt_ids + row.response_ids for row in rows[start : start + batch_size]]
        ids, mask = pad_left(texts, pad_id)
        yield ids.to(compute.device), mask.to(compute.device)
