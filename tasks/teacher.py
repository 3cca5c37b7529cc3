"""Stage teacher: load or convert the teacher, check that it is sane, tune it on the task, publish it."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from minillm.config import RuntimeConfig, TeacherConfig, TeacherModelConfig
from minillm.dataset import longest_text, read_examples
from minillm.device import Compute, choose_compute
from minillm.draws import Stream
from minillm.models import check_context, cut_head_to_tokenizer, load_model, num_parameters
from minillm.sanity import english_perplexity, require_sane_english
from minillm.sft import fine_tune, untuned
from minillm.tokenizers import load_tokenizer
from tasks.session import Session
from tasks.storage import METRICS_DIR, PLOTS_DIR, TEACHER_DIR, TRAIN_PATH, VALIDATION_PATH, write_curve, write_json
from tasks.supervised import best_row, publish_best

if TYPE_CHECKING:
    from tasks.tracking import Tracker

_log = logging.getLogger(__name__)


def run(
    seed: int,
    runtime: RuntimeConfig,
    teacher_model: TeacherModelConfig,
    teacher: TeacherConfig,
    tracker: Tracker,
    session: Session,
) -> None:
    """Write the teacher that every later stage reads, its validation losses and its perplexity on English."""
    compute = choose_compute(**runtime.model_dump())
    tokenizer, model, perplexity = _load(teacher_model, compute)
    train, validation = read_examples(TRAIN_PATH), read_examples(VALIDATION_PATH)
    check_context(model, longest_text([*train, *validation]), "teacher")
    tracker.dataset("train", TRAIN_PATH)
    tracker.dataset("validation", VALIDATION_PATH)
    options = {"config": teacher.sft, "pad_id": tokenizer.pad_token_id, "compute": compute}
    if teacher.finetune:
        loop = partial(fine_tune, model, train, validation, seed=seed, order=Stream.TEACHER_ORDER, **options)
    else:
        loop = partial(untuned, model, validation, **options)
    curve = publish_best(
        "teacher",
        lambda state: loop(resumed=state),
        model,
        tokenizer,
        num_steps=teacher.sft.num_steps if teacher.finetune else 0,
        published_dir=TEACHER_DIR,
        tracker=tracker,
        session=session,
    )
    metrics = {
        "parameters": num_parameters(model),
        "english_perplexity": perplexity,
        "loss_initial": curve[0]["validation/loss"],
        "loss": best_row(curve)["validation/loss"],
        "best_step": int(best_row(curve)["step"]),
    }
    write_curve(PLOTS_DIR / "teacher.tsv", curve)
    write_json(METRICS_DIR / "teacher.json", metrics)
    tracker.summary({f"teacher/{name}": value for name, value in metrics.items()})
    tracker.model("teacher", TEACHER_DIR)
    _log.info("teacher: validation loss %(loss_initial).3f -> %(loss).3f (step %(best_step)d)", metrics)


def _load(config: TeacherModelConfig, compute: Compute) -> tuple[Any, Any, float]:
    """Return tokenizer, float32 model and English perplexity; a broken embedded teacher is refused."""
    tokenizer = load_tokenizer(config.source, config.location, config.revision)
    model = load_model(config.source, config.location, config.revision, torch.float32, compute.device)
    cut_head_to_tokenizer(model, tokenizer)
    plain, shuffled = (english_perplexity(model, tokenizer, compute, shuffled) for shuffled in (False, True))
    if config.source == "embedded":
        require_sane_english(plain, shuffled)
    size = num_parameters(model) / 1e6
    _log.info(
        "teacher: %.1f M parameters; %s; perplexity on English %.1f, shuffled %.1f", size, compute, plain, shuffled
    )
    return tokenizer, model, plain
