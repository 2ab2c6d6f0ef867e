"""What a LoRA of a K/V concept loses by its rank, on toon: its size, energy kept, words obeyed, likeness.

python -m scripts.toon.rank_table ckpt/dog

Every rank is exported as `python -m scripts.export --format lora` does, read by `load_concept`, and draws the
situations of scripts/toon/prompt_accuracy.py with the exact concept's seeds. Its images are compared with
the exact ones pair by pair: means with 95 % bootstrap intervals over the images. Energy kept is 1 minus the
squared relative error of the stored numbers over all layers; DINO-I is the mean over the concept's images.
"""

from __future__ import annotations

import tempfile
from contextlib import redirect_stdout
from dataclasses import MISSING, dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.bases.registry import BASES
from utils.errors import UserError, exit_on_user_error
from utils.files import check_writable_folder, write_json, write_text
from utils.flags import check_fields, option, parse

if TYPE_CHECKING:
    from PIL import Image

RANKS = (1, 2, 4, 8, 16, 32, 64)
DINO = BASES["toon"].judges["dino"]
HEAD = "| rank | MB | energy kept | words obeyed | against exact | DINO-I | against exact |\n|" + "---|" * 7


@dataclass(frozen=True)
class Flags:
    """The flags of this command."""

    concept: Path = option(MISSING, "a concept with K/V, one token and its class", positional=True)
    rank: tuple[int, ...] = option((), f"repeatable (default: {RANKS})", minimum=1)
    images: int = option(1, "images per prompt", minimum=1)
    num_inference_steps: int = option(25, "denoising steps", minimum=1)
    guidance_scale: float = option(3.0, "weight of the prompt", minimum=0)
    batch_size: int = option(13, "images at a time", minimum=1)
    output_dir: Path = option(Path("outputs/rank_table"), "folder of the table")

    def __post_init__(self) -> None:
        check_fields(self)
        if len(set(self.rank)) < len(self.rank):
            raise UserError("--rank is given twice with one value: name each once")

    @property
    def settings(self) -> dict[str, float]:
        """How images are drawn, for utils.sampling.images.sample."""
        names = ("num_inference_steps", "guidance_scale", "batch_size")
        return {name: getattr(self, name) for name in names}


def export_rank(concept: Path, folder: Path, rank: int) -> tuple[float, float]:
    """Write a LoRA of this rank into a new folder; (its MB, the energy that it keeps)."""
    from scripts.export import main as export
    from utils.concepts.lora import read_metadata

    with redirect_stdout(StringIO()):
        export([str(concept), str(folder), "--format=lora", f"--rank={rank}"])
    file = folder / f"{concept.stem}_lora.safetensors"
    return file.stat().st_size / 1e6, 1 - read_metadata(file)["error"] ** 2


def measured(images: list[Image.Image], prompts: list[Any], each: int, real: Any) -> dict[str, list[float]]:
    """For every image: whether it obeys all words of its prompt, and its DINO-I to the real images."""
    from scripts.toon.recogniser import Recogniser
    from utils.scores.encoders import DinoEncoder

    facts = [stated for _, stated in prompts for _ in range(each)]
    read = Recogniser().read(images)
    words = [float(all(r[k] == v for k, v in f.items())) for r, f in zip(read, facts, strict=True)]
    features = DinoEncoder(DINO, "cpu").image_features(images)  # (N, D)
    return {"words": words, "dino_i": (features @ real.T).mean(dim=1).tolist()}


def row(name: str, mb: float, energy: float, found: dict, exact: dict) -> str:
    """A line of the table."""
    from utils.evaluation.statistics import bootstrap

    cells = [name, f"{mb:.3f}", f"{energy:.4f}"]
    for score, shown in (("words", "{:.1%}"), ("dino_i", "{:.3f}")):
        cells.append(shown.format(sum(found[score]) / len(found[score])))
        apart = bootstrap([a - b for a, b in zip(found[score], exact[score], strict=True)])
        cells.append("{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**apart))
    return "| " + " | ".join(cells) + " |"


def table(config: Flags) -> tuple[list[str], dict[str, Any]]:
    """The lines of the table, exact concept first, and all numbers."""
    from scripts.toon.prompt_accuracy import draw, situations, trained_concept
    from utils.bases.sd import load_pipeline
    from utils.concepts.formats import read_concept
    from utils.concepts.load import load_concept
    from utils.images import list_images, open_image
    from utils.scores.encoders import DinoEncoder

    concept = trained_concept(config.concept)
    prompts = situations(concept.cls_token, concept.subject)
    instance_images = [open_image(path) for path in list_images(concept.instance_data_dir)[0]]
    real = DinoEncoder(DINO, "cpu").image_features(instance_images)  # (R, D)
    weights = read_concept(config.concept).weights.values()
    full = max(min(value.shape) for value in weights)
    lines, numbers, exact = [HEAD], {}, None
    with tempfile.TemporaryDirectory() as folder:
        for rank in (None, *(config.rank or [rank for rank in RANKS if rank < full])):
            path, name = config.concept, "exact" if rank is None else str(rank)
            mb, energy = sum(value.numel() for value in weights) * 2 / 1e6, 1.0
            if rank is not None:
                path = Path(folder) / name
                mb, energy = export_rank(config.concept, path, rank)
            pipeline = load_pipeline(BASES["toon"].path, "cpu", "fp32")
            load_concept(pipeline, path)
            grid = config.output_dir / f"rank-{name}.png"
            images = draw(pipeline, prompts, config.images, grid, **config.settings)
            found = measured(images, prompts, config.images, real)
            exact = exact or found
            lines.append(row(name, mb, energy, found, exact))
            numbers[name] = {"mb": mb, "energy": energy} | found
            print(lines[-1], flush=True)
    return lines, numbers


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    check_writable_folder(config.output_dir, "output_dir")
    lines, numbers = table(config)
    write_text(config.output_dir / "ranks.md", "\n".join(lines) + "\n")
    write_json(config.output_dir / "ranks.json", numbers)
    print(f"the table and its images are in {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)
