"""DreamBench++ (Peng et al. 2024, arXiv 2406.16855): read from a copy, and written for its own evaluation.

data/                                       what is read; --data_dir may also be the folder above it
  images/**/NN.jpg                          one image of a subject; its folder is the category
  captions/**/NN.txt                        the same path: the subject's noun, then its nine prompts

<method>/                                   what is written: the folder that its own evaluation takes
  src_image, tgt_image/<id>/<prompt>_<n>.jpg, text/<id>/<prompt>_<n>.txt
"""

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from utils.common.errors import UserError
from utils.common.files import read_lines, write_atomically, write_text
from utils.common.images import open_image
from utils.common.limits import check_file_name
from utils.evaluation.data_sets import Individual, Subject, check_template, chosen
from utils.evaluation.shots import shots_of

PROMPTS = 9  # 0 to 3 photorealistic, 4 to 6 stylised, 7 and 8 imaginative
LIVE = ("animal", "human")
JPEG_QUALITY = 95


def read_dreambench_plus(data_dir: Path, names: Sequence[str] = ()) -> list[Subject]:
    """150 subjects with one image and nine prompts each, named as its own code does: object_03_red_mug.

    names: these subjects only. An individual's `picture` is its image. A prompt gets {} where its noun
    stands, or, where it does not name it, at its end.
    Raises UserError if images or captions are missing, or a caption file is not of the published form.
    """
    root = data_dir / "data" if (data_dir / "data" / "captions").is_dir() else data_dir
    images = sorted((root / "images").rglob("*.jpg"))
    if not images:
        raise UserError(f"no images/**/*.jpg in {data_dir}; give your copy of DreamBench++")
    subjects = [_subject(root, path) for path in images]
    known = {subject.name: subject for subject in subjects}
    if len(known) < len(subjects):
        raise UserError(f"{root} has two subjects of one name; take the published files")
    return [known[name] for name in chosen(names, list(known), str(root))]


def _subject(root: Path, image: Path) -> Subject:
    file = root / "captions" / image.relative_to(root / "images").with_suffix(".txt")
    if not file.is_file():
        raise UserError(f"{image} has no captions: {file} is missing; complete your copy")
    noun, *prompts = read_lines(file).values()
    if len(prompts) != PROMPTS:
        raise UserError(
            f"{file} has {len(prompts)} prompts after its noun, not {PROMPTS}; take the published"
        )
    templates = tuple(_template(prompt, noun) for prompt in prompts)
    for template in templates:
        check_template(template, 1, f"{file}: a prompt")
    category = image.parent.name
    kind = f"live_subject_{category}" if category in LIVE else category
    name = f"{kind}_{image.stem}_{noun.lower().replace(' ', '_')}"
    check_file_name(f"{file}: subject", name, "take the published file")
    individual = Individual("<new1>", noun, image.parent, f"a photo of a <new1> {noun}", picture=image)
    return Subject(name, (individual,), templates, category == "animal", category)


def _template(prompt: str, noun: str) -> str:
    """The prompt with {} in place of the noun, as a word of its own, whatever its case; braces are kept."""
    prompt = prompt.replace("{", "{{").replace("}", "}}")
    template, found = re.subn(rf"(?<!\w){re.escape(noun)}(?!\w)", "{}", prompt, count=1, flags=re.IGNORECASE)
    return template if found else f"{prompt}, {{}}"


def write_dreambench_plus(
    results: Path, subjects: Sequence[Subject], methods: Sequence[str], seeds: Sequence[int]
) -> Path:
    """The drawn images as its own evaluation reads them, for each method; returns their folder.

    _<n> counts the seeds from 0; its evaluation reads _0. What is there already stays.
    """
    folder = results / "dreambench_plus"
    for method in methods:
        for subject in subjects:
            source = open_image(subject.individuals[0].picture)
            for shot in shots_of(subject, method, seeds):
                name = f"{shot.prompt_index}_{seeds.index(shot.seed)}"
                places = {
                    part: folder / method / part / subject.name / name
                    for part in ("src_image", "tgt_image", "text")
                }
                _write_jpeg(source, places["src_image"].with_suffix(".jpg"))
                _write_jpeg(open_image(results / shot.image), places["tgt_image"].with_suffix(".jpg"))
                write_text(places["text"].with_suffix(".txt"), shot.text)
    return folder


def _write_jpeg(image: Image.Image, path: Path) -> None:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        image = image.convert("RGB")
        how = {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0}
        write_atomically(path, lambda partial: image.save(partial, **how))
