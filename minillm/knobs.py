"""What every section of params.yaml is made of: the closed base class, and the ranges that several knobs share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat


def _safe_name(value: str) -> str:
    if not value or not value[0].isalnum() or not all(c.isalnum() or c in "._-" for c in value) or not value.isascii():
        raise ValueError("allowed: letters, digits, '.', '_', '-', starting with a letter or digit")
    if len(value) > 64 or ".." in value:
        raise ValueError("allowed: at most 64 characters and no '..'")
    return value


PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
PositiveShare = Annotated[FiniteFloat, Field(gt=0, le=1)]
ProperShare = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, AfterValidator(_safe_name)]


class Section(BaseModel):
    """A closed, strict, frozen group of knobs without defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def require_divides(name: str, value: int, whole_name: str, whole: int) -> None:
    """Raise ValueError unless `value` divides `whole`."""
    if whole % value:
        raise ValueError(f"{name} = {value} does not divide {whole_name} = {whole}")
