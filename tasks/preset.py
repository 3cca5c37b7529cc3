"""Merge a preset from configs/ into params.yaml, keeping its comments."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_origin

from ruamel.yaml import YAML

from minillm.config import Params
from minillm.errors import UserError
from minillm.params import parse_params, read_yaml
from tasks.storage import replacing

PRESETS_DIR = Path("configs")
_PARAMS_PATH = Path("params.yaml")


def apply_preset(name: str) -> str:
    """Write the overlay `configs/NAME.yaml` (or a path ending in .yaml) into params.yaml and say what changed."""
    overlay_path = _overlay_path(name)
    read_yaml(_PARAMS_PATH)  # a params file that cannot be read ends here, in one line
    text, _, changes = overlaid(_PARAMS_PATH.read_text(encoding="utf-8"), [_overlay(overlay_path)], str(overlay_path))
    with replacing(_PARAMS_PATH) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return "\n".join([f"params.yaml: {len(changes)} knobs changed by {overlay_path}", *changes])


def overlaid(text: str, overlays: Iterable[Mapping[str, Any]], source: str) -> tuple[str, Params, list[str]]:
    """Return a params file with overlays merged in, comments kept, its meaning, and a line for each knob changed.

    Raises UserError, which names `source`, when the result is not valid.
    """
    round_trip = YAML(typ="rt")
    round_trip.width, round_trip.preserve_quotes = 4096, True
    document = round_trip.load(text)
    changes = [change for overlay in overlays for change in _merge(document, overlay, ())]
    params = parse_params(_plain(document), source=source)
    buffer = io.StringIO()
    round_trip.dump(document, buffer)
    return buffer.getvalue(), params, changes


def merged_params(overlay_path: Path) -> Any:
    """Return the content of params.yaml with an overlay merged in."""
    content = read_yaml(_PARAMS_PATH)
    _merge(content, _overlay(overlay_path), ())
    return content


def _overlay_path(name: str) -> Path:
    """Return the path of a preset, or of the overlay that a name ending in .yaml is; no other name leaves configs/."""
    known = {path.stem: path for path in sorted(PRESETS_DIR.glob("*.yaml"))}
    path = Path(name) if name.endswith(".yaml") else known.get(name)
    if path is None or not os.path.isfile(path):  # unlike Path.is_file, it takes names that no file can have
        raise UserError(f"preset {name!r}: no such file or preset; presets: {', '.join(known)}")
    return path


def _overlay(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: a mapping of sections is needed, got {type(content).__name__}")
    return content


def _merge(target: Any, overlay: Any, path: tuple[str, ...]) -> list[str]:
    changes = []
    for key, value in overlay.items():
        name = ".".join((*path, key))
        if isinstance(value, dict) and isinstance(target.get(key), dict) and _is_section((*path, key), value):
            changes += _merge(target[key], value, (*path, key))
        elif key not in target or target[key] != value:
            changes.append(f"  {name}: {target.get(key)!r} -> {value!r}")
            target[key] = value
    return changes


def _is_section(path: tuple[str, ...], value: dict[str, Any]) -> bool:
    """Return whether a mapping is knobs by name, which are merged one by one.

    Replaced whole are sections with variants (their `name` says which: they have different knobs) and a knob whose
    value is a mapping.
    """
    section: Any = Params
    for key in path:
        field = section.model_fields.get(key) if hasattr(section, "model_fields") else None
        if field is not None and get_origin(field.annotation) is dict:
            return False
        section = field.annotation if field is not None else None
    return "name" not in value


def _plain(value: Any) -> Any:
    """Return ruamel's round-trip containers and scalars as plain ones, as the strict models need them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
