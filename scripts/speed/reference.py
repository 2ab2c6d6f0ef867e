"""The training step of the published scripts, written anew from diffusers' public parts, to compare with.

As they do it: a Custom Diffusion processor on every attention layer, the token table grown and trained whole
by AdamW with the other rows' gradients set to zero, the images encoded at every step, and the two phrases of
the semantic preservation loss encoded at every step. Images, noise and timesteps are those of this
repository's step, so that the losses of a first step can be compared.

B images, K concepts, h = w latent pixels.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from utils.config.train_config import TrainConfig
from utils.data.dataset import ImageOptions, InstanceDataset, collate, items_of_step
from utils.data.noise import draw_noise


class ReferenceStep:
    """`step(number)` does one optimizer step and returns its terms. Raises nothing of its own."""

    def __init__(self, config: TrainConfig, base: str, device: torch.device):
        self.config, self.device = config, device
        self.half = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
        self.tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", dtype=torch.float32)
        self.vae = AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=self.half)
        self.unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=self.half)
        self.scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        self.grow_table()
        for module in (self.vae, self.unet, self.text_encoder):
            module.requires_grad_(False)
        self.table = self.text_encoder.get_input_embeddings().weight.requires_grad_(True)
        for module in (self.unet, self.vae, self.text_encoder):
            module.to(device)
        self.processors = install_processors(self.unet).to(device)
        self.trained = [self.table, *(p for p in self.processors.parameters() if p.requires_grad)]
        rate = config.learning_rate_of("learning_rate")
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate, weight_decay=config.adam_weight_decay)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = config.resolution or self.unet.config.sample_size * factor
        view = (config.recipe, side, factor, config.seed, config.hflip, config.noaug)
        self.instances = InstanceDataset(config.concepts(), *view, ImageOptions(pool=config.latent_pool))
        self.latent_side = side // factor

    def grow_table(self) -> None:
        """A row for each modifier token, starting from its word's."""
        concepts = self.config.concepts()
        tokens = [concept.modifier_token for concept in concepts]
        words = self.tokenizer.convert_tokens_to_ids([f"{each.initializer_token}</w>" for each in concepts])
        self.tokenizer.add_tokens(tokens)
        self.ids = self.tokenizer.convert_tokens_to_ids(tokens)
        self.text_encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        table = self.text_encoder.get_input_embeddings().weight.data
        for token, word in zip(self.ids, words, strict=True):
            table[token] = table[word]

    def read(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Text states (B, L, D), and those at EOS, (B, D)."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids
        states = self.text_encoder(ids.to(self.device)).last_hidden_state
        end = (ids == self.tokenizer.eos_token_id).int().argmax(dim=1)
        return states, states[torch.arange(len(ids)), end]

    def step(self, number: int) -> dict[str, float]:
        config, b = self.config, self.config.train_batch_size
        numbers = items_of_step(number - 1, b)
        batch = collate([self.instances.instance_item(each) for each in numbers])
        keys, shape = [("instance", each) for each in numbers], (4, self.latent_side, self.latent_side)
        draws = draw_noise(config.seed, keys, shape, self.scheduler.config.num_train_timesteps)
        draws = draws.to(self.device)
        with torch.autocast(self.device.type, self.half, enabled=self.half != torch.float32):
            terms = self.losses(batch, draws)
        terms["loss"].backward()
        others = torch.ones(len(self.table), dtype=torch.bool)
        others[self.ids] = False
        self.table.grad[others.to(self.device)] = 0
        nn.utils.clip_grad_norm_(self.trained, config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: term.item() for name, term in terms.items()}

    def losses(self, batch, draws) -> dict[str, Tensor]:
        """The terms of the loss, scalars. batch, draws: of utils/data/dataset.py and noise.py."""
        with torch.no_grad():
            posterior = self.vae.encode(batch.pixels.to(self.device, self.half)).latent_dist
            latents = posterior.mean + posterior.std * draws.posterior_noise.to(posterior.mean)
            latents = latents * self.vae.config.scaling_factor
        noise = draws.noise.to(latents)
        noisy_latents = self.scheduler.add_noise(latents, noise, draws.timesteps)
        states, _ = self.read(batch.captions)
        noise_pred = self.unet(noisy_latents, draws.timesteps, states.to(self.half)).sample
        mask = batch.mask.to(self.device)
        error = F.mse_loss(noise_pred.float(), noise.float(), reduction="none") * mask
        denoise = (error.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))).mean()
        concepts = self.config.concepts()
        _, phrases = self.read([f"a photo of a {each.modifier_token} {each.cls_token}" for each in concepts])
        _, classes = self.read([f"a photo of a {each.cls_token}" for each in concepts])
        spl = (1 - F.cosine_similarity(phrases.float(), classes.float())).mean()
        loss = denoise + self.config.lambda_spl * spl
        return {"loss": loss, "loss_denoise": denoise, "loss_spl": spl}

    def checkpoint_bytes(self) -> int:
        """What accelerate's save_state would write: text encoder, processors, optimizer."""
        state = [value for each in self.optimizer.state.values() for value in each.values()]
        tensors = [*self.text_encoder.parameters(), *self.processors.parameters(), *state]
        return sum(value.numel() * value.element_size() for value in tensors)


def install_processors(unet: UNet2DConditionModel) -> nn.ModuleList:
    """A processor on every attention layer; those of the cross-attention train copies of K and V."""
    processors = {}
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        cross = name.endswith("attn2.processor")
        processor = CustomDiffusionAttnProcessor2_0(
            train_kv=cross,
            train_q_out=False,
            hidden_size=attention.to_q.weight.shape[0],
            cross_attention_dim=unet.config.cross_attention_dim if cross else None,
        )
        if cross:
            processor.to_k_custom_diffusion.weight.data.copy_(attention.to_k.weight)
            processor.to_v_custom_diffusion.weight.data.copy_(attention.to_v.weight)
        processors[name] = processor
    unet.set_attn_processor(processors)
    return nn.ModuleList(processors.values())
