"""`python -m flows.guarded_prefect PORT`: the Prefect server, on loopback unless told otherwise, closed to other sites.

Prefect looks at no Host header, and at no Origin of a WebSocket. A page that is open in a user's browser could drive
it, a worker included, by a name of its own that resolves to 127.0.0.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
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
    """An ASGI application that passes on what is sent to a name of ours by our own page, or by no page at all."""

    def __init__(self, application: Application, page_port: int, names: Collection[str] = _LOOPBACK_NAMES) -> None:
        self._application = application
        self._page_port = page_port
        self._names = names

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it with 403."""
        if scope["type"] == "lifespan" or is_own(scope["headers"], self._page_port, self._names):
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


def is_own(headers: Iterable[tuple[bytes, bytes]], page_port: int, names: Collection[str] = _LOOPBACK_NAMES) -> bool:
    """Return whether a request names a host of ours (any port: it may come through a tunnel) and no other origin."""
    texts = [(name.lower(), value.decode("latin-1")) for name, value in headers]
    hosts = [value for name, value in texts if name == b"host"]
    origins = [value for name, value in texts if name == b"origin"]
    return len(hosts) == 1 and _name(hosts[0]) in names and set(origins) <= set(own_origins(page_port))


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def main(arguments: list[str] | None = None) -> None:
    """Serve until a signal ends the process, as `prefect server start` does."""
    parser = argparse.ArgumentParser(prog="python -m flows.guarded_prefect")
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default=LOOPBACK_HOST, help="the address to listen on")
    parser.add_argument("--name", action="append", default=[], help="one more name that clients may call us by")
    parser.add_argument("--page-port", type=int, help="the port in a browser's address, when it is another")
    options = parser.parse_args(arguments)
    serve(options.port, options.host, options.page_port or options.port, (*_LOOPBACK_NAMES, *options.name))


def serve(port: int, host: str, page_port: int, names: Collection[str]) -> None:
    """Serve at an address until a signal ends the process."""
    import uvicorn
    from prefect.server.api.server import create_app

    application = OwnPagesOnly(create_app(final=True), page_port, names)
    uvicorn.run(application, host=host, port=port, log_level="warning")


if __name__ == "__main__":
    main()
