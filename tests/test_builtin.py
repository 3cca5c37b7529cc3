"""The embedded rows: unique, reproducible, balanced, and right where an answer can be worked out again."""

import calendar
import collections
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import minillm.builtin
from minillm.builtin import corpus_documents, instruction_rows

_SEED = 17
_NUM_ROWS = 2600
_HANDWRITTEN_PATH = Path(minillm.builtin.__file__).with_name("handwritten.jsonl")
_REPOSITORY_DIR = Path(__file__).parents[1]
_NUMBERS: list[str] = re.findall("[a-z]+", "zero one two three four five six seven eight nine ten")

Row = dict[str, str]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return instruction_rows(_NUM_ROWS, _SEED)


@pytest.fixture(scope="module")
def rows_by_category() -> dict[str, list[Row]]:
    """Rows of a larger draw, so that every wording of a family is checked."""
    groups: dict[str, list[Row]] = collections.defaultdict(list)
    for row in instruction_rows(6000, _SEED):
        groups[row["category"]].append(row)
    return groups


def _handwritten_rows() -> list[Row]:
    return [json.loads(line) for line in _HANDWRITTEN_PATH.read_text(encoding="utf-8").splitlines()]


def _prompt_key(row: Row) -> tuple[str, ...]:
    return tuple(re.sub(r"\s+", " ", row[key]).strip().casefold() for key in ("instruction", "input"))


def _prompt(row: Row) -> str:
    return f"{row['instruction']}\n{row['input']}"


def test_the_requested_number_of_rows_comes_back_with_the_four_keys_filled(rows: list[Row]) -> None:
    assert len(rows) == _NUM_ROWS
    for row in rows:
        assert set(row) == {"instruction", "input", "output", "category"}
        assert row["instruction"].strip() and row["output"].strip() and row["category"].strip()
        assert all(text == text.strip() for text in row.values())


def test_no_placeholder_is_left_unfilled(rows: list[Row]) -> None:
    for row in rows:
        assert not re.search(r"\{[a-z_]*\}", _prompt(row) + row["output"])


def test_six_thousand_rows_have_distinct_prompts() -> None:
    keys = [_prompt_key(row) for row in instruction_rows(6000, _SEED)]
    assert len(set(keys)) == len(keys) == 6000


def test_the_handwritten_rows_come_first_and_are_many_and_distinct(rows: list[Row]) -> None:
    handwritten = _handwritten_rows()
    assert len(handwritten) >= 150
    assert len({_prompt_key(row) for row in handwritten}) == len(handwritten)
    assert rows[: len(handwritten)] == handwritten


def test_a_small_request_is_a_seeded_sample_of_the_handwritten_rows() -> None:
    sample = instruction_rows(20, 1)
    handwritten = _handwritten_rows()
    assert len({_prompt_key(row) for row in sample}) == 20
    assert all(row in handwritten for row in sample)
    assert sample != instruction_rows(20, 2)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(rows: list[Row]) -> None:
    assert instruction_rows(_NUM_ROWS, _SEED) == rows
    num_handwritten = len(_handwritten_rows())
    assert instruction_rows(_NUM_ROWS, _SEED + 1)[num_handwritten:] != rows[num_handwritten:]


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_rows_do_not_depend_on_the_hash_seed_of_the_process(rows: list[Row], hash_seed: str) -> None:
    code = (
        "import hashlib, json; from minillm.builtin.instructions import instruction_rows;"
        f"print(hashlib.sha256(json.dumps(instruction_rows({_NUM_ROWS}, {_SEED})).encode()).hexdigest())"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=_REPOSITORY_DIR,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    assert instruction_rows(900, 3) == instruction_rows(1500, 3)[:900]


def test_categories_are_many_and_none_dominates(rows: list[Row]) -> None:
    counts = collections.Counter(row["category"] for row in rows)
    assert len(counts) >= 24
    assert max(counts.values()) <= 0.1 * len(rows)


def test_every_generated_family_is_worded_in_several_ways(rows_by_category: dict[str, list[Row]]) -> None:
    handwritten = {row["category"] for row in _handwritten_rows()}
    generated = set(rows_by_category) - handwritten
    assert len(generated) >= 24
    for category in generated:
        openings = {" ".join(row["instruction"].split()[:2]) for row in rows_by_category[category]}
        assert len(openings) >= 4, category


def test_some_tasks_carry_their_material_in_the_input_and_some_do_not(rows: list[Row]) -> None:
    share = sum(bool(row["input"]) for row in rows) / len(rows)
    assert 0.25 < share < 0.75


def test_a_request_that_cannot_be_met_names_the_number_and_the_maximum() -> None:
    with pytest.raises(ValueError, match=r"10000000.*maximum.* (\d+)$") as caught:
        instruction_rows(10_000_000, _SEED)
    maximum = int(str(caught.value).split()[-1])
    assert maximum >= 6000
    assert len(instruction_rows(maximum, _SEED)) == maximum


@pytest.mark.parametrize("num_rows", [0, -1])
def test_a_request_for_no_rows_is_refused(num_rows: int) -> None:
    with pytest.raises(ValueError, match="num_rows"):
        instruction_rows(num_rows, _SEED)


def _is_sorted(row: Row) -> bool:
    items = row["output"].split(", ")
    return items == sorted(items, key=str.casefold) and all(item in _prompt(row) for item in items)


def _is_uppercase_of_the_prompt(row: Row) -> bool:
    return row["output"].isupper() and row["output"].casefold() in _prompt(row).casefold()


def _counts_the_list(row: Row) -> bool:
    longest = max(re.split(r"[:\n]", _prompt(row)), key=lambda part: part.count(","))
    return row["output"].split()[2] == _NUMBERS[longest.count(",") + 1]


def _quotes_all(pattern: str) -> Callable[[Row], bool]:
    """A check that prompt and answer hold the same single match of the pattern."""

    def check(row: Row) -> bool:
        found = re.findall(pattern, _prompt(row))
        return len(found) == 1 and re.findall(pattern, row["output"]) == found

    return check


def _states_what_the_question_asks(row: Row) -> bool:
    """The answer stands in the story, and the question repeats its person ("where") or its deed ("who")."""
    answer = row["output"].rstrip(".")
    person, deed = answer.split(" ", 1)
    return answer in _prompt(row) and (_prompt(row).count(f"{person} ") >= 2 or _prompt(row).count(deed) == 2)


def _names_when(row: Row) -> bool:
    words = row["output"].rstrip(".").split(" ")
    turned = [f"{' '.join(words[cut:])}, {' '.join(words[:cut])}" for cut in range(1, len(words))]
    return any(text.casefold() in _prompt(row).casefold() for text in turned)


def _names_why(row: Row) -> bool:
    deed, reason = row["output"].split(" because ")
    return re.search(rf"{deed}[\w ]* because {re.escape(reason)}", _prompt(row)) is not None


def _joins_two_clauses_of_the_story(row: Row) -> bool:
    clauses = row["output"].rstrip(".").split(" and ")
    return len(clauses) == 2 and all(clause in _prompt(row) for clause in clauses)


def _json_values_come_from_the_prompt(row: Row) -> bool:
    record = json.loads(row["output"])
    return list(record) == ["name", "job", "city"] and all(value in _prompt(row) for value in record.values())


def _evaluates_the_expression(row: Row) -> bool:
    found = re.search(r'[\["].*(?:\]|\(\)|" \+ "\w+"|" == "\w+")', _prompt(row))
    shown = row["output"].removeprefix("The result is ").removesuffix(".")
    return found is not None and bool(eval(found[0]) == eval(shown))


def _picks_the_extreme_number(row: Row) -> bool:
    numbers = [int(number) for number in re.findall(r"\d+", _prompt(row))]
    expected = max(numbers) if "largest" in _prompt(row) else min(numbers)
    return len(numbers) == 3 and row["output"].endswith(f" {expected}.")


def _continues_by_the_same_step(row: Row) -> bool:
    *_, before_last, last = (int(number) for number in re.findall(r"\d+", _prompt(row)))
    return row["output"].endswith(f" {2 * last - before_last}.")


def _adds_up(row: Row) -> bool:
    first, change = (_NUMBERS.index(word) for word in re.findall(r"\w+", _prompt(row)) if word in _NUMBERS)
    expected = first + change if "gets" in _prompt(row) else first - change
    return row["output"].split()[2] == _NUMBERS[expected]


def _converts_consistently(row: Row) -> bool:
    count, large, result, small = re.fullmatch(r"(\d+) (\w+) are (\d+) (\w+)\.", row["output"]).groups()  # type: ignore[union-attr]
    seconds = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 7 * 86400}
    millimeters = {"millimeters": 1, "centimeters": 10, "meters": 1000, "kilometers": 1_000_000}
    other = {"grams": 1, "kilograms": 1000, "milliliters": 1, "liters": 1000, "cents": 1, "dollars": 100}
    sizes = {"months": 1, "years": 12, **seconds, **millimeters, **other}
    return f"{count} {large}" in _prompt(row) and int(count) * sizes[large] == int(result) * sizes[small]


def _names_the_neighbor_in_the_calendar(row: Row) -> bool:
    kind, relation, start, result = re.fullmatch(r"The (\w+) (\w+) (\w+) is (\w+)\.", row["output"]).groups()  # type: ignore[union-attr]
    cycle = list(calendar.day_name) if kind == "day" else list(calendar.month_name)[1:]
    step = 1 if relation == "after" else -1
    return (
        start in _prompt(row) and relation in _prompt(row) and cycle[(cycle.index(start) + step) % len(cycle)] == result
    )


def _names_the_person_who_is_never_second(row: Row) -> bool:
    pairs = re.findall(r"(\w+) is \w+er than (\w+)\.", _prompt(row))
    (top,) = {first for first, _ in pairs} - {second for _, second in pairs}
    return row["output"].startswith(f"{top} is the ")


def _answers_from_the_shopping_list(row: Row) -> bool:
    bought = re.search(r"bought (\w+) and (\w+)\.", _prompt(row)).groups()  # type: ignore[union-attr]
    asked = re.search(r"(?:bought|buy) (\w+)\.$", row["output"])[1]  # type: ignore[index]
    return row["output"].startswith("Yes, " if asked in bought else "No, ") and asked in _prompt(row)


_MONTHS = "|".join(calendar.month_name[1:])
_CHECKS: dict[str, Callable[[Row], bool]] = {
    "sort_words": _is_sorted,
    "change_to_uppercase": _is_uppercase_of_the_prompt,
    "count_items": _counts_the_list,
    "write_json": _json_values_come_from_the_prompt,
    "explain_expression": _evaluates_the_expression,
    "pick_number": _picks_the_extreme_number,
    "continue_sequence": _continues_by_the_same_step,
    "solve_sum": _adds_up,
    "convert_unit": _converts_consistently,
    "name_neighbor_day": _names_the_neighbor_in_the_calendar,
    "find_extreme": _names_the_person_who_is_never_second,
    "answer_yes_or_no": _answers_from_the_shopping_list,
    "extract_email": _quotes_all(r"[\w.]+@[\w.]*\w"),
    "extract_date": _quotes_all(rf"(?:{_MONTHS}) \d+"),
    "answer_who": _states_what_the_question_asks,
    "answer_where": _states_what_the_question_asks,
    "answer_when": _names_when,
    "answer_why": _names_why,
    "summarize_story": _joins_two_clauses_of_the_story,
}


@pytest.mark.parametrize("category", _CHECKS)
def test_answers_agree_with_an_independent_solution(rows_by_category: dict[str, list[Row]], category: str) -> None:
    assert rows_by_category[category]
    assert [row for row in rows_by_category[category] if not _CHECKS[category](row)] == []


def test_answers_stay_short(rows: list[Row]) -> None:
    num_words = [len(row["output"].split()) for row in rows]
    assert max(num_words) <= 35
    assert 4 <= sum(num_words) / len(num_words) <= 15


def test_the_corpus_is_large_and_its_documents_are_distinct_and_clean() -> None:
    documents = corpus_documents()
    assert sum(len(document) for document in documents) > 300_000
    assert len(set(documents)) == len(documents)
    assert all(len(document) >= 200 and document == document.strip() for document in documents)
    assert documents == corpus_documents()
