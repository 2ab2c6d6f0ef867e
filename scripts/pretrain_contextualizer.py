"""Pre-train the contextualizer of masked language modelling, which --mlm_weight needs, for a base.

python -m scripts.pretrain_contextualizer --base toon

On the prompts of scripts.context_prompts about common words, and on captions where there are any. When
interrupted, it goes on where it was. Ends with its accuracy on held-out prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.toon.world.captions import caption
from scripts.toon.world.world import sample_scene
from utils.bases.registry import Base, base_row
from utils.common.errors import UserError, exit_on_user_error
from utils.common.files import check_writable_folder, read_lines
from utils.common.flags import check_fields, option, parse, seed_option
from utils.losses.pretraining_prompts import (
    HELD_OUT,
    PUBLISHED,
    Draw,
    Recipe,
    caption_source,
    is_held_out,
)

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

RECIPES = {"toon": Recipe(2400, 64, 1.5e-3, 100)}
CAPTIONS: dict[str, Callable[[random.Random], str]] = {"toon": lambda rng: caption(sample_scene(rng), rng)}


@dataclass(frozen=True)
class Config:
    base: str = option("toon", "base model: a name, a folder or a Hub id")
    captions: str | None = option(None, "text file with a caption in every line, e.g. COCO's")
    steps: int | None = option(None, "steps (default: the base's, else the published 100,000)", minimum=1)
    seed: int = seed_option("seed of every draw")
    output_dir: str | None = option(None, "folder (default: where --mlm_weight looks for it)")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.captions is not None and len({is_held_out(line) for line in captions_in(self.captions)}) < 2:
            raise UserError(
                f"--captions {self.captions} has too few lines to keep one in {HELD_OUT} for the accuracy: "
                "give more, or leave it out"
            )
        if self.output_dir is not None:
            check_writable_folder(self.output_dir, "output_dir")

    @property
    def row(self) -> Base:
        return base_row(self.base)

    @property
    def recipe(self) -> Recipe:
        recipe = RECIPES.get(self.row.name, PUBLISHED)
        return Recipe(self.steps or recipe.steps, recipe.batch, recipe.rate, recipe.warmup)

    @property
    def source(self) -> Draw | None:
        """The captions: those of the file, else the base's, else none."""
        if self.captions is not None:
            lines = captions_in(self.captions)
            return caption_source(lambda rng: rng.choice(lines))
        draw = CAPTIONS.get(self.row.name)
        return caption_source(draw) if draw else None


@cache
def captions_in(file: str) -> list[str]:
    """The lines of a captions file that are not blank. Raises UserError as `read_lines` does."""
    return list(read_lines(Path(file), "captions file", "caption").values())


def read_text_encoder(row: Base, device: torch.device) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Float32, frozen. Raises UserError for damaged files and for a base with several text encoders."""
    from utils.bases.families import family_of, open_part

    tokenizer, *others = family_of(row.path).tokenizers(row.path)
    if others:
        raise UserError(f"base {row.name} has {1 + len(others)} text encoders; a contextualizer reads one")
    return open_part("text_encoder", row.path).to(device).eval().requires_grad_(False), tokenizer


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    from utils.bases.pretrained import check_named_base

    check_named_base(config.base)
    import torch

    from utils.bases.families import check_base
    from utils.losses.contextualizer import folder_of, save_contextualizer, show_mask_row, text_digest
    from utils.losses.mlm import Masker
    from utils.losses.pretraining import accuracy, build, fit

    row, recipe, captions = config.row, config.recipe, config.source
    check_base(row.path)
    folder = Path(config.output_dir) if config.output_dir else folder_of(row)
    text_encoder, tokenizer = read_text_encoder(
        row, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    model, masker = build(text_encoder, config.seed), Masker(tokenizer)
    digest = text_digest(text_encoder)
    show_mask_row(text_encoder, model.mask_row, tokenizer.bos_token_id)
    settings = asdict(replace(config, output_dir=None)) | asdict(recipe)
    state = Path("outputs") / "pretrain_contextualizer" / f"{row.name.replace('/', '--')}-{digest}.pt"
    fit(model, text_encoder, masker, captions, recipe, settings, state)
    scores = accuracy(model.eval(), text_encoder, masker, captions, 2000)
    facts = {"base": row.name, "seed": config.seed, "recipe": asdict(recipe), "accuracy": scores}
    save_contextualizer(model, folder, digest, facts)
    for name, score in scores.items():
        print(f"{name:15} {score:.1%} of masked tokens right, on held-out prompts")
    print(f"the contextualizer is in {folder}")


if __name__ == "__main__":
    exit_on_user_error(main)
