"""What a run of the pipeline may be asked for: Prefect makes a form of it, and checks values before a worker starts.

Types and ranges of knobs are those of minillm.config; only their words for the form stand here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema, create_model

from minillm.config import Params
from minillm.knobs import LARGEST_INT

STAGE_NAME = r"^[A-Za-z0-9_-]+$"
_POOL_NAME = r"^[A-Za-z0-9_-]*$"
WORKSPACE_KEY = r"^([0-9a-f]{16})?$"
EXPERIMENT_NAME = r"^([A-Za-z0-9][A-Za-z0-9_-]{0,63})?$"  # also a name of a git reference
_CONFIGS = Path(__file__).parents[1] / "configs"
_PRESETS = tuple(sorted(path.stem for path in _CONFIGS.glob("*.yaml")))

_SWITCH = {"yes": True, "no": False}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}

_COMMON_KNOBS = {
    "seed": ("seed", "Of data split, draws and evaluation."),
    "method": ("distill.method", "How the student is distilled."),
    "alpha": ("distill.rollout.teacher_mix_alpha", "Share of the teacher in the sampling mixture (minillm, grpo)."),
    "num_phases": ("distill.num_phases", "Phases of texts and updates."),
    "inner_epochs": ("distill.inner_epochs", "Passes over the rollouts of a phase."),
    "rollouts_per_phase": ("distill.rollout.rollouts_per_phase", "Responses that the student writes in a phase."),
    "max_response_tokens": ("distill.rollout.max_response_tokens", "New tokens of a response at most."),
    "learning_rate": ("distill.optimizer.learning_rate", "Peak of the distillation's learning rate."),
    "length_normalize": ("distill.objective.length_normalize", "Mean instead of sum of the rewards (minillm, grpo)."),
    "baseline": ("distill.minillm.baseline", "What is taken off the returns (minillm)."),
    "gkd_on_policy_share": ("distill.gkd.on_policy_share", "Share of rows that are the student's own samples (gkd)."),
    "student_layers": ("student_model.num_layers", "Layers of the teacher that the student keeps."),
    "max_train_rows": ("data.max_train_rows", "Training rows at most; 0 = all."),
}


def _knob(name: str) -> Any:
    """Return the type of a knob with its range, as params.yaml has it."""
    section: Any = Params
    *parents, last = name.split(".")
    for parent in parents:
        section = section.model_fields[parent].annotation
    field = section.model_fields[last]
    return Annotated[(field.annotation, Field(), *field.metadata)]


def _all_knobs(section: type[BaseModel] = Params, prefix: str = "") -> dict[str, Any]:
    """Return the JSON schema of every knob by its dotted name."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= _all_knobs(kind, f"{prefix}{name}.")
        else:
            schema = TypeAdapter(_knob(prefix + name)).json_schema()
            found[prefix + name] = {"type": "object"} if "$defs" in schema else schema
    return found


def _only_knobs(schema: dict[str, Any]) -> None:
    """Let the schema of a mapping from names to values know each name, yet show one field and not a hundred."""
    knobs = {f"^{name.replace('.', '[.]')}$": kind for name, kind in _all_knobs().items()}
    schema.update({"patternProperties": knobs, "additionalProperties": False})


class _Overrides(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def settings(self) -> dict[str, Any]:
        """Return the knobs that are set, by dotted name."""
        given = {name: _SWITCH.get(value, value) for name, value in self if value not in (None, "") and name != "other"}
        return {**{_COMMON_KNOBS[name][0]: value for name, value in given.items()}, **self.model_dump()["other"]}


def _optional_knob(knob: str, words: str) -> Any:
    """Return type and field of a knob that may be left empty.

    The form sends null for an empty number, which Prefect lets pass, and for a choice that has no empty value.
    """
    kind = _knob(knob)
    schema = TypeAdapter(kind).json_schema()
    about = f"{words}{_range(schema)} Empty = as in params.yaml ({knob})."
    choices = list(_SWITCH) if schema.get("type") == "boolean" else schema.get("enum")
    if choices:
        return Literal[("", *choices)], Field(default="", description=about)
    field = Field(default=None, description=about, json_schema_extra=_without_default)
    return Annotated[kind | None, WithJsonSchema(schema)], field


def _range(schema: dict[str, Any]) -> str:
    """Return the bounds of a number as a sentence."""
    texts = [f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if schema.get(key, LARGEST_INT) != LARGEST_INT]
    return f" {' and '.join(texts).capitalize()}." if texts else ""


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)  # null, for which the form would offer a choice of types


_fields: dict[str, Any] = {name: _optional_knob(*about) for name, about in _COMMON_KNOBS.items()}
_fields["other"] = (
    dict[str, Any],
    Field(
        default={},
        description='Any other knob by its dotted name, as JSON: {"distill.minillm.gamma": 0.9}.',
        json_schema_extra=_only_knobs,
    ),
)
Overrides: Any = create_model("Overrides", __base__=_Overrides, __doc__="Knobs of this run alone.", **_fields)


class PipelineRequest(BaseModel):
    """What one run of the pipeline shall do; what is not given is as in params.yaml of the last commit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal[("", *_PRESETS)] = Field(  # type: ignore[valid-type]
        default="", description="A file of configs/ that is merged into params.yaml first; empty = none."
    )
    overrides: Overrides = Field(default=Overrides(), description="Knobs of this run alone, over the preset.")
    stages: list[Annotated[str, Field(pattern=STAGE_NAME)]] = Field(
        default=[], description="Names of stages of dvc.yaml to bring up to date, in graph order; empty = all."
    )
    gpu_pool: str = Field(
        default="",
        pattern=_POOL_NAME,
        description="Work pool of GPU workers for the stages teacher and distill; empty = run them here.",
    )
    hand_over: Literal["shared disk", "remotes"] = Field(
        default="shared disk",
        description="How GPU workers get at the files: the same directory, or DVC's default remote and git's origin.",
    )
    experiment: str = Field(
        default="",
        pattern=EXPERIMENT_NAME,
        description="Name of the DVC experiment that an isolated run ends as; empty = the name of the Prefect run.",
    )

    @property
    def needs_isolation(self) -> bool:
        """Return whether the run differs from the workspace's own params or shall become an experiment."""
        return bool(self.preset or self.overrides.settings() or self.experiment or self.hand_over == "remotes")


class Origin(BaseModel):
    """The pipeline that a stage runs for: what its records in MLflow say of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pipeline_key: str = Field(default="", pattern=r"^[A-Za-z0-9._:-]*$")
    flow_run_id: str = Field(default="", pattern=r"^[0-9a-f-]*$")
    page: str = Field(default="", pattern=r"^(https?://[^\s<>\"]*)?$")
    experiment: str = Field(default="", pattern=EXPERIMENT_NAME)


class StageRequest(BaseModel):
    """One stage for a worker of another pool, and where its files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str = Field(pattern=STAGE_NAME, description="Name of a stage of dvc.yaml.")
    checkout: str = Field(
        default="",
        pattern=r"^[0-9a-f-]*$",
        description="Mark of the checkout that both share (state/checkout-id); empty = files come by the remotes.",
    )
    workspace: str = Field(
        default="",
        pattern=WORKSPACE_KEY,
        description="The isolated workspace in state/worktrees of it; empty = the checkout itself.",
    )
    experiment: str = Field(
        default="", pattern=EXPERIMENT_NAME, description="The DVC experiment on git's origin that brings the inputs."
    )
    origin: Origin = Origin()
