"""Every knob of params.yaml with values that it must take and values that it must refuse, drawn by hypothesis."""

from __future__ import annotations

import datetime
import operator
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from minillm.config import Params

# Values of every type that YAML can write.
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([400, 5000]).map(lambda num_digits: 10**num_digits),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.just(datetime.date(2001, 2, 3)),
    st.just("x" * 100_000),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), parts, max_size=3),
    max_leaves=8,
)

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
}


class Knob(NamedTuple):
    """A field of the params. path: its key, with dots. kind: its type without its range, which is in `limits`."""

    path: str
    kind: Any
    limits: dict[str, float]

    @property
    def is_number(self) -> bool:
        """Whether it takes numbers."""
        return self.kind in (int, float)

    def takes(self, value: Any) -> bool:
        """Return whether a value is of the right type and in range; of texts and lists only the type is judged."""
        if get_origin(self.kind) is Literal:
            return isinstance(value, str) and value in get_args(self.kind)
        if not self.is_number:
            return isinstance(value, get_origin(self.kind) or self.kind)
        if type(value) is not int and (self.kind is int or type(value) is not float):
            return False
        return abs(value) < 2**1000 and all(_ORDER[name](value, limit) for name, limit in self.limits.items())

    def wrong_values(self) -> st.SearchStrategy[Any]:
        """Return values that must be refused: of other types, and numbers at the edges of the range."""
        edges = [limit + step for limit in self.limits.values() for step in (-1, 0, 1)]
        kind = float if self.kind is float else int
        near = st.sampled_from([kind(edge) for edge in edges]) if self.is_number and edges else st.nothing()
        return (ANYTHING | near).filter(lambda value: not self.takes(value))

    def right_values(self) -> st.SearchStrategy[Any]:
        """Return numbers in range or booleans."""
        if self.kind is bool:
            return st.booleans()
        low, high = self.limits.get("ge", self.limits.get("gt", 0)), self.limits.get("le", self.limits.get("lt", 1e6))
        if self.kind is int:
            return st.integers(int(low), int(high)).filter(self.takes)
        return st.floats(low, high).filter(self.takes)


def sections(model: type[BaseModel] = Params, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield path and model of each section below the top."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield f"{path}{name}", field.annotation
            yield from sections(field.annotation, f"{path}{name}.")


def knobs() -> list[Knob]:
    """Return every field of every section, sections themselves excepted."""
    found = [("", Params), *((f"{path}.", model) for path, model in sections())]
    inner = {path for path, _ in sections()}
    fields = [(path + name, field) for path, model in found for name, field in model.model_fields.items()]
    return [Knob(path, _kind(field), _limits(field)) for path, field in fields if path not in inner]


def _kind(field: FieldInfo) -> Any:
    """Return the type; a knob with variants takes a mapping."""
    return field.annotation if field.discriminator is None else dict


def _limits(field: FieldInfo) -> dict[str, float]:
    return {name: getattr(item, name) for item in field.metadata for name in _ORDER if hasattr(item, name)}
