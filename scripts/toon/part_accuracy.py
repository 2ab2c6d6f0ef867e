"""How often personalised models draw an individual as it is: its body, belly, ears, collar and marking.

data/dog and the first individuals of tuning are trained by toon's preset, and each is drawn for
"a photo of a <new1> dog", which the part reader judges, and in the situations that `prompt_accuracy` has, of
which the recogniser judges the words. The same reader on the individual's own images, and on "a photo of a
dog" by the base, says between what ends the first numbers lie.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.toon.judge.tuning_training import BASE, Individual, individual, look_of, train
from scripts.toon.world.examples import EXAMPLES
from scripts.toon.world.world import Look
from utils.bases.registry import as_dict
from utils.common.errors import exit_on_user_error
from utils.common.files import check_writable_folder, read_json, write_json
from utils.common.flags import check_fields, option, parse
from utils.config.methods import METHODS

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from PIL import Image

DOG = -1  # the number of data/dog among the individuals


@dataclass(frozen=True)
class Flags:
    """The flags of this command."""

    reader: Path = option(Path("data/toon/part_reader"), "folder of the part reader")
    method: str = option("classdiffusion", "how concepts are trained", choices=tuple(METHODS))
    individuals: int = option(5, "of tuning, besides data/dog", minimum=1)
    images: int = option(24, "of each individual for the plain prompt", minimum=1)
    num_inference_steps: int = option(25, "denoising steps", minimum=1)
    output_dir: Path = option(Path("outputs/part_accuracy"), "trainings, grids and numbers")

    def __post_init__(self) -> None:
        check_fields(self)


class Judge:
    """`Judge(config)(each, look, concept)` -> {"concept": …, "base": …, "own images": …, "words": …}.

    The first three are shares of images in which a part is right, by part; the last is the share of
    situations that obey every word.
    """

    def __init__(self, config: Flags):
        from scripts.toon.models.part_reader import PartReader

        self.config, self.reader = config, PartReader(config.reader)
        self.plain: dict[str, list[Image.Image]] = {}  # class -> the base's images of it

    def __call__(self, each: Individual, look: Look, concept: Path) -> dict[str, dict[str, float] | float]:
        from scripts.toon.prompt_accuracy import obeyed
        from scripts.toon.world.prompts import situations
        from utils.bases.families import load_pipeline
        from utils.common.images import list_images, open_image
        from utils.concepts.load import load_concept
        from utils.sampling.grids import save_grid

        pipeline = load_pipeline(BASE.path)
        subject = METHODS[self.config.method].subject.format(token="<new1>", cls=each.kind)
        if each.kind not in self.plain:
            self.plain[each.kind] = self.draw(pipeline, [f"a photo of a {each.kind}"] * self.config.images)
        load_concept(pipeline, concept)
        own = self.draw(pipeline, [f"a photo of a {subject}"] * self.config.images)
        save_grid(own[:8], [f"a photo of a {subject}"], concept.with_suffix(".png"))
        prompts = situations(each.kind, subject)
        words = obeyed(prompts, 1, self.draw(pipeline, [text for text, _ in prompts]))
        real = [*map(open_image, list_images(each.images)[0])]
        sets = {"concept": own, "base": self.plain[each.kind], "own images": real}
        return {name: self.shares(images, look) for name, images in sets.items()} | {"words": words["all"][0]}

    def draw(self, pipeline: "StableDiffusionPipeline", texts: Sequence[str]) -> "list[Image.Image]":
        """An image of each text, seeds 0, 1, …"""
        from utils.sampling.images import sample

        settings = as_dict(BASE.sampling) | {"num_inference_steps": self.config.num_inference_steps}
        return list(sample(pipeline, texts, range(len(texts)), batch_size=12, **settings))

    def shares(self, images: "Sequence[Image.Image]", look: Look) -> dict[str, float]:
        from scripts.toon.models.part_reader import parts_of, shares

        return shares(self.reader.read(images), [parts_of(look)] * len(images))


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    from scripts.toon.models.training import check_present

    check_present(config.reader, "python -m scripts.toon.build part_reader")
    check_writable_folder(config.output_dir, "output_dir")
    judge, results = Judge(config), {}
    work = config.output_dir / config.method
    judged = [(Individual(DOG, "dog", Path("data/dog")), EXAMPLES["dog"])]
    judged += [(individual(i, config.output_dir), look_of(i)) for i in range(config.individuals)]
    for each, look in judged:
        name = each.images.name
        record = work / f"{name}, {config.images} images, {config.num_inference_steps} steps.json"
        if not record.is_file():
            train(config.method, [], each, work / name, config.output_dir / "class_images")
            write_json(record, judge(each, look, work / name))
        results[name] = read_json(record)
        print(f"{name} ({look.kind}): {json.dumps(results[name])}", flush=True)
    count = len(results)
    for name in ("concept", "base", "own images"):
        means = {p: sum(r[name][p] for r in results.values()) / count for p in results["dog"][name]}
        print(f"{name}: " + ", ".join(f"{part} {share:.1%}" for part, share in means.items()))
    words = sum(result["words"] for result in results.values()) / count
    print(f"words: {words:.1%}; means of {count} individuals, {config.images} images each")
    file = config.output_dir / f"{config.method}.json"
    write_json(file, results)
    print(f"the numbers are in {file}, concepts and images in {work}")


if __name__ == "__main__":
    exit_on_user_error(main)
