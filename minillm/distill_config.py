"""Params of the stage distill: the method, what all methods share, and a section for each method that has knobs."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from minillm.knobs import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    ProperShare,
    Section,
    Share,
    require_divides,
)


def _web_address(value: str) -> str:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("allowed: an address that starts with http:// or https://, up to and including /v1")
    if parts.username or parts.password:
        raise ValueError("allowed: no user or password in the address; name the variable that holds the key")
    return value


class RolloutConfig(Section):
    rollouts_per_phase: PositiveInt
    batch_size: PositiveInt
    max_response_tokens: PositiveInt
    temperature: PositiveFloat
    top_k: NonNegativeInt
    top_p: PositiveShare
    teacher_mix_alpha: ProperShare
    teacher_mix_alpha_end: ProperShare
    teacher_mix_schedule: Literal["constant", "linear", "cosine"]


class KdConfig(Section):
    data_weight: Share


class SeqKdConfig(Section):
    source: Literal["teacher", "file", "endpoint"]
    greedy: bool
    endpoint: Annotated[str, AfterValidator(_web_address)]
    endpoint_model: str
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$|^$")]
    num_parallel: Annotated[int, Field(ge=1, le=64)]
    max_retries: Annotated[int, Field(ge=0, le=20)]

    @model_validator(mode="after")
    def _source_is_complete(self) -> SeqKdConfig:
        if self.source == "endpoint" and not (self.endpoint and self.endpoint_model):
            raise ValueError("endpoint or endpoint_model is empty; source 'endpoint' needs an address and a model name")
        return self

    @model_validator(mode="after")
    def _nothing_is_unused(self) -> SeqKdConfig:
        if self.greedy and self.source != "teacher":
            raise ValueError(f"greedy is unused: source is {self.source!r}; only this run's teacher decodes here")
        given = [name for name in ("endpoint", "endpoint_model", "key_variable") if getattr(self, name)]
        if given and self.source != "endpoint":
            raise ValueError(f"{given[0]} is unused: source is {self.source!r}; leave it empty or choose 'endpoint'")
        return self


class PlainDivergence(Section):
    """A divergence without parameters."""

    name: Literal["forward_kl", "reverse_kl", "total_variation"]


class SkewedDivergence(Section):
    name: Literal["skewed_forward_kl", "skewed_reverse_kl"]
    skew: ProperShare


class JsdDivergence(Section):
    name: Literal["jsd"]
    beta: Share


class AdaptiveDivergence(Section):
    name: Literal["adaptive_kl"]
    head_share: PositiveShare


class AlphaBetaDivergence(Section):
    name: Literal["alpha_beta"]
    alpha: NonNegativeFloat
    beta: NonNegativeFloat

    @model_validator(mode="after")
    def _not_both_zero(self) -> AlphaBetaDivergence:
        if self.alpha + self.beta == 0:
            raise ValueError("alpha and beta are both 0; at least one must be greater")
        return self


DivergenceConfig = Annotated[
    PlainDivergence | SkewedDivergence | JsdDivergence | AdaptiveDivergence | AlphaBetaDivergence,
    Field(discriminator="name"),
]


class GkdConfig(Section):
    divergence: DivergenceConfig
    on_policy_share: Share
    share_step: Share
    replay_capacity: NonNegativeInt

    @model_validator(mode="after")
    def _the_buffer_is_used(self) -> GkdConfig:
        if self.replay_capacity and self.on_policy_share == 0 and self.share_step == 0:
            raise ValueError("replay_capacity is unused: on_policy_share and share_step are 0, so nothing is sampled")
        return self


class MiniLlmConfig(Section):
    group_size: PositiveInt
    returns_from: Literal["next", "current"]
    gamma: PositiveShare
    baseline: Literal["none", "batch_mean", "group_mean"]
    scale: Literal["none", "std"]
    single_step_weight: NonNegativeFloat

    @model_validator(mode="after")
    def _groups_have_a_mean(self) -> MiniLlmConfig:
        if self.baseline == "group_mean" and self.group_size < 2:
            raise ValueError("group_size is 1; baseline 'group_mean' needs at least 2")
        return self


class GrpoConfig(Section):
    group_size: Annotated[int, Field(ge=2)]
    scale: Literal["none", "std"]


class ObjectiveConfig(Section):
    importance: Literal["per_token", "per_decision", "none"]
    length_normalize: bool
    clip_low: Share
    clip_high: NonNegativeFloat
    averaging: Literal["token", "response"]
    max_refills: NonNegativeInt
    task_reward: Literal["none", "rougeL"]
    task_reward_weight: FiniteFloat
    language_model_weight: NonNegativeFloat
    language_model_teacher_share: Share
    entropy_weight: NonNegativeFloat

    @model_validator(mode="after")
    def _nothing_is_unused(self) -> ObjectiveConfig:
        if self.task_reward == "none" and self.task_reward_weight != 0:
            raise ValueError("task_reward_weight is unused: task_reward is 'none'; set it to 0 or name a task reward")
        if self.task_reward != "none" and self.task_reward_weight == 0:
            raise ValueError(
                f"task_reward is unused: task_reward_weight is 0; set it or name none ({self.task_reward!r})"
            )
        if self.language_model_teacher_share and not self.language_model_weight:
            raise ValueError("language_model_teacher_share is unused: language_model_weight is 0; set one or the other")
        return self


class OptimizerConfig(Section):
    minibatch_size: PositiveInt
    micro_batch_size: PositiveInt
    language_model_batch_size: PositiveInt
    learning_rate: PositiveFloat
    num_warmup_steps: NonNegativeInt
    beta1: ProperShare
    beta2: ProperShare
    weight_decay: NonNegativeFloat
    gradient_clip: PositiveFloat

    @model_validator(mode="after")
    def _batches_divide(self) -> OptimizerConfig:
        require_divides("micro_batch_size", self.micro_batch_size, "minibatch_size", self.minibatch_size)
        return self


class ValidationConfig(Section):
    every_phases: PositiveInt
    num_rows: PositiveInt
    metric: Literal["reverse_kl", "rougeL"]


class DistillConfig(Section):
    method: Literal["sft", "kd", "seqkd", "reverse_kd", "gkd", "minillm", "grpo"]
    num_phases: PositiveInt
    inner_epochs: PositiveInt
    rollout: RolloutConfig
    kd: KdConfig
    seqkd: SeqKdConfig
    reverse_kd: KdConfig
    gkd: GkdConfig
    minillm: MiniLlmConfig
    grpo: GrpoConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    validation: ValidationConfig

    @model_validator(mode="after")
    def _sections_fit(self) -> DistillConfig:
        whole = self.rollout.rollouts_per_phase
        require_divides("optimizer.minibatch_size", self.optimizer.minibatch_size, "rollout.rollouts_per_phase", whole)
        if self.uses_policy_gradient:
            group_size = self.grpo.group_size if self.method == "grpo" else self.minillm.group_size
            require_divides(f"{self.method}.group_size", group_size, "rollout.rollouts_per_phase", whole)
            if self.objective.max_refills and group_size < 2:
                raise ValueError(
                    f"objective.max_refills = {self.objective.max_refills} is unused: {self.method}.group_size is 1,"
                    " and a group of one has no signal to look for"
                )
            self._require_exact_rewards()
        return self

    def _require_exact_rewards(self) -> None:
        if self.rollout.top_k or self.rollout.top_p < 1:
            raise ValueError(
                f"rollout.top_k = {self.rollout.top_k}, top_p = {self.rollout.top_p}: method {self.method!r} needs 0"
                " and 1.0; a token that one model's truncated distribution rules out has an infinite reward"
            )
        if self.method == "grpo" and self.objective.importance == "per_decision":
            raise ValueError("objective.importance is 'per_decision'; method 'grpo' knows per_token and none")

    @property
    def uses_policy_gradient(self) -> bool:
        """Whether the method reads `objective` and samples from the mixture of teacher and student."""
        return self.method in ("minillm", "grpo")
