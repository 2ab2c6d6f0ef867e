"""What a benchmark of personalisation is made of: subjects, their images and prompts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from shutil import copyfile
from string import Formatter
from typing import Any

from utils.common.errors import UserError, short
from utils.common.files import read_lines, write_atomically
from utils.common.images import is_image, list_images
from utils.sampling.prompts import check_length

NAMED = 40  # subjects that an error lists at most


@dataclass(frozen=True)
class Individual:
    """One thing to learn: its token, its class word, its images' folder and the caption they train with.

    picture: its only image, where that lies among those of others; an evaluation copies it into a folder.
    """

    token: str
    cls_token: str
    folder: Path
    instance_prompt: str
    picture: Path | None = None


@dataclass(frozen=True)
class Subject:
    """One row of a benchmark: an individual or, to be learned together, several; and its prompts.

    templates: prompts with `{}` where the individual stands, `{0}` and `{1}` for two.
    live: whether it is an animal, None where the benchmark makes no difference.
    category: the benchmark's; a table also gives the scores of each.
    """

    name: str
    individuals: tuple[Individual, ...]
    templates: tuple[str, ...]
    live: bool | None = None
    category: str | None = None

    @property
    def cls(self) -> str:
        """'dog', or 'sofa+chair'."""
        return "+".join(individual.cls_token for individual in self.individuals)

    @property
    def prompts(self) -> list[str]:
        """For the personalised model: 'a <new1> dog in the snow'."""
        return self.prompts_of("{token} {cls}")

    def prompts_of(self, subject: str) -> list[str]:
        """For a method that names the concept so, e.g. '{token}' alone (Method.subject)."""
        named = [subject.format(token=each.token, cls=each.cls_token) for each in self.individuals]
        return [template.format(*named) for template in self.templates]

    @property
    def class_prompts(self) -> list[str]:
        """For the base model, and for scoring: 'a dog in the snow'."""
        return [template.format(*self.cls.split("+")) for template in self.templates]

    def describe(self) -> dict[str, Any]:
        """As subjects.json holds it."""
        return {
            "name": self.name,
            "class": self.cls,
            "live": self.live,
            **({"category": self.category} if self.category else {}),
            "folder": str(self.individuals[0].folder),
            "pictures": [str(p) for each in self.individuals for p in list_images(each.folder)[0]],
            "prompts": self.prompts,
        }


def check_template(template: str, individuals: int, place: str) -> None:
    """Raises UserError, beginning with `place`, unless the template names individuals, and these only."""
    check_length(template, place)
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
        plain = all(not field.strip("0123456789") and not spec and not how for _, field, spec, how in parts)
        named = [field for _, field, _, _ in parts] if plain else []  # "{:>999999999}" would fill the memory
        template.format(*["dog"] * individuals) if plain else None
    except (ValueError, LookupError, AttributeError):
        named = []
    if not named:
        fields = "{}" if individuals == 1 else " and ".join(f"{{{i}}}" for i in range(individuals))
        raise UserError(
            f"{place} is '{short(template)}'; write {fields} where the subject stands, no other braces"
        )


def read_templates(path: Path, individuals: Sequence[Individual]) -> tuple[str, ...]:
    """A prompts file as templates: its lines hold `{}` or, as for inference.py, '<new1> dog' or '<new1>'.

    Raises UserError for a line that names no individual.
    """
    templates = []
    for number, line in read_lines(path).items():
        for index, each in enumerate(individuals):
            field = "{}" if len(individuals) == 1 else f"{{{index}}}"
            line = line.replace(f"{each.token} {each.cls_token}", field).replace(each.token, field)
        check_template(line, len(individuals), f"{path}, line {number}")
        templates.append(line)
    return tuple(templates)


def chosen(names: Sequence[str], known: list[str], place: str) -> list[str]:
    """The names asked for, or all. Raises UserError for others, with those that `place` has, few or alike."""
    unknown = [name for name in names if name not in known]
    if not unknown:
        return list(names) or known
    has = ", ".join(known)
    if len(known) > NAMED:
        alike = [match for name in unknown for match in get_close_matches(name, known, cutoff=0.4)]
        has = f"{len(known)} others" + (f", e.g. {', '.join(dict.fromkeys(alike))}" if alike else "")
    raise UserError(f"{place} has no subject {short(', '.join(unknown))}; it has {has}")


def check_complete(root: Path, folders: Iterable[Path], files: Iterable[Path] = ()) -> None:
    """Raises UserError that names everything which a copy of a benchmark lacks."""
    lacking = []
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            lacking.append(f"folder {_within(folder, root)}")
        elif not any(map(is_image, folder.iterdir())):
            lacking.append(f"images in {_within(folder, root)}")
    lacking += [f"file {_within(file, root)}" for file in dict.fromkeys(files) if not file.is_file()]
    if lacking:
        raise UserError(
            f"{root} lacks {', '.join(lacking)}; complete your copy, or name the subjects that it holds "
            "with --subjects"
        )


def _within(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


@dataclass(frozen=True)
class DataSet:
    """A benchmark: how it is read and what it is made for.

    read: (folder, names of subjects or none for all) -> subjects. The folder is the user's copy or, where
    `draw` renders the subjects' images, where they are to lie.
    base: the name of the base model that it is run on unless another is given.
    word_judge: what reads off images which words of these subjects' prompts they obey, None if nothing can.
    templates: ready prompts for a subject of this class word, none for a word that they do not suit.
    write: (results, subjects, methods, seeds) -> folder; writes the images as the benchmark's own evaluation
    reads them.
    """

    read: Callable[[Path, Sequence[str]], list[Subject]]
    base: str = "sd15"
    draw: Callable[[Sequence[Subject]], None] | None = None
    word_judge: Callable[[Sequence[Subject]], Any] | None = None
    templates: Callable[[str], tuple[str, ...]] | None = None
    write: Callable[[Path, Sequence[Subject], Sequence[str], Sequence[int]], Path] | None = None


def in_folders(subjects: Sequence[Subject], parent: Path) -> list[Subject]:
    """The subjects, where `copy_pictures` puts each `picture`: a folder of its own in `parent`."""

    def placed(subject: Subject, number: int, each: Individual) -> Individual:
        name = subject.name if len(subject.individuals) == 1 else f"{subject.name}_{number}"
        return each if each.picture is None else replace(each, folder=parent / name)

    return [
        replace(s, individuals=tuple(placed(s, i, each) for i, each in enumerate(s.individuals)))
        for s in subjects
    ]


def copy_pictures(subjects: Iterable[Subject]) -> None:
    """Copies each `picture` into its individual's folder, as 0.jpg; those that are there stay."""
    for each in (individual for subject in subjects for individual in subject.individuals):
        if each.picture is not None:
            copy = each.folder / f"0{each.picture.suffix}"
            if not copy.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(copy, lambda partial, each=each: copyfile(each.picture, partial))
