"""Train the toon world's recogniser, which reads attributes off images, on renders alone."""

from dataclasses import dataclass
from pathlib import Path

from scripts.toon.models.flags import TrainingFlags, init_option, rate_option, steps_option
from utils.common.errors import exit_on_user_error
from utils.common.flags import option, parse


@dataclass(frozen=True)
class Flags(TrainingFlags):
    """The flags of this command."""

    output_dir: Path = option(Path("data/toon/recogniser"), "folder of the model")
    steps: int = steps_option(1500)
    batch_size: int = option(64, "images a step", minimum=2, multiple=2)
    lr: float = rate_option(2e-3)
    init_from: Path | None = init_option()


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    import torch
    from transformers import ResNetForImageClassification

    from scripts.toon.models.recogniser import accuracy, build, loss_at
    from scripts.toon.models.training import begin, device, fit, save

    begin(config, "recogniser")
    torch.manual_seed(config.seed)
    model = build()
    if config.init_from:
        start = ResNetForImageClassification.from_pretrained(config.init_from, dtype=torch.float32)
        model.load_state_dict(start.state_dict())
    model.to(device())
    loss_of = loss_at(model, config.resolution, config.batch_size, config.seed)
    fit(model, loss_of, config.steps, config.lr, config.work_dir / "recogniser.pt")
    for name, share in accuracy(model, config.resolution).items():
        print(f"recogniser: {name} {share:.2%}")
    save(model, config.output_dir)
    print(f"saved {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)
