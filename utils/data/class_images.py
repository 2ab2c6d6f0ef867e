"""Class images for prior preservation, drawn from the base model where the user has too few."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from utils.bases.registry import Base, as_dict, recorded_name
from utils.common.errors import UserError, short
from utils.common.files import check_writable_folder, one_line
from utils.common.images import check_images, is_image
from utils.common.seeds import seed_of
from utils.config.concepts import Concept
from utils.data.image_captions import read_captions
from utils.sampling.images import draw

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def missing_class_images(folder: Path, count: int) -> list[int]:
    """Which files class-i.png to add so that `folder`, the user's own images included, holds `count`."""
    present = {path.name for path in folder.glob("*") if is_image(path)}
    own = {_name(i) for i in range(count)}
    return [i for i in range(count - len(present - own)) if _name(i) not in present]


def check_class_images(folder: Path, class_prompt: str, count: int) -> None:
    """Raise UserError for an unreadable image in `folder`, one of another prompt, and a folder that cannot
    take the images that it lacks of `count`."""
    if missing_class_images(folder, count):
        check_writable_folder(folder, "class_data_dir")
    images = sorted(path for path in folder.glob("*") if is_image(path))
    check_images(images)
    captioned = read_captions(folder, images) if folder.is_dir() else {}
    for path in images:
        if path in captioned:
            continue  # its own caption says what it shows, whatever a tool noted in the PNG
        prompt = _noted(path, "prompt", class_prompt)
        if prompt != class_prompt:
            raise UserError(
                f"{path} shows '{short(prompt)}', not '{class_prompt}': remove it, "
                "or give another --class_data_dir"
            )


def generate_class_images(
    pipeline: "DiffusionPipeline",
    concepts: Sequence[Concept],
    base: Base,
    count: int,
    batch_size: int,
    seed: int,
    rank: int = 0,
    processes: int = 1,
) -> None:
    """Fill every concept's class_data_dir up to `count` images of its class_prompt.

    base: what the pipeline is; its row says how class images are drawn.
    Image i depends on (seed, i) alone, so an interrupted generation goes on where it stopped. Each of
    several processes draws its share, and has to wait for the others afterwards. Each file is whole or not
    there; UserError when one cannot be written.
    """
    for concept in concepts:
        folder = concept.class_data_dir
        numbers = [i for i in missing_class_images(folder, count) if i % processes == rank]
        if not numbers:
            continue
        with one_line("make", folder):
            folder.mkdir(parents=True, exist_ok=True)
        jobs = [(concept.class_prompt, seed_of(seed, "class image", i), folder / _name(i)) for i in numbers]
        about, settings = {"base": recorded_name(base)}, as_dict(base.class_images)
        drawn = draw(pipeline, jobs, about, batch_size=batch_size, **settings)
        for _ in tqdm(drawn, "class images", total=len(numbers)):
            pass


def drawn_by_others(images: Iterable[Path], base: str) -> Counter[str]:
    """How many of the images other bases drew, by their names; a file that does not say counts for none.

    base: its `recorded_name`.
    """
    drawn = Counter(_noted(path, "base", base) for path in images)
    del drawn[base]
    return drawn


def _noted(path: Path, what: str, otherwise: str) -> str:
    """What the metadata of an image says of its "prompt" or "base"."""
    with Image.open(path) as image:
        return image.info.get(what, otherwise)


def _name(number: int) -> str:
    return f"class-{number:05d}.png"
