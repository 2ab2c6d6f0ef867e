"""How many of a prompt's words the images obey, read off them by the recogniser.

Without --concept: random prompts to the base model, those with three words that its training never held
together apart from the others; then prompts that name parts of an animal, "a photo of a white dog with purple
ears and a red collar", of which the part reader judges the body's colour and each named part; "all" counts
the images in which all of these are right. With --concept: a fixed set of situations, for the class ("a
dog …") on the base model and for the concept ("a <new1> dog …") on the personalised one, with the same seeds;
of two concepts trained together, the second of them a barn, the first before the second in every place.
Only what a prompt states is judged; "all" counts the images that obey every stated word. Likeness is CLIP-I
on the embedded data/toon/clip to the concept's own images: of --portraits for the plain prompt and of those
for the situations, where places and other things keep it low; of two concepts, for the plain prompt of each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.toon.world.prompts import (
    PartPrompt,
    Prompt,
    pair_situations,
    part_prompts,
    random_prompts,
    situations,
)
from scripts.toon.world.world import KINDS
from utils.common.errors import UserError, exit_on_user_error
from utils.common.files import check_writable_folder, write_json
from utils.common.flags import check_fields, option, parse

if TYPE_CHECKING:  # imported inside the functions, so that flags are answered before torch loads
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    from utils.config.concepts import Concept

CLIP = Path("data/toon/clip")
Shares = dict[str, tuple[float, int]]  # what is judged -> (share of images that are right, of how many)


def draw(
    pipeline: StableDiffusionPipeline,
    texts: list[str],
    per_prompt: int,
    grid: Path,
    **settings: float,
) -> list[Image.Image]:
    """`per_prompt` images of each text, one text's after the other's; the first ones also in `grid`.
    settings: of utils.sampling.sample."""
    from tqdm import tqdm

    from utils.sampling.grids import save_grid
    from utils.sampling.images import sample

    repeated = [text for text in texts for _ in range(per_prompt)]
    seeds = [1000 * i + j for i in range(len(texts)) for j in range(per_prompt)]
    drawn = sample(pipeline, repeated, seeds, **settings)
    images = list(tqdm(drawn, grid.stem, total=len(repeated)))
    shown = min(len(texts), 24)
    grid.parent.mkdir(parents=True, exist_ok=True)
    save_grid(images[: shown * per_prompt], texts[:shown], grid)
    return images


def obeyed(prompts: list[Prompt], per_prompt: int, images: list[Image.Image]) -> Shares:
    """attribute -> (share of images that obey it, number of images whose prompt states it)."""
    from scripts.toon.models.recogniser import Recogniser

    asked = [facts for _, facts in prompts for _ in range(per_prompt)]
    read = Recogniser().read(images)
    return shares_of(
        {name: its[name] == value for name, value in facts.items()}
        for facts, its in zip(asked, read, strict=True)
    )


def parts_obeyed(prompts: list[PartPrompt], per_prompt: int, images: list[Image.Image]) -> Shares:
    """The same of "body" and each named part, read by the part reader."""
    from scripts.toon.models.part_reader import PartReader, parts_of, right_parts

    asked = [prompt for prompt in prompts for _ in range(per_prompt)]
    verdicts = [
        (prompt, right_parts(read, parts_of(prompt.look)))
        for prompt, read in zip(asked, PartReader().read(images), strict=True)
    ]
    return shares_of({part: right[part] for part in ("body", *prompt.named)} for prompt, right in verdicts)


def shares_of(verdicts: Iterable[dict[str, bool]]) -> Shares:
    """The share of each thing judged in some of the images, and of "all" that is judged in an image."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for right in verdicts:
        for name, hit in (right | {"all": all(right.values())}).items():
            hits[name].append(hit)
    return {name: (sum(h) / len(h), len(h)) for name, h in hits.items()}


def trained_concepts(folder: Path) -> list[Concept]:
    """The concepts in a folder that train_classdiffusion.py wrote: one with a class of toon, or one and a
    barn. Raises UserError for others."""
    from utils.config.train_config import read_config

    if not (folder / "training_config.json").is_file():
        raise UserError(f"{folder} holds no training_config.json; give a folder of train_classdiffusion.py")
    concepts = read_config(folder / "training_config.json")[0].concepts()
    kinds = [str(concept.cls_token) for concept in concepts]
    if kinds[0] not in KINDS or kinds[1:] not in ([], ["barn"]):
        raise UserError(
            f"{folder} has the classes {', '.join(kinds)}; "
            f"give one concept of {', '.join(KINDS)}, or one of these and a barn"
        )
    return concepts


def trained_concept(folder: Path) -> Concept:
    """The one concept in such a folder. Raises UserError for two."""
    concepts = trained_concepts(folder)
    if len(concepts) > 1:
        raise UserError(f"{folder} has {len(concepts)} concepts; give one of one concept")
    return concepts[0]


@dataclass(frozen=True)
class Flags:
    """The flags of this command."""

    base: str = option("data/toon/sd", "base model")
    concept: Path | None = option(None, "a trained concept with its class, or two, the second a barn")
    prompts: int | None = option(None, "random prompts of each sort (default: 240)", minimum=1)
    prompt_set: str | None = option(
        None, "seed of the random prompts (default: prompt-accuracy): settings are chosen on another"
    )
    images: int | None = option(None, "images per prompt (default: 1, with --concept 4)", minimum=1)
    portraits: int | None = option(
        None,
        "with --concept: images of the plain prompt, for their likeness (default: 16)",
        minimum=1,
    )
    num_inference_steps: int = option(50, "denoising steps", minimum=1)
    guidance_scale: float = option(3.0, "weight of the prompt", minimum=0)
    batch_size: int = option(16, "images at a time", minimum=1)
    output_dir: Path = option(Path("outputs/prompt_accuracy"), "folder of the numbers and grids")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("prompts", "prompt_set"):
            if self.concept and getattr(self, name) is not None:
                raise UserError(
                    f"--{name} has no effect with --concept, whose prompts are fixed: leave it out"
                )
        if not self.concept and self.portraits is not None:
            raise UserError("--portraits has no effect without --concept: leave it out")

    @property
    def settings(self) -> dict[str, float]:
        """How images are drawn, for utils.sampling.images.sample."""
        names = ("num_inference_steps", "guidance_scale", "batch_size")
        return {name: getattr(self, name) for name in names}


def judge(
    config: Flags, pipeline: StableDiffusionPipeline, name: str, prompts: list[Prompt], per_prompt: int
) -> tuple[Shares, list[Image.Image]]:
    """The shares that `obeyed` counts, which are printed too, and the images."""
    texts = [text for text, _ in prompts]
    drawn = draw(pipeline, texts, per_prompt, config.output_dir / f"{name}.png", **config.settings)
    return report(name, obeyed(prompts, per_prompt, drawn)), drawn


def judge_parts(config: Flags, pipeline: StableDiffusionPipeline, prompts: list[PartPrompt]) -> Shares:
    """The shares that `parts_obeyed` counts, which are printed too."""
    texts, per_prompt = [prompt.text for prompt in prompts], config.images or 1
    drawn = draw(pipeline, texts, per_prompt, config.output_dir / "named-parts.png", **config.settings)
    return report("named parts", parts_obeyed(prompts, per_prompt, drawn))


def report(name: str, shares: Shares) -> Shares:
    """The shares, printed."""
    line = ", ".join(f"{attribute} {share:.1%} (n={n})" for attribute, (share, n) in shares.items())
    print(f"{name}: {line}", flush=True)
    return shares


def judge_base(config: Flags, pipeline: StableDiffusionPipeline) -> dict[str, Any]:
    """Random prompts whose triples training held, those whose triples it never held together, and those that
    name parts."""
    results: dict[str, Any] = {}
    seed, count = config.prompt_set or "prompt-accuracy", config.prompts or 240
    for name, held_out in (("seen", False), ("held out", True)):
        prompts = random_prompts(seed, count, held_out)
        file = name.replace(" ", "-")
        results[name] = judge(config, pipeline, file, prompts, config.images or 1)[0]
    results["named parts"] = judge_parts(config, pipeline, part_prompts(f"{seed}/parts", count))
    return results


class Likeness:
    """CLIP-I on the embedded data/toon/clip to a concept's own images."""

    def __init__(self, config: Flags, concept: Concept):
        from utils.common.images import list_images, open_image
        from utils.scores.encoders import ClipEncoder

        self.settings, self.clip = config.settings, ClipEncoder(CLIP, "cpu")
        self.portraits = config.portraits or 16
        self.real = self.clip.image_features(map(open_image, list_images(concept.instance_data_dir)[0]))

    def of(self, images: list[Image.Image]) -> float:
        from utils.scores.similarity import clip_i

        return clip_i(self.clip.image_features(images), self.real)

    def of_portraits(self, pipeline: StableDiffusionPipeline, subject: str) -> float:
        """Of images for the plain prompt."""
        from utils.sampling.images import sample

        prompts = [f"a photo of a {subject}"] * self.portraits
        return self.of([*sample(pipeline, prompts, range(self.portraits), **self.settings)])


def judge_concept(config: Flags, pipeline: StableDiffusionPipeline, concept: Concept) -> dict[str, Any]:
    """The situations for the class on the base model and for the concept, and the likeness of both."""
    from utils.concepts.load import load_concept

    likeness, kind = Likeness(config, concept), concept.cls_token
    results: dict[str, Any] = {}
    for name, subject in (("class", kind), ("concept", f"{concept.modifier_token} {kind}")):
        if name == "concept":
            load_concept(pipeline, config.concept)
        results[name], drawn = judge(config, pipeline, name, situations(kind, subject), config.images or 4)
        results[f"{name} likeness"] = likeness.of_portraits(pipeline, subject)
        results[f"{name} likeness in situations"] = likeness.of(drawn)
    for measure in ("likeness", "likeness in situations"):
        line = ", ".join(f"{name} {results[f'{name} {measure}']:.3f}" for name in ("class", "concept"))
        print(f"{measure}: {line}")
    return results


def judge_pair(
    config: Flags, pipeline: StableDiffusionPipeline, first: Concept, barn: Concept
) -> dict[str, Any]:
    """The first concept before the second, for their classes on the base model and for both of them, and the
    likeness of each alone."""
    from utils.concepts.load import load_concept

    likeness = [Likeness(config, concept) for concept in (first, barn)]
    kinds = (first.cls_token, "barn")
    named = tuple(f"{concept.modifier_token} {concept.cls_token}" for concept in (first, barn))
    results: dict[str, Any] = {}
    for name, subjects in (("class", kinds), ("concept", named)):
        if name == "concept":
            load_concept(pipeline, config.concept)
        prompts = pair_situations(kinds[0], *subjects)
        results[name] = judge(config, pipeline, name, prompts, config.images or 4)[0]
        alone = [its.of_portraits(pipeline, subject) for its, subject in zip(likeness, subjects, strict=True)]
        results[f"{name} likeness"] = alone
        print(f"{name} likeness: {alone[0]:.3f} and {alone[1]:.3f}")
    return results


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    from utils.bases.families import check_base, load_pipeline
    from utils.sampling.settings import check_steps

    check_base(config.base)
    check_steps(config.num_inference_steps, config.base)
    check_writable_folder(config.output_dir, "output_dir")
    concepts = trained_concepts(config.concept) if config.concept else []
    pipeline = load_pipeline(config.base)
    judges = (judge_base, judge_concept, judge_pair)  # of no concept, one and two
    results = judges[len(concepts)](config, pipeline, *concepts)
    write_json(config.output_dir / "accuracy.json", results)
    print(f"numbers and images are in {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)
