"""The record of a run: always JSON lines, and TensorBoard or Weights & Biases if asked."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from utils.training.config import TrainConfig


class Logger:
    """`log` and `images` write to `<output_dir>/log.jsonl` and to the tracker of `--report_to`.

    A resumed run keeps the lines up to the step it resumes from and drops later ones.
    """

    def __init__(self, output_dir: Path, config: TrainConfig, resumed_at: int = 0):
        output_dir.mkdir(parents=True, exist_ok=True)
        path = output_dir / "log.jsonl"
        # The last line is torn where the run was killed while writing it.
        lines = path.read_text().split("\n")[:-1] if resumed_at and path.exists() else []
        self.file = path.open("w", buffering=1)
        self.file.writelines(line + "\n" for line in lines if json.loads(line)["step"] <= resumed_at)
        self.board = self.run = None
        if config.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(
                str(output_dir / "tensorboard" / config.tracker_name), purge_step=resumed_at + 1
            )
        elif config.report_to == "wandb":
            import wandb

            self.run = wandb.init(project=config.tracker_name, config=asdict(config), dir=str(output_dir))

    def log(self, step: int, values: dict[str, float]) -> None:
        """values: name -> number, as of optimizer step `step` (the first is 1)."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.run is not None:
            self.run.log(values, step=step)

    def images(self, step: int, name: str, pictures: list[Image.Image]) -> None:
        """Pictures for the tracker; the JSON lines hold no pictures."""
        if self.board is not None:
            stacked = np.stack([np.asarray(picture) for picture in pictures])
            self.board.add_images(name, stacked, step, dataformats="NHWC")
        if self.run is not None:
            import wandb

            self.run.log({name: [wandb.Image(picture) for picture in pictures]}, step=step)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.run is not None:
            self.run.finish()
