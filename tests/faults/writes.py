"""The building blocks that write, each with what was there before and how its content is read."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from scripts import export
from tests.concepts import DOG
from utils.bases.registry import base_row
from utils.common.files import append_records, read_json, read_records, write_json, write_text
from utils.common.folders import files_of, replace_folder
from utils.common.images import is_image, open_image
from utils.common.tensor_files import read_tensors, write_tensors
from utils.concepts.save import save_concept
from utils.config.train_config import TrainConfig
from utils.data.class_images import generate_class_images
from utils.training.checkpoints import find_checkpoint, new_checkpoint, remove_old_checkpoints
from utils.training.lock import RunLock
from utils.training.logger import Logger
from utils.training.state import load_state, save_state


class Run:
    """A training run of one parameter of 3000 numbers, which are all equal to `value`, else to the step."""

    def __init__(self, step: int = 0, value: int | None = None):
        self.trained = {"rows": nn.Parameter(torch.zeros(3, 1000))}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer)
        self.trained["rows"].sum().backward()
        for _ in range(step):
            self.optimizer.step()  # makes the moments
            self.scheduler.step()
        with torch.no_grad():
            self.trained["rows"].fill_(step if value is None else value)

    def save(self, output_dir: Path, step: int) -> None:
        with new_checkpoint(output_dir, step) as folder:
            replace_folder(folder, lambda staging: write_tensors(staging / "kv.safetensors", self.trained))
            write_json(folder / "training_config.json", {"seed": 0})
            save_state(folder, step, self.trained, self.optimizer, self.scheduler, None, 1, self.trained)

    def load(self, output_dir: Path) -> float:
        """The value that the run goes on with from 'latest'."""
        checkpoint, _ = find_checkpoint("latest", output_dir)
        tensors = read_tensors(files_of(checkpoint)["kv.safetensors"])
        load_state(checkpoint, tensors, self.trained, self.optimizer, self.scheduler, None, 1)
        (value,) = set(self.trained["rows"].flatten().tolist())
        return value


@dataclass(frozen=True)
class Write:
    """before: makes the old content. act: replaces it. read: the content as a reader sees it."""

    before: Callable[[Path], Any]
    act: Callable[[Path], Any]
    read: Callable[[Path], Any]
    old: Any
    new: Any
    between: tuple[Any, ...] = ()  # whole contents on the way


def save_next(folder: Path) -> None:
    Run(2).save(folder, 2)
    remove_old_checkpoints(folder, 2, keep=1)


def concept(text: str) -> Callable[[Path], None]:
    def write(staging: Path) -> None:
        for name in ("concept.json", "kv", f"row-{text}"):
            write_text(staging / name, text)

    return write


def concept_before(folder: Path) -> None:
    replace_folder(folder, concept("old"))
    (folder / "checkpoint-1").mkdir()
    write_text(folder / "checkpoint-1" / "state", "state")
    write_text(folder / "log.jsonl", "log")


def read_concept(folder: Path) -> dict[str, str]:
    assert (folder / "checkpoint-1" / "state").read_text() == "state"
    return {name: path.read_text() for name, path in files_of(folder).items()}


def drawn(pipeline, prompts, seeds, *_, **__):
    return (Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(len(prompts)))


def draw_class_images(folder: Path) -> None:
    dogs = replace(DOG, class_prompt="a dog", class_data_dir=folder / "dogs")
    generate_class_images(None, [dogs], base_row("sd15"), count=3, batch_size=3, seed=0)


def read_images(folder: Path) -> int:
    images = [path for path in (folder / "dogs").glob("*") if is_image(path)]
    assert all(open_image(path).size == (8, 8) for path in images)
    return len(images)


CONFIG = TrainConfig(instance_data_dir="dog", instance_prompt="a <new1> dog", cls_token="dog")


def write_log(folder: Path) -> None:
    logger = Logger(folder, CONFIG, resumed_at=2)
    for step in (3, 4):
        logger.log(step, {"loss": 0.5})


def log_until(step: int) -> list[dict]:
    return [{"step": number, "loss": 0.5} for number in range(1, step + 1)]


def row(n: int, text: str) -> dict[str, str]:
    return {"concept.json": text, "kv": text, f"row-{text}": text, "log.jsonl": "log"}


def lock(folder: Path) -> None:
    with RunLock(folder):
        pass


def row_alone(folder: Path) -> None:
    save_concept(folder / "dog", {}, {"<new1>": torch.ones(32)}, classes=["dog"])


def export_row(folder: Path) -> None:
    if not (folder / "out").exists():  # an export never replaces another
        config = export.ExportConfig(folder / "dog", folder / "out", format="embedding")
        export.export(config.concept, config.output, config)


WRITES = {
    "checkpoint": Write(lambda f: Run(1).save(f, 1), save_next, lambda f: Run().load(f), 1, 2),
    "checkpoint of the same step": Write(
        lambda f: Run(5, 1).save(f, 5), lambda f: Run(5, 2).save(f, 5), lambda f: Run().load(f), 1, 2
    ),
    "concept folder": Write(
        concept_before,
        lambda f: replace_folder(f, concept("new"), stale=["row-old"]),
        read_concept,
        row(1, "old"),
        row(1, "new"),
    ),
    "JSON file": Write(
        lambda f: write_json(f / "a.json", [0]),
        lambda f: write_json(f / "a.json", [1] * 1000),
        lambda f: read_json(f / "a.json"),
        [0],
        [1] * 1000,
    ),
    "records": Write(
        lambda f: append_records(f / "r", [{"n": 0}]),
        lambda f: (
            append_records(f / "r", [{"n": 1, "text": "x" * 5000}, {"n": 2}])
            if len(read_records(f / "r")) == 1
            else None
        ),
        lambda f: [record["n"] for record in read_records(f / "r")],
        [0],
        [0, 1, 2],
        ([0, 1],),
    ),
    "log of a resumed run": Write(
        lambda f: append_records(f / "log.jsonl", log_until(3)),
        write_log,
        lambda f: read_records(f / "log.jsonl"),
        log_until(3),
        log_until(4),
        (log_until(2),),
    ),
    "class images": Write(lambda f: (f / "dogs").mkdir(), draw_class_images, read_images, 0, 3, (1, 2)),
    "export": Write(
        row_alone,
        export_row,
        lambda f: sorted(str(path.relative_to(f)) for path in (f / "out").rglob("*")),
        [],
        ["out/dog1.safetensors", "out/kohya", "out/kohya/dog1.safetensors"],
    ),
    "lock": Write(lambda f: None, lock, lambda f: None, None, None),
}
