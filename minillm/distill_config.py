"""Params of the stage distill: the method, what all methods share, and a section for each method that has knobs."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from minillm.knobs import (
    LARGEST_INT,
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

_ADDRESS = re.compile(r"https?://([\w.-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?(/[\w./~%-]*)?", re.ASCII)
_SMALLEST_ORDER = 1e-3  # of alpha and beta: float32 loses the difference of powers below


def _web_address(value: str) -> str:
    if not value:
        return value
    if "@" in value:
        raise ValueError("allowed: no user or password in the address; name the variable that holds the key")
    match = _ADDRESS.fullmatch(value)
    if match is None or not 0 < int(match["port"] or 1) < 2**16:
        raise ValueError("allowed: http:// or https://, a host, a port, a path; nothing after it, no white space")
    return value


class RolloutConfig(Section):
    rollouts_per_phase: PositiveInt
    batch_size: PositiveInt
    mask_groups: PositiveInt
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

    def check(self, rollout: RolloutConfig) -> None:
        """Raise ValueError unless the source has what it needs and uses what it has."""
        if self.source == "endpoint" and not (self.endpoint and self.endpoint_model):
            raise ValueError(
                "seqkd.endpoint or endpoint_model is empty; source 'endpoint' needs an address and a model"
            )
        if self.source != "teacher" and self.greedy:
            raise ValueError(f"seqkd.greedy is unused: source is {self.source!r}; only this run's teacher decodes here")
        if self.source == "endpoint" and rollout.top_k:
            raise ValueError(f"rollout.top_k = {rollout.top_k} is unused: endpoints know top_p only; set it to 0")
        given = [name for name in ("endpoint", "endpoint_model", "key_variable") if getattr(self, name)]
        if given and self.source != "endpoint":
            raise ValueError(f"seqkd.{given[0]} is unused: source is {self.source!r}; leave it empty")


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
        small = [name for name in ("alpha", "beta") if 0 < getattr(self, name) < _SMALLEST_ORDER]
        if small:
            raise ValueError(f"{small[0]} = {getattr(self, small[0])}: allowed: 0, or at least {_SMALLEST_ORDER}")
        return self


DivergenceConfig = Annotated[
    PlainDivergence | SkewedDivergence | JsdDivergence | AdaptiveDivergence | AlphaBetaDivergence,
    Field(discriminator="name"),
]


DIVERGENCE_NAMES = tuple(
    name for kind in get_args(get_args(DivergenceConfig)[0]) for name in get_args(kind.model_fields["name"].annotation)
)


class GkdConfig(Section):
    divergence: DivergenceConfig
    on_policy_share: Share
    share_step: Share
    replay_capacity: NonNegativeInt

    def check(self, num_phases: int, every_phases: int) -> None:
        """Raise ValueError for a knob without effect."""
        if self.replay_capacity and self.on_policy_share == 0 and self.share_step == 0:
            raise ValueError("gkd.replay_capacity is unused: on_policy_share and share_step are 0: nothing is sampled")
        if self.replay_capacity and num_phases == 1:
            raise ValueError("gkd.replay_capacity is unused: num_phases is 1, and there is no later phase to replay in")
        if self.share_step and self.on_policy_share == 1:
            raise ValueError("gkd.share_step is unused: on_policy_share is 1 and cannot rise")
        if self.share_step and every_phases >= num_phases:
            raise ValueError(
                f"gkd.share_step is unused: validation.every_phases = {every_phases} leaves no validation before the"
                f" last of num_phases = {num_phases}"
            )


class MiniLlmConfig(Section):
    group_size: PositiveInt
    returns_from: Literal["next", "current"]
    gamma: PositiveShare
    baseline: Literal["none", "batch_mean", "group_mean"]
    scale: Literal["none", "std"]
    single_step_weight: NonNegativeFloat

    def check(self) -> None:
        """Raise ValueError for a group without a mean."""
        if self.baseline == "group_mean" and self.group_size < 2:
            raise ValueError("minillm.group_size is 1; baseline 'group_mean' needs at least 2")


class GrpoConfig(Section):
    group_size: Annotated[int, Field(ge=2, le=LARGEST_INT)]
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

    def check(self, group_size: int) -> None:
        """Raise ValueError for a knob without effect."""
        if self.task_reward == "none" and self.task_reward_weight != 0:
            raise ValueError("objective.task_reward_weight is unused: task_reward is 'none'; set it to 0 or name one")
        if self.task_reward != "none" and self.task_reward_weight == 0:
            raise ValueError(f"objective.task_reward {self.task_reward!r} is unused: task_reward_weight is 0")
        if self.language_model_teacher_share and not self.language_model_weight:
            raise ValueError("objective.language_model_teacher_share is unused: language_model_weight is 0")
        if self.max_refills and group_size < 2:
            raise ValueError(
                f"objective.max_refills = {self.max_refills} is unused: group_size is 1, and a group of one has no"
                " signal to look for"
            )


class OptimizerConfig(Section):
    minibatch_size: PositiveInt
    micro_batch_tokens: PositiveInt
    language_model_batch_size: PositiveInt
    learning_rate: PositiveFloat
    num_warmup_steps: NonNegativeInt
    beta1: ProperShare
    beta2: ProperShare
    weight_decay: NonNegativeFloat
    gradient_clip: PositiveFloat


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
        """Check what the chosen method reads; the sections of others may hold what they like within their ranges."""
        whole = self.rollout.rollouts_per_phase
        require_divides("optimizer.minibatch_size", self.optimizer.minibatch_size, "rollout.rollouts_per_phase", whole)
        if self.method == "seqkd":
            self.seqkd.check(self.rollout)
        if self.method == "gkd":
            self.gkd.check(self.num_phases, self.validation.every_phases)
        if self.method == "minillm":
            self.minillm.check()
        if self.rollout.mask_groups > self.rollout.batch_size:
            raise ValueError(
                f"rollout.mask_groups = {self.rollout.mask_groups} is more than the rows of a batch, rollout.batch_size"
                f" = {self.rollout.batch_size}"
            )
        if self.uses_policy_gradient:
            require_divides(f"{self.method}.group_size", self.group_size, "rollout.rollouts_per_phase", whole)
            self.objective.check(self.group_size)
            self._check_rewards()
        return self

    def _check_rewards(self) -> None:
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

    @property
    def uses_corpus(self) -> bool:
        """Whether updates have a language-model loss."""
        return self.uses_policy_gradient and self.objective.language_model_weight > 0

    @property
    def group_size(self) -> int:
        """Return the responses per prompt."""
        return {"minillm": self.minillm.group_size, "grpo": self.grpo.group_size}.get(self.method, 1)
