"""A black-box teacher's answers reach their rows, and every refusal is one clear line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from minillm.endpoint import ask_endpoint
from minillm.errors import UserError
from tests.fake_endpoint import (
    ALL,
    KEY,
    ROWS,
    FakeEndpoint,
    Reply,
    example,
    good,
    no_wait,
    settings_of,
    stored,
    texts,
)


def test_every_row_gets_its_answer_and_the_request_says_all_settings(endpoint: FakeEndpoint, store: Path) -> None:
    assert texts(ask_endpoint(ROWS, settings_of(endpoint), store)) == ALL
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
    assert texts(ask_endpoint(ROWS[:1], settings_of(endpoint, key=""), store)) == {3: "A"}
    assert "authorization" not in endpoint.requests[0][1]


def test_the_seed_differs_by_prompt_and_does_not_hang_on_the_place_of_a_row(
    endpoint: FakeEndpoint, store: Path, tmp_path: Path
) -> None:
    settings = settings_of(endpoint)
    texts(ask_endpoint([example(row_id, f"p{row_id}") for row_id in range(20)], settings, store))
    texts(ask_endpoint([example(0, "p3"), example(1, "p0")], settings, tmp_path / "other.jsonl"))
    seeds = [(prompt, body["seed"]) for prompt, (_, _, body) in zip(endpoint.prompts, endpoint.requests, strict=True)]
    assert len(seeds) == 22
    assert len(set(seeds)) == len(dict(seeds)) == len(set(dict(seeds).values())) == 20
    assert all(0 <= seed < 2**31 for _, seed in seeds)


def test_rows_of_one_prompt_share_one_request(endpoint: FakeEndpoint, store: Path) -> None:
    rows = [example(1, "a"), example(2, "b"), example(6, "a")]
    assert texts(ask_endpoint(rows, settings_of(endpoint), store)) == {1: "A", 2: "B", 6: "A"}
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
        texts(ask_endpoint(ROWS, settings, store))
    assert f"HTTP 401 {'x' * 190} Bearer **, at attempt 1" in str(error.value)
    assert stored(store) == ["A"]
    assert "POST" in caplog.text
    for text in (repr(settings), store.read_text(), caplog.text, str(error.value), repr(error.value)):
        assert "sk-" not in text and "Secret" not in text


@pytest.mark.parametrize("key", ["sk-Secret\n", "sk-Secret two", "sk-Secreté"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(endpoint: FakeEndpoint, store: Path, key: str) -> None:
    with pytest.raises(UserError, match="the key cannot be sent; allowed: visible ASCII characters") as error:
        texts(ask_endpoint(ROWS, settings_of(endpoint, key=key), store))
    assert "Secret" not in str(error.value)
    assert endpoint.requests == []


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_status_that_may_pass_is_tried_again(endpoint: FakeEndpoint, store: Path, status: int) -> None:
    replies = iter([(status, {}, b"busy"), good("A")])
    endpoint.reply = lambda prompt: next(replies)
    delays: list[float] = []
    answers = ask_endpoint(ROWS[:1], settings_of(endpoint), store, lambda stopped, delay_s: delays.append(delay_s))
    assert texts(answers) == {3: "A"}
    assert delays == [0.5]
    assert len(endpoint.requests) == 2


def test_waits_double_up_to_half_a_minute_and_end_with_the_last_reason(endpoint: FakeEndpoint, store: Path) -> None:
    endpoint.reply = lambda prompt: (503, {}, b"<p>\r\n  over\x1bloaded</p>" + b"!" * 1000)
    delays: list[float] = []
    settings = settings_of(endpoint, max_retries=8)
    with pytest.raises(UserError) as error:
        texts(ask_endpoint(ROWS[:1], settings, store, lambda stopped, delay_s: delays.append(delay_s)))
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert str(error.value) == (
        f"{endpoint.address}: row_id 3: HTTP 503 <p> over loaded</p>{'!' * 181}, at attempt 9;"
        f" 0 of 1 rows are done and kept in {store}; run again to continue"
    )


@pytest.mark.parametrize(
    ("value", "delay_s"),
    [
        ("7", 7.0),
        ("2.5", 2.5),
        ("0", 0.5),
        ("120", 30.0),
        ("9" * 400, 30.0),
        ("Thu, 01 Jan 2099 00:00:00 GMT", 30.0),
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
    assert texts(ask_endpoint(ROWS[:1], settings_of(endpoint), store, lambda _, wait_s: delays.append(wait_s))) == {
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
        texts(ask_endpoint(ROWS, settings_of(endpoint, num_parallel=1), store, no_wait))
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
        texts(ask_endpoint(ROWS[1:2], settings_of(endpoint), store, no_wait))
    start = f"{endpoint.address}: row_id 5: no text at choices[0].message.content of the answer"
    assert str(error.value).startswith(start)
    assert ", at attempt 3; 0 of 1 rows are done" in str(error.value)
    assert len(str(error.value)) < len(start) + len(str(store)) + 350
    assert str(error.value).endswith("; a row that never gets an answer must leave the training data")
    assert len({body["seed"] for _, _, body in endpoint.requests}) == len(endpoint.requests) == 3
    assert store.read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("HTTP_PROXY", "ftp://me:s3cret@x", "Unknown scheme for proxy URL"),
        ("HTTP_PROXY", "http://x:abc", "Invalid port: 'abc'"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", "'socksio' package is not installed"),
        ("SSL_CERT_FILE", "/absent.pem", "No such file or directory"),
    ],
)
def test_an_environment_that_the_client_cannot_use_is_one_line_that_names_the_variable(
    endpoint: FakeEndpoint, store: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, fault: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        texts(ask_endpoint(ROWS, settings_of(endpoint), store))
    assert fault in str(error.value) and f"{name}={value.replace('me:s3cret', '***')}" in str(error.value)
    assert "s3cret" not in str(error.value) and "\n" not in str(error.value)


def test_a_broken_answer_and_then_a_whole_one_is_an_answer(endpoint: FakeEndpoint, store: Path) -> None:
    replies = iter([(200, {}, b'{"choices"'), (200, {"Content-Encoding": "gzip"}, b"no gzip"), good("A")])
    endpoint.reply = lambda prompt: next(replies)
    assert texts(ask_endpoint(ROWS[:1], settings_of(endpoint), store, no_wait)) == {3: "A"}


def test_text_is_kept_as_it_is_but_for_what_rows_cannot_hold(endpoint: FakeEndpoint, store: Path) -> None:
    endpoint.reply = lambda prompt: good(" é\u2028\U0001f600\n", "length")
    assert texts(ask_endpoint(ROWS[:1], settings_of(endpoint), store)) == {3: " é\u2028\U0001f600\n"}
    endpoint.reply = lambda prompt: good("a\0b\ud83d")
    assert texts(ask_endpoint(ROWS[:2], settings_of(endpoint), store)) == {
        3: " é\u2028\U0001f600\n",
        5: "a\ufffdb\ufffd",
    }
    cut = [json.loads(line)["is_cut"] for line in store.read_text().splitlines()]
    assert cut == [True, False]
    again = dict(ask_endpoint(ROWS[:2], settings_of(endpoint), store))
    assert [again[row_id].is_cut for row_id in (3, 5)] == [True, False]
