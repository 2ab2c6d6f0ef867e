"""Base models, and the one interface behind which their families differ.

from utils.bases import load_pipeline, open_base
"""

from typing import Any

_OPENERS = ("as_base", "check_base", "load_pipeline", "open_base")


def __getattr__(name: str) -> Any:
    """The openers of utils/bases/families.py, which imports torch, when one is asked for."""
    if name not in _OPENERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from utils.bases import families

    return getattr(families, name)
