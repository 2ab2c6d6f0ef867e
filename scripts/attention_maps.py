"""Cross-attention of trained concepts beside their base: heat maps, shares inside true masks, KL.

python -m scripts.attention_maps ckpt/dog --prompt "a {} wearing headphones on the beach"
python -m scripts.toon.masked_scenes --individual dog --output_dir outputs/scenes_dog
python -m scripts.attention_maps outputs/dog_kv_only outputs/dog_classdiffusion --scenes outputs/scenes_dog

"{}" stands for the concept, and for its class on the base.
"""

from dataclasses import dataclass
from pathlib import Path

from utils.analysis.tuned import AnalysisFlags, described, open_model, read_tuned, report
from utils.bases.registry import as_dict, describe_base
from utils.common.errors import UserError, exit_on_user_error, short
from utils.common.flags import option, parse

PROMPT = "a photo of a {} wearing headphones on the beach"


@dataclass(frozen=True)
class Config(AnalysisFlags):
    scenes: Path | None = option(None, "folder of images with masks and scenes.json, to be noised")
    prompt: tuple[str, ...] = option(
        (), f"prompt to watch while sampling; repeatable (default, without --scenes: {PROMPT})"
    )
    num_images: int = option(2, "images sampled for each prompt, with seeds --seed, --seed + 1, …", minimum=1)

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


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    row, tuned = read_tuned(config.concepts, config.base, text_states=False)
    from utils.analysis.attention_maps import watch
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
    print(f"{describe_base(row)}: {len(tuned)} concepts, {len(scenes)} scenes, {len(config.prompts)} prompts")
    jobs = [(prompt, config.seed + i) for prompt in config.prompts for i in range(config.num_images)]
    shared = (kind, scenes, jobs, row.sampling, config.seed)
    base = open_model(row, config.device)
    watched = {"base": watch(base, None, *shared)}
    for each in tuned:
        watched[each.name] = watch(open_model(row, config.device, each.path), each, *shared)
    facts = {"images_per_prompt": config.num_images if jobs else 0, "sampling": as_dict(row.sampling)}
    facts |= {"seed": config.seed, "scenes": len(scenes), "prompts": config.prompts, "noise_levels": LEVELS}
    results, files = summarise(watched, folder)
    lines = [
        f"{which}, {name}: {line_of(averages)}"
        for which, result in results.items()
        for name, averages in result["means"].items()
    ]
    report(folder / "attention_maps.json", described(row, base, tuned, **facts) | results, lines, files)


if __name__ == "__main__":
    exit_on_user_error(main)
