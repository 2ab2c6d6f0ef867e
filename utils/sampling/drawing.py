"""What a command that draws was asked for, checked against the files before a model loads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.bases.devices import choose_device_dtype
from utils.bases.families import check_base, load_pipeline
from utils.bases.registry import Base, base_row, recorded_name
from utils.common.errors import UserError
from utils.concepts.formats import read_concept
from utils.concepts.load import load_concept
from utils.concepts.weights import ConceptWeights
from utils.sampling.prompts import check_modifier_tokens, check_together, read_prompts, recorded_base
from utils.sampling.settings import DrawingFlags, check_steps

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Drawing:
    """What to draw with. settings: keyword arguments of `sample` or `sample_clips`.

    names: for each of `paths` another name of its only token, or None.
    """

    row: Base
    paths: tuple[Path, ...]
    names: tuple[str | None, ...]
    concepts: list[ConceptWeights]
    prompts: list[str]
    settings: dict[str, Any]
    device: torch.device
    dtype: torch.dtype

    def load(self) -> "DiffusionPipeline":
        """The base with the concepts merged. Raises UserError as `load_concept` does."""
        pipeline = load_pipeline(self.row.path, self.device, self.dtype)
        for path, name in zip(self.paths, self.names, strict=True):
            load_concept(pipeline, path, token=name)
        return pipeline

    @property
    def record(self) -> dict[str, Any]:
        """What a file's metadata says of it."""
        where = {"base": recorded_name(self.row), "concept": " ".join(map(str, self.paths))}
        return self.settings | where | {"dtype": self.dtype}


def prepare(
    config: DrawingFlags,
    paths: tuple[Path, ...],
    default_prompts: Callable[[Sequence[ConceptWeights]], list[str]],
) -> Drawing:
    """The drawing that a command's flags ask for. paths: of the concepts.

    Raises UserError for whatever of it the files contradict; no model is loaded.
    """
    given = read_prompts(config.prompt, config.prompts_file)
    names = names_of(paths, config.token)
    concepts = [read_concept(path, name) for path, name in zip(paths, names, strict=True)]
    check_together(concepts)
    base = config.base or recorded_base(concepts) or "toon"
    check_base(base_row(base).path)  # of a Hub id this fetches what says which row suits it
    row = base_row(base)
    prompts, settings = given or default_prompts(concepts), config.settings(row)
    check_steps(settings["num_inference_steps"], row.path)
    check_modifier_tokens(prompts, row.path, concepts)
    device, dtype = choose_device_dtype(config.device, config.dtype)
    return Drawing(row, paths, names, concepts, prompts, settings, device, dtype)


def names_of(paths: Sequence[Path], tokens: Sequence[str]) -> tuple[str | None, ...]:
    """A token for each concept, None for each where none is given. UserError for another number of them."""
    if tokens and len(tokens) != len(paths):
        raise UserError(
            f"--token is given {len(tokens)} time(s) and --concept {len(paths)}; "
            "name the token of each concept, in order"
        )
    return tuple(tokens) or (None,) * len(paths)
