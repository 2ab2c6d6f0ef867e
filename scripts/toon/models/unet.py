"""The toon world's UNet2DConditionModel: its cached latents, its loss, and the pipeline that it completes.

Timesteps are drawn evenly: what stands where is settled where there is much noise. Besides its own loss the
UNet is taught to hold, on its way down, what data/toon/dino or clip sees in the clean image (REPA, Yu et al.
2024, arXiv 2410.06940). The recogniser, which judges the UNet, has no part in it.

B images, h = w latent pixels, L tokens, D text width, p = 8 patches a side, V = 128 features of a patch.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, ViTModel

from scripts.toon.models.clip import WIDTH
from scripts.toon.models.dino import hidden_states
from scripts.toon.models.flags import UnetFlags
from scripts.toon.models.training import (
    begin,
    cached,
    device,
    fit,
    generator,
    save,
    scenes,
    subject_mask,
    subject_weighted_mse,
    to_pixels,
)
from scripts.toon.world.captions import caption
from scripts.toon.world.examples import plain_scenes
from scripts.toon.world.world import (
    ANIMALS,
    Scene,
    repainted,
    sample_look,
    with_free_parts,
    without_subject,
)
from utils.bases.text import tokenize
from utils.common.files import read_json, write_json
from utils.losses.denoise import target_of

CAPTION_DROPOUT = 0.1  # the empty caption, for classifier-free guidance
PARTS_NAMED, MOST_PARTS, BARN_COLOURS = 0.65, 3, 0.5  # of captions, see `caption`
PARTS_NAMED_ALONE = 0.9  # of animals alone on plain grounds: there is room for many
FREE_PARTS = 0.7  # of scenes, whose parts are drawn evenly; the others are as `sample_scene` draws them
PARTS = ("ear", "belly", "collar", "marking")


@dataclass(frozen=True)
class Recipe:
    """What a trial may take away, to see what it does.

    align_weight: of the alignment besides the UNet's own loss. subject_weight: see `subject_weighted_mse`.
    low_timesteps: most draws at little noise, 1000 · sigmoid(1.2 · N(0, 1) − .6), as before; else evenly.
    bf16: autocast of the UNet.
    """

    align_weight: float
    subject_weight: float
    low_timesteps: bool
    bf16: bool

    def timesteps(self, count: int, rng: torch.Generator) -> Tensor:
        """(count,) int64 in 0 … 999."""
        if not self.low_timesteps:
            return torch.randint(1000, (count,), generator=rng)
        return (1000 * torch.sigmoid(1.2 * torch.randn(count, generator=rng) - 0.6)).long().clamp(max=999)


def build(side: int, channels: tuple[int, ...]) -> UNet2DConditionModel:
    """Cross-attention at every level, as in SD 1.5: collars and marks are one latent pixel wide, and keys and
    values, which are all that most methods train, reach them only at the full latent resolution."""
    depth = len(channels)
    return UNet2DConditionModel(
        sample_size=side,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=4,  # diffusers' name for the number of heads, as in SD 1.5
        cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D",) * depth,
        up_block_types=("CrossAttnUpBlock2D",) * depth,
    )


def start_from(unet: UNet2DConditionModel, folder: Path) -> None:
    """Put the weights of the UNet in `folder` in place. One without attention at the finest level leaves
    that attention as it is."""
    start = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
    missing, unknown = unet.load_state_dict(start.state_dict(), strict=False)
    strange = [name for name in missing if ".attentions." not in name] + unknown
    assert not strange, f"{folder} has another shape: {strange[:3]}"


def training_scenes(seed: str, count: int, alone: float = 0.0) -> list[Scene]:
    """Scenes of training, the i-th a function of (seed, i) alone; most of them `with_free_parts`.

    alone: in [0, 1], how many of them are of an animal alone on plain grounds besides those that are anyway.
    """
    drawn = []
    for i, scene in enumerate(scenes(seed, count)):
        rng = random.Random(f"{seed}/parts/{i}")
        free = rng.random() < FREE_PARTS
        if rng.random() < alone:
            animal = sample_look(rng, rng.choice(ANIMALS))
            scene, free = rng.choice(plain_scenes(animal, f"{seed}/alone/{i}")), True
        drawn.append(replace(scene, subject=with_free_parts(scene.subject, rng)) if free else scene)
    return drawn


def is_alone(scene: Scene) -> bool:
    """Whether it shows an animal on plain grounds with nothing else."""
    nothing = (scene.place, scene.worn, scene.neighbour) == ("plain", "nothing", "nothing")
    return nothing and scene.subject.kind in ANIMALS


def noise_schedule() -> DDIMScheduler:
    """SD 1.5's noise levels with SD 2's target: the velocity, which is the image where all is noise.
    A small network learns to compose from it sooner than from the noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def to_device(unet: UNet2DConditionModel | UNetMotionModel) -> None:
    """Laid out for speed. On a CPU PyTorch's fused attention is slow, most of it backwards: a fifth of an
    image UNet's step, two fifths of a motion UNet's."""
    unet.to(device(), memory_format=torch.channels_last)
    if device().type == "cpu":
        unet.set_attn_processor(AttnProcessor())


def emphasis(batch: list[Scene], pixels: Tensor, side: int, part_emphasis: float) -> Tensor:
    """(B, 1, side, side): 0 off the subject, 1 on it, `part_emphasis` where a part is that captions may name.

    pixels: the scenes' images, (B, 3, S, S). A collar is a few latent pixels of 256: without emphasis, its
    colour hardly counts.
    """
    size = pixels.shape[-1]
    mask = subject_mask(pixels, to_pixels([without_subject(scene) for scene in batch], size), side)
    for part in PARTS:
        other = [replace(scene, subject=repainted(scene.subject, part)) for scene in batch]
        there = subject_mask(pixels, to_pixels(other, size), side)
        mask = torch.maximum(mask, part_emphasis * there)
    return mask


@torch.no_grad()
def latents_of(
    vae: AutoencoderKL, seed: str, count: int, size: int, alone: float, part_emphasis: float
) -> Iterator[Tensor]:
    """(64, 9, h, w) fp16 at a time: mean and standard deviation of the scaled latents, and the `emphasis`."""
    for i in tqdm(range(0, count, 64), desc="latents", mininterval=10):
        batch = training_scenes(f"{seed}/{i}", min(64, count - i), alone)
        pixels = to_pixels(batch, size)
        with torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda"):
            latents = vae.encode(pixels.to(device())).latent_dist
        scaled = torch.cat([latents.mean, latents.std], 1).float() * vae.config.scaling_factor
        mask = emphasis(batch, pixels, scaled.shape[-1], part_emphasis)
        yield torch.cat([scaled.cpu(), mask], 1).half()


def patch_model(folder: Path) -> Callable[[Tensor], Tensor]:
    """What the last layer of DINO, or of CLIP's image tower, says of every patch.

    Takes images (B, 3, S, S) in [-1, 1], returns (B, p·p, V).
    """
    if read_json(folder / "config.json").get("model_type") == "clip":
        tower = CLIPModel.from_pretrained(folder, dtype=torch.float32).vision_model.to(device()).eval()

        def states(pixels: Tensor) -> Tensor:  # toon's CLIP takes images in [-1, 1]
            return tower(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state

    else:
        dino = ViTModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
        states = partial(hidden_states, dino.to(device()).eval())
    return torch.no_grad()(lambda pixels: states(pixels)[:, 1:])


def patches_of(
    model: Callable[[Tensor], Tensor], seed: str, count: int, size: int, alone: float
) -> Iterator[Tensor]:
    """(64, V, p, p) fp16 at a time: the features of the clean images. model: of `patch_model`."""
    for i in tqdm(range(0, count, 64), desc="patches", mininterval=10):
        batch = training_scenes(f"{seed}/{i}", min(64, count - i), alone)
        features = model(to_pixels(batch, size).to(device()))
        side = math.isqrt(features.shape[1])
        yield features.transpose(1, 2).unflatten(2, (side, side)).half().cpu()


def standardised(patches: Tensor) -> Tensor:
    """(N, V, p, p), in place: each feature with mean 0 and deviation 1 over the first 2,000 images."""
    some = patches[:2000].float()
    mean, std = some.mean((0, 2, 3), keepdim=True), some.std((0, 2, 3), keepdim=True)
    return patches.sub_(mean.half()).div_(std.half())


class AlignedUNet(nn.Module):
    """The UNet, and a head on its p x p features on the way down, which is thrown away after training."""

    def __init__(self, unet: UNet2DConditionModel, features: int):
        super().__init__()
        self.unet = unet
        width = unet.config.block_out_channels[1]
        self.head = nn.Sequential(nn.Conv2d(width, 256, 1), nn.SiLU(), nn.Conv2d(256, features, 1))

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 4, h, w), (B,), (B, L, D) -> velocity (B, 4, h, w) and features of patches (B, V, p, p)."""
        seen = []
        layer = self.unet.down_blocks[1].attentions[0]
        hook = layer.register_forward_hook(lambda module, given, out: seen.append(out[0]))
        velocity = self.unet(noisy, timesteps, text, return_dict=False)[0]
        hook.remove()
        return velocity, self.head(seen[0])


def share(scene: Scene) -> int:
    """How often an image is drawn: worn things and poses are rarer than the other words, and smaller."""
    return 1 + (scene.worn != "nothing") + (scene.pose != "standing")


def assemble(folder: Path, unet: UNet2DConditionModel, scheduler: DDIMScheduler) -> None:
    """Write the UNet, the scheduler and model_index.json next to the vae, tokenizer and text encoder."""
    save(unet, folder / "unet", max_shard_size="15MB")
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)


def text_model(folder: Path) -> Callable[[list[str]], Tensor]:
    """Captions (B) -> features (B, L, D), by the frozen text encoder of the pipeline in `folder`."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    encoder.to(device()).eval()
    return torch.no_grad()(lambda captions: encoder(tokenize(tokenizer, captions).to(device()))[0])


def aligned_loss(
    model: AlignedUNet,
    scheduler: DDIMScheduler,
    encode: Callable[[list[str]], Tensor],
    images: list[Scene],
    latents: Tensor,
    patches: Tensor,
    batch_size: int,
    seed: str,
    recipe: Recipe,
) -> Callable[[int], Tensor]:
    """The loss of a step, a function of (seed, step). latents: (N, 9, h, w); patches: (N, V, p, p)."""
    shares = torch.tensor([float(share(scene)) for scene in images])

    def loss_of(step: int) -> Tensor:
        rng = generator(f"{seed}/step/{step}")
        chosen = torch.multinomial(shares, batch_size, replacement=True, generator=rng)
        mean, std, mask = latents[chosen].float().split([4, 4, 1], dim=1)
        clean = (mean + std * torch.randn(mean.shape, generator=rng)).to(device())  # (B, 4, h, w)
        noise = torch.randn(mean.shape, generator=rng).to(device())
        timesteps = recipe.timesteps(batch_size, rng).to(device())
        words = random.Random(f"{seed}/captions/{step}")
        captions = [
            ""
            if words.random() < CAPTION_DROPOUT
            else caption(
                images[i],
                words,
                PARTS_NAMED_ALONE if is_alone(images[i]) else PARTS_NAMED,
                MOST_PARTS,
                BARN_COLOURS,
            )
            for i in chosen
        ]
        noisy = scheduler.add_noise(clean, noise, timesteps).to(memory_format=torch.channels_last)
        text = encode(captions)
        with torch.autocast(device().type, torch.bfloat16, enabled=recipe.bf16):
            velocity, seen = (each.float() for each in model(noisy, timesteps, text))
        target = target_of(scheduler, clean, noise, timesteps)
        alignment = F.cosine_similarity(seen, patches[chosen].float().to(device()), dim=1).mean()
        own = subject_weighted_mse(velocity, target, mask.to(device()), recipe.subject_weight)
        return own + recipe.align_weight * (1 - alignment)

    return loss_of


def train(config: UnetFlags) -> None:
    """Train the UNet on cached latents and complete the pipeline in `output_dir`."""
    begin(config, "unet")
    torch.manual_seed(config.seed)
    vae = AutoencoderKL.from_pretrained(config.output_dir / "vae", torch_dtype=torch.float32)
    features_of = patch_model(config.features_of)
    data, count = f"{config.seed}/unet", config.images
    shown = (data, count, config.resolution, config.alone)
    encoded = latents_of(vae.to(device()).eval(), *shown, config.part_emphasis)
    latents = cached(config.work_dir / "latents.pt", encoded)
    patches = cached(config.work_dir / "patches.pt", patches_of(features_of, *shown))
    batches = (training_scenes(f"{data}/{i}", min(64, count - i), config.alone) for i in range(0, count, 64))
    drawn = [scene for batch in batches for scene in batch]
    unet = build(latents.shape[-1], config.channels)
    if config.init_from:
        start_from(unet, config.init_from)
    to_device(unet)
    model = AlignedUNet(unet, patches.shape[1]).to(device())
    if config.compile:
        model.compile()
    scheduler, encode = noise_schedule(), text_model(config.output_dir)
    examples = (drawn, latents, standardised(patches))
    recipe = Recipe(config.align_weight, config.subject_weight, config.low_timesteps, config.bf16)
    loss_of = aligned_loss(model, scheduler, encode, *examples, config.batch_size, data, recipe)
    fit(model, loss_of, config.steps, config.lr, config.work_dir / "unet.pt")
    assemble(config.output_dir, unet, scheduler)
    print(f"saved {config.output_dir}")
