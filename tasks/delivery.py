"""Deliver what waits for MLflow: in the background while a stage runs, and whenever there is time for it later."""

from __future__ import annotations

import logging
import shutil
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from minillm.config import TrackingConfig
from tasks.event_spool import (
    SPOOLS_DIR,
    Event,
    beside_spools,
    events_behind,
    header,
    last_write_ms,
    put_aside,
    read_progress,
    spools,
    write_progress,
)
from tasks.lineage import is_dead
from tasks.mlflow_store import Store
from tasks.storage import now_ms
from tasks.tracking_store import absolute_uri, without_secrets

_log = logging.getLogger(__name__)

_LOCK_NAME = "mlflow-delivery.lock"
_LOCK_TIMEOUT_S = 60.0
_EVERY_S = 2.0
_AGAIN_S = 10.0  # after a failure
_LAST_ROUND_S = 60.0  # of a store that answers; a new database alone takes 10 s
_NO_ANSWER_S = 1.0  # of one that does not
_SILENT_MS = 24 * 3600 * 1000
_BATCH_POINTS = 1000  # MLflow's limit of one request
_MAX_REASON_LENGTH = 400


class Delivery(threading.Thread):
    """Delivers every few seconds; a store that is away costs the stage nothing but one warning."""

    def __init__(self, config: TrackingConfig) -> None:
        super().__init__(name="mlflow-delivery", daemon=True)
        self._store = Store(config)
        self._wake, self._is_last = threading.Event(), False
        self._is_away = self._is_kept_out = False

    def run(self) -> None:
        """Deliver until told to finish, then once more."""
        while True:
            is_last = self._is_last
            self._attempt()
            if is_last or (self._is_last and self._is_away):
                return
            self._wake.wait(_AGAIN_S if self._is_away else _EVERY_S)

    def finish(self, patience_s: float = _LAST_ROUND_S) -> None:
        """Let what is on the disk now be delivered, and wait for that as long as the store answers."""
        self._is_last = True
        self._wake.set()
        deadline = time.monotonic() + patience_s
        while self.is_alive() and time.monotonic() < deadline:
            self.join(_NO_ANSWER_S)
            if self._is_away:
                break
        if self.is_alive() or self._is_away or self._is_kept_out:
            _log.warning("tracking: records wait in %s; the next stage or `python -m tasks sync` delivers", SPOOLS_DIR)

    def _attempt(self) -> None:
        self._is_kept_out = False
        try:
            deliver_all(self._store)
        except Timeout:
            self._is_kept_out = True  # by another process, which delivers these records too
        except Exception as error:
            if not self._is_away:
                warn_away(self._store.uri, error)
            self._is_away = True
        else:
            if self._is_away:
                _log.info("tracking: %s is back and has every record", without_secrets(self._store.uri))
            self._is_away = False


def deliver_all(store: Store) -> int:
    """Deliver all that waits, the oldest spool first, and return how many spools still wait.

    One process at a time does this for a repository and its worktrees. Raises what a store raises that is away, at
    once; what it refuses of one spool holds up no other, and is raised in the end.
    """
    lock_path = beside_spools(_LOCK_NAME)
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    refusals: list[Exception] = []
    with FileLock(lock_path, timeout=_LOCK_TIMEOUT_S):
        for spool in spools():  # listed under the lock: what another process had at work is whole or gone
            try:
                _deliver(store, spool)
            except Exception as error:
                if not store.has_refused(error):
                    raise
                if not _is_for_deleted(store, spool, error):
                    refusals.append(error)
    if refusals:
        raise refusals[0]
    return len(spools())


def _deliver(store: Store, spool: Path) -> None:
    """Deliver what a spool has; it goes when it was closed, by its process or in the name of a dead one."""
    first, progress = header(spool), read_progress(spool)
    place = without_secrets(store.uri)
    if absolute_uri(progress.get("store", place), Path()) != place:  # begun in another store, which must get the rest
        return
    if not progress["offset"]:
        ids = store.open(first, spool)
        offset = next(end for _, end in events_behind(spool, 0))
        progress = {"offset": offset, "store": place, "ids": ids}
        write_progress(spool, progress)
    is_writer_dead = _is_abandoned(first, spool)  # asked before reading: a dead one writes no more
    for event, offset in _merged(events_behind(spool, progress["offset"])):
        store.deliver(event, progress["ids"], spool)
        progress = {**progress, "offset": offset, "is_ended": event["kind"] == "end"}
        write_progress(spool, progress)
    if not progress.get("is_ended"):
        if not is_writer_dead:
            return
        store.deliver(_killed(first, spool), progress["ids"], spool)
    shutil.rmtree(spool)


def _is_for_deleted(store: Store, spool: Path, error: Exception) -> bool:
    """Return whether a record was refused since its run is deleted; its spool is put aside once it has its end.

    Until then its stage may keep files in it, and the run may be restored.
    """
    first, ids = header(spool), read_progress(spool).get("ids", {})
    deleted = store.deleted(first["experiment"], ids)
    end = _end_of(first, spool)
    if deleted and end:
        left = {name: ids[name] for name in ids if name not in deleted}
        store.deliver(end, left, spool)
        _warn_aside(first, put_aside(spool), error)
    return bool(deleted)


def _end_of(first: Event, spool: Path) -> Event | None:
    """Return the record that closes a spool, that of a dead writer too; None while it is written to."""
    is_writer_dead = _is_abandoned(first, spool)  # asked before reading: a dead one writes no more
    written = next((event for event, _ in events_behind(spool, 0) if event["kind"] == "end"), None)
    return written or (_killed(first, spool) if is_writer_dead else None)


def _is_abandoned(first: Event, spool: Path) -> bool:
    """Return whether the writer is dead: seen to be on this host, by long silence on one that may be gone."""
    return is_dead(first["process"]) or now_ms() - last_write_ms(spool) > _SILENT_MS


def _merged(events: Iterable[tuple[Event, int]]) -> Iterator[tuple[Event, int]]:
    """Yield records with points of one run in a row as one record, up to what one request may hold."""
    held: tuple[Event, int] | None = None
    for event, offset in events:
        if held and _fit(held[0], event):
            held = {**event, "points": held[0]["points"] + event["points"]}, offset
        else:
            if held:
                yield held
            held = event, offset
    if held:
        yield held


def _fit(one: Event, other: Event) -> bool:
    is_metrics = one["kind"] == other["kind"] == "metrics" and one["run"] == other["run"]
    return is_metrics and len(one["points"]) + len(other["points"]) <= _BATCH_POINTS


def _killed(first: Event, spool: Path) -> Event:
    """Return the record that a killed process could not write."""
    outcomes = {first["stage"]["name"]: "killed"} if first["stage"] else {}
    return {"kind": "end", "status": "KILLED", "time_ms": last_write_ms(spool), "outcomes": outcomes}


def warn_away(uri: str, error: Exception) -> None:
    """Say in one line that a store cannot be reached, and why."""
    text = without_secrets(" ".join(f"{uri} ({type(error).__name__}: {error})".split()))
    reason = textwrap.shorten(text, _MAX_REASON_LENGTH)
    _log.warning("tracking: records are kept in %s until they can go to MLflow at %s", SPOOLS_DIR, reason)


def _warn_aside(first: Event, place: Path, error: Exception) -> None:
    """Say in one line which run MLflow refuses, why, and where its records are."""
    stage = f"stage {first['stage']['name']} of " if first["stage"] else ""
    reason = textwrap.shorten(without_secrets(" ".join(str(error).split())), _MAX_REASON_LENGTH)
    _log.warning(
        "tracking: MLflow refuses the records of %srun %s of experiment %s, which are now in %s (moved back to %s they "
        "go to a run that was restored): %s",
        *(stage, first["pipeline"]["name"], first["experiment"], place, SPOOLS_DIR, reason),
    )
