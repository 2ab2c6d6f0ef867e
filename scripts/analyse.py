"""What training did to a concept and its class: the paper's analyses, each with a table and charts.

python -m scripts.analyse semantic_space outputs/dog_kv_only outputs/dog_classdiffusion
python -m scripts.analyse attention_maps ckpt/dog --prompt "a {} wearing headphones on the beach"
python -m scripts.analyse conditional_spread ckpt/dog

The folders are those of train_classdiffusion.py.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from utils.analysis.tuned import AnalysisFlags, Tuned, described, open_model, read_tuned, report
from utils.bases.registry import as_dict, describe_base, judge_path, portable
from utils.common.errors import UserError, exit_on_user_error, short
from utils.common.flags import option
from utils.common.subcommands import Subcommand, run_subcommand
from utils.common.words import counted

PROMPT = "a photo of a {} wearing headphones on the beach"


@dataclass(frozen=True)
class SpaceFlags(AnalysisFlags):
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


def semantic_space(config: SpaceFlags) -> None:
    """Distances of concepts to their class and to others, and the drift of the class, over steps."""
    row, tuned = read_tuned(config.concepts, config.base)
    from tqdm import tqdm

    from utils.analysis import semantic_space as space
    from utils.measures.drift import LEVELS, class_images, make_probe

    words, folder = config.words(tuned), config.folder("semantic_space")
    moments = [moment for each in tuned for moment in space.moments_of(each)]
    print(f"{describe_base(row)}: {counted(len(tuned), 'concept')}, {counted(len(moments), 'point')}")
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


@dataclass(frozen=True)
class AttentionFlags(AnalysisFlags):
    scenes: Path | None = option(None, "folder of images with masks and scenes.json, to be noised")
    prompt: tuple[str, ...] = option(
        (), f"prompt to watch while sampling; repeatable (default, without --scenes: {PROMPT})"
    )
    num_images: int = option(2, "images sampled for each prompt, with seeds --seed, --seed + 1, …", minimum=1)
    map_side: int | None = option(
        None, "only layers whose maps have this side (Kim et al.: 16; default: all, enlarged)", minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for prompt in self.prompt:
            if prompt.split().count("{}") != 1:
                raise UserError(
                    f"--prompt {short(prompt)}: write {{}} as a word of its own, once, for the concept"
                )

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.prompt or (() if self.scenes else (PROMPT,))


def attention_maps(config: AttentionFlags) -> None:
    """Heat maps of cross-attention, its shares inside true masks, and its divergence from the base."""
    row, tuned = read_tuned(config.concepts, config.base, text_states=False)
    from utils.analysis.attention_maps import check_map_side, watch
    from utils.analysis.attention_report import line_of, summarise
    from utils.analysis.scenes import read_scenes
    from utils.measures.drift import LEVELS

    words = sorted({each.word for each in tuned})
    if len(words) > 1:
        raise UserError(f"the concepts are of the classes {', '.join(words)}; compare those of one class")
    kind, scenes = read_scenes(config.scenes) if config.scenes else (words[0], [])
    if kind != words[0]:
        raise UserError(f"--scenes {config.scenes} shows a {kind}, the concepts are a {words[0]}")
    folder = config.folder("attention_maps")
    if config.map_side is not None:
        check_map_side(row.path, config.map_side)
    counts = {"concept": tuned, "scene": scenes, "prompt": config.prompts}
    print(f"{describe_base(row)}: {', '.join(counted(len(each), one) for one, each in counts.items())}")
    jobs = [(prompt, config.seed + i) for prompt in config.prompts for i in range(config.num_images)]
    shared = (kind, scenes, jobs, row.sampling, config.seed, config.map_side)
    base = open_model(row, config.device)
    watched = {"base": watch(base, None, *shared)}
    for each in tuned:
        watched[each.name] = watch(open_model(row, config.device, each.path), each, *shared)
    facts = {"images_per_prompt": config.num_images if jobs else 0, "sampling": as_dict(row.sampling)}
    facts |= {
        "map_side": config.map_side,
        "seed": config.seed,
        "scenes": len(scenes),
        "prompts": config.prompts,
        "noise_levels": LEVELS,
    }
    results, files = summarise(watched, folder)
    lines = [
        f"{which}, {name}: {line_of(averages)}"
        for which, result in results.items()
        for name, averages in result["means"].items()
    ]
    report(folder / "attention_maps.json", described(row, base, tuned, **facts) | results, lines, files)


@dataclass(frozen=True)
class SpreadFlags(AnalysisFlags):
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


def conditional_spread(config: SpreadFlags) -> None:
    """Spread of phrases and samples, and their overlap with the class in the base."""
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
    sizes = f"{len(contexts)} phrases and {counted(config.num_images, 'image')} a set"
    print(f"{describe_base(row)}: {counted(len(tuned), 'concept')}, {sizes}")

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


SUBCOMMANDS = {
    "semantic_space": Subcommand(
        SpaceFlags,
        semantic_space,
        "distances of concepts to their class and to others, over training steps\n\n"
        "--checkpointing_steps of the training says how many points there are.",
    ),
    "attention_maps": Subcommand(
        AttentionFlags,
        attention_maps,
        "cross-attention of concepts and of their base: heat maps, shares inside true masks, KL\n\n"
        "python -m scripts.toon.masked_scenes --individual dog --output_dir outputs/scenes_dog\n"
        "python -m scripts.analyse attention_maps ckpt/dog --scenes outputs/scenes_dog\n\n"
        '"{}" in a prompt stands for the concept, and for its class on the base.',
    ),
    "conditional_spread": Subcommand(
        SpreadFlags,
        conditional_spread,
        "spread and overlap of concepts' phrases and samples against their class's\n\n"
        "--num_images 0 compares text alone. Samples are compared by the base's DINO.",
    ),
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    run_subcommand(SUBCOMMANDS, argv, __doc__, "python -m scripts.analyse")


if __name__ == "__main__":
    exit_on_user_error(main)
