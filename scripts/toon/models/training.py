"""One seeded, resumable training loop for every toon model."""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from scripts.toon.models.flags import TrainingFlags
from scripts.toon.world.render import render
from scripts.toon.world.world import Scene, sample_scene
from utils.common.errors import UserError
from utils.common.files import check_writable_folder, give_umask_mode, read_json, write_json
from utils.common.images import to_pixels as image_to_pixels
from utils.common.tensor_files import read_pickle, write_pickle

CHECKPOINT_EVERY = 250


def scenes(seed: str, count: int, held_out: bool = False) -> list[Scene]:
    """`count` random scenes, the i-th of them a function of (seed, i) alone."""
    return [sample_scene(random.Random(f"{seed}/{i}"), held_out) for i in range(count)]


def to_pixels(batch: list[Scene], size: int) -> Tensor:
    """Render: (B, 3, size, size) float32 in [-1, 1]."""
    return torch.stack([image_to_pixels(render(scene, size)) for scene in batch])


def subject_mask(pixels: Tensor, empty: Tensor, side: int) -> Tensor:
    """(B, 1, side, side): 1 where images differ from those of their scenes `without_subject`, else 0."""
    different = (pixels - empty).abs().amax(1, keepdim=True) > 0.05
    return F.adaptive_max_pool2d(different.float(), side)


def subject_weighted_mse(predicted: Tensor, target: Tensor, mask: Tensor, subject_weight: float) -> Tensor:
    """Scalar. predicted, target: (B, 4, h, w); mask: (B, 1, h, w), the `subject_mask`, where the loss weighs
    subject_weight, 1 elsewhere: most words are about the subject."""
    weight = 1 + (subject_weight - 1) * mask
    return (weight / weight.mean() * (predicted - target).square()).mean()


def generator(seed: str) -> torch.Generator:
    """A CPU generator seeded from a text: the randomness of step s is a function of (seed, s)."""
    return torch.Generator().manual_seed(random.Random(seed).getrandbits(62))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save(model: Any, folder: Path, **settings: Any) -> None:
    """The model in half precision. settings: its save_pretrained's."""
    model.half().save_pretrained(folder, **settings)
    give_umask_mode(folder)


def begin(config: TrainingFlags, name: str) -> None:
    """Note in its work_dir, as `name`.json, with what settings the checkpoints are made.

    Raises UserError if checkpoints of `name` with other settings lie there, for resuming would mix two runs,
    or if a folder cannot be written to.
    """
    check_writable_folder(config.work_dir, "work_dir")
    check_writable_folder(config.output_dir, "output_dir")
    places = ("output_dir", "work_dir")
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    settings = {key: str(value) for key, value in given.items() if key not in places}
    note = config.work_dir / f"{name}.json"
    earlier = read_json(note) if note.exists() else settings
    for key in settings | earlier:
        if settings.get(key) != earlier.get(key):
            raise UserError(
                f"{note} is of a run with --{key} {earlier.get(key)}, not {settings.get(key)}; "
                f"give another --work_dir, or remove it and the checkpoints next to it"
            )
    write_json(note, settings)


def check_present(path: Path, command: str) -> None:
    """Raises UserError unless the folder that `command` makes is there."""
    if not path.is_dir():
        raise UserError(f"there is no {path}: {command} makes it")


def cached(path: Path, batches: Iterable[Tensor]) -> Tensor:
    """What lies at `path`; if nothing does, the batches one after the other, then kept there."""
    if path.exists():
        return read_pickle(path)["rows"]
    rows = torch.cat(list(batches))
    write_pickle(path, {"rows": rows})
    return rows


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    steps: int,
    lr: float,
    state_path: Path,
    warmup: int = 200,
    ema_decay: float = 0.999,
    weight_decay: float = 1e-2,
) -> None:
    """Minimise `loss_of(step)` with AdamW, warm-up and cosine decay; leave the moving average in `model`.

    `loss_of` draws its own batch from the step, so a run resumed from `state_path` equals an unbroken one.
    Raises UserError for a checkpoint that is damaged or another model's, FloatingPointError when the loss is
    no longer finite; the last checkpoint stays.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    current = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    average = {name: value.clone() for name, value in current.items()}
    start = 0
    if state_path.exists():
        state = read_pickle(state_path, device())
        saved, own = ({n: v.shape for n, v in each.items()} for each in (state["model"], model.state_dict()))
        if saved != own:
            raise UserError(f"{state_path} is of another model: remove it to begin anew")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    averages, values = [average[name] for name in current], list(current.values())  # values change in place
    model.train()
    with tqdm(range(start, steps), initial=start, total=steps, desc=state_path.stem, mininterval=10) as bar:
        for step in bar:
            rate = lr * min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            loss = _update(model, optimizer, loss_of(step), rate, f"{state_path.stem}, step {step + 1}")
            decay = min(ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(averages, values, 1 - decay)
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                write_pickle(state_path, states | {"average": average, "step": step + 1})
    model.load_state_dict(model.state_dict() | average)
    model.eval()


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, where: str
) -> float:
    """A step of the optimizer at this learning rate; returns the loss.

    Raises FloatingPointError, which says `where`, when the loss is not finite; the model is as it was.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{where}: the loss is {loss.item()}; checkpoints of earlier steps are kept")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
    optimizer.step()
    return loss.item()
