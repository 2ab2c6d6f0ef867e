"""Train the reader of an individual's parts on renders alone."""

from dataclasses import dataclass
from pathlib import Path

from scripts.toon.flags import TrainingFlags, rate_option, steps_option
from utils.errors import exit_on_user_error
from utils.flags import option, parse


@dataclass(frozen=True)
class Flags(TrainingFlags):
    """The flags of this command."""

    output_dir: Path = option(Path("data/toon/part_reader"), "folder of the model")
    steps: int = steps_option(1500)
    batch_size: int = option(32, "images a step", minimum=1)
    lr: float = rate_option(2e-3)


def main(argv: list[str] | None = None) -> None:
    config = parse(Flags, argv, __doc__)
    import torch

    from scripts.toon.part_reader import accuracy, build, loss_at
    from scripts.toon.training import begin, device, fit

    begin(config, "part_reader")
    torch.manual_seed(config.seed)
    model = build().to(device())
    loss_of = loss_at(model, config.resolution, config.batch_size, config.seed)
    fit(model, loss_of, config.steps, config.lr, config.work_dir / "part_reader.pt")
    shares = accuracy(model, config.resolution)
    print("part reader: " + ", ".join(f"{part} {share:.1%}" for part, share in shares.items()))
    model.half().save_pretrained(config.output_dir)
    print(f"saved {config.output_dir}")


if __name__ == "__main__":
    exit_on_user_error(main)
