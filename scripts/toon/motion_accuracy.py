"""Judge the motion adapter on a personalised model, with prompts that no training clip was described by.

Needs a trained concept of an animal. For four poses in four situations: clips, and still images of the same
prompts and seeds by the same sampler.
identity         DINO-I to the concept's images: of the frames, of the stills, and of stills of the class
smoothness       likeness (DINO) and change of successive frames, in true and in shuffled order, and the same
                 of clips that the renderer drew of these poses on plain grounds
displacement     how far the subject goes on plain grounds when it should run, jump and sit, and the same
                 measure on clips that the renderer drew
prompt accuracy  the share of frames, and of stills, in which the recogniser finds what the prompt states
"""

import json
from dataclasses import dataclass
from pathlib import Path

from utils.common.errors import exit_on_user_error
from utils.common.flags import check_fields, option, parse


@dataclass(frozen=True)
class Flags:
    """The flags of this command."""

    base: str = option("data/toon/sd", "base model")
    motion_adapter: str = option("data/toon/motion_adapter", "folder or Hub id")
    concept: Path = option(Path("ckpt/dog"), "an animal, with its class")
    dino: str = option("data/toon/dino", "the judge of likeness")
    clips: int = option(2, "clips per prompt", minimum=1)
    output_dir: Path = option(Path("outputs/motion_accuracy"), "folder of the numbers and contact sheets")

    def __post_init__(self) -> None:
        check_fields(self)


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    from scripts.toon.judge.motion_judge import judge
    from scripts.toon.prompt_accuracy import trained_concept
    from utils.bases.families import check_base, load_pipeline
    from utils.common.files import check_writable_folder, write_json
    from utils.sampling.motion_adapters import check_adapter
    from utils.scores.similarity import DinoEncoder, check_dino

    check_base(config.base)
    check_adapter(config.motion_adapter, config.base)
    check_dino(config.dino)
    concept, output = trained_concept(config.concept), config.output_dir
    check_writable_folder(output, "output_dir")
    dino, pipeline = DinoEncoder(config.dino), load_pipeline(config.base)
    results = judge(pipeline, concept, config.concept, config.motion_adapter, dino, config.clips, output)
    write_json(output / "motion_accuracy.json", results)
    print(json.dumps(results, indent=2))
    print(f"numbers and contact sheets are in {output}")


if __name__ == "__main__":
    exit_on_user_error(main)
