"""What is drawn while the step before it runs."""

import threading

import pytest

from utils.data.prefetch import Prefetcher


def test_every_position_gets_its_own_and_the_next_is_drawn_meanwhile():
    drawn, second = [], threading.Event()

    def draw(position: int) -> int:
        drawn.append(position)
        if position == 5:
            second.set()
        return 10 * position

    ahead = Prefetcher(draw)
    assert ahead(4) == 40
    assert second.wait(timeout=10), "position 5 is drawn though nobody asked for it yet"
    assert [ahead(5), ahead(6)] == [50, 60]
    assert ahead(9) == 90, "a position out of turn is drawn when it is asked for"
    assert drawn[:3] == [4, 5, 6]
    assert drawn.count(5) == 1


def test_an_error_is_raised_at_its_own_position():
    def draw(position: int) -> int:
        if position == 1:
            raise OSError("image 1 is gone")
        return position

    ahead = Prefetcher(draw)
    assert ahead(0) == 0
    with pytest.raises(OSError, match="image 1 is gone"):
        ahead(1)
