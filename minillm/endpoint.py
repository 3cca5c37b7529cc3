"""A black-box teacher's responses from an OpenAI-compatible endpoint, for the method seqkd."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from minillm.answer_store import AnswerStore, stored_answers
from minillm.dataset import Answer, Example
from minillm.digests import digest
from minillm.errors import UserError

Wait = Callable[[threading.Event, float], object]
"""Waits the given seconds, or until the event is set."""

_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0
_PASSING_STATUS = {408, 409, 429}  # of the 4xx, those that say "later"; every 5xx does
_EXCERPT_CHARACTERS = 200
# What the client reads of the environment.
_VARIABLES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint and how to ask it.

    address: up to and including /v1. model: its name there.
    key: sent as a Bearer token and shown nowhere; empty = none.
    temperature, top_p, max_tokens: sent as they are.
    num_parallel: requests at a time. max_retries: of one request, after its first attempt.
    timeout_s: of connecting, and of each wait for data.
    seed: from it and the prompt comes the seed of each request.
    """

    address: str
    model: str
    key: str = field(repr=False)
    temperature: float
    top_p: float
    max_tokens: int
    num_parallel: int
    max_retries: int
    timeout_s: float
    seed: int


def ask_endpoint(
    rows: Sequence[Example], settings: Endpoint, store_path: Path, wait: Wait = threading.Event.wait
) -> Iterator[tuple[int, Answer]]:
    """Yield row_id and answer of every row: those of the store first, then the others as they are answered.

    Rows of the same prompt share one answer. An answer is in the store, on disk, before it is yielded; after an error
    or a kill, the next call asks only for what the store lacks. Raises UserError when a request stays without answer.
    """
    questions = _questions(rows, settings)
    store = AnswerStore(store_path, stored_answers(store_path, {question.key for question in questions}))
    missing = [question for question in questions if question.key not in store.answers]
    for question in questions:
        if question.key in store.answers:
            yield from ((row_id, store.answers[question.key]) for row_id in question.row_ids)
    try:
        for question in _answered(missing, _Session(settings, _client(settings), store, wait)):
            yield from ((row_id, store.answers[question.key]) for row_id in question.row_ids)
    except _RequestFault as fault:
        num_done = sum(len(question.row_ids) for question in questions if question.key in store.answers)
        raise UserError(
            f"{settings.address}: {fault}; {num_done} of {len(rows)} rows are done and kept in {store_path};"
            f" {fault.advice}"
        ) from None


class _RequestFault(Exception):
    """Why a request has no answer; `may_pass`: asking again can help, though not before `retry_after_s`."""

    advice = "run again to continue"

    def __init__(self, reason: str, may_pass: bool, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.retry_after_s = retry_after_s


class _NoText(_RequestFault):
    """An answer without text: the same request may give it again, so that the next one has another seed."""

    advice = "run again to continue; a row that never gets an answer must leave the training data"


@dataclass(frozen=True)
class _Question:
    """A request, what the store knows it by, and the rows that its answer serves."""

    key: str
    body: dict[str, Any]
    row_ids: list[int]


def _questions(rows: Sequence[Example], settings: Endpoint) -> list[_Question]:
    """Return the distinct requests in the order of their first rows."""
    questions: dict[str, _Question] = {}
    for row in rows:
        body = _body(row, settings)
        key = digest([_url(settings), body]).hex()
        questions.setdefault(key, _Question(key, body, [])).row_ids.append(row.row_id)
    return list(questions.values())


def _body(row: Example, settings: Endpoint) -> dict[str, Any]:
    """Return the JSON of a request; its seed hangs on the prompt, not on the row's place, which other rows move."""
    prompt = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    return {
        "model": settings.model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens,
        "seed": _request_seed(settings.seed, prompt),
    }


def _request_seed(*key: int | str) -> int:
    return int.from_bytes(digest(list(key))[:4], "big") >> 1  # 31 bits: some servers take no more


def _url(settings: Endpoint) -> str:
    return f"{settings.address.rstrip('/')}/chat/completions"


def _client(settings: Endpoint) -> httpx.Client:
    if not (settings.key.isascii() and settings.key.isprintable() and " " not in settings.key):
        raise UserError(
            f"{settings.address}: the key cannot be sent; allowed: visible ASCII characters, no white space"
        )
    headers = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
    limits = httpx.Limits(max_connections=settings.num_parallel, max_keepalive_connections=settings.num_parallel)
    try:
        return httpx.Client(headers=headers, timeout=settings.timeout_s, limits=limits, follow_redirects=False)
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:  # what the environment says cannot be used
        given = " ".join(
            f"{name}={_without_user(value)}" for name, value in os.environ.items() if name.upper() in _VARIABLES
        )
        raise UserError(
            f"{settings.address}: {_excerpt(_without_user(str(error)), settings)}; by the environment: {given};"
            " allowed: http:// or https:// proxies, readable certificates"
        ) from None


def _without_user(value: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", value)


@dataclass(frozen=True)
class _Session:
    """What the requests of one call share; `stopped` ends their waits and keeps others from starting."""

    settings: Endpoint
    client: httpx.Client
    store: AnswerStore
    wait: Wait
    stopped: threading.Event = field(default_factory=threading.Event)


def _answered(questions: Sequence[_Question], session: _Session) -> Iterator[_Question]:
    """Yield the questions as their answers are stored; when one fails, those in flight still end and are stored."""
    pool = ThreadPoolExecutor(session.settings.num_parallel, thread_name_prefix="endpoint")
    is_leaving = False
    try:
        for future in as_completed([pool.submit(_ask, question, session) for question in questions]):
            question = future.result()
            if question is not None:
                yield question
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        is_leaving = True  # there are seconds to end in; answers still in flight are stored by their threads
        raise
    finally:
        session.stopped.set()
        pool.shutdown(wait=not is_leaving, cancel_futures=True)
        if not is_leaving:
            session.client.close()


def _ask(question: _Question, session: _Session) -> _Question | None:
    """Return the question once its answer is stored; None, and nothing is stored, when another has failed before."""
    try:
        answer = _answer_with_retries(question, session)
        if answer is None:
            return None
        session.store.append(question.key, answer)
        return question
    except BaseException:
        session.stopped.set()
        raise


def _answer_with_retries(question: _Question, session: _Session) -> Answer | None:
    """Return the answer, or None when the session was stopped before it came."""
    num_retries, body = 0, question.body
    while not session.stopped.is_set():
        try:
            return _answer(body, session)
        except _RequestFault as fault:
            if not fault.may_pass or num_retries == session.settings.max_retries:
                reason = f"row_id {question.row_ids[0]}: {fault}, at attempt {num_retries + 1}"
                raise type(fault)(reason, may_pass=False) from None
            if isinstance(fault, _NoText):
                body = {**body, "seed": _request_seed(body["seed"], num_retries)}
            delay_s = max(_FIRST_DELAY_S * 2**num_retries, fault.retry_after_s)
            session.wait(session.stopped, min(delay_s, _MAX_DELAY_S))
            num_retries += 1
    return None


def _answer(body: Mapping[str, Any], session: _Session) -> Answer:
    """Return the answer of one attempt; raises _RequestFault."""
    settings = session.settings
    try:
        response = session.client.post(_url(settings), json=body)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:  # UnicodeError: no such host name
        raise _RequestFault(f"not an address: {_excerpt(str(error), settings)}", may_pass=False) from None
    except httpx.RequestError as error:
        reason = f"{type(error).__name__} {_excerpt(str(error), settings)}".strip()
        raise _RequestFault(reason, may_pass=True) from None
    if response.is_success:
        return _answer_in(response, settings)
    reason = f"HTTP {response.status_code} {_excerpt(response.text, settings)}".strip()
    if response.has_redirect_location:
        reason += f" (redirect to {_excerpt(response.headers['location'], settings)}, not followed)"
    may_pass = response.status_code in _PASSING_STATUS or response.is_server_error
    raise _RequestFault(reason, may_pass, _retry_after_s(response))


def _answer_in(response: httpx.Response, settings: Endpoint) -> Answer:
    try:
        choice = response.json()["choices"][0]
        content, finish_reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, RecursionError):
        content = finish_reason = None
    if not isinstance(content, str) or not content.strip():
        excerpt = _excerpt(response.text, settings)
        raise _NoText(f"no text at choices[0].message.content of the answer {excerpt}", may_pass=True)
    return Answer(_encodable(content), is_cut=finish_reason == "length")


def _encodable(text: str) -> str:
    """Return a text without NUL and unpaired surrogates, which JSON can hold and rows cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def _retry_after_s(response: httpx.Response) -> float:
    """Return the wait that the server asks for, in seconds or up to a date; 0 when it asks for none."""
    value = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return float(value)
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def _excerpt(text: str, settings: Endpoint) -> str:
    """Return the start of a text in one printable line, without the key, which a server may repeat."""
    hidden = text.replace(settings.key, "***") if settings.key else text
    line = " ".join("".join(c if c.isprintable() else " " for c in hidden).split())
    return line[:_EXCERPT_CHARACTERS]
