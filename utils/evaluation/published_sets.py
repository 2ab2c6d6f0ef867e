"""The published benchmarks of personalisation, read from the user's own copy.

No foreign prompt or image is part of this repository. A command may add benchmarks of its own to the rows.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.common.errors import UserError, short
from utils.common.files import path_inside, read_lines, read_text
from utils.common.limits import check_file_name
from utils.evaluation.data_sets import (
    DataSet,
    Individual,
    Subject,
    check_complete,
    check_template,
    chosen,
)
from utils.evaluation.dreambench_plus import read_dreambench_plus, write_dreambench_plus

DREAMBOOTH_FILE = "prompts_and_classes.txt"
LIVE_CLASSES = ("cat", "dog")  # the classes of the DreamBooth set's 9 live subjects; its file does not say so
TOKEN = re.compile(r"<[^<>\s]+>")


def read_dreambooth(data_dir: Path, names: Sequence[str] = ()) -> list[Subject]:
    """The DreamBooth set (Ruiz et al. 2023): 30 subjects, 25 prompts for live ones and 25 for objects.

    data_dir: the repository's folder, or its `dataset`: prompts_and_classes.txt and a folder per subject.
    names: these subjects only, in this order; the others' folders may be missing.
    Raises UserError if files or folders are missing or the text file is not of the published form.
    """
    root = data_dir / "dataset" if (data_dir / "dataset" / DREAMBOOTH_FILE).is_file() else data_dir
    file = root / DREAMBOOTH_FILE
    if not file.is_file():
        raise UserError(f"no {DREAMBOOTH_FILE} in {data_dir}; give your copy of the DreamBooth set")
    classes, objects, live = _parse_dreambooth(file)
    names = chosen(names, list(classes), str(file))
    check_complete(root, [root / name for name in names])
    subjects = []
    for name in names:
        word, folder = classes[name], root / name
        individual = Individual("<new1>", word, folder, f"a photo of a <new1> {word}")
        alive = word in LIVE_CLASSES
        subjects.append(Subject(name, (individual,), live if alive else objects, alive))
    return subjects


def _parse_dreambooth(file: Path) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """({subject: class}, object templates, live templates). The file's Python is read, not executed."""
    text = read_text(file)
    form = r"subject_name,class\n(.+?)\n\s*Prompts\s*\n.*?Object Prompts\s*\n(.+?)\n\s*"
    form += r"Live Subject Prompts\s*\n(.+)"
    found = re.search(form, text, re.DOTALL)
    if found is None:
        wanted = "'subject_name,class', 'Object Prompts' and 'Live Subject Prompts'"
        raise UserError(f"{file} is not of the published form: it needs the parts {wanted}")
    rows, *sections = found.groups()
    classes = {}
    for row in filter(None, map(str.strip, rows.splitlines())):
        name, comma, word = (part.strip() for part in row.partition(","))
        if not (name and comma and word):
            raise UserError(f"{file}: '{short(row)}' is not a subject and its class, joined by a comma")
        check_file_name(f"{file}: subject", name, "take the published file")
        classes[name] = word
    lists = []
    for section in sections:
        # 'a {0} {1} in the snow'.format(unique_token, class_token),
        prompts = re.findall(r"""^\s*(['"])(.+)\1\s*\.format\(""", section, re.MULTILINE)
        templates = tuple(prompt.replace("{0} {1}", "{}") for _, prompt in prompts)
        if not templates:
            raise UserError(f"{file} has a list without prompts; take the published file")
        for template in templates:
            check_template(template, 1, f"{file}: a prompt")
        lists.append(templates)
    return classes, *lists


def read_customconcept101(data_dir: Path, names: Sequence[str] = ()) -> list[Subject]:
    """CustomConcept101 (Kumari et al. 2023): 101 concepts with 20 prompts each, named as their folders are.

    data_dir: dataset.json, prompts/ and the unpacked benchmark_dataset/. names and errors as above.
    """
    file = data_dir / "dataset.json"
    return _read_entries(data_dir, file, [[entry] for entry in _read_json_list(file)], names)


def read_customconcept101_pairs(data_dir: Path, names: Sequence[str] = ()) -> list[Subject]:
    """CustomConcept101's pairs (dataset_multiconcept.json), named 'furniture_sofa1+furniture_chair1'."""
    file = data_dir / "dataset_multiconcept.json"
    return _read_entries(data_dir, file, _read_json_list(file), names)


def _read_json_list(file: Path) -> list[Any]:
    if not file.is_file():
        raise UserError(f"no {file.name} in {file.parent}; give your copy of CustomConcept101")
    try:
        entries = json.loads(read_text(file))
    except UserError:  # itself a ValueError
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({short(error, 100)}); take the published file") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file} holds no list of concepts; take the published file")
    return entries


def _read_entries(data_dir: Path, file: Path, rows: list[Any], names: Sequence[str]) -> list[Subject]:
    """Each row: one or several concepts and, for several, an entry with the prompts about them together."""
    found: dict[str, tuple[tuple[Individual, ...], Path]] = {}
    for number, row in enumerate(rows, start=1):
        entries = row if isinstance(row, list) and all(isinstance(entry, dict) for entry in row) else []
        concepts = [entry for entry in entries if "instance_prompt" in entry]
        key = "prompt_filename" if len(concepts) == 1 else "prompt_filename_compose"
        files = [entry[key] for entry in entries if key in entry]
        if not concepts or len(files) != 1:
            raise UserError(f"{file}: entry {number} has {len(concepts)} concepts, {len(files)} x {key}")
        individuals = tuple(_individual(entry, data_dir, f"{file}: entry {number}") for entry in concepts)
        stem = name = "+".join(individual.folder.name for individual in individuals)
        for count in range(2, len(found) + 2):
            if name in found:
                name = f"{stem}-{count}"
        found[name] = individuals, path_inside(data_dir, files[0], f"{file}: entry {number}")
    wanted = {name: found[name] for name in chosen(names, list(found), str(file))}
    folders = [each.folder for individuals, _ in wanted.values() for each in individuals]
    check_complete(data_dir, folders, [prompts for _, prompts in wanted.values()])
    subjects = []
    for name, (individuals, prompts) in wanted.items():
        templates = tuple(read_lines(prompts).values())
        for template in templates:
            check_template(template, len(individuals), f"{prompts}: a prompt")
        subjects.append(Subject(name, individuals, templates))
    return subjects


def _individual(entry: dict[str, Any], data_dir: Path, place: str) -> Individual:
    for key in ("instance_prompt", "class_prompt", "instance_data_dir"):
        if not isinstance(entry.get(key), str):
            raise UserError(f"{place} has no text under {key}; take the published file")
    token = TOKEN.search(entry["instance_prompt"])
    if token is None:
        raise UserError(f"{place}: '{entry['instance_prompt']}' has no token such as <new1>")
    folder = path_inside(data_dir, entry["instance_data_dir"], place)
    return Individual(token[0], entry["class_prompt"], folder, entry["instance_prompt"])


DATA_SETS: dict[str, DataSet] = {
    "dreambooth": DataSet(read_dreambooth),
    "customconcept101": DataSet(read_customconcept101),
    "customconcept101_pairs": DataSet(read_customconcept101_pairs),
    "dreambench_plus": DataSet(read_dreambench_plus, write=write_dreambench_plus),
}
