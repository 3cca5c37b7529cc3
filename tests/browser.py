"""Headless Chromium, driven by playwright: both are installed by `make test-ui` or its page of docs/team.md."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FLAGS = (  # nothing but the pages asked for; root needs --no-sandbox
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PATIENCE_MS = 90_000


def missing() -> str:
    """Return what has to be installed first; empty when all is there."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed; `make test-ui` does it"
    return "" if _chromium() else "Chromium is not installed (Debian: apt-get install chromium)"


@contextmanager
def browser_page(width: int = 1280, height: int = 1000) -> Iterator[Any]:
    """Yield a page of a fresh browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=list(_FLAGS))
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(_PATIENCE_MS)
        yield page
        browser.close()


def picture(page: Any, name: str) -> Path:
    """Take a screenshot, into MINILLM_PICTURES when that is set."""
    path = Path(os.environ.get("MINILLM_PICTURES", "state/pictures")).resolve() / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    return path


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
