"""Params that nobody would write: whatever stands in the file, it is refused in one line that names the key."""

from __future__ import annotations

import copy
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from ruamel.yaml import YAML

from minillm.config import Params
from minillm.params import ConfigError, load_params, parse_params, read_yaml
from tests.imports import ROOT
from tests.knob_values import ANYTHING, Knob, knobs, sections

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
CONTENT = read_yaml(ROOT / "params.yaml")
KNOBS = knobs()
SECTIONS = list(sections())
# "0 .. 1", "1 ..", "1 .. the teacher's" in a comment: the range in words, which is not read by the pipeline.
RANGE = re.compile(r"^ *(\w+): (\S+) +#.*?\b([\d.]+) \.\.(?: ([\d.]+)(?!\^|\S))?")
# What other knobs decide about: these cannot take just any value in their range.
COUPLED = re.compile(r"distill\.(rollout\.(rollouts_per_phase|batch_size|mask_groups)|optimizer\.minibatch_size)")
FRAGMENTS = [
    *("seed: ", "runtime: {", "a: [", "- ", "? ", ": ", ", ", "]", "}", "\n", "\n  ", "\t", "#", "'", '"', "|\n", ">"),
    *("!!int ", "!!float ", "!!bool ", "!!null ", "!!binary ", "!!timestamp ", "!!set ", "!!omap ", "!", "!<x> "),
    *("%YAML 1.1\n---\n", "%TAG ! x\n", "---\n", "...\n", "&a ", "*a", "<<: ", "=", "~", "@", "`", "\\x", '"\\ud800"'),
    *("0x", "0o", "1_", "1e9", "-", ".", ".nan", "-.inf", "1:2", "2001-02-30", "0x" + "f" * 4000, "[" * 400, "''"),
    *("\u2028", "\x85", "\ufeff", "\x07", "\x00", "é", "\U0001f600", '"a\\nb": ', "x" * 1000),
]


def section_of(content: Any, path: str) -> Any:
    """Return the mapping at a path with dots, the content itself at an empty one."""
    for name in filter(None, path.split(".")):
        content = content[name]
    return content


def with_value(path: str, value: Any) -> Any:
    content = copy.deepcopy(CONTENT)
    parent, _, key = path.rpartition(".")
    section_of(content, parent)[key] = value
    return content


def refusal(content: Any) -> list[str]:
    """Return the lines by which a content is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_params(content, "params.yaml")
    return str(caught.value).split("\n")


def check_lines(error: ConfigError, file: str) -> None:
    """Check that every line names the file and says something, at a length that can be read."""
    for line in str(error).split("\n"):
        assert re.match(re.escape(file) + r"(:\d+)?: \S", line) and len(line) < 600


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.path)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_fault_25_every_knob_refuses_other_types_and_ranges_in_a_line_that_names_it(
    knob: Knob, data: st.DataObject
) -> None:
    lines = refusal(with_value(knob.path, data.draw(knob.wrong_values())))
    assert len(lines) == 1
    assert lines[0].startswith(f"params.yaml: {knob.path}: ") and len(lines[0]) < 400


@pytest.mark.parametrize("knob", [knob for knob in KNOBS if knob.is_number], ids=lambda knob: knob.path)
def test_fault_25_every_number_refuses_what_is_none_and_all_but_one_a_negative_one(knob: Knob) -> None:
    for value in (float("nan"), float("inf"), float("-inf"), True, "1e-5"):
        assert refusal(with_value(knob.path, value))[0].startswith(f"params.yaml: {knob.path}: ")
    if knob.path != "distill.objective.task_reward_weight":  # its sign is free, and it is unused as delivered
        assert "greater than" in refusal(with_value(knob.path, knob.kind(-1)))[0]


def documented_ranges() -> list[tuple[str, float, float | None]]:
    """Return path, least and largest value of the knobs of which a comment tells the range."""
    found, parents = [], dict[int, str]()
    for line in TEXT.split("\n"):
        if match := re.match(r"( *)(\w+):", line):
            parents = {depth: name for depth, name in parents.items() if depth < len(match[1])}
            parents[len(match[1])] = match[2]
        if limits := RANGE.match(line):
            found.append((".".join(parents.values()), float(limits[3]), float(limits[4]) if limits[4] else None))
    return found


def test_fault_25_the_ranges_told_in_the_comments_are_enforced() -> None:
    kinds = {knob.path: knob.kind for knob in KNOBS if knob.is_number}
    ranges = [found for found in documented_ranges() if found[0] in kinds]
    assert len(ranges) > 50
    for path, least, largest in ranges:
        step = 1 if kinds[path] is int else 0.001
        for value in [least - step] if largest is None else [least - step, largest + step]:
            (line,) = refusal(with_value(path, kinds[path](value)))
            assert line.startswith(f"params.yaml: {path}: ")


@pytest.mark.parametrize(("path", "model"), SECTIONS)
def test_fault_25_every_section_names_each_knob_that_is_missing(path: str, model: type[BaseModel]) -> None:
    for name in model.model_fields:
        content = copy.deepcopy(CONTENT)
        del section_of(content, path)[name]
        assert refusal(content) == [f"params.yaml: {path}.{name}: missing; every knob must be given"]


@pytest.mark.parametrize(("path", "model"), [("", Params), *SECTIONS])
@settings(max_examples=5, deadline=None)
@given(name=st.text(max_size=200) | st.sampled_from(["a\nb", "sed", "x" * 10_000]))
def test_fault_25_every_section_names_what_it_does_not_know(path: str, model: type[BaseModel], name: str) -> None:
    assume(name not in model.model_fields)
    content = copy.deepcopy(CONTENT)
    section_of(content, path)[name] = 1
    (line,) = refusal(content)
    assert line.startswith(f"params.yaml: {path}") and ": unknown key; " in line and len(line) < 600


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from([*(knob.path for knob in KNOBS), *dict(SECTIONS)]), value=ANYTHING)
def test_fault_25_nothing_in_place_of_a_knob_or_section_raises_anything_else(path: str, value: Any) -> None:
    content = with_value(path, value)
    try:
        params = parse_params(content, "params.yaml")
    except ConfigError as error:
        check_lines(error, "params.yaml")
    else:
        assert params.model_dump() == content


def load(text: str) -> Params:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "params.yaml")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return load_params(path)


def injured_text(parts: tuple[int, list[tuple[int, int, str]]]) -> str:
    """Return some lines of params.yaml with pieces put in place of others."""
    first, injuries = parts
    text = "\n".join(TEXT.split("\n")[first : first + 9])
    for place, length, piece in injuries:
        place %= len(text) + 1
        text = text[:place] + piece + text[place + length :]
    return text


PIECES = st.sampled_from(FRAGMENTS) | st.text(max_size=5)
INJURIES = st.lists(st.tuples(st.integers(0, 999), st.integers(0, 9), PIECES), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PIECES, max_size=8).map("".join) | st.tuples(st.integers(0, TEXT.count("\n")), INJURIES).map(injured_text)
)
def test_fault_25_a_file_of_anything_is_refused_line_by_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    check_lines(caught.value, "params.yaml")


@pytest.mark.parametrize("text", ["seed: !!bool x", "seed: !!int ''", "seed: !!float ''"])
def test_a_value_that_does_not_fit_its_tag_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^params\.yaml: cannot be read as YAML: the value of a !!bool, [^\n]+$"):
        load(text)


def test_a_password_is_not_repeated_from_a_list_or_a_repeated_key() -> None:
    address = "postgresql://me:s3cret@host"
    assert "s3cret" not in refusal(with_value("tracking.uri", [address]))[0]
    with pytest.raises(ConfigError, match=r'^params\.yaml:2: found duplicate key "uri"$'):
        load(f"uri: {address}\nuri: {address}\n")


FREE = [knob for knob in KNOBS if (knob.is_number or knob.kind is bool) and not COUPLED.match(knob.path)]


@settings(max_examples=8, deadline=None)
@given(values=st.fixed_dictionaries({knob.path: knob.right_values() for knob in FREE}))
def test_fault_25_values_in_range_come_back_as_they_were_also_through_a_file(values: dict[str, Any]) -> None:
    content = with_value("distill.method", "sft")
    for path, value in values.items():
        parent, _, key = path.rpartition(".")
        section_of(content, parent)[key] = value
    params = parse_params(content, "params.yaml")
    assert params.model_dump() == content
    written = io.StringIO()
    YAML(typ="safe", pure=True).dump(content, written)
    assert load(written.getvalue()) == params
