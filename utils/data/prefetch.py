"""The next batch, drawn in a thread while the current step runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Calls `draw(position)`, and starts `draw(position + 1)` in a thread at once.

    draw: a function of the position alone, so that what was drawn early is what would have been drawn late.
    What it raises is raised here, at its own position.
    """

    def __init__(self, draw: Callable[[int], T]):
        self.draw, self.thread = draw, ThreadPoolExecutor(1, "next batch")
        self.coming: tuple[int, Future[T]] | None = None

    def __call__(self, position: int) -> T:
        expected, drawn = self.coming or (None, None)
        if drawn is None or expected != position:
            drawn = self.thread.submit(self.draw, position)
        self.coming = position + 1, self.thread.submit(self.draw, position + 1)
        return drawn.result()
