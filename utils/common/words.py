"""Counts and durations in words."""


def counted(count: int, one: str, many: str | None = None) -> str:
    """'1 subject', '1,152 subjects'."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """'about 40 s', 'about 3 min', 'about 2 h'."""
    if seconds < 90:
        return f"about {max(5, round(seconds / 5) * 5)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {round(seconds / 3600)} h"
