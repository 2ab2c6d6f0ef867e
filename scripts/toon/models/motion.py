"""The toon world's MotionAdapter: its modules, the latents of its clips, and its loss.

B clips, F frames of a clip, h = w latent pixels, L tokens, D text width.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor
from tqdm import tqdm

from scripts.toon.models.flags import MotionFlags
from scripts.toon.models.training import (
    begin,
    cached,
    device,
    fit,
    generator,
    save,
    subject_mask,
    subject_weighted_mse,
)
from scripts.toon.models.unet import CAPTION_DROPOUT, text_model, to_device
from scripts.toon.world.captions import caption
from scripts.toon.world.clips import FRAMES, Clip, draw_clip, sample_clip
from scripts.toon.world.world import without_subject
from utils.common.images import to_pixels
from utils.losses.denoise import target_of

SUBJECT_WEIGHT = 1.5


def build(unet: UNet2DConditionModel) -> MotionAdapter:
    """A motion module after every layer of the UNet, which at first changes nothing (Guo et al. 2023,
    arXiv 2307.04725: their output projections start at zero). It knows as many frames as it is trained on."""
    adapter = MotionAdapter(
        block_out_channels=tuple(unet.config.block_out_channels),
        motion_layers_per_block=unet.config.layers_per_block,
        motion_num_attention_heads=4,
        motion_norm_num_groups=unet.config.norm_num_groups,
        motion_max_seq_length=FRAMES,
    )
    for module in adapter.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            torch.nn.init.zeros_(module.proj_out.weight)
            torch.nn.init.zeros_(module.proj_out.bias)
    return adapter


def share_modules(unet: UNetMotionModel, adapter: MotionAdapter) -> None:
    """Put the adapter's own modules into the motion UNet, which has copies: training one trains the other."""
    for mine, its in zip(
        [*unet.down_blocks, *unet.up_blocks], [*adapter.down_blocks, *adapter.up_blocks], strict=True
    ):
        mine.motion_modules = its.motion_modules
    unet.mid_block.motion_modules = adapter.mid_block.motion_modules


def training_clip(seed: str, index: int) -> Clip:
    """The clip of that index, a function of (seed, index) alone."""
    return sample_clip(random.Random(f"{seed}/{index}"))


def frames_of(clips: list[Clip], size: int) -> Tensor:
    """(B·F, 3, size, size) in [-1, 1]."""
    return torch.stack([to_pixels(frame) for clip in clips for frame in draw_clip(clip, size)])


def without_subjects(clip: Clip) -> Clip:
    return replace(clip, frames=tuple(without_subject(scene) for scene in clip.frames))


@torch.no_grad()
def latents_of(vae: AutoencoderKL, seed: str, count: int, size: int) -> Iterator[Tensor]:
    """(4, F, 5, h, w) fp16 at a time: the means of every frame's latents, scaled (their spread would be
    flicker), and its mask."""
    for i in tqdm(range(0, count, 4), desc="clips", mininterval=10):
        clips = [training_clip(seed, j) for j in range(i, min(i + 4, count))]
        pixels = frames_of(clips, size)
        with torch.autocast(device().type, torch.bfloat16):
            mean = vae.encode(pixels.to(device())).latent_dist.mean.float().cpu()
        empty = frames_of([without_subjects(clip) for clip in clips], size)
        mask = subject_mask(pixels, empty, mean.shape[-1])
        yield torch.cat([mean * vae.config.scaling_factor, mask], 1).unflatten(0, (-1, FRAMES)).half()


def motion_unet(unet: UNet2DConditionModel, adapter: MotionAdapter) -> UNetMotionModel:
    """The frozen UNet with the adapter's own modules, which alone learn."""
    motion = UNetMotionModel.from_unet2d(unet, adapter).eval().requires_grad_(False)
    share_modules(motion, adapter.requires_grad_(True))
    to_device(motion)
    return motion


def loss_at(
    unet: UNetMotionModel,
    scheduler: DDIMScheduler,
    encode: Callable[[list[str]], Tensor],
    latents: Tensor,
    batch_size: int,
    data: str,
) -> Callable[[int], Tensor]:
    """The loss of a step, a function of (data, step) alone. latents: (clips, F, 5, h, w), of `latents_of`."""
    scenes = [training_clip(data, i).scene for i in range(len(latents))]

    def loss_of(step: int) -> Tensor:
        rng = generator(f"{data}/step/{step}")
        chosen = torch.randint(len(latents), (batch_size,), generator=rng)
        frames = latents[chosen].float().flatten(0, 1).to(device())
        clean, mask = frames.split([4, 1], dim=1)  # (B·F, 4, h, w), (B·F, 1, h, w)
        noise = torch.randn(clean.shape, generator=rng).to(device())
        # Where things are is settled under much noise: more of it, .45 of all clips above timestep 800.
        much = 1 - torch.rand(batch_size, generator=rng).square()
        timesteps = (1000 * much).long().clamp(max=999).to(device())
        of_frames = timesteps.repeat_interleave(FRAMES)  # (B·F,): all frames of a clip are equally noisy
        words = random.Random(f"{data}/captions/{step}")
        captions = ["" if words.random() < CAPTION_DROPOUT else caption(scenes[i], words) for i in chosen]
        text = encode(captions).repeat_interleave(FRAMES, dim=0)  # (B·F, L, D)
        noisy = scheduler.add_noise(clean, noise, of_frames).unflatten(0, (-1, FRAMES)).transpose(1, 2)
        predicted = unet(noisy, timesteps, text).sample  # (B, 4, F, h, w)
        target = target_of(scheduler, clean, noise, of_frames)  # (B·F, 4, h, w)
        return subject_weighted_mse(predicted.transpose(1, 2).flatten(0, 1), target, mask, SUBJECT_WEIGHT)

    return loss_of


def train(config: MotionFlags) -> None:
    """Train the MotionAdapter on animated clips, through the frozen UNet of a pipeline, and save it."""
    begin(config, "motion")
    torch.manual_seed(config.seed)
    base, data = config.base, f"{config.seed}/motion"
    vae = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float32).to(device()).eval()
    scheduler = DDIMScheduler.from_pretrained(base / "scheduler")
    images = UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32)
    adapter = build(images)
    if config.init_from:
        start = MotionAdapter.from_pretrained(config.init_from, torch_dtype=torch.float32)
        adapter.load_state_dict(start.state_dict())
    unet = motion_unet(images, adapter)
    encoded = latents_of(vae, data, config.clips, config.resolution)
    latents = cached(config.work_dir / "motion_latents.pt", encoded)
    loss_of = loss_at(unet, scheduler, text_model(base), latents, config.batch_size, data)
    state = config.work_dir / "motion.pt"
    fit(adapter, loss_of, config.steps, config.lr, state, warmup=50, ema_decay=0.998)
    save(adapter, config.output_dir)
    scheduler.save_pretrained(config.output_dir)  # its noise levels, for utils.sampling.clips
    size = sum(parameter.numel() for parameter in adapter.parameters())
    print(f"saved {config.output_dir}: {size / 1e6:.1f} million parameters")
