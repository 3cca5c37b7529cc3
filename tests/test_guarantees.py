"""docs/guarantees.md names tests that exist, and every fault of its table has one."""

from __future__ import annotations

import re

from tests.imports import ROOT

PAGE = (ROOT / "docs/guarantees.md").read_text()
NAMES = {
    name
    for path in (ROOT / "tests").glob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)
}
NUMBERS = range(1, 30)


def test_every_fault_is_in_the_table_and_has_a_test_with_its_number() -> None:
    cells = re.findall(r"^\| ([0-9, ]+) \|", PAGE.partition("## Faults")[2], flags=re.MULTILINE)
    assert sorted(int(number) for cell in cells for number in cell.split(",")) == list(NUMBERS)
    tested = {int(number) for name in NAMES for number in re.findall(r"fault_(\d\d)", name)}
    assert tested == set(NUMBERS)


def test_every_test_and_file_that_the_page_names_is_there() -> None:
    for name in re.findall(r"`(test_\w+)(\*?)`", PAGE):
        assert any(known == name[0] or (name[1] and known.startswith(name[0])) for known in NAMES), name
    for path in re.findall(r"`(tests/\w+\.py)`", PAGE):
        assert (ROOT / path).exists(), path


def test_the_exit_codes_are_those_of_the_stages() -> None:
    from tasks import endings

    codes = {int(code) for code in re.findall(r"^\| (\d) \|", PAGE, flags=re.MULTILINE)} - {0, 1, 8}
    named = ("USER_ERROR", "NON_FINITE", "SYSTEM_ERROR", "DISK_FULL", "OUT_OF_MEMORY", "DAMAGED")
    assert {getattr(endings, name) for name in named} == codes & set(range(2, 8))
