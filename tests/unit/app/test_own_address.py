"""Requests to other names and from other origins are refused before gradio sees them."""

import asyncio
import socket

import pytest

from utils.app.own_address import OwnAddressOnly, is_own, own_names

NAMES = own_names("127.0.0.1")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:7860", None),
        ("127.0.0.1:7860", "http://127.0.0.1:7860"),
        ("localhost:7860", "http://localhost:7860"),
        ("LocalHost:7860", "http://localhost:7860"),
        ("[::1]:7860", "http://[::1]:7860"),
        ("192.168.1.5:7860", "http://192.168.1.5:7860"),
        (f"{socket.gethostname()}:7860", None),
    ],
)
def test_its_own_address_and_pages_are_answered(host: str, origin: str | None):
    headers = {b"host": host.encode()} | ({b"origin": origin.encode()} if origin else {})
    assert is_own(headers, NAMES)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example:7860", None),
        ("evil.example", "http://evil.example"),  # rebound: its own origin, our address
        ("127.0.0.1.evil.example:7860", None),
        ("", None),
        ("[::1", None),
        ("127.0.0.1:7860", "http://evil.example"),
        ("127.0.0.1:7860", "null"),
        ("127.0.0.1:7860", ""),
        ("127.0.0.1:7860", "http://127.0.0.1:8000"),
        ("localhost:7860", "http://localhost.evil.example:7860"),
    ],
)
def test_others_are_not(host: str, origin: str | None):
    headers = {b"host": host.encode()} | ({} if origin is None else {b"origin": origin.encode()})
    assert not is_own(headers, NAMES)


@pytest.mark.parametrize("kind", ["http", "websocket", "lifespan"])
@pytest.mark.parametrize("host", [b"127.0.0.1:7860", b"evil.example"])
def test_the_page_behind_it_is_reached_or_not(kind: str, host: bytes):
    reached, sent = [], []

    async def page(scope, receive, send) -> None:
        reached.append(scope["type"])

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": kind, "headers": [(b"host", host)]}
    asyncio.run(OwnAddressOnly(page, "127.0.0.1")(scope, None, send))
    refused = host == b"evil.example" and kind != "lifespan"
    assert reached == ([] if refused else [kind])
    status = [message.get("status", message.get("code")) for message in sent[:1]]
    assert status == ({"http": [403], "websocket": [1008]}[kind] if refused else [])
