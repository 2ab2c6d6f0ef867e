"""The contextualizer of masked language modelling, which --mlm_weight needs: its pre-training, its prompts.

python -m scripts.contextualizer pretrain --base toon
python -m scripts.contextualizer prompts --kind pets --type worn --count 20
"""

from __future__ import annotations

import random
import sys
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
from utils.common.flags import check_fields, option, seed_option
from utils.common.subcommands import Subcommand, run_subcommand
from utils.losses.context_prompts import KINDS, TYPES, prompts_of
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
class PretrainFlags:
    base: str = option("toon", "base model: a name, a folder, a .safetensors file or a Hub id")
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


def pretrain(config: PretrainFlags) -> None:
    """Trains it, keeping a checkpoint to go on from, saves it, and prints its accuracy."""
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


@dataclass(frozen=True)
class PromptsFlags:
    kind: str = option("pets", "kind of concept", choices=KINDS)
    type: str = option("relations", "type of prompt", choices=TYPES)
    count: int = option(20, "prompts to print", minimum=1)
    seed: int = seed_option("seed of the choice")
    subject: str = option("<new1> dog", "the concept in the prompts")
    summary: bool = option(False, "print the number of prompts of each kind and type instead")

    def __post_init__(self) -> None:
        check_fields(self)


def summary() -> str:
    """The number of distinct prompts: a line a type, a column a kind."""
    counts = {kind: [len(set(prompts_of(kind, name))) for name in TYPES] for kind in KINDS}
    lines = [" " * 12 + "".join(f"{kind:>8}" for kind in KINDS)]
    for row, name in enumerate(TYPES):
        lines.append(f"{name:12}" + "".join(f"{counts[kind][row]:8,}" for kind in KINDS))
    return "\n".join([*lines, f"{'all':12}" + "".join(f"{sum(counts[kind]):8,}" for kind in KINDS)])


def show_prompts(config: PromptsFlags) -> None:
    if config.summary:
        print(summary())
        return
    prompts = prompts_of(config.kind, config.type)
    chosen = random.Random(config.seed).sample(prompts, min(config.count, len(prompts)))
    print("\n".join(prompt.format(config.subject) for prompt in chosen))


SUBCOMMANDS = {
    "pretrain": Subcommand(
        PretrainFlags,
        pretrain,
        "train a base's contextualizer\n\n"
        "It learns from context-rich prompts about common words, and from captions where there are any.\n"
        "When interrupted, it goes on where it was. It ends with its accuracy on held-out prompts.",
    ),
    "prompts": Subcommand(PromptsFlags, show_prompts, "show the context-rich prompts, or count them"),
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    run_subcommand(SUBCOMMANDS, argv, __doc__, "python -m scripts.contextualizer")


if __name__ == "__main__":
    exit_on_user_error(main)
