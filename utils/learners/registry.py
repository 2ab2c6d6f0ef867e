"""What can train; a method's stages name these rows.

A learner is a file of this folder, which says all that others must know of it, and its name in NAMES: which
parameters it trains, what it puts in a concept's file, and how that is merged into a plain base.
"""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from utils.common.errors import UserError
from utils.learners.learner import Learner
from utils.learners.names import NAMES

LEARNERS: dict[str, Learner] = {name: import_module(f"utils.learners.{name}").LEARNER for name in NAMES}


def laid_out(names: Iterable[str], layout: str) -> str | None:
    """The first of the learners whose file has this layout, None if there is none."""
    return next((name for name in names if LEARNERS[name].layout == layout), None)


def check_has_text_states(learners: Iterable[str], path: Path | str) -> None:
    """Raises UserError for a concept whose prompts have no text states until the timestep is known."""
    for name in learners:
        if name in LEARNERS and LEARNERS[name].timed:
            raise UserError(
                f"{path} trained {LEARNERS[name].title}: its token means something else at every timestep, "
                "so that there are no text states to read; give another concept"
            )
