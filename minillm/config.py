"""Params: the sections of params.yaml and the type and range of every knob (units stand in params.yaml)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from minillm.distill_config import DistillConfig
from minillm.knobs import (
    LARGEST_INT,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    OptionalName,
    PlainPath,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Revision,
    Section,
    Seed,
    Share,
)

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)  # of a model or data hub
_PASSWORD = re.compile(r"://[^/\s]*:[^\s]*@")


def _without_repeats(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("each seed may stand there once; a repeated one would be the same draws again")
    return values


class RuntimeConfig(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    num_threads: NonNegativeInt
    loss_memory_mib: PositiveInt
    gradient_checkpointing: bool


class TeacherModelConfig(Section):
    source: Literal["embedded", "path", "hub"]
    location: PlainPath
    revision: Revision

    @model_validator(mode="after")
    def _location_fits_source(self) -> TeacherModelConfig:
        _require_location(self.source, self.location)
        return self


class StudentModelConfig(Section):
    source: Literal["cut", "path", "hub"]
    location: PlainPath
    revision: Revision
    num_layers: PositiveInt
    num_calibration_rows: PositiveInt

    @model_validator(mode="after")
    def _location_fits_source(self) -> StudentModelConfig:
        _require_location(self.source, self.location)
        return self


def _require_location(source: str, location: str) -> None:
    if source in ("path", "hub") and not location:
        raise ValueError(f"location is empty; source {source!r} needs a directory or a repository id")
    if source == "hub" and not REPOSITORY.fullmatch(location):
        raise ValueError(f"location: source 'hub' needs a repository such as 'owner/name' (got {location!r})")


class ColumnsConfig(Section):
    instruction: Annotated[str, Field(min_length=1)]
    input: Annotated[str, Field(min_length=1)]
    output: Annotated[str, Field(min_length=1)]


class DataConfig(Section):
    source: Literal["builtin", "path", "hub"]
    template: Literal["chat", "bare_chat", "alpaca"]
    root: Annotated[PlainPath, Field(min_length=1)]
    num_builtin_rows: Annotated[int, Field(ge=1000, le=6000)]
    train_files: list[str]
    validation_file: str
    evaluation_files: dict[Name, str]
    answers_file: str
    hub_name: str
    hub_revision: Revision
    hub_split: str
    columns: ColumnsConfig
    num_validation_rows: PositiveInt
    num_evaluation_rows: PositiveInt
    max_train_rows: NonNegativeInt
    max_prompt_tokens: PositiveInt
    max_response_tokens: Annotated[int, Field(ge=2, le=LARGEST_INT)]
    corpus_source: Literal["builtin", "path", "none"]
    corpus_file: str
    corpus_block_tokens: Annotated[int, Field(ge=8, le=LARGEST_INT)]
    max_corpus_blocks: PositiveInt

    @model_validator(mode="after")
    def _source_is_complete(self) -> DataConfig:
        if self.source == "path" and not self.train_files:
            raise ValueError("train_files is empty; source 'path' needs at least one file")
        if self.source == "hub" and not self.hub_name:
            raise ValueError("hub_name is empty; source 'hub' needs a data set repository")
        if self.corpus_source == "path" and not self.corpus_file:
            raise ValueError("corpus_file is empty; corpus_source 'path' needs a file")
        return self


class SftConfig(Section):
    num_steps: PositiveInt
    batch_size: PositiveInt
    micro_batch_tokens: PositiveInt
    learning_rate: PositiveFloat
    num_warmup_steps: NonNegativeInt
    schedule: Literal["constant", "linear", "cosine"]
    final_learning_rate_share: Share
    weight_decay: NonNegativeFloat
    gradient_clip: PositiveFloat
    validate_every_steps: PositiveInt
    patience: PositiveInt


class TeacherConfig(Section):
    finetune: bool
    sft: SftConfig


class WarmupConfig(Section):
    sft: SftConfig


class EvaluateConfig(Section):
    sets: list[Name]
    max_rows: NonNegativeInt
    batch_size: PositiveInt
    score_batch_tokens: PositiveInt
    temperature: PositiveFloat
    top_k: NonNegativeInt
    top_p: PositiveShare
    sampling_seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_without_repeats)]
    greedy: bool
    max_response_tokens: PositiveInt


class ReportConfig(Section):
    num_examples: NonNegativeInt


class CheckpointConfig(Section):
    every_s: NonNegativeFloat


def _without_password(value: str) -> str:
    """Refuse a password: params.yaml is in git, and MLflow keeps a copy of it."""
    if _PASSWORD.search(value):
        raise ValueError("allowed: no password in the address; give the whole address in MLFLOW_TRACKING_URI")
    return value


class TrackingConfig(Section):
    enabled: bool
    uri: Annotated[str, Field(min_length=1), AfterValidator(_without_password)]
    experiment: Name
    logged_models: list[Literal["teacher", "warmup", "student"]]
    registered_model: OptionalName
    champion_metric: Literal["final/student_rougeL", "final/student_reverse_kl"]


class Params(Section):
    """The whole of params.yaml."""

    seed: Seed
    runtime: RuntimeConfig
    teacher_model: TeacherModelConfig
    student_model: StudentModelConfig
    data: DataConfig
    teacher: TeacherConfig
    warmup: WarmupConfig
    distill: DistillConfig
    evaluate: EvaluateConfig
    report: ReportConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig

    @model_validator(mode="after")
    def _sections_fit(self) -> Params:
        if self.distill.uses_corpus and self.data.corpus_source == "none":
            raise ValueError("data.corpus_source is 'none'; distill.objective.language_model_weight > 0 needs a corpus")
        if self.distill.method == "seqkd" and self.distill.seqkd.source == "file" and not self.data.answers_file:
            raise ValueError("data.answers_file is empty; distill.seqkd.source 'file' needs a file of responses")
        if self.distill.method == "seqkd" and self.distill.seqkd.source != "file" and self.data.answers_file:
            raise ValueError(
                f"data.answers_file is unused: distill.seqkd.source is {self.distill.seqkd.source!r}; leave it"
                " empty, or let the source be 'file'"
            )
        prepared = [*self.data.evaluation_files] or ["test"]
        unknown = [name for name in self.evaluate.sets if name not in prepared]
        if unknown:
            raise ValueError(f"evaluate.sets: no set {unknown[0]!r}; by data.evaluation_files: {', '.join(prepared)}")
        return self
