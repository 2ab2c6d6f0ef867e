"""Short clips of a trained concept with AnimateDiff: concept + prompts -> GIF files and contact sheets.

python videogen.py                                      # ckpt/dog, as scripts/quickstart.sh trains it
python videogen.py --concept ckpt/dog --prompt "a <new1> dog jumping in the snow" --num_videos 3
python videogen.py --base sd15 --concept ckpt/dog --prompt "a <new1> dog jumping in the snow"
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.bases.registry import BASES, REPOSITORY, Base, base_row, describe_base, model_path, shown
from utils.errors import UserError, exit_on_user_error
from utils.flags import option, parse
from utils.sampling.clip_files import WRITERS, check_formats
from utils.sampling.prompts import (
    check_modifier_tokens,
    check_together,
    read_prompts,
    recorded_base,
    subjects_of,
)
from utils.sampling.settings import BETA_SCHEDULES, DrawingFlags, check_steps, default_of

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline

    from utils.concepts.formats import ConceptWeights

CONCEPT = REPOSITORY / "ckpt" / "dog"  # what the quickstart trains


@dataclass(frozen=True)
class VideoConfig(DrawingFlags):
    """What to film, and how. Raises UserError when fields contradict each other."""

    concept: tuple[Path, ...] = option((), f"trained folder or file; repeatable (default: {shown(CONCEPT)})")
    prompt: tuple[str, ...] = option((), "repeatable (default: one about the concept)")
    negative_prompt: str | None = option(
        None, f"default: '{BASES['sd15'].clips.negative_prompt}', with guidance; none with toon", blank=True
    )
    num_inference_steps: int | None = option(
        None, f"denoising steps {default_of('clips', 'num_inference_steps')}", minimum=1
    )
    guidance_scale: float | None = option(
        None, f"weight of the prompt {default_of('clips', 'guidance_scale')}", minimum=0
    )
    eta: float | None = option(
        None, f"noise per step, 0 to 1; ddim only {default_of('clips', 'eta')}", minimum=0
    )
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


def main(argv: list[str] | None = None) -> None:
    config = parse(VideoConfig, argv, __doc__)
    film(config, config.concept or (default_concept(),), read_prompts(config.prompt, config.prompts_file))


def film(config: VideoConfig, paths: tuple[Path, ...], prompts: list[str]) -> None:
    """Check what only the files can tell, load the base, its concepts and the motion adapter, draw.

    Imports what takes seconds, for which a mistaken flag need not wait.
    """
    from utils.bases.devices import choose_device_dtype
    from utils.bases.sd import check_base
    from utils.concepts.formats import read_concept
    from utils.sampling.clips import check_frames, load_video_pipeline, save_memory
    from utils.sampling.motion_adapters import check_adapter, noise_levels

    concepts = [read_concept(path) for path in paths]
    check_together(concepts)
    row = base_row(config.base or recorded_base(concepts) or "toon")
    prompts, settings = prompts or default_prompts(concepts), config.settings(row.clips)
    check_base(row.path)
    check_steps(settings["num_inference_steps"], row.path)
    adapter = adapter_of(config, row)
    check_frames(config.num_frames, check_adapter(adapter, row.path), config.free_noise)
    betas = noise_levels({}, adapter, config.beta_schedule)["beta_schedule"]
    check_modifier_tokens(prompts, row.path, concepts)
    device, dtype = choose_device_dtype(config.device, config.dtype)

    print(f"{describe_base(row)} with {shown(adapter)} on {device}, {dtype}, {betas} betas")
    video = load_video_pipeline(row.path, adapter, paths, device, dtype, config.beta_schedule)
    if switched_on := save_memory(video, device):
        print(f"to save memory: {', '.join(switched_on)}")
    settings |= {name: getattr(config, name) for name in ("num_frames", "free_noise", "free_init")}
    record = settings | {"base": shown(row.path), "motion_adapter": shown(adapter), "dtype": dtype}
    record |= {"concept": " ".join(map(str, paths)), "beta_schedule": betas, "fps": config.fps}
    save_clips(config, prompts, video, settings, record)


def save_clips(
    config: VideoConfig, prompts: list[str], video: "AnimateDiffPipeline", settings: dict, record: dict
) -> None:
    """The files of each prompt and seed, which carry both and `record`; a contact sheet beside them."""
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
    print(f"{len(jobs)} clips in {folder}, {seconds:.1f} s each; a .png beside each shows its frames")


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
