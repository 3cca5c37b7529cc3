"""The only reader of params files: YAML 1.2 as DVC reads it, checked, with one-line errors."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from minillm.config import Params
from minillm.distill_config import DIVERGENCE_NAMES
from minillm.errors import UserError
from minillm.records import shown

_MAX_KEY_CHARACTERS = 80
_MAX_MESSAGE_CHARACTERS = 200


class ConfigError(UserError):
    """A params file that cannot be used; its text has one line per fault, naming the key."""


def load_params(path: Path) -> Params:
    """Return the validated params of a YAML 1.2 file; raises ConfigError with one line per fault."""
    return parse_params(read_yaml(path), source=path.name)


def read_yaml(path: Path) -> Any:
    """Return the plain content of a YAML 1.2 file, read as DVC reads it; duplicate keys are refused."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read as YAML: {_brief(str(error))}") from None
    return yaml_content(text, path.name)


def yaml_content(text: str, name: str) -> Any:
    """Return the plain content of YAML 1.2; errors name the file it is from."""
    try:
        content = YAML(typ="safe", pure=True).load(text)
        YAML(typ="safe").load(text)  # DVC's parser, in C, refuses some of what this one takes
        return content
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        # Of a repeated key ruamel tells both values, which may hold a password.
        problem = (error.problem or str(error)).split(" with value ")[0]
        if problem == "found unexpected ':'":  # of DVC's parser
            problem += '; inside [ ] or { } text with a colon needs quotes, as in ["a:b"]'
        raise ConfigError(f"{where}: {_brief(problem)}") from None
    except LookupError:  # ruamel looks an explicitly tagged scalar up in its tables without asking whether it is there
        raise ConfigError(f"{name}: cannot be read as YAML: the value of a !!bool, !!int or !!float is none") from None
    except (YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = _brief(str(error)) or type(error).__name__
        raise ConfigError(f"{name}: cannot be read as YAML: {reason}") from None


def _brief(text: str) -> str:
    """Return the first line of another library's message, which may repeat a value of any length."""
    return text.strip().split("\n")[0][:_MAX_MESSAGE_CHARACTERS]


def parse_params(content: Any, source: str) -> Params:
    """Return the params of parsed YAML; `source` names the file in errors."""
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: a mapping of sections is needed, got {type(content).__name__}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        lines = [_fault_line(source, fault) for fault in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _fault_line(source: str, fault: Any) -> str:
    key = ".".join(map(_key_text, fault["loc"])) or "(file)"
    kind, value = fault["type"], fault["input"]
    if kind == "missing":
        return f"{source}: {key}: missing; every knob must be given"
    if kind == "extra_forbidden":
        return f"{source}: {key}: unknown key{_suggestion(fault['loc'])}"
    message = fault["msg"].removeprefix("Value error, ")
    if (
        kind in ("union_tag_not_found", "union_tag_invalid", "model_attributes_type")
        and fault["loc"][-1] == "divergence"
    ):
        message = f"a mapping with a name is needed, one of {', '.join(DIVERGENCE_NAMES)}, and that one's parameters"
    return f"{source}: {key}: {message}{_got(value)}"


def _key_text(part: int | str) -> str:
    """Return a part of a key as it stands in the file, or quoted when it would break or flood the line."""
    text = str(part)
    return text if text.isprintable() and len(text) <= _MAX_KEY_CHARACTERS else shown(text)


def _got(value: object) -> str:
    """Return the end of a line that says what was given, unless it is a section or may hold a password."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    is_secret = any("@" in text and "://" in text for text in texts)
    return "" if isinstance(value, (dict, BaseModel)) or is_secret else f" (got {shown(value)})"


def _suggestion(location: tuple[Any, ...]) -> str:
    known = _known_keys(location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"


def _known_keys(parents: tuple[Any, ...]) -> list[str]:
    section: Any = Params
    for part in parents:
        # A section with variants is told apart by its name, which stands in the location like a key.
        variants = [kind for kind in get_args(section) if part in get_args(kind.model_fields["name"].annotation)]
        section = variants[0] if variants else section.model_fields[part].annotation
    return list(section.model_fields)
