"""A black-box teacher's answers reach their rows, are kept once paid for, and every fault is one clear line."""

from __future__ import annotations

import json
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from minillm.dataset import Example
from minillm.endpoint import Endpoint, ask_endpoint
from minillm.errors import UserError

Reply = tuple[int, dict[str, str], bytes]
KEY = "sk-Secret-0123456789"


def example(row_id: int, instruction: str, context: str = "") -> Example:
    return Example(row_id, instruction, context, ["reference"], "", [1], [2])


def written(tmp_path: Path, *lines: bytes) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def line(instruction: str, output: str, **more: str) -> bytes:
    return json.dumps({"instruction": instruction, "output": output, **more}).encode()


@dataclass
class FakeEndpoint:
    """A real server; `reply` makes the reply to a prompt, by default its own text in upper case.

    requests: path, headers and body of each. most_in_flight: requests at a time, counted until just before the reply.
    connections: "open" or "closed" of each.
    """

    reply: Callable[[str], Reply]
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    most_in_flight: int = 0
    connections: list[str] = field(default_factory=list)
    address: str = ""
    stop: Callable[[], None] = lambda: None
    _in_flight: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for _, _, body in self.requests]

    def answer(self, path: str, headers: dict[str, str], raw: bytes) -> Reply:
        with self._lock:
            self.requests.append((path, headers, json.loads(raw)))
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return self.reply(json.loads(raw)["messages"][0]["content"])
        finally:
            with self._lock:
                self._in_flight -= 1


def good(text: str, finish_reason: str = "stop") -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeEndpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))  # none to load: the certificates would take most of the time
    fake = FakeEndpoint(lambda prompt: good(prompt.upper()))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes; without it the second waits 40 ms

        def handle(self) -> None:
            place = len(fake.connections)
            fake.connections.append("open")
            super().handle()
            fake.connections[place] = "closed"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            status, headers, content = fake.answer(self.path, {k.lower(): v for k, v in self.headers.items()}, raw)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    server = QuietServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    fake.address, fake.stop = f"http://127.0.0.1:{server.server_port}/v1", stop
    yield fake
    stop()
    thread.join()


def settings_of(endpoint: FakeEndpoint, **changes: Any) -> Endpoint:
    settings = Endpoint(
        address=endpoint.address,
        model="teacher-1",
        key=KEY,
        temperature=0.7,
        top_p=0.9,
        max_tokens=48,
        num_parallel=2,
        max_retries=2,
        timeout_s=5.0,
        seed=17,
    )
    return replace(settings, **changes)


def no_wait(stopped: threading.Event, delay_s: float) -> None:
    """Take the place of waiting."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "new" / "state" / "answers.jsonl"


def stored(store: Path) -> list[str]:
    return [json.loads(line)["response"] for line in store.read_text().splitlines()]


ROWS = [example(3, "a"), example(5, "b"), example(8, "c", "context")]
ALL = {3: "A", 5: "B", 8: "C\n\nCONTEXT"}


def test_every_row_gets_its_answer_and_the_request_says_all_settings(endpoint: FakeEndpoint, store: Path) -> None:
    assert dict(ask_endpoint(ROWS, settings_of(endpoint), store)) == ALL
    path, headers, body = next(request for request in endpoint.requests if "context" in json.dumps(request[2]))
    assert (path, headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert isinstance(body.pop("seed"), int)
    assert body == {
        "model": "teacher-1",
        "messages": [{"role": "user", "content": "c\n\ncontext"}],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 48,
    }


def test_without_a_key_no_authorization_is_sent(endpoint: FakeEndpoint, store: Path) -> None:
    assert dict(ask_endpoint(ROWS[:1], settings_of(endpoint, key=""), store)) == {3: "A"}
    assert "authorization" not in endpoint.requests[0][1]


def test_the_seed_differs_by_prompt_and_does_not_hang_on_the_place_of_a_row(
    endpoint: FakeEndpoint, store: Path, tmp_path: Path
) -> None:
    settings = settings_of(endpoint)
    dict(ask_endpoint([example(row_id, f"p{row_id}") for row_id in range(20)], settings, store))
    dict(ask_endpoint([example(0, "p3"), example(1, "p0")], settings, tmp_path / "other.jsonl"))
    seeds = [(prompt, body["seed"]) for prompt, (_, _, body) in zip(endpoint.prompts, endpoint.requests, strict=True)]
    assert len(seeds) == 22
    assert len(set(seeds)) == len(dict(seeds)) == len(set(dict(seeds).values())) == 20
    assert all(0 <= seed < 2**31 for _, seed in seeds)


def test_rows_of_one_prompt_share_one_request(endpoint: FakeEndpoint, store: Path) -> None:
    rows = [example(1, "a"), example(2, "b"), example(6, "a")]
    assert dict(ask_endpoint(rows, settings_of(endpoint), store)) == {1: "A", 2: "B", 6: "A"}
    assert sorted(endpoint.prompts) == ["a", "b"]


def test_the_key_is_in_no_repr_store_log_or_error(
    endpoint: FakeEndpoint, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = settings_of(endpoint, num_parallel=1)
    echo = f"{'x' * 190} Bearer {KEY}"  # as a careless server says it, where the excerpt ends
    replies = iter([good("A"), (401, {}, echo.encode())])
    endpoint.reply = lambda prompt: next(replies)
    with pytest.raises(UserError) as error:
        dict(ask_endpoint(ROWS, settings, store))
    assert f"HTTP 401 {'x' * 190} Bearer **, at attempt 1" in str(error.value)
    assert stored(store) == ["A"]
    assert "POST" in caplog.text
    for text in (repr(settings), store.read_text(), caplog.text, str(error.value), repr(error.value)):
        assert "sk-" not in text and "Secret" not in text


@pytest.mark.parametrize("key", ["sk-Secret\n", "sk-Secret two", "sk-Secreté"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(endpoint: FakeEndpoint, store: Path, key: str) -> None:
    with pytest.raises(UserError, match="the key cannot be sent; allowed: visible ASCII characters") as error:
        dict(ask_endpoint(ROWS, settings_of(endpoint, key=key), store))
    assert "Secret" not in str(error.value)
    assert endpoint.requests == []


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_status_that_may_pass_is_tried_again(endpoint: FakeEndpoint, store: Path, status: int) -> None:
    replies = iter([(status, {}, b"busy"), good("A")])
    endpoint.reply = lambda prompt: next(replies)
    delays: list[float] = []
    answers = ask_endpoint(ROWS[:1], settings_of(endpoint), store, lambda stopped, delay_s: delays.append(delay_s))
    assert dict(answers) == {3: "A"}
    assert delays == [0.5]
    assert len(endpoint.requests) == 2


def test_waits_double_up_to_half_a_minute_and_end_with_the_last_reason(endpoint: FakeEndpoint, store: Path) -> None:
    endpoint.reply = lambda prompt: (503, {}, b"<p>\r\n  over\x1bloaded</p>" + b"!" * 1000)
    delays: list[float] = []
    settings = settings_of(endpoint, max_retries=8)
    with pytest.raises(UserError) as error:
        dict(ask_endpoint(ROWS[:1], settings, store, lambda stopped, delay_s: delays.append(delay_s)))
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert str(error.value) == (
        f"{endpoint.address}: row_id 3: HTTP 503 <p> over loaded</p>{'!' * 181}, at attempt 9;"
        f" 0 of 1 rows are done and kept in {store}; run again to continue"
    )


def in_an_hour() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize(
    ("value", "delay_s"),
    [
        ("7", 7.0),
        ("2.5", 2.5),
        ("0", 0.5),
        ("120", 30.0),
        ("9" * 400, 30.0),
        (in_an_hour(), 30.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.5),
        ("nan", 0.5),
        ("soon", 0.5),
    ],
)
def test_the_wait_that_a_server_asks_for_is_kept_up_to_the_cap(
    endpoint: FakeEndpoint, store: Path, value: str, delay_s: float
) -> None:
    replies = iter([(429, {"Retry-After": value}, b""), good("A")])
    endpoint.reply = lambda prompt: next(replies)
    delays: list[float] = []
    assert dict(ask_endpoint(ROWS[:1], settings_of(endpoint), store, lambda _, wait_s: delays.append(wait_s))) == {
        3: "A"
    }
    assert delays == [delay_s]


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ((401, {}, b"no such key"), "HTTP 401 no such key, at attempt 1; 0 of 3 rows"),
        ((400, {}, b""), "HTTP 400, at attempt 1; 0 of 3 rows"),
        ((404, {}, b"\xff"), "HTTP 404 \ufffd, at attempt 1; 0 of 3 rows"),
        (
            (307, {"Location": "http://127.0.0.1:1/v1"}, b""),
            "HTTP 307 (redirect to http://127.0.0.1:1/v1, not followed), at attempt 1; 0 of 3 rows",
        ),
    ],
)
def test_a_refusal_stops_at_once_with_one_request(
    endpoint: FakeEndpoint, store: Path, reply: Reply, fault: str
) -> None:
    endpoint.reply = lambda prompt: reply
    with pytest.raises(UserError) as error:
        dict(ask_endpoint(ROWS, settings_of(endpoint, num_parallel=1), store, no_wait))
    assert str(error.value).startswith(f"{endpoint.address}: row_id 3: {fault}")
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"[]",
        b'{"choices": []}',
        b'{"choices": ["text"]}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": ["text"]}}]}',
        b'{"choices": [{"message": {"content": " \\n"}}]}',
        b'{"error": "loading"}',
    ],
)
def test_an_answer_without_text_is_asked_for_again_and_then_an_error(
    endpoint: FakeEndpoint, store: Path, content: bytes
) -> None:
    endpoint.reply = lambda prompt: (200, {}, content)
    with pytest.raises(UserError) as error:
        dict(ask_endpoint(ROWS[1:2], settings_of(endpoint), store, no_wait))
    start = f"{endpoint.address}: row_id 5: no text at choices[0].message.content of the answer"
    assert str(error.value).startswith(start)
    assert ", at attempt 3; 0 of 1 rows are done" in str(error.value)
    assert len(str(error.value)) < len(start) + len(str(store)) + 300
    assert len(endpoint.requests) == 3
    assert store.read_bytes() == b""


def test_a_broken_answer_and_then_a_whole_one_is_an_answer(endpoint: FakeEndpoint, store: Path) -> None:
    replies = iter([(200, {}, b'{"choices"'), (200, {"Content-Encoding": "gzip"}, b"no gzip"), good("A")])
    endpoint.reply = lambda prompt: next(replies)
    assert dict(ask_endpoint(ROWS[:1], settings_of(endpoint), store, no_wait)) == {3: "A"}


def test_text_is_kept_as_it_is_but_for_what_rows_cannot_hold(endpoint: FakeEndpoint, store: Path) -> None:
    endpoint.reply = lambda prompt: good(" é\u2028\U0001f600\n", "length")
    assert dict(ask_endpoint(ROWS[:1], settings_of(endpoint), store)) == {3: " é\u2028\U0001f600\n"}
    endpoint.reply = lambda prompt: good("a\0b\ud83d")
    assert dict(ask_endpoint(ROWS[:2], settings_of(endpoint), store)) == {
        3: " é\u2028\U0001f600\n",
        5: "a\ufffdb\ufffd",
    }
    reasons = [json.loads(line)["finish_reason"] for line in store.read_text().splitlines()]
    assert reasons == ["length", "stop"]


def test_a_server_that_goes_away_leaves_the_finished_rows(endpoint: FakeEndpoint, store: Path) -> None:
    is_gone = threading.Event()

    def reply(prompt: str) -> Reply:
        if prompt == "a":
            return good("A")
        is_gone.wait(5)
        return 503, {"Connection": "close"}, b""

    endpoint.reply = reply
    answers = ask_endpoint(ROWS, settings_of(endpoint, num_parallel=1), store, no_wait)
    assert next(answers) == (3, "A")
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
        dict(ask_endpoint(ROWS[:1], settings_of(endpoint, timeout_s=0.1, max_retries=1), store, no_wait))
    is_over.set()


@pytest.mark.parametrize("address", ["http://a..b/v1", "http://[::1/v1", "ftp://a/v1", "127.0.0.1:8000/v1"])
def test_what_is_no_address_is_not_tried_twice(endpoint: FakeEndpoint, store: Path, address: str) -> None:
    with pytest.raises(UserError) as error:
        dict(ask_endpoint(ROWS[:1], settings_of(endpoint, address=address), store, no_wait))
    assert str(error.value).startswith(f"{address}: row_id 3: not an address: ")
    assert ", at attempt 1;" in str(error.value)


def test_after_a_failure_only_the_missing_rows_are_asked(endpoint: FakeEndpoint, store: Path) -> None:
    endpoint.reply = lambda prompt: (400, {}, b"") if prompt == "b" else good(prompt.upper())
    with pytest.raises(UserError, match=r"row_id 5: HTTP 400, at attempt 1; 1 of 3 rows are done"):
        dict(ask_endpoint(ROWS, settings_of(endpoint, num_parallel=1), store))
    assert endpoint.prompts == ["a", "b"]
    endpoint.reply = lambda prompt: good(f"anew {prompt}")
    answers = list(ask_endpoint(ROWS, settings_of(endpoint, num_parallel=1), store))
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
        dict(ask_endpoint(rows, settings_of(endpoint), store))
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
        dict(ask_endpoint(ROWS[:2], settings_of(endpoint), store))
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
    assert next(answers) == (3, "A")
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
    assert next(answers) == (3, "A")
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
    assert len(dict(ask_endpoint(rows, settings_of(endpoint), store))) == 8
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
    answers = dict(ask_endpoint(rows, settings_of(endpoint, num_parallel=3), store))
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
    dict(ask_endpoint(ROWS[:1], settings_of(endpoint), store))
    endpoint.reply = lambda prompt: good("other")
    if "address" in changes:
        changes = {"address": endpoint.address.replace("/v1", "/v2")}
    assert dict(ask_endpoint(ROWS[:1], settings_of(endpoint, **changes), store)) == {3: "other"}
    assert dict(ask_endpoint(ROWS[:1], settings_of(endpoint), store)) == {3: "A"}
    assert len(endpoint.requests) == 2


def test_how_one_asks_does_not_make_another_answer(endpoint: FakeEndpoint, store: Path) -> None:
    dict(ask_endpoint(ROWS, settings_of(endpoint), store))
    changed = settings_of(
        endpoint, key="", num_parallel=1, max_retries=0, timeout_s=1.0, address=f"{endpoint.address}/"
    )
    assert dict(ask_endpoint([example(0, "b"), example(1, "a")], changed, store)) == {0: "B", 1: "A"}
    assert len(endpoint.requests) == 3


def test_a_torn_last_line_is_asked_again_and_repaired(endpoint: FakeEndpoint, store: Path) -> None:
    settings = settings_of(endpoint, num_parallel=1)
    dict(ask_endpoint(ROWS, settings, store))
    whole = store.read_bytes()
    store.write_bytes(whole[:-10])
    assert dict(ask_endpoint(ROWS, settings, store)) == ALL
    assert endpoint.prompts == ["a", "b", "c\n\ncontext", "c\n\ncontext"]
    assert store.read_bytes() == whole


@pytest.mark.parametrize("broken", [b"{\n", b"\xff\n", b"3\n", b'{"key": "a"}\n', b"\n"])
def test_a_store_that_something_else_wrote_is_refused_by_line(
    endpoint: FakeEndpoint, store: Path, broken: bytes
) -> None:
    dict(ask_endpoint(ROWS[:1], settings_of(endpoint), store))
    content = store.read_bytes() + broken
    store.write_bytes(content)
    with pytest.raises(UserError) as error:
        dict(ask_endpoint(ROWS, settings_of(endpoint), store))
    assert str(error.value) == f"{store}: line 2 is no stored answer; remove the line, or the file to ask anew"
    assert store.read_bytes() == content
    assert len(endpoint.requests) == 1


def test_an_answer_that_does_not_fit_the_disk_leaves_no_torn_line(endpoint: FakeEndpoint, store: Path) -> None:
    endpoint.reply = lambda prompt: good(prompt.upper() if prompt == "a" else "x" * 2_000_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            dict(ask_endpoint(ROWS[:2], settings_of(endpoint, num_parallel=1), store))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stored(store) == ["A"]
    assert store.read_bytes().endswith(b"}\n")
    assert dict(ask_endpoint(ROWS[:2], settings_of(endpoint), store)) == {3: "A", 5: "x" * 2_000_000}
