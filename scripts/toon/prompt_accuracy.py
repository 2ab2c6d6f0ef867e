"""How many of a prompt's words the pictures obey, read off them by the recogniser.

Without --concept: random prompts to the base model, those with three words that its training never held
together apart from the others. With --concept: a fixed set of situations, for the class ("a dog …") on the
base model and for the concept ("a <new1> dog …") on the personalised one, with the same seeds.
Only what a prompt states is judged; "all" counts the pictures that obey every stated word. Likeness is CLIP-I
on the embedded data/toon/clip to the concept's own pictures: of 16 pictures for the plain prompt and of those
for the situations, where places and other things keep it low.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from scripts.toon.recogniser import Recogniser
from scripts.toon.training import scenes
from scripts.toon.world import (
    KINDS,
    ONE_CHANGE,
    TWO_CHANGES,
    Look,
    Scene,
    attributes,
    describe,
    subject_words,
    with_article,
)
from utils.bases.sd import check_base, load_pipeline
from utils.concepts.load import load_concept
from utils.errors import UserError, exit_on_user_error
from utils.images import list_images, open_image
from utils.sampling.grids import save_grid
from utils.sampling.images import sample
from utils.scores.similarity import ClipEncoder, clip_i
from utils.training.concept import Concept
from utils.training.config import read_config

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
    drawn = scenes(seed, count, held_out)
    texts = [
        with_article(f"a photo of a {describe(scene, subject_words(scene, colour=True))}") for scene in drawn
    ]
    return [(text, stated(scene, colour=True)) for text, scene in zip(texts, drawn, strict=True)]


def situations(kind: str, subject: str) -> list[Prompt]:
    """What the pictures of the concept never show: places, worn things, neighbours, poses, two at once."""
    plain = Scene(Look(kind, None, (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), None, "none", (0, 0, 0)))
    poses = [{"pose": pose} for pose in ("sitting", "running", "jumping")]
    changes = [*ONE_CHANGE, *poses, *TWO_CHANGES, {"pose": "running", "place": "beach"}]
    drawn = [replace(plain, **change) for change in changes]
    texts = [with_article(f"a photo of a {describe(scene, subject)}") for scene in drawn]
    return [(text, stated(scene, colour=False)) for text, scene in zip(texts, drawn, strict=True)]


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: list[Prompt],
    images: int,
    grid: Path,
    **settings: float,
) -> list[Image.Image]:
    """`images` pictures of each prompt, one prompt's after the other's; the first ones also in `grid`.
    settings: of utils.sampling.sample."""
    texts = [text for text, _ in prompts for _ in range(images)]
    seeds = [1000 * i + j for i in range(len(prompts)) for j in range(images)]
    drawn = sample(pipeline, texts, seeds, **settings)
    pictures = list(tqdm(drawn, grid.stem, total=len(texts)))
    shown = min(len(prompts), 24)
    grid.parent.mkdir(parents=True, exist_ok=True)
    save_grid(pictures[: shown * images], [text for text, _ in prompts[:shown]], grid)
    return pictures


def obeyed(prompts: list[Prompt], images: int, pictures: list[Image.Image]) -> dict[str, tuple[float, int]]:
    """attribute -> (share of pictures that obey it, number of pictures whose prompt states it)."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for (_, facts), read in zip(
        [p for p in prompts for _ in range(images)], Recogniser().read(pictures), strict=True
    ):
        right = {name: read[name] == value for name, value in facts.items()}
        for name, hit in (right | {"all": all(right.values())}).items():
            hits[name].append(hit)
    return {name: (sum(h) / len(h), len(h)) for name, h in hits.items()}


def trained_concept(folder: Path) -> Concept:
    """The one concept with a class word in a folder that train_classdiffusion.py wrote."""
    if not (folder / "training_config.json").is_file():
        raise UserError(f"{folder} holds no training_config.json; give a folder of train_classdiffusion.py")
    concepts = read_config(folder / "training_config.json")[0].concepts()
    if len(concepts) != 1 or concepts[0].cls_token not in KINDS:
        words = ", ".join(str(concept.cls_token) for concept in concepts)
        raise UserError(f"{folder} has the classes {words}; give one concept of {', '.join(KINDS)}")
    return concepts[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="data/toon/sd")
    parser.add_argument("--concept", type=Path, help="a trained concept with one token and its class")
    parser.add_argument(
        "--prompts", type=int, default=240, help="random prompts of each sort, without --concept"
    )
    parser.add_argument("--images", type=int, help="pictures per prompt (default 1, with --concept 4)")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/prompt_accuracy"))
    args = parser.parse_args()
    check_base(args.base)
    images = args.images or (4 if args.concept else 1)
    concept = trained_concept(args.concept) if args.concept else None
    pipeline = load_pipeline(args.base)
    settings = {
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "batch_size": args.batch_size,
    }

    def judge(name: str, prompts: list[Prompt]) -> tuple[dict, list[Image.Image]]:
        """The shares that `obeyed` counts, and the pictures."""
        grid = args.output_dir / f"{name}.png"
        pictures = draw(pipeline, prompts, images, grid, **settings)
        shares = obeyed(prompts, images, pictures)
        told = ", ".join(f"{attribute} {share:.1%} (n={n})" for attribute, (share, n) in shares.items())
        print(f"{name}: {told}", flush=True)
        return shares, pictures

    if args.concept is None:
        results = {
            "seen": judge("seen", random_prompts("prompt-accuracy", args.prompts, held_out=False))[0],
            "held out": judge("held-out", random_prompts("prompt-accuracy", args.prompts, held_out=True))[0],
        }
    else:
        clip = ClipEncoder(CLIP, "cpu")
        real = clip.image_features(map(open_image, list_images(concept.instance_data_dir)[0]))
        results = {}
        for name, subject in (
            ("class", concept.cls_token),
            ("concept", f"{concept.modifier_token} {concept.cls_token}"),
        ):
            if name == "concept":
                load_concept(pipeline, args.concept)
            results[name], pictures = judge(name, situations(concept.cls_token, subject))
            plain = [f"a photo of a {subject}"] * 16
            portraits = list(sample(pipeline, plain, range(16), **settings))
            results[f"{name} likeness"] = clip_i(clip.image_features(portraits), real)
            results[f"{name} likeness in situations"] = clip_i(clip.image_features(pictures), real)
        for kind in ("likeness", "likeness in situations"):
            told = ", ".join(f"{name} {results[f'{name} {kind}']:.3f}" for name in ("class", "concept"))
            print(f"{kind}: {told}")
    (args.output_dir / "accuracy.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"numbers and pictures are in {args.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)
