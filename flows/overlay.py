"""The params of one run: those of a commit, with a preset and single knobs over them, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.git import git
from minillm.config import Params
from tasks.preset import overlaid, preset_path, read_overlay

PARAMS_NAME = "params.yaml"


def run_params(root: Path, commit: str, preset: str, settings: Mapping[str, Any]) -> tuple[str, Params]:
    """Return the text of a run's params.yaml, comments kept, and what it means; raises UserError for what is wrong."""
    presets = [read_overlay(preset_path(preset))] if preset else []
    committed = git(root, "show", f"{commit}:{PARAMS_NAME}") + "\n"
    text, params, _ = overlaid(committed, [*presets, _nested(settings)], source="params of this run")
    return text, params


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return knobs named by dotted names as sections in sections."""
    sections: dict[str, Any] = {}
    for name, value in settings.items():
        *parents, last = name.split(".")
        section = sections
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return sections
