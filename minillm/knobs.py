"""What every section of params.yaml is made of: the closed base class, and the ranges that several knobs share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_MAX_PATH_CHARACTERS, _MAX_PART_BYTES = 1024, 255


def _safe_name(value: str) -> str:
    if not value or not value[0].isalnum() or not all(c.isalnum() or c in "._-" for c in value) or not value.isascii():
        raise ValueError("allowed: letters, digits, '.', '_', '-', starting with a letter or digit")
    if len(value) > 64 or ".." in value:
        raise ValueError("allowed: at most 64 characters and no '..'")
    return value


def _optional_name(value: str) -> str:
    return _safe_name(value) if value else value


def _plain_path(value: str) -> str:
    is_short = len(value) <= _MAX_PATH_CHARACTERS and all(len(p.encode()) <= _MAX_PART_BYTES for p in value.split("/"))
    if not value.isprintable() or value.startswith("-") or not is_short:
        raise ValueError("allowed: a path of ordinary length, without control characters, not starting with '-'")
    return value


def _revision(value: str) -> str:
    if value and (not _REVISION.fullmatch(value) or ".." in value):
        raise ValueError("allowed: a branch, tag or commit: letters, digits, '.', '_', '-', '/', no '..'; or empty")
    return value


LARGEST_INT = 2**31 - 1  # what every integer of torch, numpy and Arrow can hold
PositiveInt = Annotated[int, Field(ge=1, le=LARGEST_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_INT)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
PositiveShare = Annotated[FiniteFloat, Field(gt=0, le=1)]
ProperShare = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_INT)]
Name = Annotated[str, AfterValidator(_safe_name)]
OptionalName = Annotated[str, AfterValidator(_optional_name)]
PlainPath = Annotated[str, AfterValidator(_plain_path)]
Revision = Annotated[str, AfterValidator(_revision)]


class Section(BaseModel):
    """A closed, strict, frozen group of knobs without defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def require_divides(name: str, value: int, whole_name: str, whole: int) -> None:
    """Raise ValueError unless `value` divides `whole`."""
    if whole % value:
        raise ValueError(f"{name} = {value} does not divide {whole_name} = {whole}")
