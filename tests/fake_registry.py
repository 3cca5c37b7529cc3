"""MLflow's registry in memory, and registrars that take turns call by call, in an order that a test draws."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import cycle
from types import SimpleNamespace
from typing import Any


class FakeClient:
    """The calls of MLflow's client that the registry makes."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.versions: dict[str, Any] = {}
        self.models: dict[str, Any] = {}
        self._num_made = 0

    def search_registered_models(self, condition: str) -> list[Any]:
        return [SimpleNamespace(aliases=dict(self.aliases))]

    def search_model_versions(self, condition: str) -> list[Any]:
        return [self.get_model_version("", number) for number in self.versions]

    def get_model_version(self, name: str, number: str) -> Any:
        entry = self.versions[number]
        return SimpleNamespace(version=entry.version, run_id=entry.run_id, tags=dict(entry.tags))

    def create_model_version(self, name: str, run_id: str, tags: dict[str, str], **ignored: Any) -> Any:
        self._num_made += 1
        number = str(self._num_made)
        self.versions[number] = SimpleNamespace(version=number, run_id=run_id, tags=dict(tags))
        return self.get_model_version(name, number)

    def delete_model_version(self, name: str, number: str) -> None:
        del self.versions[number]

    def set_model_version_tag(self, name: str, number: str, key: str, value: str) -> None:
        self.versions[number].tags[key] = value

    def set_registered_model_alias(self, name: str, alias: str, number: str) -> None:
        self.aliases[alias] = number

    def search_logged_models(self, experiments: list[str], condition: str) -> list[Any]:
        return []

    def create_logged_model(self, experiment: str, tags: dict[str, str], **ignored: Any) -> Any:
        model = SimpleNamespace(model_id=f"m-{len(self.models)}", tags=dict(tags), artifact_location="")
        self.models[model.model_id] = model
        return model

    def set_logged_model_tags(self, model_id: str, tags: dict[str, str]) -> None:
        self.models[model_id].tags |= tags

    def get_metric_history(self, run_id: str, name: str) -> list[Any]:
        return []

    def log_model_artifacts(self, model_id: str, directory: str) -> None: ...

    def finalize_logged_model(self, model_id: str, status: str) -> None: ...

    def log_batch(self, run_id: str, metrics: list[Any]) -> None: ...


class Crash(Exception):
    """The end of a registrar in the middle of its work."""


class _Turns:
    """A client whose calls wait until it is their turn, and which ends the registrar at one of them."""

    def __init__(self, client: FakeClient, num_calls: int | None) -> None:
        self._client, self._num_left = client, num_calls
        self.may_go, self.has_stopped = threading.Semaphore(0), threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.has_stopped.release()
            self.may_go.acquire()
            if self._num_left is not None:
                self._num_left -= 1
                if self._num_left < 0:
                    raise Crash
            return method(*arguments, **named)

        return call


def interleave(
    client: FakeClient,
    actions: Sequence[Callable[[Any], None]],
    order: Sequence[int],
    crashes: Sequence[int | None],
) -> None:
    """Run actions at once, one call at a time in the given order, over and over; each may crash at one of its calls."""
    turns = [_Turns(client, crash) for crash in crashes]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            actions[number](turns[number])
        except Crash:
            pass
        except BaseException as error:
            errors.append(error)
        alive.discard(number)
        turns[number].has_stopped.release()

    alive = set(range(len(actions)))
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in alive]
    for number, thread in enumerate(threads):
        thread.start()
        turns[number].has_stopped.acquire()
    for choice in cycle(order):
        if not alive:
            break
        number = sorted(alive)[choice % len(alive)]
        turns[number].may_go.release()
        turns[number].has_stopped.acquire()
    if errors:
        raise errors[0]
