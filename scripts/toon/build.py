"""Train toon's embedded models from nothing, on a CPU or a GPU; seeded, and resumed by the same command.

python -m scripts.toon.build all --compile     # all of them, in their order
python -m scripts.toon.build unet --steps 500  # one of them

Checkpoints are in toon_build/ and outputs/pretrain_contextualizer/: delete them to begin anew.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

from scripts.toon.models.flags import (
    AutoencoderFlags,
    BlipFlags,
    ClipFlags,
    DinoFlags,
    ExamplesFlags,
    MotionFlags,
    PartReaderFlags,
    RecogniserFlags,
    TokenizerFlags,
    TrainingFlags,
    UnetFlags,
    UnetRecipeFlags,
)
from utils.common.errors import exit_on_user_error
from utils.common.subcommands import Subcommand, run_subcommand


@dataclass(frozen=True)
class AllFlags(UnetRecipeFlags):
    """The UNet's flags; work_dir, resolution and seed are those of every model."""


def draw_examples(config: ExamplesFlags) -> None:
    from scripts.toon.world.examples import draw_examples

    draw_examples(config.output_dir, config.resolution)


def model(name: str, flags: type, text: str) -> Subcommand:
    """The command that trains the model of scripts/toon/models/<name>.py, which loads when it runs."""

    def train(config: Any) -> None:
        from utils.bases.devices import without_progress_bars

        with without_progress_bars():
            import_module(f"scripts.toon.models.{name}").train(config)

    return Subcommand(flags, train, text)


def stages(config: AllFlags) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, what to run) of everything that `all` makes, in its order: each needs what stands before it."""
    shared = {each.name: getattr(config, each.name) for each in fields(TrainingFlags)}
    recipe = {each.name: getattr(config, each.name) for each in fields(UnetRecipeFlags)}

    def command(name: str, **given: Any) -> tuple[str, Callable[[], None]]:
        return name, lambda: SUBCOMMANDS[name].run(SUBCOMMANDS[name].config(**given))

    def program(name: str, *words: str) -> tuple[str, Callable[[], None]]:
        return name, lambda: import_module(f"scripts.{name}").main([*words])

    yield command("examples")
    yield command("tokenizer")
    for name in ("autoencoder", "clip", "recogniser", "blip", "dino"):
        yield command(name, **shared)
    yield command("part_reader", **shared, bf16=config.bf16)
    yield command("unet", **recipe)
    yield program("contextualizer", "pretrain", "--base=toon")
    yield program("toon.prompt_accuracy", f"--output_dir={config.work_dir / 'prompt_accuracy'}")
    yield command("motion", **shared)


def build_all(config: AllFlags) -> None:
    for name, run in stages(config):
        print(f"== {name}", flush=True)
        run()


SUBCOMMANDS = {
    "examples": Subcommand(ExamplesFlags, draw_examples, "draw the example concepts of data/"),
    "tokenizer": model("tokenizer", TokenizerFlags, "the byte-pair vocabulary, from the world's captions"),
    "autoencoder": model("autoencoder", AutoencoderFlags, "the AutoencoderKL, or only its decoder"),
    "clip": model("clip", ClipFlags, "the CLIPModel, whose text tower is the pipeline's text encoder"),
    "recogniser": model("recogniser", RecogniserFlags, "the judge that reads attributes off an image"),
    "blip": model("blip", BlipFlags, "the BLIP, which scores how well an image fits a caption"),
    "dino": model("dino", DinoFlags, "the ViTModel that tells individuals apart"),
    "unet": model("unet", UnetFlags, "the UNet, on cached latents; completes the pipeline data/toon/sd"),
    "motion": model("motion", MotionFlags, "the MotionAdapter, through the frozen UNet"),
    "part_reader": model("part_reader", PartReaderFlags, "the judge that reads an animal's parts"),
    "all": Subcommand(
        AllFlags,
        build_all,
        "everything, in order, with the contextualizer and a judgement of the UNet\n\n"
        "--work_dir, --resolution and --seed hold for every model, the other flags for the UNet.",
    ),
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    run_subcommand(SUBCOMMANDS, argv, __doc__, "python -m scripts.toon.build")


if __name__ == "__main__":
    exit_on_user_error(main)
