"""Short clips of a trained concept with AnimateDiff: concept + prompts -> GIF files and contact sheets.

python videogen.py                                      # ckpt/dog, as scripts/quickstart.sh trains it
python videogen.py --concept ckpt/dog --prompt "a <new1> dog jumping in the snow" --num_videos 3
python videogen.py --base sd15 --motion_adapter guoyww/animatediff-motion-adapter-v1-5-2 --concept ckpt/dog
"""

import argparse
import time
from pathlib import Path

from tqdm import tqdm

from utils.bases.devices import DTYPES, choose_device_dtype
from utils.bases.registry import BASES, base_row
from utils.bases.sd import check_base
from utils.concepts.formats import ConceptWeights, read_concept
from utils.errors import UserError, exit_on_user_error
from utils.sampling.clip_files import WRITERS, check_formats, save_contact_sheet
from utils.sampling.clips import (
    check_frames,
    load_video_pipeline,
    sample_clips,
    save_memory,
    settings_of,
)
from utils.sampling.grids import slugs
from utils.sampling.images import SCHEDULERS, check_sampling, check_scheduler
from utils.sampling.motion_adapters import BETA_SCHEDULES, check_adapter, noise_levels
from utils.sampling.prompts import (
    check_modifier_tokens,
    check_together,
    read_prompts,
    recorded_base,
    subjects_of,
)

CONCEPT = Path("ckpt/dog")  # what the quickstart trains
ADAPTER = "data/toon/motion_adapter"  # the embedded one


def told(setting: str) -> str:
    """The defaults of a setting, for --help."""
    sd, toon = (getattr(BASES[name].clips, setting) for name in ("sd15", "toon"))
    return f"default: {sd:g}, for toon {toon:g}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--base", help=f"folder, Hub id or {' or '.join(BASES)} (default: the concept's own, else toon)")
    add("--motion_adapter", default=ADAPTER, help="folder or Hub id (default: %(default)s)")
    add("--concept", type=Path, action="append", default=[], help=f"repeatable (default: {CONCEPT})")
    add("--prompt", action="append", default=[], help="repeatable (default: one about the concept)")
    add("--prompts_file", type=Path, help="text file, one prompt per line; joins those of --prompt")
    add(
        "--negative_prompt",
        help=f"default: '{BASES['sd15'].clips.negative_prompt}', with guidance; none for toon",
    )
    add("--num_videos", type=int, default=1, help="clips per prompt (default: %(default)s)")
    add("--seed", type=int, default=0, help="clip i of a prompt uses seed + i (default: %(default)s)")
    add("--num_frames", type=int, default=16, help="default: %(default)s")
    add("--fps", type=int, default=8, help="frames per second (default: %(default)s)")
    add("--num_inference_steps", type=int, default=25, help="default: %(default)s")
    add("--guidance_scale", type=float, help=told("guidance_scale"))
    add("--eta", type=float, help=f"noise per step, 0 to 1; ddim only ({told('eta')})")
    add("--scheduler", default="ddim", help=f"one of {', '.join(SCHEDULERS)} (default: %(default)s)")
    add(
        "--beta_schedule",
        help=f"{' or '.join(BETA_SCHEDULES)} (default: as the adapter records, else linear)",
    )
    add("--free_noise", action="store_true", help="windows of 16 frames, for clips longer than the adapter")
    add("--free_init", action="store_true", help="three rounds for steadier clips, in three times the time")
    add(
        "--format",
        action="append",
        default=[],
        help=f"{', '.join(WRITERS)}; repeatable, GIF is always written",
    )
    add("--output_dir", type=Path, default=Path("outputs/video"), help="default: %(default)s")
    add("--device", help="cuda, mps or cpu (default: the first of them that is here)")
    add("--dtype", help=f"one of {', '.join(DTYPES)} (default: fp16 on CUDA, else fp32)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    formats = list(dict.fromkeys(["gif", *args.format]))
    check_formats(formats, args.fps)
    paths = args.concept or [default_concept()]
    concepts = [read_concept(path) for path in paths]
    check_together(concepts)
    base = base_row(args.base or recorded_base(concepts) or "toon").path
    guidance_scale, eta, negative_prompt = drawing_settings(args, base)
    check_scheduler(args.scheduler, eta)
    counts = {name: getattr(args, name) for name in ("num_videos", "num_inference_steps")}
    check_sampling(args.seed, guidance_scale, args.negative_prompt, args.output_dir, **counts)
    prompts = read_prompts(args.prompt, args.prompts_file) or default_prompts(concepts)
    check_base(base)
    check_frames(args.num_frames, check_adapter(args.motion_adapter, base), args.free_noise)
    levels = noise_levels({}, args.motion_adapter, args.beta_schedule)
    check_modifier_tokens(prompts, base, concepts)
    device, dtype = choose_device_dtype(args.device, args.dtype)

    print(f"{base} with {args.motion_adapter} on {device}, {dtype}, {levels['beta_schedule']} betas")
    video = load_video_pipeline(base, args.motion_adapter, paths, device, dtype, args.beta_schedule)
    if switched_on := save_memory(video, device):
        print(f"to save memory: {', '.join(switched_on)}")
    settings = {
        "num_frames": args.num_frames,
        "negative_prompt": negative_prompt,
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": guidance_scale,
        "eta": eta,
        "scheduler": args.scheduler,
        "free_noise": args.free_noise,
        "window_stride": settings_of(base)["window_stride"],
        "free_init": args.free_init,
    }
    provenance = settings | {"base": base, "motion_adapter": args.motion_adapter, "dtype": dtype}
    provenance |= {"concept": " ".join(map(str, paths)), "beta_schedule": levels["beta_schedule"]}
    jobs = [(prompt, args.seed + i) for prompt in prompts for i in range(args.num_videos)]
    stem_of = dict(zip(prompts, slugs(prompts), strict=True))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    drawn = sample_clips(video, *zip(*jobs, strict=True), **settings)
    for (prompt, seed), frames in zip(jobs, tqdm(drawn, total=len(jobs), unit="clip"), strict=True):
        size = "x".join(map(str, frames[0].size))
        metadata = {"prompt": prompt, "seed": seed, "fps": args.fps, "size": size} | provenance
        stem = args.output_dir / f"{stem_of[prompt]}_{seed}"
        for name in formats:
            WRITERS[name](frames, stem.with_name(f"{stem.name}.{name}"), args.fps, metadata)
        sheet = stem.with_name(f"{stem.name}.png")
        save_contact_sheet(frames, sheet, args.fps, f"{prompt}, seed {seed}", metadata)
    seconds = (time.monotonic() - started) / len(jobs)
    print(
        f"{len(jobs)} clips in {args.output_dir}, {seconds:.1f} s each; a .png beside each shows its frames"
    )


def drawing_settings(args: argparse.Namespace, base: str) -> tuple[float, float, str]:
    """guidance_scale, eta and negative_prompt: what was given, else what suits the base model.

    Schedulers that know no eta get none, and without guidance there is no prompt to guide away from.
    """
    defaults = settings_of(base)
    guidance_scale = defaults["guidance_scale"] if args.guidance_scale is None else args.guidance_scale
    eta = (defaults["eta"] if args.scheduler == "ddim" else 0.0) if args.eta is None else args.eta
    words = defaults["negative_prompt"] if args.negative_prompt is None else args.negative_prompt
    return guidance_scale, eta, words if guidance_scale > 1 else ""


def default_concept() -> Path:
    """The quickstart's concept. Raises UserError when it has not been trained."""
    if not CONCEPT.is_dir():
        raise UserError(
            f"no concept: {CONCEPT} does not exist; run bash scripts/quickstart.sh, or give --concept"
        )
    return CONCEPT


def default_prompts(concepts: list[ConceptWeights]) -> list[str]:
    """One of the subject in motion, or of the first two subjects together."""
    subjects = subjects_of(concepts)
    if len(subjects) == 1:
        return [f"a {subjects[0]} running in the snow"]
    return ["a " + " in front of a ".join(subjects[:2])]


if __name__ == "__main__":
    exit_on_user_error(main)
