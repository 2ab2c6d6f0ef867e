"""The record of a run: always JSON lines, and TensorBoard or Weights & Biases if asked."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.common.errors import UserError, short
from utils.common.files import append_records, read_records, shown, write_text
from utils.config.train_config import TrainConfig


class Logger:
    """`log` and `images` write to `<output_dir>/log.jsonl` and to the tracker of `--report_to`.

    A resumed run keeps the lines up to the step it resumes from and drops later ones.
    """

    def __init__(self, output_dir: Path, config: TrainConfig, resumed_at: int = 0):
        self.path = output_dir / "log.jsonl"
        kept = _records_until(resumed_at, self.path) if resumed_at else []
        write_text(self.path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
        self.board = self.run = None
        if config.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(
                str(output_dir / "tensorboard" / config.tracker_name), purge_step=resumed_at + 1
            )
        elif config.report_to == "wandb":
            import wandb

            try:
                self.run = wandb.init(project=config.tracker_name, config=asdict(config), dir=str(output_dir))
            except wandb.Error as error:  # no key, no network, no such project
                raise UserError(
                    f"--report_to wandb: {short(error, 200)}; run `wandb login`, or set WANDB_MODE=offline"
                ) from error

    def log(self, step: int, values: dict[str, float]) -> None:
        """values: name -> number, as of optimizer step `step` (the first is 1)."""
        append_records(self.path, [{"step": step, **values}], durable=False)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.run is not None:
            self.run.log(values, step=step)

    def images(self, step: int, name: str, images: list[Image.Image]) -> None:
        """Images for the tracker; the JSON lines hold no images."""
        if self.board is not None:
            stacked = np.stack([np.asarray(image) for image in images])
            self.board.add_images(name, stacked, step, dataformats="NHWC")
        if self.run is not None:
            import wandb

            self.run.log({name: [wandb.Image(image) for image in images]}, step=step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
        if self.run is not None:
            self.run.finish()


def _records_until(step: int, path: Path) -> list[dict[str, Any]]:
    """The log's records of steps up to `step`; a line that a kill tore is dropped."""
    records = read_records(path)
    for number, record in enumerate(records, start=1):
        if type(record.get("step")) is not int:
            raise UserError(f"{shown(path)}: line {number} has no step; repair or remove it")
    return [record for record in records if record["step"] <= step]
