"""What an evaluation is about: a benchmark's subjects, one trained concept, or a folder of pictures."""

import hashlib
import json
import shlex
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.personalise import read_setting
from scripts.toon.benchmark_set import benchmark, facts_of_templates
from scripts.toon.world import ANIMALS
from utils.bases.registry import base_row
from utils.concepts.formats import read_concept
from utils.errors import UserError
from utils.evaluation.data_sets import READERS, Individual, Subject, read_templates
from utils.evaluation.folder import BASE
from utils.evaluation.shots import GENERATED, Shot, shots_of_folder
from utils.images import check_images, list_images
from utils.training.config import TrainConfig
from utils.training.methods import METHODS

TOON = "toon"
DATASETS = (TOON, *READERS)
PICTURES = "pictures"  # in a results folder: the pictures that the toon benchmark draws


@dataclass(frozen=True)
class Source:
    """subjects x methods, and where their pictures come from.

    base, train_flags: of what is trained or sampled; concept: trained already. found: pictures that are
    there, their shots and paths; found_class: those of the class alone. digest: of the files it rests on.
    """

    subjects: list[Subject]
    methods: list[str]
    setting: str
    base: str | None = None
    train_flags: tuple[str, ...] = ()
    concept: Path | None = None
    found: tuple[tuple[Shot, Path], ...] = ()
    found_class: tuple[Path, ...] = ()
    digest: str = ""


def source_of(args: Namespace) -> Source:
    """The source that the flags of scripts.evaluate name. Raises UserError; loads and writes nothing."""
    modes = {"--dataset": args.dataset, "--concept": args.concept, "--generated": args.generated}
    given = [flag for flag, value in modes.items() if value is not None]
    if len(given) != 1:
        told = " and ".join(given) or "none of them"
        raise UserError(f"{told} given; give one of {', '.join(modes)}")
    _check_no_inert(args, given[0])
    if args.dataset is not None:
        return _from_dataset(args)
    return _from_concept(args) if args.concept is not None else _from_folder(args)


def _check_no_inert(args: Namespace, mode: str) -> None:
    """A flag that the mode would not look at is a mistake."""
    used = {
        "--dataset": {"data_dir", "methods", "subjects", "train_flags", "base"},
        "--concept": {"methods", "prompts_file", "cls_token"},
        "--generated": {"real", "prompts_file", "cls_token", "modifier_token", "generated_class"},
    }
    for name in sorted(set().union(*used.values()) - used[mode]):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} has no effect with {mode}; leave it out")


def _from_dataset(args: Namespace) -> Source:
    if args.dataset not in DATASETS:
        raise UserError(f"unknown --dataset {args.dataset}; choose one of {', '.join(DATASETS)}")
    setting = args.setting or (TOON if args.dataset == TOON else "sd15")
    names = [name.strip() for name in args.subjects.split(",")] if args.subjects else []
    digest = ""  # the toon benchmark's pictures are made from seeds
    if args.dataset == TOON:
        if args.data_dir is not None:
            raise UserError("--data_dir has no effect with --dataset toon, which draws its own pictures")
        subjects = benchmark(args.output_dir / PICTURES, names)
    else:
        if args.data_dir is None:
            raise UserError(f"--dataset {args.dataset} needs --data_dir, the folder of your copy")
        subjects = READERS[args.dataset](args.data_dir, names)
        digest = digest_of(_check_real(subjects))
    base, flags = read_setting(setting)
    flags += shlex.split(args.train_flags or "")
    methods = _methods(args.methods, [BASE, *METHODS], ["base", "custom_diffusion", "classdiffusion"])
    return Source(subjects, methods, setting, base_row(args.base or base).path, tuple(flags), digest=digest)


def _from_concept(args: Namespace) -> Source:
    file = args.concept / "training_config.json"
    if not file.is_file():
        raise UserError(
            f"{args.concept} holds no training_config.json; give a folder of train_classdiffusion.py"
        )
    config = TrainConfig(**json.loads(file.read_text()))
    words = args.cls_token.split("+") if args.cls_token else config.cls_tokens
    concepts = config.concepts()
    if None in words or len(words) != len(concepts):
        raise UserError(
            f"{args.concept} has {len(concepts)} concept(s); say --cls_token, joined by +, of each"
        )
    individuals = tuple(
        Individual(each.modifier_token, word, each.instance_data_dir, each.instance_prompt)
        for each, word in zip(concepts, words, strict=True)
    )
    if args.prompts_file is not None:
        templates = read_templates(args.prompts_file, individuals)
    elif len(words) == 1 and words[0] in ANIMALS:
        templates = tuple(facts_of_templates())
    else:
        raise UserError(f"there are no ready prompts for {'+'.join(words)}; give --prompts_file")
    read_concept(args.concept)
    subject = Subject(args.concept.resolve().name, individuals, templates)
    weights = [path for path in sorted(args.concept.iterdir()) if path.suffix in (".safetensors", ".bin")]
    base = config.pretrained_model_name_or_path
    setting = args.setting or (TOON if base == read_setting(TOON)[0] else "sd15")
    methods = _methods(args.methods, [BASE, config.method], [BASE, config.method])
    digest = digest_of([*weights, *_check_real([subject])])
    return Source([subject], methods, setting, base, concept=args.concept, digest=digest)


def _from_folder(args: Namespace) -> Source:
    if args.real is None:
        raise UserError("--generated needs --real, the folder of the subject's own pictures")
    token, name = args.modifier_token or "<new1>", args.real.resolve().name
    found = shots_of_folder(args.generated, args.prompts_file, name, token, args.cls_token)
    texts = {shot.prompt_index: shot.text.replace("{", "{{").replace("}", "}}") for shot, _ in found}
    individual = Individual(token, args.cls_token or "", args.real, "")
    subject = Subject(name, (individual,), tuple(texts[i] for i in sorted(texts)))
    real, of_class = _check_real([subject]), []
    if args.generated_class is not None:
        of_class = list_images(args.generated_class)[0]
        check_images(of_class)
    digest = digest_of([*(path for _, path in found), *real, *of_class])
    setting = args.setting or TOON
    return Source(
        [subject], [GENERATED], setting, found=tuple(found), found_class=tuple(of_class), digest=digest
    )


def _methods(given: str | None, allowed: Sequence[str], default: list[str]) -> list[str]:
    methods = [name.strip() for name in given.split(",")] if given else default
    for name in methods:
        if name not in allowed:
            raise UserError(f"unknown method '{name}' in --methods; choose of {', '.join(allowed)}")
    if len(set(methods)) < len(methods):
        raise UserError(f"--methods {given} repeats one; name each once")
    return methods


def _check_real(subjects: Sequence[Subject]) -> list[Path]:
    """The subjects' own pictures, each decoded once; UserError for one that cannot be."""
    paths = [path for s in subjects for each in s.individuals for path in list_images(each.folder)[0]]
    check_images(paths)
    return paths


def digest_of(paths: Iterable[Path]) -> str:
    """One SHA-256 of the files' contents, in this order: other files make another run."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
