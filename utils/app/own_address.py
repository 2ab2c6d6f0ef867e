"""Whom the page answers: requests to its own address that come from its own pages.

A page of another site can send requests here too, from the browser of whoever looks at it: to a name of its
own that it lets point to this machine (DNS rebinding), or as uploads. Both show in the request's headers.
"""

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def own_names(host: str) -> frozenset[str]:
    """The names, besides addresses, under which a page that listens at `host` is reached."""
    return frozenset(name.lower() for name in (host, "localhost", socket.gethostname(), socket.getfqdn()))


def is_own(headers: dict[bytes, bytes], names: frozenset[str]) -> bool:
    """Whether a request is for this page, and from it if it says from where.

    headers: by names in lower case. names: of `own_names`; an address cannot be another site's name.
    """
    host = headers.get(b"host", b"").decode("latin-1").lower()
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name not in names and not _is_address(name):
        return False
    origin = headers.get(b"origin")
    return origin is None or urlsplit(origin.decode("latin-1").lower()).netloc == host


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class OwnAddressOnly:
    """ASGI middleware: answers 403 to every request that is not `is_own`, and closes such a websocket."""

    def __init__(self, app: App, host: str):
        self.app, self.names = app, own_names(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_own(dict(scope["headers"]), self.names):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = b"this page answers requests to its own address, from its own pages, alone\n"
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})
