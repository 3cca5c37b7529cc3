"""Params: the sections of params.yaml and the type and range of every knob (units stand in params.yaml)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator


def _safe_name(value: str) -> str:
    if not value or not value[0].isalnum() or not all(c.isalnum() or c in "._-" for c in value) or not value.isascii():
        raise ValueError("allowed: letters, digits, '.', '_', '-', starting with a letter or digit")
    if len(value) > 64 or ".." in value:
        raise ValueError("allowed: at most 64 characters and no '..'")
    return value


def _without_repeats(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("each seed may stand there once; a repeated one would be the same draws again")
    return values


PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Alpha = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, AfterValidator(_safe_name)]


class Section(BaseModel):
    """A closed, strict, frozen group of knobs without defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RuntimeConfig(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    num_threads: NonNegativeInt


class TeacherModelConfig(Section):
    source: Literal["embedded", "path", "hub"]
    location: str
    revision: str

    @model_validator(mode="after")
    def _location_fits_source(self) -> TeacherModelConfig:
        _require_location(self.source, self.location)
        return self


class StudentModelConfig(Section):
    source: Literal["cut", "path", "hub"]
    location: str
    revision: str
    num_layers: PositiveInt
    num_calibration_rows: PositiveInt

    @model_validator(mode="after")
    def _location_fits_source(self) -> StudentModelConfig:
        _require_location(self.source, self.location)
        return self


def _require_location(source: str, location: str) -> None:
    if source in ("path", "hub") and not location:
        raise ValueError(f"location is empty; source {source!r} needs a directory or a repository id")


class ColumnsConfig(Section):
    instruction: Annotated[str, Field(min_length=1)]
    input: Annotated[str, Field(min_length=1)]
    output: Annotated[str, Field(min_length=1)]


class DataConfig(Section):
    source: Literal["builtin", "path", "hub"]
    template: Literal["chat", "bare_chat", "alpaca"]
    root: Annotated[str, Field(min_length=1)]
    num_builtin_rows: Annotated[int, Field(ge=1000, le=6000)]
    train_files: list[str]
    validation_file: str
    evaluation_files: dict[Name, str]
    hub_name: str
    hub_revision: str
    hub_split: str
    columns: ColumnsConfig
    num_validation_rows: PositiveInt
    num_evaluation_rows: PositiveInt
    max_train_rows: NonNegativeInt
    max_prompt_tokens: PositiveInt
    max_response_tokens: Annotated[int, Field(ge=2)]
    corpus_source: Literal["builtin", "path", "none"]
    corpus_file: str
    corpus_block_tokens: Annotated[int, Field(ge=8)]
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
    micro_batch_size: PositiveInt
    learning_rate: PositiveFloat
    num_warmup_steps: NonNegativeInt
    schedule: Literal["constant", "linear", "cosine"]
    final_learning_rate_share: Share
    weight_decay: NonNegativeFloat
    gradient_clip: PositiveFloat
    validate_every_steps: PositiveInt
    patience: PositiveInt

    @model_validator(mode="after")
    def _batches_divide(self) -> SftConfig:
        _require_divides("micro_batch_size", self.micro_batch_size, "batch_size", self.batch_size)
        return self


class TeacherConfig(Section):
    finetune: bool
    sft: SftConfig


class WarmupConfig(Section):
    sft: SftConfig


class RolloutConfig(Section):
    rollouts_per_phase: PositiveInt
    batch_size: PositiveInt
    group_size: PositiveInt
    max_response_tokens: PositiveInt
    temperature: PositiveFloat
    teacher_mix_alpha: Alpha
    teacher_mix_alpha_end: Alpha
    teacher_mix_schedule: Literal["constant", "linear", "cosine"]

    @model_validator(mode="after")
    def _groups_divide(self) -> RolloutConfig:
        _require_divides("group_size", self.group_size, "rollouts_per_phase", self.rollouts_per_phase)
        return self


class ObjectiveConfig(Section):
    importance: Literal["per_token", "per_decision", "none"]
    returns_from: Literal["next", "current"]
    length_normalize: bool
    gamma: Annotated[FiniteFloat, Field(gt=0, le=1)]
    baseline: Literal["none", "batch_mean", "group_mean"]
    scale: Literal["none", "std"]
    clip_low: Share
    clip_high: NonNegativeFloat
    single_step_weight: NonNegativeFloat
    language_model_weight: NonNegativeFloat
    language_model_teacher_share: Share
    entropy_weight: NonNegativeFloat


class OptimizerConfig(Section):
    minibatch_size: PositiveInt
    micro_batch_size: PositiveInt
    language_model_batch_size: PositiveInt
    learning_rate: PositiveFloat
    num_warmup_steps: NonNegativeInt
    beta1: Alpha
    beta2: Alpha
    weight_decay: NonNegativeFloat
    gradient_clip: PositiveFloat

    @model_validator(mode="after")
    def _batches_divide(self) -> OptimizerConfig:
        _require_divides("micro_batch_size", self.micro_batch_size, "minibatch_size", self.minibatch_size)
        return self


class ValidationConfig(Section):
    every_phases: PositiveInt
    num_rows: PositiveInt
    metric: Literal["reverse_kl", "rougeL"]


class DistillConfig(Section):
    method: Literal["minillm"]
    num_phases: PositiveInt
    inner_epochs: PositiveInt
    rollout: RolloutConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    validation: ValidationConfig

    @model_validator(mode="after")
    def _sections_fit(self) -> DistillConfig:
        _require_divides(
            "optimizer.minibatch_size",
            self.optimizer.minibatch_size,
            "rollout.rollouts_per_phase",
            self.rollout.rollouts_per_phase,
        )
        if self.objective.baseline == "group_mean" and self.rollout.group_size < 2:
            raise ValueError("rollout.group_size is 1; objective.baseline 'group_mean' needs at least 2")
        return self


class EvaluateConfig(Section):
    sets: list[Name]
    max_rows: NonNegativeInt
    batch_size: PositiveInt
    score_batch_size: PositiveInt
    temperature: PositiveFloat
    sampling_seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_without_repeats)]
    greedy: bool
    max_response_tokens: PositiveInt


class ReportConfig(Section):
    num_examples: NonNegativeInt


class TrackingConfig(Section):
    enabled: bool
    uri: Annotated[str, Field(min_length=1)]
    experiment: Name
    logged_models: list[Literal["teacher", "warmup", "student"]]


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
    tracking: TrackingConfig

    @model_validator(mode="after")
    def _sections_fit(self) -> Params:
        language_model_loss = self.distill.objective.language_model_weight > 0
        if language_model_loss and self.data.corpus_source == "none":
            raise ValueError("data.corpus_source is 'none'; distill.objective.language_model_weight > 0 needs a corpus")
        return self


def _require_divides(name: str, value: int, whole_name: str, whole: int) -> None:
    if whole % value:
        raise ValueError(f"{name} = {value} does not divide {whole_name} = {whole}")
