"""A judge behind an address, against a server of this test that misbehaves."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from utils.common.errors import UserError
from utils.scores import endpoint
from utils.scores.endpoint import KEY, Endpoint, read_address
from utils.scores.vlm import as_png, notice

GOOD = json.dumps({"choices": [{"message": {"content": '{"grade": 3}'}}]}).encode()
Behaviour = Callable[[BaseHTTPRequestHandler], None]


def reply(body: bytes = GOOD, status: int = 200, length: int | None = None, **headers: str) -> Behaviour:
    """length: what the server says, if it is not the truth."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def silent(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.6)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """Never too slow for one read."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(12):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


class Server(ThreadingHTTPServer):
    """Behaves as it is told, request by request, then well. asked: (headers, body) of each request."""

    daemon_threads = True

    def __init__(self):
        self.behaviours: list[Behaviour] = []
        self.asked: list[tuple[dict[str, str], dict]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1#eyes"

    def handle_error(self, *_: object) -> None:
        """A client that has gone is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((dict(self.headers), {"path": self.path} | body))
        (self.server.behaviours.pop(0) if self.server.behaviours else reply())(self)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(endpoint, "TIMEOUT", 0.3)
    monkeypatch.delenv(KEY, raising=False)
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def ask(server: Server, *parts: object) -> str:
    return Endpoint(server.address, as_png).answer(parts or ("hello",), seed=5)


def test_a_question_is_one_chat_completion_and_the_key_is_the_environment_s(server, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    image = Image.new("RGB", (2, 2), "red")
    assert ask(server, "look", image) == '{"grade": 3}'
    ((headers, body),) = server.asked
    assert (body["path"], body["model"], body["seed"]) == ("/v1/chat/completions", "eyes", 5)
    text, picture = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "look"}
    assert picture["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "fault",
    [
        silent,
        dripping,
        reply(b"busy", status=429, Retry_After="0"),
        reply(b"", status=503),
        reply(GOOD[:20], length=len(GOOD)),
        reply(b"<html>"),
        reply(b'{"error": "overloaded"}'),
        reply(b'{"choices": [{"message": {"content": null}}]}'),
        reply(b"[" * 10_000),
        reply(b" " * (2**20 + 1)),
    ],
    ids="silent dripping 429 503 cut_off html no_choices no_text nested huge".split(),
)
def test_a_fault_that_passes_is_tried_again(server, fault):
    server.behaviours = [fault, fault]
    assert ask(server) == '{"grade": 3}' and len(server.asked) == 3


def test_the_server_says_when_to_come_back(server, monkeypatch):
    waits = []
    monkeypatch.setattr(Endpoint, "_pause", lambda self, seconds: waits.append(seconds))
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.behaviours = [
        reply(status=429, Retry_After=after) for after in ("7", "100000", date, "soon", "\u00b2")
    ]
    assert ask(server) == '{"grade": 3}'
    assert waits == [7, endpoint.LONGEST_WAIT, 0, 0.008, 0.016]


def test_there_is_an_end_to_trying_and_what_does_not_pass_ends_it_at_once(server, monkeypatch):
    server.behaviours = [reply(b"busy", status=429)] * 20
    with pytest.raises(UserError, match=r"eyes at http.* did not answer in 6 tries \(status 429: busy\)"):
        ask(server)
    assert len(server.asked) == 6
    monkeypatch.setenv(KEY, "secret")
    server.behaviours = [reply(b"no such key", status=401)]
    with pytest.raises(UserError, match="status 401: no such key; is VLM_API_KEY set and right") as refused:
        ask(server)
    assert len(server.asked) == 7 and "secret" not in str(refused.value)


def test_a_judge_that_is_stopped_waits_no_longer(server):
    server.behaviours = [reply(status=429, Retry_After="100")]
    judge = Endpoint(server.address, as_png)
    threading.Timer(0.2, judge.stop).start()
    start = time.monotonic()
    with pytest.raises(UserError, match="stopped"):
        judge.answer(("hello",), seed=0)
    assert time.monotonic() - start < 5


def test_the_key_is_not_carried_to_another_address(server, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    other = Server()
    server.behaviours = [reply(b"", status=302, Location=f"http://127.0.0.1:{other.server_port}/")]
    with pytest.raises(UserError, match="status 302"):
        ask(server)
    assert not other.asked
    other.shutdown()
    other.server_close()
    with pytest.raises(UserError, match="would get VLM_API_KEY unencrypted"):
        read_address("http://example.org/v1#eyes")


def test_an_address_names_a_model_and_holds_no_secret():
    assert read_address("https://example.org/v1/#org/eyes") == ("https://example.org/v1", "org/eyes")
    said = notice("https://example.org/v1#eyes")
    assert (
        said.startswith("eyes at https://example.org/v1, to which each image is sent") and notice("a") is None
    )
    for wrong in ("https://example.org/v1", "https://#eyes", "https://me:pw@example.org#eyes"):
        with pytest.raises(UserError, match="is not <base URL>#<model>"):
            read_address(wrong)
