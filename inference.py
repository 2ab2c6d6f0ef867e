"""Images of a trained concept, or of the base model alone: concept + prompts -> PNG files and a grid.

python inference.py --concept ckpt/concept --prompt "a <new1> dog wearing headphones on the beach"
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.bases.registry import base_row, describe_base, shown
from utils.errors import exit_on_user_error
from utils.flags import option, parse
from utils.sampling.prompts import (
    check_modifier_tokens,
    check_together,
    read_prompts,
    recorded_base,
    subjects_of,
)
from utils.sampling.settings import DrawingFlags, check_steps

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from utils.concepts.formats import ConceptWeights


@dataclass(frozen=True)
class InferenceConfig(DrawingFlags):
    """What to draw, and how. Raises UserError when fields contradict each other."""

    num_images: int = option(4, "images per prompt", minimum=1)
    batch_size: int = option(4, "images at a time", minimum=1)


def main(argv: list[str] | None = None) -> None:
    config = parse(InferenceConfig, argv, __doc__)
    draw(config, read_prompts(config.prompt, config.prompts_file))


def draw(config: InferenceConfig, prompts: list[str]) -> None:
    """Check what only the files can tell, load the base and its concepts, draw.

    Imports what takes seconds, for which a mistaken flag need not wait.
    """
    from utils.bases.devices import choose_device_dtype
    from utils.bases.sd import check_base, load_pipeline
    from utils.concepts.formats import read_concept
    from utils.concepts.load import load_concept

    concepts = [read_concept(path) for path in config.concept]
    check_together(concepts)
    row = base_row(config.base or recorded_base(concepts) or "toon")
    prompts, settings = prompts or default_prompts(concepts), config.settings(row.sampling)
    check_base(row.path)
    check_steps(settings["num_inference_steps"], row.path)
    check_modifier_tokens(prompts, row.path, concepts)
    device, dtype = choose_device_dtype(config.device, config.dtype)

    print(f"{describe_base(row)} on {device}, {dtype}")
    pipeline = load_pipeline(row.path, device, dtype)
    for path in config.concept:
        load_concept(pipeline, path)
    provenance = {"base": shown(row.path), "concept": " ".join(map(str, config.concept)), "dtype": dtype}
    save_images(config, prompts, pipeline, settings, settings | provenance)


def save_images(
    config: InferenceConfig,
    prompts: list[str],
    pipeline: "StableDiffusionPipeline",
    settings: dict,
    record: dict,
) -> None:
    """A PNG per prompt and seed, and the grid of all; each carries its prompt, its seed and `record`."""
    from tqdm import tqdm

    from utils.images import save_png
    from utils.sampling.grids import save_grid, slugs
    from utils.sampling.images import sample

    folder = config.output_dir
    jobs = [(prompt, config.seed + i) for prompt in prompts for i in range(config.num_images)]
    stem_of = dict(zip(prompts, slugs(prompts), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    drawn = sample(pipeline, *zip(*jobs, strict=True), batch_size=config.batch_size, **settings)
    for (prompt, seed), image in zip(jobs, tqdm(drawn, total=len(jobs), unit="image"), strict=True):
        save_png(image, folder / f"{stem_of[prompt]}_{seed}.png", {"prompt": prompt, "seed": seed} | record)
        images.append(image)
    grid = folder / "grid.png"
    save_grid(images, prompts, grid, {"prompt": "\n".join(prompts), "seed": config.seed} | record)
    print(f"{len(images)} images in {folder}, all of them in {grid}")


def default_prompts(concepts: "list[ConceptWeights]") -> list[str]:
    """Likeness first, then whether the concept still obeys a prompt, then the concepts together."""
    subjects = subjects_of(concepts) if concepts else ["dog"]  # the base model alone
    prompts = [f"a photo of a {subject}" for subject in subjects]
    prompts += [f"a {subject} wearing headphones on the beach" for subject in subjects]
    if len(subjects) > 1:
        prompts.append("a " + " in front of a ".join(subjects[:2]))
    return prompts


if __name__ == "__main__":
    exit_on_user_error(main)
