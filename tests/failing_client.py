"""An MLflow whose every call fails once."""

from __future__ import annotations

import re
from typing import Any

from tasks.delivery import deliver_all
from tasks.mlflow_store import Store
from tests.mlflow_place import client

_MAX_TRIES = 200


class Failing:
    """An MLflow client whose every call fails the first time that it is made, before or after it has done its work."""

    def __init__(self, is_done_first: bool) -> None:
        self._real, self._is_done_first, self.made = client(), is_done_first, set[str]()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)

        def call(*arguments: Any, **named: Any) -> Any:
            texts = [re.sub(r"tmp\w+", "tmp", text) for text in arguments if isinstance(text, str)]
            key = f"{name} {texts} {sorted(named)}"
            is_new = key not in self.made
            self.made.add(key)
            if is_new and not self._is_done_first:
                raise ConnectionError("refused")
            result = method(*arguments, **named)
            if is_new:
                raise ConnectionError("no answer came")
            return result

        return call


def deliver_through_failures(store: Store, is_done_first: bool) -> int:
    """Deliver all records again and again until no call fails; return how many calls failed, each of them once."""
    store._client = failing = Failing(is_done_first)
    for num_failed in range(_MAX_TRIES):
        try:
            deliver_all(store)
        except ConnectionError:
            continue
        assert num_failed == len(failing.made)
        return num_failed
    raise AssertionError(f"still failing after {_MAX_TRIES} tries")
