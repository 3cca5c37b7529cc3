"""`python -m flows.guarded_prefect PORT`: the Prefect server on loopback, closed to the pages of other sites.

Prefect looks at no Host header, and at no Origin of a WebSocket. A page that is open in a user's browser could drive
it, a worker included, by a name of its own that resolves to 127.0.0.1.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

LOOPBACK_HOST = "127.0.0.1"
_LOOPBACK_NAMES = (LOOPBACK_HOST, "localhost")
_POLICY_VIOLATION = 1008  # close code of RFC 6455; before the handshake is done it becomes a 403

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class OwnPagesOnly:
    """An ASGI application that passes on what is sent to a loopback name by our own page, or by no page at all."""

    def __init__(self, application: Application, port: int) -> None:
        self._application = application
        self._port = port

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it with 403."""
        if scope["type"] == "lifespan" or is_own(scope["headers"], self._port):
            await self._application(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"refused: Host or Origin is not this server"})


def _unframed(send: Send) -> Send:
    """Return a `send` that forbids other sites to show our pages in a frame, where a click could be stolen."""

    async def send_message(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-frame-options", b"SAMEORIGIN")]
        await send(message)

    return send_message


def own_origins(port: int) -> list[str]:
    """Return the origins of our own pages as browsers name them."""
    return [f"http://{name}:{port}" for name in _LOOPBACK_NAMES]


def is_own(headers: Iterable[tuple[bytes, bytes]], port: int) -> bool:
    """Return whether a request names a loopback host (any port: it may come through a tunnel) and no other origin."""
    texts = [(name.lower(), value.decode("latin-1")) for name, value in headers]
    hosts = [value for name, value in texts if name == b"host"]
    origins = [value for name, value in texts if name == b"origin"]
    return len(hosts) == 1 and _name(hosts[0]) in _LOOPBACK_NAMES and set(origins) <= set(own_origins(port))


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def main(port: int) -> None:
    """Serve until a signal ends the process, as `prefect server start` does."""
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(OwnPagesOnly(create_app(final=True), port), host=LOOPBACK_HOST, port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]))
