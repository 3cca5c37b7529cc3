"""What an endpoint has answered is kept once paid for, whatever ends the run, and never asked for twice."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from minillm.dataset import Answer
from minillm.endpoint import ask_endpoint
from minillm.errors import UserError
from tests.fake_endpoint import (
    ALL,
    ROWS,
    FakeEndpoint,
    Reply,
    example,
    good,
    no_wait,
    pairs,
    settings_of,
    stored,
    texts,
)


def test_a_server_that_goes_away_leaves_the_finished_rows(endpoint: FakeEndpoint, store: Path) -> None:
    is_gone = threading.Event()

    def reply(prompt: str) -> Reply:
        if prompt == "a":
            return good("A")
        is_gone.wait(5)
        return 503, {"Connection": "close"}, b""

    endpoint.reply = reply
    answers = ask_endpoint(ROWS, settings_of(endpoint, num_parallel=1), store, no_wait)
    assert next(answers) == (3, Answer("A", is_cut=False))
    endpoint.stop()
    is_gone.set()
    with pytest.raises(UserError) as error:
        next(answers)
    assert str(error.value) == (
        f"{endpoint.address}: row_id 5: ConnectError [Errno 111] Connection refused, at attempt 3;"
        f" 1 of 3 rows are done and kept in {store}; run again to continue"
    )
    assert stored(store) == ["A"]


def test_a_server_that_does_not_answer_in_time_is_an_error(endpoint: FakeEndpoint, store: Path) -> None:
    is_over = threading.Event()
    endpoint.reply = lambda prompt: good(str(is_over.wait(5)))
    with pytest.raises(UserError, match=r"row_id 3: ReadTimeout timed out, at attempt 2; 0 of 1 rows are done"):
        texts(ask_endpoint(ROWS[:1], settings_of(endpoint, timeout_s=0.1, max_retries=1), store, no_wait))
    is_over.set()


@pytest.mark.parametrize("address", ["http://a..b/v1", "http://[::1/v1", "ftp://a/v1", "127.0.0.1:8000/v1"])
def test_what_is_no_address_is_not_tried_twice(endpoint: FakeEndpoint, store: Path, address: str) -> None:
    with pytest.raises(UserError) as error:
        texts(ask_endpoint(ROWS[:1], settings_of(endpoint, address=address), store, no_wait))
    assert str(error.value).startswith(f"{address}: row_id 3: not an address: ")
    assert ", at attempt 1;" in str(error.value)


def test_after_a_failure_only_the_missing_rows_are_asked(endpoint: FakeEndpoint, store: Path) -> None:
    endpoint.reply = lambda prompt: (400, {}, b"") if prompt == "b" else good(prompt.upper())
    with pytest.raises(UserError, match=r"row_id 5: HTTP 400, at attempt 1; 1 of 3 rows are done"):
        texts(ask_endpoint(ROWS, settings_of(endpoint, num_parallel=1), store))
    assert endpoint.prompts == ["a", "b"]
    endpoint.reply = lambda prompt: good(f"anew {prompt}")
    answers = list(pairs(ask_endpoint(ROWS, settings_of(endpoint, num_parallel=1), store)))
    assert answers == [(3, "A"), (5, "anew b"), (8, "anew c\n\ncontext")]
    assert endpoint.prompts[2:] == ["b", "c\n\ncontext"]


def test_a_failure_keeps_what_is_in_flight_and_starts_nothing_new(endpoint: FakeEndpoint, store: Path) -> None:
    both_arrived, has_failed = threading.Barrier(2), threading.Event()

    def reply(prompt: str) -> Reply:
        both_arrived.wait(5)
        if prompt == "a":
            has_failed.set()
            return 401, {}, b""
        has_failed.wait(5)
        time.sleep(0.3)  # the failure is known by now
        return good("B")

    endpoint.reply = reply
    rows = [example(row_id, chr(97 + row_id)) for row_id in range(10)]
    with pytest.raises(UserError, match=r"row_id 0: HTTP 401, at attempt 1; 1 of 10 rows are done"):
        texts(ask_endpoint(rows, settings_of(endpoint), store))
    assert sorted(endpoint.prompts) == ["a", "b"]
    assert stored(store) == ["B"]


def test_a_failure_ends_the_waits_of_others(endpoint: FakeEndpoint, store: Path) -> None:
    both_arrived = threading.Barrier(2)

    def reply(prompt: str) -> Reply:
        both_arrived.wait(5)
        if prompt == "a":
            return 503, {"Retry-After": "20"}, b""
        time.sleep(0.1)  # the other one waits by now
        return 401, {}, b""

    endpoint.reply = reply
    start_s = time.monotonic()
    with pytest.raises(UserError, match="row_id 5: HTTP 401"):
        texts(ask_endpoint(ROWS[:2], settings_of(endpoint), store))
    assert time.monotonic() - start_s < 5
    assert len(endpoint.requests) == 2


def test_an_answer_is_on_disk_before_it_is_yielded(
    endpoint: FakeEndpoint, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    sizes = [store.stat().st_size for _ in ask_endpoint(ROWS[:1], settings_of(endpoint), store)]
    assert synced == sizes == [len(store.read_bytes())]
    assert stored(store) == ["A"]


def test_leaving_early_does_not_wait_for_what_is_in_flight_which_is_still_kept(
    endpoint: FakeEndpoint, store: Path
) -> None:
    has_left = threading.Event()

    def reply(prompt: str) -> Reply:
        if prompt != "a":
            has_left.wait(5)
        return good(prompt.upper())

    endpoint.reply = reply
    answers = ask_endpoint(ROWS, settings_of(endpoint, num_parallel=1), store)
    assert isinstance(answers, Generator)
    assert next(answers) == (3, Answer("A", is_cut=False))
    while len(endpoint.requests) < 2:
        time.sleep(0.005)
    start_s = time.monotonic()
    answers.close()
    assert time.monotonic() - start_s < 2
    assert stored(store) == ["A"]
    has_left.set()
    while len(stored(store)) < 2 and time.monotonic() - start_s < 4:
        time.sleep(0.005)
    assert stored(store) == ["A", "B"]
    assert endpoint.prompts == ["a", "b"]


def test_leaving_early_ends_the_retries(endpoint: FakeEndpoint, store: Path) -> None:
    has_left = threading.Event()

    def reply(prompt: str) -> Reply:
        if prompt == "a":
            return good("A")
        has_left.wait(5)
        return 503, {}, b""

    endpoint.reply = reply
    answers = ask_endpoint(ROWS, settings_of(endpoint, num_parallel=1), store, no_wait)
    assert isinstance(answers, Generator)
    assert next(answers) == (3, Answer("A", is_cut=False))
    while len(endpoint.requests) < 2:
        time.sleep(0.005)
    answers.close()
    has_left.set()
    for thread in threading.enumerate():
        if thread.name.startswith("endpoint"):
            thread.join(5)
    assert endpoint.prompts == ["a", "b"]


def test_connections_are_used_again_and_closed_at_the_end(endpoint: FakeEndpoint, store: Path) -> None:
    rows = [example(row_id, f"p{row_id}") for row_id in range(8)]
    assert len(texts(ask_endpoint(rows, settings_of(endpoint), store))) == 8
    deadline_s = time.monotonic() + 2
    while "open" in endpoint.connections and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert endpoint.connections == ["closed"] * len(endpoint.connections)
    assert 1 <= len(endpoint.connections) <= 2


def test_no_more_requests_than_allowed_run_at_once(endpoint: FakeEndpoint, store: Path) -> None:
    three_arrived = threading.Barrier(3)

    def reply(prompt: str) -> Reply:
        three_arrived.wait(5)
        time.sleep(0.05)  # a fourth would arrive by now
        return good(prompt.upper())

    endpoint.reply = reply
    rows = [example(row_id, f"p{row_id}") for row_id in range(9)]
    answers = texts(ask_endpoint(rows, settings_of(endpoint, num_parallel=3), store))
    assert answers == {row_id: f"P{row_id}" for row_id in range(9)}
    assert endpoint.most_in_flight == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "teacher-2"},
        {"temperature": 0.8},
        {"top_p": 1.0},
        {"max_tokens": 47},
        {"seed": 18},
        {"address": "/v2"},
    ],
    ids=str,
)
def test_another_model_or_setting_is_asked_anew(endpoint: FakeEndpoint, store: Path, changes: dict[str, Any]) -> None:
    texts(ask_endpoint(ROWS[:1], settings_of(endpoint), store))
    endpoint.reply = lambda prompt: good("other")
    if "address" in changes:
        changes = {"address": endpoint.address.replace("/v1", "/v2")}
    assert texts(ask_endpoint(ROWS[:1], settings_of(endpoint, **changes), store)) == {3: "other"}
    assert texts(ask_endpoint(ROWS[:1], settings_of(endpoint), store)) == {3: "A"}
    assert len(endpoint.requests) == 2


def test_how_one_asks_does_not_make_another_answer(endpoint: FakeEndpoint, store: Path) -> None:
    texts(ask_endpoint(ROWS, settings_of(endpoint), store))
    changed = settings_of(
        endpoint, key="", num_parallel=1, max_retries=0, timeout_s=1.0, address=f"{endpoint.address}/"
    )
    assert texts(ask_endpoint([example(0, "b"), example(1, "a")], changed, store)) == {0: "B", 1: "A"}
    assert len(endpoint.requests) == 3


def test_a_torn_last_line_is_asked_again_and_repaired(endpoint: FakeEndpoint, store: Path) -> None:
    settings = settings_of(endpoint, num_parallel=1)
    texts(ask_endpoint(ROWS, settings, store))
    whole = store.read_bytes()
    store.write_bytes(whole[:-10])
    assert texts(ask_endpoint(ROWS, settings, store)) == ALL
    assert endpoint.prompts == ["a", "b", "c\n\ncontext", "c\n\ncontext"]
    assert store.read_bytes() == whole


@pytest.mark.parametrize("broken", [b"{\n", b"\xff\n", b"3\n", b'{"key": "a"}\n', b"\n"])
def test_a_store_that_something_else_wrote_is_refused_by_line(
    endpoint: FakeEndpoint, store: Path, broken: bytes
) -> None:
    texts(ask_endpoint(ROWS[:1], settings_of(endpoint), store))
    content = store.read_bytes() + broken
    store.write_bytes(content)
    with pytest.raises(UserError) as error:
        texts(ask_endpoint(ROWS, settings_of(endpoint), store))
    assert str(error.value) == f"{store}: line 2 is no stored answer; remove the line, or the file to ask anew"
    assert store.read_bytes() == content
    assert len(endpoint.requests) == 1


def test_an_answer_that_does_not_fit_the_disk_leaves_no_torn_line(endpoint: FakeEndpoint, store: Path) -> None:
    endpoint.reply = lambda prompt: good(prompt.upper() if prompt == "a" else "x" * 2_000_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            texts(ask_endpoint(ROWS[:2], settings_of(endpoint, num_parallel=1), store))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stored(store) == ["A"]
    assert store.read_bytes().endswith(b"}\n")
    assert texts(ask_endpoint(ROWS[:2], settings_of(endpoint), store)) == {3: "A", 5: "x" * 2_000_000}
