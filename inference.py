"""Pictures from a trained concept, or from the base model alone: concept + prompts -> PNG files and a grid.

python inference.py --concept ckpt/concept --prompt "a <new1> dog wearing headphones on the beach"
"""

import argparse
import re
from itertools import zip_longest
from pathlib import Path

from tqdm import tqdm
from transformers import CLIPTokenizer

from utils.concept_formats import ConceptWeights, read_concept
from utils.concept_weights import load_concept
from utils.errors import UserError, exit_on_user_error
from utils.models import DTYPES, check_base, choose_device_dtype, load_pipeline
from utils.modifier_tokens import check_within_limit
from utils.sampling import SCHEDULERS, check_scheduler, sample, save_grid, save_png, slugs

TOON = "data/toon/sd"  # the embedded base model


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--base", help=f"pipeline folder or Hub id (default: the concept's own, else {TOON})")
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
    check_settings(args, eta)
    concepts = [read_concept(path) for path in args.concept]
    check_together(concepts)
    prompts = read_prompts(args.prompt, args.prompts_file) or default_prompts(concepts)
    base = args.base or recorded_base(concepts) or TOON
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


def check_settings(args: argparse.Namespace, eta: float) -> None:
    """Raises UserError for flags that are wrong on their own, before any file is read."""
    check_scheduler(args.scheduler, eta)
    for name in ("num_images", "num_inference_steps", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be 1 or more")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; it must be 0 or more")
    if args.negative_prompt and args.guidance_scale <= 1:
        raise UserError(
            f"--guidance_scale is {args.guidance_scale:g}; --negative_prompt has an effect only above 1"
        )
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise UserError(f"--output_dir {args.output_dir} is a file; give a folder")


def check_together(concepts: list[ConceptWeights]) -> None:
    """Raises UserError for concepts that would overwrite one another."""
    tokens = [token for concept in concepts for token in concept.rows]
    for token in tokens:
        if tokens.count(token) > 1:
            raise UserError(f"two concepts use {token}; train one of them under another --modifier_token")
    if sum(bool(concept.weights or concept.deltas) for concept in concepts) > 1:
        raise UserError(
            "more than one --concept has its own K/V, which would replace each other; train them together"
        )


def recorded_base(concepts: list[ConceptWeights]) -> str | None:
    """The one base model that the concepts were trained on, None if none says."""
    bases = sorted({concept.base for concept in concepts if concept.base})
    if len(bases) > 1:
        raise UserError(
            f"the concepts were trained on different base models ({', '.join(bases)}); choose with --base"
        )
    return bases[0] if bases else None


def read_prompts(given: list[str], file: Path | None) -> list[str]:
    """The prompts of the flags, then the file's lines that are not blank; each once."""
    lines: list[str] = []
    if file is not None:
        if not file.is_file():
            raise UserError(f"no prompts file at {file}; give a text file with one prompt per line")
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if not lines:
            raise UserError(f"prompts file {file} is empty; write one prompt per line")
    return list(dict.fromkeys(given + lines))  # a repeated prompt would only repeat its pictures


def default_prompts(concepts: list[ConceptWeights]) -> list[str]:
    """Likeness first, then whether the concept still obeys a prompt, then the concepts together."""
    subjects = [
        f"{token} {name}" if name else token
        for concept in concepts
        for token, name in zip_longest(concept.rows, concept.classes)
    ]
    if not concepts:
        subjects = ["dog"]  # the base model alone
    if not subjects:
        raise UserError("the --concept names no token to draw; give --prompt or --prompts_file")
    prompts = [f"a photo of a {subject}" for subject in subjects]
    prompts += [f"a {subject} wearing headphones on the beach" for subject in subjects]
    if len(subjects) > 1:
        prompts.append("a " + " in front of a ".join(subjects[:2]))
    return prompts


def check_modifier_tokens(prompts: list[str], base: str, concepts: list[ConceptWeights]) -> None:
    """Raises UserError for a <token> that neither a concept nor the base's tokenizer knows, and for one that
    stands past the tokenizer's limit.

    The tokenizer would spell an unknown one in letters and cut off a late one: pictures would show anything.
    """
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    mentioned = {token for prompt in prompts for token in re.findall(r"<[^<>\s]+>", prompt)}
    known = [token for concept in concepts for token in concept.rows]
    for token in sorted(mentioned.difference(known)):
        if token not in tokenizer.get_vocab():
            raise UserError(
                f"prompt mentions {token}, known are: {', '.join(known) or 'none'}; add its --concept"
            )
    tokenizer.add_tokens(known)
    for prompt in prompts:
        check_within_limit(tokenizer, prompt, [token for token in known if token in prompt])


if __name__ == "__main__":
    exit_on_user_error(main)
