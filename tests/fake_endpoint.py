"""A real server on this machine that answers as an OpenAI-compatible endpoint does, or as badly as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from minillm.dataset import Answer, Example
from minillm.endpoint import Endpoint

Reply = tuple[int, dict[str, str], bytes]
KEY = "sk-Secret-0123456789"


def example(row_id: int, instruction: str, context: str = "") -> Example:
    return Example(row_id, instruction, context, ["reference"], "", [1], [2])


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


def pairs(answers: Iterator[tuple[int, Answer]]) -> Iterator[tuple[int, str]]:
    return ((row_id, answer.text) for row_id, answer in answers)


def texts(answers: Iterator[tuple[int, Answer]]) -> dict[int, str]:
    return dict(pairs(answers))
