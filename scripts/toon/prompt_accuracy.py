"""How many of a prompt's words the images obey, read off them by the recogniser.

Without --concept: random prompts to the base model, those with three words that its training never held
together apart from the others. With --concept: a fixed set of situations, for the class ("a dog …") on the
base model and for the concept ("a <new1> dog …") on the personalised one, with the same seeds.
Only what a prompt states is judged; "all" counts the images that obey every stated word. Likeness is CLIP-I
on the embedded data/toon/clip to the concept's own images: of 16 images for the plain prompt and of those
for the situations, where places and other things keep it low.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.toon.captions import attributes, describe, subject_words, with_article
from scripts.toon.world import KINDS, ONE_CHANGE, TWO_CHANGES, Look, Scene
from utils.errors import UserError, exit_on_user_error
from utils.files import check_writable_folder, write_json
from utils.flags import check_fields, option, parse

if TYPE_CHECKING:  # imported inside the functions, so that flags are answered before torch loads
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    from utils.training.concept import Concept

CLIP = Path("data/toon/clip")
Prompt = tuple[str, dict[str, str]]  # the text, and the attributes that it states


def stated(scene: Scene, colour: bool) -> dict[str, str]:
    """The attributes that a canonical prompt for this scene puts into words."""
    silent = {"place": "plain", "worn": "nothing", "neighbour": "nothing", "pose": "standing"}
    facts = {name: value for name, value in attributes(scene).items() if silent.get(name) != value}
    if not colour:
        facts.pop("colour", None)
    return {name: value for name, value in facts.items() if value is not None}


def random_prompts(seed: str, count: int, held_out: bool) -> list[Prompt]:
    """'a photo of a white dog wearing a hat on the beach', …; every named colour is stated."""
    from scripts.toon.training import scenes

    drawn = scenes(seed, count, held_out)
    texts = [
        with_article(f"a photo of a {describe(scene, subject_words(scene, colour=True))}") for scene in drawn
    ]
    return [(text, stated(scene, colour=True)) for text, scene in zip(texts, drawn, strict=True)]


def situations(kind: str, subject: str) -> list[Prompt]:
    """What the images of the concept never show: places, worn things, neighbours, poses, two at once."""
    plain = Scene(Look(kind, None, (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), None, "none", (0, 0, 0)))
    poses = [{"pose": pose} for pose in ("sitting", "running", "jumping")]
    changes = [*ONE_CHANGE, *poses, *TWO_CHANGES, {"pose": "running", "place": "beach"}]
    drawn = [replace(plain, **change) for change in changes]
    texts = [with_article(f"a photo of a {describe(scene, subject)}") for scene in drawn]
    return [(text, stated(scene, colour=False)) for text, scene in zip(texts, drawn, strict=True)]


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: list[Prompt],
    per_prompt: int,
    grid: Path,
    **settings: float,
) -> list[Image.Image]:
    """`per_prompt` images of each prompt, one prompt's after the other's; the first ones also in `grid`.
    settings: of utils.sampling.sample."""
    from tqdm import tqdm

    from utils.sampling.grids import save_grid
    from utils.sampling.images import sample

    texts = [text for text, _ in prompts for _ in range(per_prompt)]
    seeds = [1000 * i + j for i in range(len(prompts)) for j in range(per_prompt)]
    drawn = sample(pipeline, texts, seeds, **settings)
    images = list(tqdm(drawn, grid.stem, total=len(texts)))
    shown = min(len(prompts), 24)
    grid.parent.mkdir(parents=True, exist_ok=True)
    save_grid(images[: shown * per_prompt], [text for text, _ in prompts[:shown]], grid)
    return images


def obeyed(prompts: list[Prompt], per_prompt: int, images: list[Image.Image]) -> dict[str, tuple[float, int]]:
    """attribute -> (share of images that obey it, number of images whose prompt states it)."""
    from scripts.toon.recogniser import Recogniser

    hits: dict[str, list[bool]] = defaultdict(list)
    for (_, facts), read in zip(
        [p for p in prompts for _ in range(per_prompt)], Recogniser().read(images), strict=True
    ):
        right = {name: read[name] == value for name, value in facts.items()}
        for name, hit in (right | {"all": all(right.values())}).items():
            hits[name].append(hit)
    return {name: (sum(h) / len(h), len(h)) for name, h in hits.items()}


def trained_concept(folder: Path) -> Concept:
    """The one concept with a class word in a folder that train_classdiffusion.py wrote."""
    from utils.training.config import read_config

    if not (folder / "training_config.json").is_file():
        raise UserError(f"{folder} holds no training_config.json; give a folder of train_classdiffusion.py")
    concepts = read_config(folder / "training_config.json")[0].concepts()
    if len(concepts) != 1 or concepts[0].cls_token not in KINDS:
        words = ", ".join(str(concept.cls_token) for concept in concepts)
        raise UserError(f"{folder} has the classes {words}; give one concept of {', '.join(KINDS)}")
    return concepts[0]


@dataclass(frozen=True)
class Flags:
    """The flags of this command."""

    base: str = option("data/toon/sd", "base model")
    concept: Path | None = option(None, "a trained concept with one token and its class")
    prompts: int | None = option(None, "random prompts of each sort (default: 240)", minimum=1)
    prompt_set: str | None = option(
        None, "seed of the random prompts (default: prompt-accuracy): settings are chosen on another"
    )
    images: int | None = option(None, "images per prompt (default: 1, with --concept 4)", minimum=1)
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

    @property
    def settings(self) -> dict[str, float]:
        """How images are drawn, for utils.sampling.images.sample."""
        names = ("num_inference_steps", "guidance_scale", "batch_size")
        return {name: getattr(self, name) for name in names}


def judge(
    config: Flags, pipeline: StableDiffusionPipeline, name: str, prompts: list[Prompt], per_prompt: int
) -> tuple[dict[str, tuple[float, int]], list[Image.Image]]:
    """The shares that `obeyed` counts, which are printed too, and the images."""
    drawn = draw(pipeline, prompts, per_prompt, config.output_dir / f"{name}.png", **config.settings)
    shares = obeyed(prompts, per_prompt, drawn)
    line = ", ".join(f"{attribute} {share:.1%} (n={n})" for attribute, (share, n) in shares.items())
    print(f"{name}: {line}", flush=True)
    return shares, drawn


def judge_base(config: Flags, pipeline: StableDiffusionPipeline) -> dict[str, Any]:
    """Random prompts whose triples training held, and those whose triples it never held together."""
    results = {}
    for name, held_out in (("seen", False), ("held out", True)):
        seed, count = config.prompt_set or "prompt-accuracy", config.prompts or 240
        prompts = random_prompts(seed, count, held_out)
        file = name.replace(" ", "-")
        results[name] = judge(config, pipeline, file, prompts, config.images or 1)[0]
    return results


def judge_concept(config: Flags, pipeline: StableDiffusionPipeline, concept: Concept) -> dict[str, Any]:
    """The situations for the class on the base model and for the concept, and the likeness of both."""
    from utils.concepts.load import load_concept
    from utils.images import list_images, open_image
    from utils.sampling.images import sample
    from utils.scores.similarity import ClipEncoder, clip_i

    clip, kind = ClipEncoder(CLIP, "cpu"), concept.cls_token
    real = clip.image_features(map(open_image, list_images(concept.instance_data_dir)[0]))
    results: dict[str, Any] = {}
    for name, subject in (("class", kind), ("concept", f"{concept.modifier_token} {kind}")):
        if name == "concept":
            load_concept(pipeline, config.concept)
        results[name], drawn = judge(config, pipeline, name, situations(kind, subject), config.images or 4)
        portraits = list(sample(pipeline, [f"a photo of a {subject}"] * 16, range(16), **config.settings))
        results[f"{name} likeness"] = clip_i(clip.image_features(portraits), real)
        results[f"{name} likeness in situations"] = clip_i(clip.image_features(drawn), real)
    for measure in ("likeness", "likeness in situations"):
        line = ", ".join(f"{name} {results[f'{name} {measure}']:.3f}" for name in ("class", "concept"))
        print(f"{measure}: {line}")
    return results


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    from utils.bases.sd import check_base, load_pipeline
    from utils.sampling.settings import check_steps

    check_base(config.base)
    check_steps(config.num_inference_steps, config.base)
    check_writable_folder(config.output_dir, "output_dir")
    concept = trained_concept(config.concept) if config.concept else None
    pipeline = load_pipeline(config.base)
    results = judge_concept(config, pipeline, concept) if concept else judge_base(config, pipeline)
    write_json(config.output_dir / "accuracy.json", results)
    print(f"numbers and images are in {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)
