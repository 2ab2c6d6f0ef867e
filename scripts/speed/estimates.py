"""What a training step costs, counted on tensors without numbers: operations, trained numbers, memory.

B images a step, L tokens, h = w latent pixels.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from scripts.speed.bases import SD15, parts_of
from scripts.speed.worker import operation_counter
from utils.bases.registry import base_row
from utils.bases.sd import StableDiffusion
from utils.config.methods import METHODS, Stage
from utils.config.train_config import TrainConfig, parse_config
from utils.training.preflight import attach_all

ADAM_BYTES = 4 + 8  # of a trained number, beside its weight: the gradient and two moments
MEASURED = ("toon", "sd15")
UPPER = {"block_out_channels": (320, 640), "layers_per_block": 1, "sample_size": 32} | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
# They read numbers, or set a precision, neither of which tensors without numbers have.
UNCOUNTED = {"mapper", "spectral"}


@dataclass(frozen=True)
class Cost:
    """Of a step in float32. weights, state and activations: bytes; operations: floating-point, counted."""

    trained: int
    weights: int
    state: int
    activations: int
    operations: float


def outline(base: str) -> StableDiffusion:
    """A base of MEASURED without numbers: of its files where they are embedded, else of its known shape."""
    if base == "toon":
        return StableDiffusion.outline(base_row(base).path, None)
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        parts = parts_of(base, Path(folder))
    return StableDiffusion(SimpleNamespace(**parts), {})


def config_of(base: str, method: str) -> TrainConfig:
    """The preset's training of a concept of the class dog."""
    files = ["--instance_data_dir=data/dog", "--cls_token=dog", f"--method={method}"]
    if any(stage.prior for stage in METHODS[method].stages):
        files += ["--class_data_dir=class", "--class_prompt=a dog"]
    return parse_config([*files, f"--pretrained_model_name_or_path={base_row(base).path}"])


def cost_of(base: str, method: str, batch_size: int = 2) -> Cost:
    """The dearest stage of a method at a base's own resolution, images encoded before."""
    outlined, config = outline(base), config_of(base, method)
    learned = attach_all(outlined, config)
    modules = (outlined.unet, outlined.vae, outlined.text_encoder)
    weights = sum(4 * value.numel() for module in modules for value in module.parameters())
    found = []
    for stage in config.stages:
        trained = 0
        for learner, parameters in learned.items():
            for parameter in parameters.values():
                parameter.requires_grad_(learner in stage.trains)
                trained += parameter.numel() * (learner in stage.trains)
        operations, activations = count_step(outlined, stage, batch_size)
        found.append(Cost(trained, weights, trained * ADAM_BYTES, activations, operations))
    return max(found, key=lambda cost: cost.state + cost.activations)


def count_step(base: StableDiffusion, stage: Stage, batch_size: int) -> tuple[float, int]:
    """Operations of a forward and backward pass, and the bytes that are kept between them."""
    images, side = batch_size * (2 if stage.prior else 1), base.unet.config.sample_size
    own = {place_of(value) for module in base.trainable.values() for value in module.parameters()}
    kept: dict[int, Tensor] = {}  # a tensor of each place in memory, so that no other gets the place

    def pack(value: Tensor) -> Tensor:
        if place_of(value) not in own:
            kept.setdefault(place_of(value), value)
        return value

    device = base.device
    counter = operation_counter()
    ids = torch.zeros(images, base.tokenizer.model_max_length, dtype=torch.long, device=device)
    noisy = torch.zeros(images, base.latent_channels, side, side, device=device)
    timesteps = torch.zeros(images, dtype=torch.long, device=device)
    with counter, saved_tensors_hooks(pack, lambda value: value):
        states = base.text_encoder(ids).last_hidden_state
        base.predict(noisy, timesteps, (states,)).square().mean().backward()
    for module in base.trainable.values():
        module.zero_grad()
    return counter.get_total_flops(), sum(value.untyped_storage().nbytes() for value in kept.values())


def place_of(value: Tensor) -> int:
    """What tells the memory of a tensor and its views from that of others."""
    return value.untyped_storage()._cdata


def measured_rate(base: str, device: str) -> float:
    """Operations per second of a UNet's training step on the device in float32, the best of three.

    For toon it is toon's own UNet, for SD 1.5 its two upper levels on 32 x 32 latents: what a processor
    reaches depends on the width of the layers.
    """
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SD15["unet"] | UPPER) if base == "sd15" else parts_of(base, Path())["unet"]
    unet.to(device)
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    noisy, states = torch.zeros(2, 4, side, side, device=device), torch.zeros(2, 77, width, device=device)

    def step() -> None:
        unet(noisy, torch.zeros(2, device=device), states).sample.square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    with operation_counter() as counter:
        step()
    operations, seconds = counter.get_total_flops(), []
    for _ in range(3):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return operations / min(seconds)


def estimates(rates: dict[str, float]) -> list[dict[str, Any]]:
    """For each base whose shape is known and each method: gigabytes and seconds of a step of two images.

    rates: base -> operations per second. None for methods of UNCOUNTED learners.
    """
    rows = []
    for base, rate in rates.items():
        for method, recipe in METHODS.items():
            if UNCOUNTED & {name for stage in recipe.stages for name in stage.trains}:
                rows.append({"base": base, "method": method, "gib": None, "seconds": None})
                continue
            cost = cost_of(base, method)
            total = cost.weights + cost.state + cost.activations
            row = {"base": base, "method": method, "trained": cost.trained, "gib": total / 2**30}
            rows.append(row | {"seconds": cost.operations / rate})
    return rows
