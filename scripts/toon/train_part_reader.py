"""Train the reader of an individual's parts, on renders alone; `part_accuracy` judges concepts by it.

It is not among the embedded models: it takes a quarter of an hour to make.
"""

from dataclasses import dataclass
from pathlib import Path

from scripts.toon.models.flags import TrainingFlags, rate_option, steps_option
from utils.common.errors import exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class Flags(TrainingFlags):
    """The flags of this command."""

    output_dir: Path = option(Path("toon_build/part_reader"), "folder of the model")
    recogniser: Path = option(Path("data/toon/recogniser"), "what it begins as", exists=True)
    steps: int = steps_option(1500)
    batch_size: int = option(64, "images a step", minimum=2)
    lr: float = rate_option(2e-3)


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    import torch

    from scripts.toon.models.part_reader import PartReader, build, loss_at, parts_of, portraits, shares
    from scripts.toon.models.training import begin, device, fit, save
    from scripts.toon.world.render import render

    begin(config, "part_reader")
    torch.manual_seed(config.seed)
    model = build(config.recogniser).to(device())
    loss_of = loss_at(model, config.resolution, config.batch_size, config.seed)
    fit(model, loss_of, config.steps, config.lr, config.work_dir / "part_reader.pt", warmup=50)
    unseen = portraits("part-reader-test", 512)
    readings = PartReader(model).read([render(scene, config.resolution) for scene in unseen])
    for part, share in shares(readings, [parts_of(scene.subject) for scene in unseen]).items():
        print(f"part reader: {part} {share:.2%}")
    save(model, config.output_dir)
    print(f"saved {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)
