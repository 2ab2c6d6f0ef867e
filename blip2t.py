"""How well images fit their prompts: image + prompt -> BLIP score.

python blip2t.py --image outputs --prompt "a dog wearing headphones on the beach"
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from utils.bases.registry import BASES, BLIP_HEADS, REPOSITORY, judge_path
from utils.common.errors import MORE_MEMORY, UserError, exit_on_user_error, in_memory
from utils.common.flags import check_fields, option, parse
from utils.common.images import check_images, list_images, open_image

EXAMPLE, EXAMPLE_PROMPT = REPOSITORY / "data" / "dog", "a photo of a dog"


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, and with which model. Raises UserError when fields contradict each other."""

    image: tuple[Path, ...] = option((), "file or folder of images; repeatable")
    prompt: tuple[str, ...] = option((), "one for all images or one for each; repeatable")
    model: str = option(
        "toon",
        "folder, Hub id, e.g. Salesforce/blip-itm-large-coco (BLIP-1, as in the published evaluation) or "
        f"Salesforce/blip2-itm-vit-g (BLIP-2), or {', '.join(BASES)} for that base's judge",
    )
    head: str = option("itc", "cosine or probability of a match", choices=BLIP_HEADS)
    batch_size: int = option(32, "pairs at a time", minimum=1)
    device: str | None = option(None, "cuda, mps or cpu (default: the first of them that is here)")
    json: bool = option(False, "print JSON: model, family, head, scores")

    def __post_init__(self) -> None:
        check_fields(self)
        if bool(self.prompt) != bool(self.image):
            given, wanted = ("--image", "--prompt") if self.image else ("--prompt", "--image")
            raise UserError(f"{given} without {wanted}; give both, or neither to score an example")


@in_memory("scoring images", less=f"give a smaller --batch_size; {MORE_MEMORY}")
def main(argv: list[str] | None = None) -> None:
    config = parse(ScoreConfig, argv, __doc__)
    score(config, list_files(config.image), config.prompt or (EXAMPLE_PROMPT,))


def score(config: ScoreConfig, paths: list[Path], prompts: Sequence[str]) -> None:
    """Check what only the files can tell, load the model, score, print.

    Imports what takes seconds, for which a mistaken flag need not wait.
    """
    from utils.bases.pretrained import read_config

    model = judge_path(config.model, "blip")
    read_config(model, "BLIP model")  # a model that is not here is said before torch is imported
    from tqdm import tqdm

    from utils.bases.devices import choose_device_dtype
    from utils.blip2t import BLIP2T, check_blip, check_prompts, pair_up

    check_blip(model, config.head)
    device, _ = choose_device_dtype(config.device)
    prompts, paths = pair_up(prompts, paths)
    check_prompts(model, prompts)
    check_images(dict.fromkeys(paths))

    blip = BLIP2T(model, device, config.head)
    images = tqdm(opened(paths), total=len(paths), unit="image", disable=len(paths) <= config.batch_size)
    scores = blip.scores(prompts, images, config.batch_size).tolist()
    pairs = list(zip(paths, prompts, scores, strict=True))
    if config.json:
        table = [{"image": str(path), "prompt": prompt, "score": value} for path, prompt, value in pairs]
        report = {"model": blip.model_id, "family": blip.family, "head": blip.head, "scores": table}
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    for path, prompt, value in pairs:
        print(f"{value:.4f}  {blip.name}  {path}  {prompt}")
    if len(scores) > 1:
        print(f"{sum(scores) / len(scores):.4f}  {blip.name}  mean of {len(scores)} pairs")


def list_files(images: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders; the example where none was given."""
    if not images:
        return [Path(os.path.relpath(list_images(EXAMPLE)[0][0]))]
    paths = []
    for path in images:
        if path.is_dir():
            inside, skipped = list_images(path)
            paths += inside
            for entry in skipped:
                print(f"skipped {entry}: not an image", file=sys.stderr)
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"no image at {path}; give a file or a folder of images")
    return paths


def opened(paths: list[Path]) -> Iterator[Image.Image]:
    """One image at a time; a file that follows itself (one image, many prompts) is read once."""
    last = None
    for path in paths:
        if path != last:
            image, last = open_image(path), path
        yield image


if __name__ == "__main__":
    exit_on_user_error(main)
