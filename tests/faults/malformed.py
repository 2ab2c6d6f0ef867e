"""Damaged and forged contents, and a check of each of many of them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.shim import survived, tried
from utils.common.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
BYTES = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode())


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with some bytes changed, or cut, or with others put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        kind = draw(st.sampled_from(("flip", "cut", "insert")))
        if kind == "flip" and changed:
            changed[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del changed[at:]
        else:
            changed[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(changed)


@st.composite
def forged(draw: st.DrawFn, value: Any) -> Any:
    """JSON `value` with one of its parts, however deep, replaced by another JSON value or left out."""
    items = list(value.items()) if isinstance(value, dict) else []
    items = list(enumerate(value)) if isinstance(value, list) else items
    if not items or draw(st.integers(0, 3)) == 0:
        return draw(JSON)
    key, inner = draw(st.sampled_from(items))
    copy = value.copy()
    if draw(st.integers(0, 4)) == 0:
        del copy[key]
    else:
        copy[key] = draw(forged(inner))
    return copy


examples = pytest.mark.parametrize("examples", [20, pytest.param(400, marks=pytest.mark.faults)])


def each(name: str, examples: int, strategy: st.SearchStrategy, check: Callable[[Any], None]) -> None:
    """`check` on `examples` values: it returns, or raises a UserError of one line."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(value: Any) -> None:
        tried(f"malformed: {name}")
        try:
            check(value)
        except UserError as error:
            assert "\n" not in str(error) and 0 < len(str(error)) < 2000
        survived(f"malformed: {name}")

    run()
