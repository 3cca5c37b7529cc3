"""The params of one run: those of a commit, with a preset and single knobs over them, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.git import git
from minillm.config import Params
from minillm.errors import UserError
from minillm.params import yaml_content
from tasks.preset import overlaid

PARAMS_NAME = "params.yaml"


def run_params(root: Path, commit: str, preset: str, settings: Mapping[str, Any]) -> tuple[str, Params]:
    """Return the text of a run's params.yaml, comments kept, and what it means; raises UserError for what is wrong."""
    presets = [_committed(root, commit, f"configs/{preset}.yaml")[1]] if preset else []
    text, _ = _committed(root, commit, PARAMS_NAME)
    text, params, _ = overlaid(text, [*presets, _nested(settings)], source="params of this run")
    return text, params


def _committed(root: Path, commit: str, path: str) -> tuple[str, Any]:
    """Return a YAML file of a commit, as text and as content."""
    text = git(root, "show", f"{commit}:{path}") + "\n"
    content = yaml_content(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of sections is needed, got {type(content).__name__}")
    return text, content


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return knobs named by dotted names as sections in sections."""
    sections: dict[str, Any] = {}
    for name, value in settings.items():
        *parents, last = name.split(".")
        section = sections
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise UserError(f"params of this run: {name}: {parent} is given a value of its own, too")
        section[last] = value
    return sections
