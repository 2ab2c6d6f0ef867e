"""Distances of concepts to their class and to others, and the drift of the class, over training steps.

python -m scripts.semantic_space outputs/dog_kv_only outputs/dog_classdiffusion

The folders are those of train_classdiffusion.py; its --checkpointing_steps says how many points there are.
"""

from dataclasses import dataclass

from utils.analysis.tuned import AnalysisFlags, Tuned, described, open_model, read_tuned, report
from utils.bases.registry import describe_base
from utils.common.errors import UserError, exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class Config(AnalysisFlags):
    other_classes: str = option("cat,rabbit,car,barn", "class words to compare with, joined by commas")
    num_class_images: int = option(
        8, "images of each class, drawn by the base, to measure drift on", minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(word.strip() for word in self.other_classes.split(",")):
            raise UserError(
                f"--other_classes {self.other_classes!r}: give words joined by commas, e.g. cat,car"
            )

    def words(self, tuned: list[Tuned]) -> list[str]:
        """The concepts' classes and the others, each once. Raises UserError where a concept has no other."""
        own = [each.word for each in tuned]
        words = list(dict.fromkeys([*own, *(word.strip() for word in self.other_classes.split(","))]))
        if len(words) < 2:
            raise UserError(f"--other_classes {self.other_classes} is the concepts' own class; add another")
        return words


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    row, tuned = read_tuned(config.concepts, config.base)
    from tqdm import tqdm

    from utils.analysis import semantic_space as space
    from utils.measures.drift import LEVELS, class_images, make_probe

    words, folder = config.words(tuned), config.folder("semantic_space")
    moments = [moment for each in tuned for moment in space.moments_of(each)]
    print(f"{describe_base(row)}: {len(tuned)} concepts, {len(moments)} points")
    base = open_model(row, config.device)
    own = list(dict.fromkeys(each.word for each in tuned))
    images = class_images(base.pipeline, own, config.num_class_images, config.seed, row.sampling)
    probes = {word: make_probe(base, {word: images[word]}, config.seed) for word in own}
    features = {word: space.phrase_features(base, space.PHRASE.format(word)) for word in words}
    measured = space.measure_all(moments, lambda path: open_model(row, config.device, path), features, probes)
    records = list(tqdm(measured, "checkpoints", total=len(moments)))

    facts = {"seed": config.seed, "class_images": config.num_class_images, "noise_levels": LEVELS}
    about = described(row, base, tuned, phrase=space.PHRASE, classes=words, **facts)
    lines = [space.summary(each, [r for r in records if r["concept"] == each.name]) for each in tuned]
    charts = space.draw(records, tuned, folder / "semantic_space")
    report(folder / "semantic_space.json", about | {"records": records}, lines, charts)


if __name__ == "__main__":
    exit_on_user_error(main)
