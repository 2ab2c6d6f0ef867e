"""Pictures from a trained concept, or from the base model alone: concept + prompts -> PNG files and a grid.

python inference.py --concept ckpt/concept --prompt "a <new1> dog wearing headphones on the beach"
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from utils.bases.devices import DTYPES, choose_device_dtype
from utils.bases.registry import BASES, base_row
from utils.bases.sd import check_base, load_pipeline
from utils.concepts.formats import ConceptWeights, read_concept
from utils.concepts.load import load_concept
from utils.errors import exit_on_user_error
from utils.images import save_png
from utils.sampling.grids import save_grid, slugs
from utils.sampling.images import SCHEDULERS, check_sampling, check_scheduler, sample
from utils.sampling.prompts import (
    check_modifier_tokens,
    check_together,
    read_prompts,
    recorded_base,
    subjects_of,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--base", help=f"folder, Hub id or {' or '.join(BASES)} (default: the concept's own, else toon)")
    add("--concept", type=Path, action="append", default=[], help="trained folder or file; repeatable")
    add("--prompt", action="append", default=[], help="repeatable (default: a few about the concept)")
    add("--prompts_file", type=Path, help="text file, one prompt per line; joins those of --prompt")
    add("--negative_prompt", default="", help="what the pictures should not show")
    add("--num_images", type=int, default=4, help="pictures per prompt (default: %(default)s)")
    add("--seed", type=int, default=0, help="image i of a prompt uses seed + i (default: %(default)s)")
    add("--num_inference_steps", type=int, default=100, help="default: %(default)s")
    add("--guidance_scale", type=float, default=6.0, help="default: %(default)s")
    add("--eta", type=float, help="noise per step, 0 to 1; ddim only (default: 1 with ddim, else 0)")
    add("--scheduler", default="ddim", help=f"one of {', '.join(SCHEDULERS)} (default: %(default)s)")
    add("--batch_size", type=int, default=4, help="pictures at a time (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("outputs"), help="default: %(default)s")
    add("--device", help="cuda, mps or cpu (default: the first of them that is here)")
    add("--dtype", help=f"one of {', '.join(DTYPES)} (default: fp16 on CUDA, else fp32)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    eta = (1.0 if args.scheduler == "ddim" else 0.0) if args.eta is None else args.eta
    check_scheduler(args.scheduler, eta)
    counts = {name: getattr(args, name) for name in ("num_images", "num_inference_steps", "batch_size")}
    check_sampling(args.seed, args.guidance_scale, args.negative_prompt, args.output_dir, **counts)
    concepts = [read_concept(path) for path in args.concept]
    check_together(concepts)
    prompts = read_prompts(args.prompt, args.prompts_file) or default_prompts(concepts)
    base = base_row(args.base or recorded_base(concepts) or "toon").path
    check_base(base)
    check_modifier_tokens(prompts, base, concepts)
    device, dtype = choose_device_dtype(args.device, args.dtype)

    print(f"{base} on {device}, {dtype}")
    pipeline = load_pipeline(base, device, dtype)
    for path in args.concept:
        load_concept(pipeline, path)

    settings = {
        "negative_prompt": args.negative_prompt,
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "eta": eta,
        "scheduler": args.scheduler,
    }
    jobs = [(prompt, args.seed + i) for prompt in prompts for i in range(args.num_images)]
    provenance = settings | {"base": base, "concept": " ".join(map(str, args.concept)), "dtype": dtype}
    stem_of = dict(zip(prompts, slugs(prompts), strict=True))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    images = []
    drawn = sample(pipeline, *zip(*jobs, strict=True), batch_size=args.batch_size, **settings)
    for (prompt, seed), image in zip(jobs, tqdm(drawn, total=len(jobs), unit="image"), strict=True):
        metadata = {"prompt": prompt, "seed": seed} | provenance
        save_png(image, args.output_dir / f"{stem_of[prompt]}_{seed}.png", metadata)
        images.append(image)
    grid = args.output_dir / "grid.png"
    save_grid(images, prompts, grid, {"prompt": "\n".join(prompts), "seed": args.seed} | provenance)
    print(f"{len(images)} images in {args.output_dir}, all of them in {grid}")


def default_prompts(concepts: list[ConceptWeights]) -> list[str]:
    """Likeness first, then whether the concept still obeys a prompt, then the concepts together."""
    subjects = subjects_of(concepts) if concepts else ["dog"]  # the base model alone
    prompts = [f"a photo of a {subject}" for subject in subjects]
    prompts += [f"a {subject} wearing headphones on the beach" for subject in subjects]
    if len(subjects) > 1:
        prompts.append("a " + " in front of a ".join(subjects[:2]))
    return prompts


if __name__ == "__main__":
    exit_on_user_error(main)
