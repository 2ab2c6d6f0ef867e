"""One seed per named draw, so that no draw depends on how many others came before it."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

ITEM_SEEDS: ContextVar[Sequence[int]] = ContextVar("ITEM_SEEDS")  # of the batch that is being learned from


@contextmanager
def items_have_seeds(seeds: Sequence[int]) -> Iterator[None]:
    """Within it modules that draw while they train find a seed for each item of the batch in ITEM_SEEDS."""
    before = ITEM_SEEDS.set(seeds)
    try:
        yield
    finally:
        ITEM_SEEDS.reset(before)


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed for the draw that `parts` name, e.g. seed_of(run_seed, "noise", step, item).

    The first 8 bytes of SHA-256 of repr(parts), halved: the same on every machine and in every process
    (Python's own hash of a string is not). Only plain int and str have a repr that can be relied on.
    """
    assert all(type(part) in (int, str) for part in parts), f"seed parts must be plain int or str: {parts}"
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
