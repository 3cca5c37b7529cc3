from __future__ import annotations

from tests.differences import table
from tests.imports import ROOT


def test_the_page_shows_the_numbers_that_the_enumeration_gives() -> None:
    assert table() in (ROOT / "docs/differences.md").read_text(encoding="utf-8")
