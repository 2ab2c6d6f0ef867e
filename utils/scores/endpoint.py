"""A vision-language model behind an OpenAI-compatible address: POST <base URL>/chat/completions.

The key is the environment's VLM_API_KEY, if it is set. It is sent to that address alone: redirections are
refused, and so is a key over http to another machine. Nothing of it is written or printed.
"""

import base64
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from utils.common.errors import UserError, short

if TYPE_CHECKING:
    from PIL import Image

KEY = "VLM_API_KEY"
TIMEOUT = 180.0  # seconds for one answer, to its last byte
TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 120.0  # seconds between tries; it doubles, or is what the server says
LARGEST = 2**20  # bytes of an answer
TEMPERATURE, TOKENS = 0.7, 512
SENT = "to which each image is sent, with its prompt and up to three of the subject's images"
LATER = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # statuses that pass


class Unanswered(Exception):
    """A try that may succeed later. wait: seconds that the server asks for, if it does."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # an HTTPError of the redirection's own status


class Endpoint:
    """address: `<base URL>#<model>`. as_png: an image's bytes. Sends nothing before it is asked."""

    parallel = 8

    def __init__(self, address: str, as_png: "Callable[[Image.Image], bytes]"):
        self.url, self.model = read_address(address)
        self.name = f"{self.model} at {self.url}"
        self.notice = f"{self.name}, {SENT}"
        self._as_png, self._stopped = as_png, threading.Event()
        self._open = urllib.request.build_opener(_NoRedirect).open

    def answer(self, parts: "Sequence[str | Image.Image]", seed: int) -> str:
        """What the model says to the texts and images. Raises UserError when TRIES tries have failed, and at
        once for what another try does not mend."""
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": [self._part(part) for part in parts]}],
                "temperature": TEMPERATURE,
                "max_tokens": TOKENS,
                "seed": seed,
            }
        ).encode()
        wait = FIRST_WAIT
        for attempt in range(1, TRIES + 1):
            try:
                return self._post(body)
            except Unanswered as reason:
                if attempt == TRIES:
                    raise UserError(
                        f"--vlm {self.name} did not answer in {TRIES} tries ({reason}); the same command "
                        "goes on from here"
                    ) from reason
                self._pause(min(wait if reason.wait is None else reason.wait, LONGEST_WAIT))
                wait *= 2
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Ends the waiting between tries, of all threads."""
        self._stopped.set()

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise UserError("stopped")

    def _part(self, part: "str | Image.Image") -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        encoded = base64.b64encode(self._as_png(part)).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}

    def _post(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        end = time.monotonic() + TIMEOUT
        try:
            with self._open(request, timeout=TIMEOUT) as response:
                content = _read(response, end)
        except urllib.error.HTTPError as error:
            with error:
                said = short(_read(error, end).decode(errors="replace").strip(), 200)
                if error.code in LATER:
                    wait = _retry_after(error.headers.get("Retry-After"))
                    raise Unanswered(f"status {error.code}: {said}", wait) from error
                advice = f"; is {KEY} set and right?" if error.code in (401, 403) else ""
                raise UserError(f"--vlm {self.name}: status {error.code}: {said}{advice}") from error
        except (OSError, http.client.HTTPException) as error:  # no connection, too slow, cut off
            raise Unanswered(str(error) or type(error).__name__) from error
        return _content(content)


def is_address(model: str) -> bool:
    return re.match(r"https?://", model) is not None


def read_address(address: str) -> tuple[str, str]:
    """(base URL, model) of `<base URL>#<model>`. Raises UserError for another form, and where the key would
    go unencrypted to another machine."""
    url, _, model = address.partition("#")
    parts = urlsplit(url)
    if not parts.hostname or not model or parts.query or parts.username or parts.password:
        raise UserError(
            f"--vlm {short(address)} is not <base URL>#<model>, e.g. https://example.org/v1#my-model; the "
            f"key is read from {KEY} of the environment"
        )
    here = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme == "http" and not here and os.environ.get(KEY):
        raise UserError(f"--vlm {short(url)} would get {KEY} unencrypted: give an https address, or unset it")
    return url.rstrip("/"), model


def _read(response: Any, end: float) -> bytes:
    """The body. Raises TimeoutError at `end`, even if bytes still drip in; Unanswered for one too long."""
    content = b""
    while chunk := response.read1(2**14):
        content += chunk
        if time.monotonic() > end:
            raise TimeoutError(f"no whole answer in {TIMEOUT:g} s")
        if len(content) > LARGEST:
            raise Unanswered(f"an answer of more than {LARGEST} bytes")
    return content


def _content(answer: bytes) -> str:
    """The text of a chat completion. Raises Unanswered for anything else."""
    try:
        text = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        said = short(answer.decode(errors="replace"), 100)
        raise Unanswered(f"not a chat completion: {said}") from error
    if not isinstance(text, str):
        raise Unanswered("a chat completion without text")
    return text


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After, which holds a number or a date; None for none and for nonsense."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
