"""What an evaluation is about: a benchmark's subjects, one trained concept, or a folder of images."""

import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.bases.families import check_base
from utils.bases.pretrained import HUB_ID
from utils.bases.registry import BASES, Base, base_row
from utils.common.errors import UserError, short
from utils.common.images import check_images, list_images
from utils.concepts.formats import read_concept
from utils.config.methods import METHODS
from utils.config.train_config import read_config
from utils.evaluation.config import EvaluationConfig, split
from utils.evaluation.data_sets import DataSet, Individual, Subject, in_folders, read_templates
from utils.evaluation.folder import BASE, PICTURES
from utils.evaluation.scoring import WordJudge
from utils.evaluation.shots import GENERATED, Shot, png_chunks, shots_of_folder
from utils.evaluation.training_process import flags_of, named_by, preset_flags

DEFAULT_METHODS = [BASE, "custom_diffusion", "classdiffusion"]


@dataclass(frozen=True)
class Source:
    """subjects x methods, and where their images come from.

    base: what is trained and sampled, whose row names the judges. train_flags: given by the user, for all
    methods. concept: trained already. images: those that are there, their shots and files; class_images: of
    the class alone. named: how a concept's prompts name it. digest: of the files it rests on. data_set: the
    benchmark, if it is one.
    """

    subjects: list[Subject]
    methods: list[str]
    base: Base
    train_flags: tuple[str, ...] = ()
    concept: Path | None = None
    images: tuple[tuple[Shot, Path], ...] = ()
    class_images: tuple[Path, ...] = ()
    named: str | None = None
    digest: str = ""
    data_set: DataSet | None = None
    word_judge: WordJudge | None = None

    def flags(self, method: str) -> list[str]:
        """The training flags of a method: the preset's, then the user's, which win.

        Raises UserError for a user's flags that are wrong by themselves.
        """
        most = max(self.subjects, key=lambda subject: len(subject.individuals))
        given = flags_of(method, self.train_flags)
        return preset_flags(most, method, self.base.path, given) + given

    def subject_of(self, method: str) -> str | None:
        """How prompts of a method name an individual; None of what is no method."""
        return self.named or (named_by(method, self.train_flags) if method in METHODS else None)

    @property
    def trained(self) -> list[str]:
        """The methods that this evaluation trains itself."""
        return [] if self.concept or self.images else [method for method in self.methods if method != BASE]


def source_of(config: EvaluationConfig, data_sets: Mapping[str, DataSet]) -> Source:
    """The source that a configuration names. Raises UserError; loads and writes nothing."""
    if config.mode == "dataset":
        return _from_dataset(config, data_sets)
    return _from_concept(config, data_sets) if config.mode == "concept" else _from_folder(config, data_sets)


def _from_dataset(config: EvaluationConfig, data_sets: Mapping[str, DataSet]) -> Source:
    if config.dataset not in data_sets:
        raise UserError(f"unknown benchmark {short(config.dataset)}; choose one of {', '.join(data_sets)}")
    data_set, digest = data_sets[config.dataset], ""  # what is drawn here is made from seeds
    if data_set.draw is not None and config.data_dir is not None:
        raise UserError(f"--data_dir has no effect on benchmark {config.dataset}, which draws its own images")
    if data_set.draw is None and config.data_dir is None:
        raise UserError(f"benchmark {config.dataset} needs --data_dir, the folder of your copy")
    names = split(config.subjects)
    pictures = config.output_dir / PICTURES
    subjects = in_folders(data_set.read(config.data_dir or pictures, names), pictures)
    subjects = [_shortened(subject, config.max_prompts) for subject in subjects]
    if data_set.draw is None:
        digest = digest_of(_check_real(subjects))
    methods = _methods(config.methods, [BASE, *METHODS], DEFAULT_METHODS)
    return Source(
        subjects,
        methods,
        base_row(config.base or data_set.base),
        _words(config.train_flags or ""),
        digest=digest,
        data_set=data_set,
        word_judge=data_set.word_judge and data_set.word_judge(subjects),
    )


def _from_concept(config: EvaluationConfig, data_sets: Mapping[str, DataSet]) -> Source:
    file = config.concept / "training_config.json"
    if not file.is_file():
        raise UserError(
            f"{config.concept} holds no training_config.json; give a folder of train_classdiffusion.py"
        )
    training, _ = read_config(file)  # what this version does not know does not bear on the images
    words = config.cls_token.split("+") if config.cls_token else training.cls_tokens
    concepts = training.concepts()
    if None in words or len(words) != len(concepts):
        raise UserError(
            f"{config.concept} has {len(concepts)} concept(s); say --cls_token, joined by +, of each"
        )
    individuals = tuple(
        Individual(each.modifier_token, word, each.instance_data_dir, each.instance_prompt)
        for each, word in zip(concepts, words, strict=True)
    )
    templates = _ready_templates(words, data_sets)
    if config.prompts_file is not None:
        templates = read_templates(config.prompts_file, individuals)
    elif not templates:
        raise UserError(f"there are no ready prompts for {short('+'.join(words))}; give --prompts_file")
    read_concept(config.concept)
    subject = _shortened(Subject(config.concept.resolve().name, individuals, templates), config.max_prompts)
    weights = [path for path in sorted(config.concept.iterdir()) if path.suffix in (".safetensors", ".bin")]
    base = base_row(training.pretrained_model_name_or_path)
    return Source(
        [subject],
        _methods(config.methods, [BASE, training.method], [BASE, training.method]),
        base,
        concept=config.concept,
        named=training.recipe.subject,
        digest=digest_of([*weights, *_check_real([subject])]),
        word_judge=_word_judge(base, [subject], data_sets),
    )


def _from_folder(config: EvaluationConfig, data_sets: Mapping[str, DataSet]) -> Source:
    if config.real is None:
        raise UserError("generated images need --real, the folder of the subject's own images")
    token, name = config.modifier_token or "<new1>", config.real.resolve().name
    images = shots_of_folder(config.generated, config.prompts_file, name, token, config.cls_token)
    texts = {shot.prompt_index: shot.text.replace("{", "{{").replace("}", "}}") for shot, _ in images}
    individual = Individual(token, config.cls_token or "", config.real, "")
    subject = Subject(name, (individual,), tuple(texts[i] for i in sorted(texts)))
    real, of_class = _check_real([subject]), []
    if config.generated_class is not None:
        of_class = list_images(config.generated_class)[0]
        check_images(of_class)
    if config.base is not None:
        _check_name(config.base)
    base = base_row(config.base) if config.base else base_of_images([path for _, path in images])
    return Source(
        [subject],
        [GENERATED],
        base,
        images=tuple(images),
        class_images=tuple(of_class),
        digest=digest_of([*(path for _, path in images), *real, *of_class]),
        word_judge=_word_judge(base, [subject], data_sets),
    )


def _words(flags: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(flags))
    except ValueError as error:  # an open quote
        raise UserError(f"--train_flags '{short(flags)}' cannot be split into flags ({error})") from None


def _check_name(base: str) -> None:
    """Raises UserError for a base that is no model's name or folder; its weights may be elsewhere."""
    path = base_row(base).path
    if Path(path).exists():
        check_base(path)
    elif not HUB_ID.fullmatch(path):
        known = ", ".join(BASES)
        raise UserError(
            f"--base {short(base)} is unknown: give {known}, a folder, a .safetensors file or a Hub id"
        )


def base_of_images(paths: Sequence[Path]) -> Base:
    """The row of the base that drew images, as the chunk "base" of their PNGs says; sd15's if none says.

    Raises UserError where they differ, or where only some say.
    """
    bases = {}
    for path in paths:
        recorded = png_chunks(path).get("base")
        bases.setdefault(base_row(recorded).name if recorded else "no known base", path)
    if len(bases) > 1:
        drawn = ", ".join(f"{path.name} by {name}" for name, path in bases.items())
        raise UserError(
            f"the images were drawn by different bases ({drawn}); say --base, or score them apart"
        )
    name = next(iter(bases))
    return base_row("sd15" if name == "no known base" else name)


def _word_judge(
    base: Base, subjects: Sequence[Subject], data_sets: Mapping[str, DataSet]
) -> WordJudge | None:
    """That of a benchmark made for this base, if it knows the prompts."""
    judges = (d.word_judge(subjects) for d in data_sets.values() if d.word_judge and d.base == base.name)
    return next(filter(None, judges), None)


def _ready_templates(words: Sequence[str], data_sets: Mapping[str, DataSet]) -> tuple[str, ...]:
    """Prompts of the first benchmark that has some for this class; () for several classes."""
    ready = (d.templates(words[0]) for d in data_sets.values() if d.templates and len(words) == 1)
    return next(filter(None, ready), ())


def _shortened(subject: Subject, most: int | None) -> Subject:
    return replace(subject, templates=subject.templates[:most])


def _methods(given: str | None, allowed: Sequence[str], default: list[str]) -> list[str]:
    methods = split(given) or default
    for name in methods:
        if name not in allowed:
            raise UserError(f"unknown method '{short(name)}' in --methods; choose from {', '.join(allowed)}")
    return methods


def _check_real(subjects: Sequence[Subject]) -> list[Path]:
    """The subjects' own images, each decoded once; UserError for one that cannot be."""
    individuals = [each for subject in subjects for each in subject.individuals]
    paths = [path for i in individuals for path in ([i.picture] if i.picture else list_images(i.folder)[0])]
    check_images(paths)
    return paths


def digest_of(paths: Iterable[Path]) -> str:
    """One SHA-256 of the files' contents, in this order: other files make another run."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
