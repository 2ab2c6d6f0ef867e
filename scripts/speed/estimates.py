"""What a training costs, counted on tensors without numbers: operations and memory of its steps."""

import resource
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scripts.speed.bases import SD15, parts_of
from scripts.speed.worker import operation_counter, peak_bytes
from utils.bases.base import BaseModel, States
from utils.bases.registry import BASES
from utils.bases.sd import StableDiffusion
from utils.bases.sdxl import StableDiffusionXL
from utils.common.errors import UserError
from utils.config.methods import METHODS, Stage
from utils.config.train_config import TrainConfig, parse_config
from utils.learners.mapper import encode_at
from utils.learners.mapper_network import HIDDEN
from utils.learners.registry import LEARNERS
from utils.training.plan import attach_all, memory_of
from utils.training.preflight import check_encoders

RATES = {"toon": "toon"} | dict.fromkeys(("sd15", "sd21", "sdxl"), "sd15")  # base -> whose rate is measured
# The two upper levels of SD 1.5's UNet, on 32 x 32 latents.
UPPER = {"block_out_channels": (320, 640), "layers_per_block": 1, "sample_size": 32} | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


@dataclass(frozen=True)
class Cost:
    """Of a training in float32. images: in a batch, those of the class included; bytes: the most that it
    holds; operations: floating-point, of all its steps."""

    images: int
    bytes: int
    operations: float


class LiveBytes(TorchDispatchMode):
    """peak: the most bytes that the tensors made while it lasts have held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.places = 0, 0, set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = {place_of(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if not isinstance(each, Tensor):
                continue
            place = place_of(each)
            if place not in before and place not in self.places:
                storage = each.untyped_storage()
                self.places.add(place)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, place, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return made

    def _free(self, place: int, size: int) -> None:
        self.places.remove(place)
        self.live -= size


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **given: Any
) -> Tensor:
    """Attention by PyTorch's fused kernel, as on every real device; without dropout."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    how = {name: given[name] for name in ("is_causal", "scale") if name in given}
    return kernel(query, key, value, attn_mask=attn_mask, **how)[0]


@contextmanager
def without_numbers() -> Iterator[None]:
    """What the meta device needs to compute: fused attention, and no autocast, which does not know it."""
    autocast = torch.autocast

    def known(kind: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if kind == "meta" else autocast(kind, *args, **kwargs)

    attention = mock.patch.object(F, "scaled_dot_product_attention", fused_attention)
    with mock.patch.object(torch, "autocast", known), attention:
        yield


def place_of(value: Tensor) -> int:
    """What tells the memory of a tensor and its views from that of others."""
    return value.untyped_storage()._cdata


def outline(base: str) -> BaseModel:
    """A base of RATES without numbers: of its files where it is embedded, else of its known shape."""
    if base == "toon":
        return StableDiffusion.outline(BASES[base].path, None)
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        parts = parts_of(base, Path(folder))
    family = StableDiffusionXL if "text_encoder_2" in parts else StableDiffusion
    return family(SimpleNamespace(**parts), {}).freeze()


def config_of(base: str, method: str) -> TrainConfig:
    """The preset's training of a concept of the class dog."""
    files = ["--instance_data_dir=data/dog", "--cls_token=dog", f"--method={method}"]
    if any(stage.prior for stage in METHODS[method].stages):
        files += ["--class_data_dir=class", "--class_prompt=a dog"]
    preset = f"scripts/presets/{BASES[base].preset}.toml"
    return parse_config([*files, f"--pretrained_model_name_or_path={BASES[base].path}", f"--preset={preset}"])


def cost_of(base: str, config: TrainConfig) -> Cost:
    """Counts a step of each stage at the base's own resolution; images are encoded before.

    Raises UserError for a method that does not suit the base.
    """
    outlined = outline(base)
    check_encoders(config, outlined)
    learned = attach_all(outlined, config)
    if config.gradient_checkpointing:
        outlined.save_memory()
    weights, _, moments = memory_of(config, outlined, learned)
    operations, peak, most = 0.0, 0, 0
    for stage, first, last in config.plan():
        for learner, parameters in learned.items():
            for parameter in parameters.values():
                parameter.requires_grad_(learner in stage.trains)
        images = config.train_batch_size * (2 if stage.prior else 1)
        counted, held = count_step(outlined, stage, images)
        operations += counted * (last - first + 1) * config.gradient_accumulation_steps
        peak, most = max(peak, held), max(most, images)
    return Cost(most, weights + moments + peak, operations)


def count_step(base: BaseModel, stage: Stage, images: int) -> tuple[float, int]:
    """Operations of a forward and backward pass, and the most bytes held during it beside the weights."""
    side = base.unet.config.sample_size
    noisy = torch.zeros(images, base.latent_channels, side, side, device=base.device)
    timesteps = torch.zeros(images, dtype=torch.long, device=base.device)
    with without_numbers(), operation_counter() as counter, LiveBytes() as memory:
        states = text_states(base, stage, base.tokenize(["a photo of a dog"] * images), timesteps)
        base.predict(noisy, timesteps, states).square().mean().backward()
    for module in base.trainable.values():
        module.zero_grad()
    return counter.get_total_flops(), memory.peak


def text_states(base: BaseModel, stage: Stage, ids: Tensor, timesteps: Tensor) -> States:
    """The prompts' states. Those that a timestep decides are computed here, not in the UNet, whose hooks ask
    for numbers to tell which prompts have a token: all have one."""
    if not any(LEARNERS[name].timed for name in stage.trains):
        return base.encode(ids)
    base.unet._forward_pre_hooks.clear()
    kept = torch.full((len(ids), base.text_encoder.mappers.layers), HIDDEN, device=ids.device)
    return (encode_at(base.text_encoder, ids, timesteps, kept),)


def resident_bytes() -> int:
    """Memory of this process; where the system does not say, its peak."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return peak_bytes()


def measured_rate(base: str, device: str) -> float:
    """Operations per second of a UNet's training step on the device in float32, the best of three.

    For toon it is toon's own UNet, for SD 1.5 its two upper levels: what a processor reaches depends on the
    width of the layers.
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


def estimates(bases: Iterable[str], rates: dict[str, float], device: str) -> list[dict[str, Any]]:
    """For each base and method, with the preset's flags: GiB, seconds of a step, hours of the training.

    rates: operations per second by the values of RATES. On a CPU the program's own memory is counted, too.
    "refused": why a method does not suit a base.
    """
    rows, program = [], resident_bytes() if device == "cpu" else 0
    for base in bases:
        for method in METHODS:
            config = config_of(base, method)
            row = {"base": base, "method": method, "steps": config.max_train_steps}
            try:
                cost = cost_of(base, config)
            except UserError as error:
                rows.append(row | {"refused": str(error)})
                continue
            seconds = cost.operations / rates[RATES[base]]
            row |= {"images": cost.images, "gib": (cost.bytes + program) / 2**30}
            rows.append(row | {"seconds": seconds / config.max_train_steps, "hours": seconds / 3600})
    return rows
