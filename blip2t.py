"""How well pictures fit their prompts: picture + prompt -> BLIP score.

python blip2t.py --image outputs --prompt "a dog wearing headphones on the beach"
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from utils.bases.devices import choose_device_dtype
from utils.blip2t import BLIP2T, HEADS, check_blip, check_prompts, pair_up
from utils.errors import UserError, exit_on_user_error
from utils.images import check_images, list_images, open_image

TOON = "data/toon/blip"  # the embedded model
EXAMPLE = (Path("data/dog"), "a photo of a dog")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--image", type=Path, action="append", default=[], help="file or folder of pictures; repeatable")
    add("--prompt", action="append", default=[], help="one for all pictures or one for each; repeatable")
    add(
        "--model",
        default=TOON,
        help="folder or Hub id, e.g. Salesforce/blip-itm-large-coco (BLIP-1, as in the published evaluation) "
        "or Salesforce/blip2-itm-vit-g (BLIP-2) (default: %(default)s)",
    )
    add(
        "--head",
        default="itc",
        help=f"one of {', '.join(HEADS)}: cosine or probability of a match (default: %(default)s)",
    )
    add("--batch_size", type=int, default=32, help="pairs at a time (default: %(default)s)")
    add("--device", help="cuda, mps or cpu (default: the first of them that is here)")
    add("--json", action="store_true", help="print JSON: model, family, head, scores")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f"--batch_size is {args.batch_size}; it must be 1 or more")
    check_blip(args.model, args.head)
    device, _ = choose_device_dtype(args.device)
    prompts, paths = read_pairs(args.prompt, args.image)
    check_prompts(args.model, prompts)
    check_images(dict.fromkeys(paths))

    blip = BLIP2T(args.model, device, args.head)
    pictures = tqdm(opened(paths), total=len(paths), unit="image", disable=len(paths) <= args.batch_size)
    scores = blip.scores(prompts, pictures, args.batch_size).tolist()
    if args.json:
        pairs = [
            {"image": str(path), "prompt": prompt, "score": score}
            for path, prompt, score in zip(paths, prompts, scores, strict=True)
        ]
        report = {"model": blip.model_id, "family": blip.family, "head": blip.head, "scores": pairs}
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    for path, prompt, score in zip(paths, prompts, scores, strict=True):
        print(f"{score:.4f}  {blip.name}  {path}  {prompt}")
    if len(scores) > 1:
        print(f"{sum(scores) / len(scores):.4f}  {blip.name}  mean of {len(scores)} pairs")


def read_pairs(prompts: list[str], images: list[Path]) -> tuple[list[str], list[Path]]:
    """Prompts and files, pair by pair; the example where neither was given."""
    if bool(prompts) != bool(images):
        given, wanted = ("--image", "--prompt") if images else ("--prompt", "--image")
        raise UserError(f"{given} without {wanted}; give both, or neither to score an example")
    if not prompts:
        folder, caption = EXAMPLE
        return [caption], list_images(folder)[0][:1]
    paths = []
    for path in images:
        if path.is_dir():
            found, skipped = list_images(path)
            paths += found
            for entry in skipped:
                print(f"skipped {entry}: not a picture", file=sys.stderr)
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"no picture at {path}; give a file or a folder of pictures")
    return pair_up(prompts, paths)


def opened(paths: list[Path]) -> Iterator[Image.Image]:
    """One picture at a time; a file that follows itself (one picture, many prompts) is read once."""
    last = None
    for path in paths:
        if path != last:
            picture, last = open_image(path), path
        yield picture


if __name__ == "__main__":
    exit_on_user_error(main)
