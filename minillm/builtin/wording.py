"""Turns wording forms and slot values into instruction rows, with the grammar the task families share."""

from collections.abc import Sequence
from random import Random

Row = dict[str, str]


def make_row(rng: Random, category: str, forms: Sequence[str], output: str, **slots: str) -> Row:
    """One row worded by a randomly chosen form.

    A form is a format string; what follows its first line break, if anything, becomes the row's input.
    """
    instruction, _, task_input = rng.choice(forms).partition("\n")
    return {
        "instruction": instruction.format(**slots),
        "input": task_input.format(**slots),
        "output": output,
        "category": category,
    }


def listed(text: str) -> tuple[str, ...]:
    """The items of a comma-separated text, free of line breaks and outer spaces."""
    return tuple(" ".join(item.split()) for item in text.split(","))


def table(text: str) -> tuple[tuple[str, ...], ...]:
    """The cells of a text with one row a line and cells separated by vertical bars."""
    lines = text.strip().splitlines()
    return tuple(tuple(cell.strip() for cell in line.split("|")) for line in lines)


def with_article(noun: str) -> str:
    """The noun after "a" or "an", chosen by its first letter.

    The vocabulary must therefore hold no noun like "hour" or "uniform".
    """
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def joined(items: Sequence[str]) -> str:
    """The items as English prose: "a", "a and b", "a, b and c"."""
    if len(items) == 1:
        return items[0]
    return f"{', '.join(items[:-1])} and {items[-1]}"


def capitalized(text: str) -> str:
    """The text with its first letter in upper case and the rest untouched."""
    return text[0].upper() + text[1:]
