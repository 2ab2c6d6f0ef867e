"""Spread and overlap of concepts' phrase sets beside their class's, before and after tuning; and of samples.

python -m scripts.conditional_spread outputs/dog_kv_only outputs/dog_classdiffusion
python -m scripts.conditional_spread outputs/dog_classdiffusion --num_images 0    # text alone

The folders are those of train_classdiffusion.py. Samples are compared by the base's DINO.
"""

from dataclasses import dataclass

from utils.analysis.tuned import AnalysisFlags, described, open_model, read_tuned, report
from utils.bases.registry import as_dict, describe_base, judge_path, portable
from utils.common.errors import UserError, exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class Config(AnalysisFlags):
    other_classes: str = option("cat,rabbit", "class words to compare with, joined by commas")
    num_phrases: int = option(64, "phrases of a set, each a context", minimum=8)
    num_images: int = option(24, "samples of a set, each in a context; 0: none", minimum=0)
    dino: str | None = option(None, "DINO that compares samples: folder or Hub id (default: the base's)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.num_images < 8:
            raise UserError(
                f"--num_images {self.num_images}: give at least 8 for a covariance, or 0 for none"
            )
        if self.num_images > self.num_phrases:
            raise UserError(f"--num_images {self.num_images} is more than --num_phrases {self.num_phrases}")
        if self.dino is not None and not self.num_images:
            raise UserError("--dino has no effect without samples: leave it out, or give --num_images")
        if not all(word.strip() for word in self.other_classes.split(",")):
            raise UserError(
                f"--other_classes {self.other_classes!r}: give words joined by commas, e.g. cat,car"
            )


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    row, tuned = read_tuned(config.concepts, config.base)
    from tqdm import tqdm

    from utils.analysis import conditional_spread as cs
    from utils.analysis.semantic_space import moments_of
    from utils.scores.encoders import check_dino

    dino = judge_path(config.dino or row.judges["dino"], "dino")
    for each in tuned:
        moments_of(each)  # raises where it is unknown how the concept began
    if config.num_images:
        check_dino(dino)
    folder = config.folder("conditional_spread")
    base = open_model(row, config.device)
    own = list(dict.fromkeys(each.word for each in tuned))
    words = list(dict.fromkeys([*own, *(word.strip() for word in config.other_classes.split(","))]))
    contexts = cs.contexts_for(base.tokenizer, own, config.num_phrases, config.seed)
    sizes = f"{len(contexts)} phrases and {config.num_images} images a set"
    print(f"{describe_base(row)}: {len(tuned)} concepts, {sizes}")

    results, files = {}, []
    before = {word: cs.phrase_set(base, contexts, word) for word in words}
    bar = tqdm(tuned, "phrases", unit="concept")
    sets = {each.name: cs.text_sets(row, config.device, each, contexts, before) for each in bar}
    results["text"], charts = cs.compare(tuned, before, sets, folder / "text")
    files += charts
    if config.num_images:
        drawn = contexts[: config.num_images]
        images = cs.image_sets(row, base, config.device, tuned, drawn, dino, config.seed)
        results["images"], charts = cs.compare(tuned, *images, folder / "images")
        files += charts
    facts = {"num_images": config.num_images, "dino": portable(dino), "sampling": as_dict(row.sampling)}
    about = described(row, base, tuned, seed=config.seed, contexts=contexts, **facts)
    lines = ["spread, and overlap with the class in the base:"] + [
        f"{kind}, {name}: {cs.line_of(numbers)}"
        for kind, result in results.items()
        for name, numbers in result["numbers"].items()
    ]
    report(folder / "conditional_spread.json", about | results, lines, files)


if __name__ == "__main__":
    exit_on_user_error(main)
