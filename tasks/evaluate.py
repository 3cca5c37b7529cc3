"""Stage evaluate: Rouge-L of teacher, warm-up and student on each evaluation set, and their distance to the teacher."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minillm.config import EvaluateConfig, RuntimeConfig
from minillm.dataset import Example, read_examples
from minillm.device import Compute, choose_compute
from minillm.errors import UserError
from minillm.evaluation.distance import mean_reverse_kl, summed_reverse_kl
from minillm.evaluation.scores import GREEDY, summarized_scores
from minillm.generation import Decoding, all_responses, generate_responses
from minillm.models import check_context, load_saved
from minillm.sampling import decodable
from minillm.tokenizers import load_saved_tokenizer
from tasks.judgements import Judgement, judgement_key, kept
from tasks.progress import progress
from tasks.storage import (
    EVALUATION_SETS_DIR,
    METRICS_DIR,
    RESPONSES_DIR,
    STUDENT_DIR,
    TEACHER_DIR,
    WARMUP_DIR,
    replacing,
    write_json,
)

if TYPE_CHECKING:
    from tasks.tracking import Tracker

_log = logging.getLogger(__name__)
_MODELS = {"teacher": TEACHER_DIR, "warmup": WARMUP_DIR, "student": STUDENT_DIR}

Decoded = dict[str, list[list[int]]]  # name of the decoding -> response ids, a row each


def run(runtime: RuntimeConfig, evaluate: EvaluateConfig, tracker: Tracker) -> None:
    """Write every response and the scores; float32 throughout, so that batch size changes no token."""
    compute = choose_compute(**{**runtime.model_dump(), "precision": "float32"})
    tokenizer = load_saved_tokenizer(TEACHER_DIR)
    models = {name: load_saved(directory, torch.float32, compute.device) for name, directory in _MODELS.items()}
    metrics: dict[str, dict[str, Any]] = {name: {} for name in _MODELS}
    for set_name, path in _set_paths(evaluate.sets).items():
        rows = read_examples(path, evaluate.max_rows)
        tracker.dataset(set_name, path)
        for name, model in models.items():
            longest_prompt = max(len(row.prompt_ids) for row in rows)
            check_context(model, longest_prompt + evaluate.max_response_tokens, f"{name} on {set_name}")
        decoded: dict[str, Decoded] = {}
        for name in models:
            judge = partial(_judged, f"evaluate {set_name} {name}", name, models, rows, tokenizer, evaluate, compute)
            judgement = kept(_key(path, name, evaluate), judge)
            decoded[name] = judgement.responses
            scores = summarized_scores(judgement.responses, rows, tokenizer)
            if judgement.reverse_kl is not None:
                scores["reverse_kl"] = judgement.reverse_kl
            metrics[name][set_name] = scores
            tracker.summary(_flat(f"evaluate_{set_name}", name, scores))
        _write_responses(RESPONSES_DIR / f"{set_name}.jsonl", rows, decoded, tokenizer)
    write_json(METRICS_DIR / "evaluate.json", metrics)


def _key(path: Path, name: str, config: EvaluateConfig) -> str:
    settings = config.model_dump(exclude={"sets", "batch_size"})  # neither changes a token
    return judgement_key(
        [path, _MODELS[name], TEACHER_DIR], {"kind": "teacher" if name == "teacher" else "student", **settings}
    )


def _judged(
    label: str,
    name: str,
    models: dict[str, Any],
    rows: list[Example],
    tokenizer: Any,
    config: EvaluateConfig,
    compute: Compute,
) -> Judgement:
    """Decode every row and measure the distance to the teacher on the samples of the first seed."""
    responses = _decode(label, models[name], rows, tokenizer, config)
    if name == "teacher":
        return Judgement(responses, None)
    own = responses[f"seed-{config.sampling_seeds[0]}"]
    return Judgement(responses, _distance(models[name], models["teacher"], rows, own, tokenizer, config, compute))


def _set_paths(names: list[str]) -> dict[str, Path]:
    """Return the files of the named evaluation sets, of all sets when none is named."""
    found = {path.stem: path for path in sorted(EVALUATION_SETS_DIR.glob("*.parquet"))}
    unknown = [name for name in names if name not in found]
    if unknown:
        prepared = ", ".join(found)
        raise UserError(f"params.yaml: evaluate.sets: {unknown[0]!r} is not prepared; prepared sets: {prepared}")
    return {name: found[name] for name in names or found}


def _decode(label: str, model: Any, rows: list[Example], tokenizer: Any, config: EvaluateConfig) -> Decoded:
    seeds: dict[str, int | None] = {f"seed-{seed}": seed for seed in config.sampling_seeds}
    if config.greedy:
        seeds[GREEDY] = None
    num_batches = -(-len(rows) // config.batch_size)
    decoded, model = {}, decodable(model)
    for name, seed in seeds.items():
        decoding = Decoding(
            seed=seed,
            step=0,
            batch_size=config.batch_size,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            max_tokens=config.max_response_tokens,
            end_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
        )
        prompts, row_ids = [row.prompt_ids for row in rows], [row.row_id for row in rows]
        batches = generate_responses(model, prompts, row_ids, decoding)
        decoded[name] = all_responses(progress(batches, f"{label} {name}", total=num_batches))
    return decoded


def _distance(
    model: Any,
    teacher: Any,
    rows: list[Example],
    responses: list[list[int]],
    tokenizer: Any,
    config: EvaluateConfig,
    compute: Compute,
) -> float:
    """Return the exact reverse KL in nats per token on the model's own samples, those of the first sampling seed."""
    batches = summed_reverse_kl(
        model,
        teacher,
        [row.prompt_ids for row in rows],
        responses,
        temperature=config.temperature,
        batch_tokens=config.score_batch_tokens,
        pad_id=tokenizer.pad_token_id,
        compute=compute,
    )
    return mean_reverse_kl(batches)


def _flat(group: str, model: str, scores: dict[str, Any]) -> dict[str, float]:
    flat = {f"{group}/{model}_{key}": float(value) for key, value in scores.items() if not isinstance(value, dict)}
    for kind in ("sampled", GREEDY):
        flat |= {f"{group}/{model}_{kind}_{key}": value for key, value in scores.get(kind, {}).items()}
    return flat


def _write_responses(path: Path, rows: list[Example], decoded: dict[str, Decoded], tokenizer: Any) -> None:
    texts = {
        model: {name: tokenizer.batch_decode(ids, skip_special_tokens=True) for name, ids in decodings.items()}
        for model, decodings in decoded.items()
    }
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            record = {
                "row_id": row.row_id,
                "instruction": row.instruction,
                "input": row.input,
                "references": row.references,
                "category": row.category,
                "responses": {
                    model: {name: values[index] for name, values in decodings.items()}
                    for model, decodings in texts.items()
                },
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
