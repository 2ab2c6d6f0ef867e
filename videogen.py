"""Short clips of a trained concept with AnimateDiff: concept + prompts -> GIF files and contact sheets.

python videogen.py                                      # ckpt/dog, as scripts/quickstart.sh trains it
python videogen.py --concept ckpt/dog --prompt "a <new1> dog jumping in the snow" --num_videos 3
python videogen.py --base sd15 --concept ckpt/dog --prompt "a <new1> dog jumping in the snow"
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from utils.bases.registry import REPOSITORY, Base, describe_base, model_path, portable
from utils.common.errors import MORE_MEMORY, UserError, exit_on_user_error, in_memory
from utils.common.flags import option, parse
from utils.sampling.clip_files import WRITERS, check_formats
from utils.sampling.prompts import subjects_of, without_token
from utils.sampling.settings import BETA_SCHEDULES, DrawingFlags

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline

    from utils.concepts.formats import ConceptWeights

CONCEPT = REPOSITORY / "ckpt" / "dog"  # what the quickstart trains, and videogen.py films by default


@dataclass(frozen=True)
class VideoConfig(DrawingFlags):
    """What to film, and how. Raises UserError when fields contradict each other."""

    part: ClassVar[str] = "clips"

    output_dir: Path = option(Path("outputs/video"), "folder of the files")
    motion_adapter: str | None = option(None, "folder or Hub id (default: the base's)")
    num_videos: int = option(1, "clips per prompt", minimum=1)
    num_frames: int = option(16, "frames of a clip")
    fps: int = option(8, "frames per second")
    beta_schedule: str | None = option(
        None, "of the noise (default: as the adapter records, else linear)", choices=BETA_SCHEDULES
    )
    free_noise: bool = option(False, "windows of 16 frames, for clips longer than the adapter")
    free_init: bool = option(False, "three rounds for steadier clips, in three times the time")
    format: tuple[str, ...] = option((), "repeatable; GIF is always written", choices=tuple(WRITERS))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_formats(self.formats, self.fps)

    @property
    def formats(self) -> list[str]:
        """The formats to write, GIF first, each once."""
        return list(dict.fromkeys(["gif", *self.format]))


@in_memory("preparing to draw clips", less=f"give fewer --num_frames, or --dtype bf16; {MORE_MEMORY}")
def main(argv: list[str] | None = None) -> None:
    film(parse(VideoConfig, argv, __doc__))


def film(config: VideoConfig) -> None:
    """Check what only the files can tell, load the base, its concepts and the motion adapter, draw.

    Imports what takes seconds, for which a mistaken flag need not wait.
    """
    from utils.bases.pretrained import check_named_base

    check_named_base(config.base)
    from utils.sampling.clips import animate, check_frames, save_memory
    from utils.sampling.drawing import prepare
    from utils.sampling.motion_adapters import check_adapter, noise_levels

    drawing = prepare(config, config.concept or (default_concept(),), default_prompts)
    row, device, adapter = drawing.row, drawing.device, adapter_of(config, drawing.row)
    check_frames(config.num_frames, check_adapter(adapter, row.path), config.free_noise)
    betas = noise_levels({}, adapter, config.beta_schedule)["beta_schedule"]

    print(f"{describe_base(row)} with {portable(adapter)} on {device}, {drawing.dtype}, {betas} betas")
    for note in without_token(drawing.prompts, drawing.concepts):
        print(note)
    video = animate(drawing.load(), adapter, config.beta_schedule)
    if switched_on := save_memory(video, device):
        print(f"to save memory: {', '.join(switched_on)}")
    more = {name: getattr(config, name) for name in ("num_frames", "free_noise", "free_init")}
    record = drawing.record | more | {"motion_adapter": portable(adapter), "beta_schedule": betas}
    save_clips(config, drawing.prompts, video, drawing.settings | more, record | {"fps": config.fps})


def save_clips(
    config: VideoConfig, prompts: list[str], video: "AnimateDiffPipeline", settings: dict, record: dict
) -> None:
    """The files of each prompt and seed, which carry both and `record`; a contact sheet next to them."""
    from tqdm import tqdm

    from utils.sampling.clip_files import save_contact_sheet
    from utils.sampling.clips import sample_clips
    from utils.sampling.grids import slugs

    folder, fps = config.output_dir, config.fps
    jobs = [(prompt, config.seed + i) for prompt in prompts for i in range(config.num_videos)]
    stem_of = dict(zip(prompts, slugs(prompts), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    drawn = sample_clips(video, *zip(*jobs, strict=True), **settings)
    for (prompt, seed), frames in zip(jobs, tqdm(drawn, total=len(jobs), unit="clip"), strict=True):
        size = "x".join(map(str, frames[0].size))
        metadata = {"prompt": prompt, "seed": seed, "size": size} | record
        stem = f"{stem_of[prompt]}_{seed}"
        for name in config.formats:
            WRITERS[name](frames, folder / f"{stem}.{name}", fps, metadata)
        save_contact_sheet(frames, folder / f"{stem}.png", fps, f"{prompt}, seed {seed}", metadata)
    seconds = (time.monotonic() - started) / len(jobs)
    print(f"{len(jobs)} clips in {folder}, {seconds:.1f} s each; a .png next to each shows its frames")


def adapter_of(config: VideoConfig, row: Base) -> str:
    """The motion adapter: the given one, else the base's. Raises UserError when there is none."""
    adapter = config.motion_adapter or row.motion_adapter
    if adapter is None:
        raise UserError(
            f"no motion adapter is known for base {row.name}; give --motion_adapter, or --base sd15"
        )
    return model_path(adapter)


def default_concept() -> Path:
    """The quickstart's concept. Raises UserError when it has not been trained."""
    if not CONCEPT.is_dir():
        raise UserError(
            f"no concept: {CONCEPT} does not exist; run bash scripts/quickstart.sh, or give --concept"
        )
    return CONCEPT


def default_prompts(concepts: "list[ConceptWeights]") -> list[str]:
    """One of the subject in motion, or of the first two subjects together."""
    subjects = subjects_of(concepts)
    if len(subjects) == 1:
        return [f"a {subjects[0]} running in the snow"]
    return ["a " + " in front of a ".join(subjects[:2])]


if __name__ == "__main__":
    exit_on_user_error(main)
