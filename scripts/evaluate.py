"""Scores one can trust: a trained concept, a folder of pictures, or a whole benchmark -> table and report.

python -m scripts.evaluate --concept ckpt/dog
python -m scripts.evaluate --generated outputs --real data/dog --cls_token dog
python -m scripts.evaluate --dataset toon --methods base,custom_diffusion,classdiffusion --num_images 2

A killed run goes on where it was when it is started again; `accelerate launch -m scripts.evaluate …` deals
subjects and methods out to its processes.
"""

import argparse
import os
import platform
import signal
import sys
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import CLIPTokenizer

from scripts.evaluation_job import run_job
from scripts.evaluation_source import PICTURES, TOON, Source, source_of
from scripts.personalise import check_flags
from scripts.toon import benchmark_set
from utils.bases.devices import choose_device_dtype
from utils.bases.sd import check_base
from utils.errors import UserError, exit_on_user_error
from utils.evaluation.folder import BASE, check_settings
from utils.evaluation.scoring import METRICS, Scorer, check_metrics, check_texts
from utils.evaluation.table import as_markdown, build_table
from utils.files import read_json, write_json, write_text
from utils.learners.token_rows import check_within_limit
from utils.sampling.images import check_scheduler
from utils.scores.similarity import CLIP_ID, DINO_ID
from utils.training.methods import METHODS

# setting -> the models that score, and DDIM steps. What is trained and how: scripts/settings/<setting>.txt.
MODELS = {
    TOON: {"clip": "data/toon/clip", "dino": "data/toon/dino", "blip": "data/toon/blip"},
    "sd15": {"clip": CLIP_ID, "dino": DINO_ID, "blip": "Salesforce/blip-itm-large-coco"},
}
STEPS = {TOON: 50, "sd15": 100}
SAMPLING = {
    "num_images": 4,
    "num_class_images": 10,
    "seed": 0,
    "num_inference_steps": None,  # the setting's
    "guidance_scale": 6.0,
    "eta": 1.0,
    "batch_size": 8,
}
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "Pillow")
WAIT = timedelta(days=30)  # the main process waits for the slowest


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("what to evaluate: one of --dataset, --concept, --generated").add_argument
    add(
        "--dataset", help="toon, dreambooth, customconcept101 or customconcept101_pairs: train, sample, score"
    )
    add("--data_dir", type=Path, help="your copy of the dataset; toon draws its own")
    add("--methods", help=f"of base (untouched, given class prompts), {', '.join(METHODS)}; joined by commas")
    add("--subjects", help="these subjects of the dataset only, joined by commas")
    add(
        "--train_flags",
        help='more for train_classdiffusion.py: --train_flags="--max_train_steps=250 --seed=1"',
    )
    add("--base", help="Stable Diffusion to train and sample (default: the setting's)")
    add("--concept", type=Path, help="a folder that train_classdiffusion.py wrote: sample, score")
    add(
        "--generated",
        type=Path,
        help="a folder of pictures; their prompts are in their PNG metadata or names",
    )
    add("--real", type=Path, help="with --generated: the subject's own pictures")
    add("--generated_class", type=Path, help="with --generated: pictures of the class alone, for PRES")
    add("--prompts_file", type=Path, help="one prompt per line, {} where the subject stands")
    add("--cls_token", help="class word of the subject, e.g. dog")
    add("--modifier_token", help="with --generated: its token in the prompts (default: <new1>)")
    add = parser.add_argument_group("sampling").add_argument
    add("--num_images", type=int, help="pictures per prompt (default: 4)")
    add("--num_class_images", type=int, help="pictures of the class alone, for PRES (default: 10)")
    add("--seed", type=int, help="image i of a prompt uses seed + i (default: 0)")
    add("--num_inference_steps", type=int, help="DDIM steps (default: 50 on toon, else 100)")
    add("--guidance_scale", type=float, help="default: 6")
    add("--eta", type=float, help="default: 1")
    add("--batch_size", type=int, help="pictures at a time (default: 8)")
    add = parser.add_argument_group("scoring").add_argument
    add(
        "--metrics",
        help=f"joined by commas (default: those of {','.join(METRICS)} that there are pictures for)",
    )
    add("--clip", help=f"CLIP of CLIP-T, CLIP-I (default: {CLIP_ID}; on toon {MODELS[TOON]['clip']})")
    add("--dino", help=f"DINO of DINO-I, PRES, DIV (default: {DINO_ID}; on toon {MODELS[TOON]['dino']})")
    add("--blip", help=f"BLIP of BLIP-T (default: {MODELS['sd15']['blip']}; on toon {MODELS[TOON]['blip']})")
    add("--blip_head", default="itc", help="itc or itm (default: %(default)s)")
    add(
        "--setting",
        choices=tuple(MODELS),
        help="whose defaults to use (default: sd15, toon for what is toon's)",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("results"), help="default: %(default)s")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    fill_sampling(args)
    source = source_of(args)
    metrics, models = metrics_of(args, source), models_of(args, source.setting)
    check_metrics(metrics, models, args.blip_head)
    settings = settings_of(args, source, metrics, models)
    check_settings(args.output_dir, settings)
    check_source(source, metrics, models)

    state = PartialState(cpu=on_cpu(), timeout=WAIT)
    results, judge = args.output_dir, judge_of(source)
    if state.is_main_process:
        if args.dataset == TOON:
            benchmark_set.draw(source.subjects)
        write_json(results / "settings.json", settings)
        write_json(results / "subjects.json", [subject.describe() for subject in source.subjects])
    state.wait_for_everyone()

    scorer = Scorer(metrics, models, args.blip_head, state.device, judge)
    jobs = [(subject, method) for method in source.methods for subject in source.subjects]
    for number, (subject, method) in list(enumerate(jobs, start=1))[
        state.process_index :: state.num_processes
    ]:
        print(f"[{number}/{len(jobs)}] {subject.name}, {method}", flush=True)
        run_job(results, source, subject, method, settings, args.batch_size, scorer)
    state.wait_for_everyone()
    if state.is_main_process:
        finish(results, source, settings)
    state.destroy_process_group()


def on_cpu() -> bool:
    """Whether the launcher was told to leave the GPU alone."""
    return parse_flag_from_env("ACCELERATE_USE_CPU")


def fill_sampling(args: argparse.Namespace) -> None:
    """Puts in the sampling flags' defaults. Raises UserError for numbers that no run can use."""
    for name, default in SAMPLING.items():
        given = getattr(args, name)
        if given is not None and args.generated is not None:
            raise UserError(
                f"--{name} has no effect with --generated, whose pictures are there; leave it out"
            )
        setattr(args, name, default if given is None else given)
    for name in ("num_images", "num_class_images", "num_inference_steps", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be 1 or more")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; it must be 0 or more")
    check_scheduler("ddim", args.eta)


def metrics_of(args: argparse.Namespace, source: Source) -> list[str]:
    """Those of --metrics, else all that there are pictures for; what is left out is said."""
    shots = [(shot.subject, shot.prompt_index) for shot, _ in source.found]
    lacking = {}
    if len(set(shots)) == len(shots) if shots else args.num_images < 2:
        lacking["div"] = "two pictures of a prompt"
    if source.found and not source.found_class:
        lacking["pres"] = "--generated_class, pictures of the class alone"
    if args.metrics is None:
        for name, wanted in lacking.items():
            print(f"left out: {name}, which needs {wanted}")
        return [name for name in METRICS if name not in lacking]
    metrics = [name.strip() for name in args.metrics.split(",")]
    for name in metrics:
        if name in lacking:
            raise UserError(f"--metrics has {name}, which needs {lacking[name]}")
    return metrics


def models_of(args: argparse.Namespace, setting: str) -> dict[str, str]:
    return {name: getattr(args, name) or default for name, default in MODELS[setting].items()}


def judge_of(source: Source) -> benchmark_set.Obedience | None:
    """The recogniser, where it knows the world and the prompts."""
    judge = benchmark_set.Obedience()
    return judge if source.setting == TOON and judge.knows(source.subjects) else None


def settings_of(
    args: argparse.Namespace, source: Source, metrics: list[str], models: dict[str, str]
) -> dict[str, object]:
    """As settings.json holds them: all that the numbers depend on, and the hardware."""
    device, dtype = choose_device_dtype("cpu" if on_cpu() else None)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    seeds = sorted({shot.seed for shot, _ in source.found}) or list(
        range(args.seed, args.seed + args.num_images)
    )
    drawn = (
        {}
        if source.found
        else {
            "base": source.base,
            "train_flags": list(source.train_flags),
            "num_class_images": args.num_class_images,
            "num_inference_steps": args.num_inference_steps or STEPS[source.setting],
            "guidance_scale": args.guidance_scale,
            "eta": args.eta,
            "scheduler": "ddim",
            "dtype": str(dtype),
        }
    )
    return {
        "dataset": args.dataset,
        "source": str(args.data_dir or args.concept or args.generated or PICTURES),
        "digest": source.digest,
        "setting": source.setting,
        "methods": source.methods,
        "subjects": [subject.name for subject in source.subjects],
        "templates": sorted({template for subject in source.subjects for template in subject.templates}),
        "metrics": metrics,
        "models": models | {"blip_head": args.blip_head},
        "seeds": seeds,
        **drawn,
        "versions": {library: version(library) for library in LIBRARIES},
        "hardware": {"device": gpu or platform.machine(), "cpus": os.cpu_count()},
    }


def check_source(source: Source, metrics: list[str], models: dict[str, str]) -> None:
    """Raises UserError for a base model, training flags or prompts that the run could not use."""
    check_texts(
        metrics, models, sorted({text for subject in source.subjects for text in subject.class_prompts})
    )
    if source.base is None:
        return
    check_base(source.base)
    if source.concept is None:
        for method in source.methods:
            if method != BASE:
                check_flags(source.subjects[0], method, source.base, source.train_flags)
    for subject in source.subjects:
        tokenizer = CLIPTokenizer.from_pretrained(source.base, subfolder="tokenizer")
        tokens = [individual.token for individual in subject.individuals]
        tokenizer.add_tokens(tokens)
        for prompt in subject.prompts:
            check_within_limit(tokenizer, prompt, [token for token in tokens if token in prompt])


def finish(results: Path, source: Source, settings: dict) -> None:
    """table.json, table.md and report.html."""
    scores = {
        (subject.name, method): read_json(results / method / subject.name / "scores.json")
        for subject in source.subjects
        for method in source.methods
    }
    table = build_table(scores, [subject.name for subject in source.subjects], source.methods)
    told = {name: settings[name] for name in ("seeds", "versions")}
    write_json(results / "table.json", table | told)
    write_text(results / "table.md", as_markdown(table | told))
    from utils.report.page import write_report

    print(as_markdown(table | told))
    print(f"the table and all behind it are in {results}, to look at in {write_report(results)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a training it has started ends with it
    exit_on_user_error(main)
