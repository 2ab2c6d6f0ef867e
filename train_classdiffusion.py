"""ClassDiffusion: teach Stable Diffusion a concept from a few pictures, its class kept (arXiv 2405.17532).

    L = L_denoise + λ_sp · L_spl  (+ λ_prior · L_prior)

B images, C latent channels, h = w latent pixels, L tokens, D text width, K concepts.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel

from utils.bases.sd import cast_frozen, encode_images, load_pipeline, tokenize
from utils.concepts.save import save_concept
from utils.errors import exit_on_user_error
from utils.learners.cross_attention_kv import trainable_kv
from utils.learners.token_rows import install
from utils.training.config import TrainConfig, parse_config
from utils.training.dataset import ClassDataset, InstanceDataset, collate, items_of_step
from utils.training.logger import Logger
from utils.training.losses import check_finite, feature_at, loss_denoise, loss_prior, loss_spl, target_of
from utils.training.noise import draw_noise
from utils.training.preflight import check_run, describe_run
from utils.training.prior import generate_class_images
from utils.training.state import load_state, remove_old_checkpoints, save_state
from utils.training.validation import validate


class ConceptModel(nn.Module):
    """Text encoder and UNet as one module: everything that learns is reached through one forward."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel):
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def encode(self, input_ids: Tensor) -> Tensor:
        """(B, L) token ids -> (B, L, D), after the final layer norm; float32, for SPL lives near 1e-3."""
        with torch.autocast(input_ids.device.type, enabled=False):
            return self.text_encoder(input_ids).last_hidden_state

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, captions: Tensor, phrases: Tensor):
        """(B, C, h, w), (B,), token ids (B, L) and (K, L) -> noise_pred (B, C, h, w), features (K, L, D)."""
        text = self.encode(torch.cat([captions, phrases]))  # (B + K, L, D)
        encoder_hidden_states, phrase_features = text.split([len(captions), len(phrases)])
        noise_pred = self.unet(noisy_latents, timesteps, encoder_hidden_states.to(noisy_latents.dtype)).sample
        return noise_pred, phrase_features


def train(config: TrainConfig, checkpoint: Path | None) -> None:
    last_step, micro_steps = config.max_train_steps, config.gradient_accumulation_steps
    accelerator = Accelerator(mixed_precision=config.mixed_precision, gradient_accumulation_steps=micro_steps)
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    concepts, output_dir = config.concepts(), Path(config.output_dir)
    base = config.pretrained_model_name_or_path

    # A Stable Diffusion. Frozen, and in half precision if asked: its VAE, and its UNet but for K and V.
    pipeline = load_pipeline(base, device, "fp32", config.revision, config.variant)
    tokenizer, text_encoder = pipeline.tokenizer, pipeline.text_encoder
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    vae, unet = pipeline.vae.requires_grad_(False), pipeline.unet.requires_grad_(False)
    kv = trainable_kv(unet) if config.recipe.trains_kv else {}
    half = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]
    cast_frozen([vae, unet], half)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()  # it has no dropout; checkpointing asks for the mode
    if config.uses_prior:
        wanted = (config.num_class_images, config.sample_batch_size, config.seed)
        generate_class_images(pipeline, concepts, *wanted, rank, processes)
        accelerator.wait_for_everyone()

    # What learns, all of it float32: K and V, and the modifier tokens' rows.
    tokens = [concept.modifier_token for concept in concepts]
    rows = install(text_encoder, tokenizer, tokens, [concept.initializer_token for concept in concepts]).rows
    trained = {"rows": rows, **kv}
    kv_rate, token_rate = config.learning_rates(processes)
    optimizer = torch.optim.AdamW(
        [{"params": [rows], "lr": token_rate}] + [{"params": list(kv.values()), "lr": kv_rate}] * bool(kv),
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )
    lr_scheduler = get_scheduler(
        config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=last_step
    )
    model, optimizer = accelerator.prepare(ConceptModel(text_encoder, unet), optimizer)

    # The pictures, and the phrases of the semantic preservation loss, whose class side is a constant.
    size = config.resolution or unet.config.sample_size * pipeline.vae_scale_factor
    augmentation = (size, pipeline.vae_scale_factor, config.seed)
    instances = InstanceDataset(concepts, *augmentation, config.hflip, config.noaug)
    classes = ClassDataset(concepts, *augmentation, config.num_class_images) if config.uses_prior else None
    shape = (vae.config.latent_channels, *[size // pipeline.vae_scale_factor] * 2)
    named = [concept for concept in concepts if concept.cls_token]
    modified = [f"a photo of a {c.modifier_token} {c.cls_token}" for c in named]
    phrases = tokenize(tokenizer, modified).to(device)  # (K, L)
    class_phrases = tokenize(tokenizer, [f"a photo of a {c.cls_token}" for c in named]).to(device)  # (K, L)
    eos = tokenizer.eos_token_id
    modifiers = torch.tensor([tokenizer.convert_tokens_to_ids(c.modifier_token) for c in named])
    pool = eos if config.spl_pool == "eos" else modifiers.to(device)  # the paper's, or the official code's
    if named:
        with torch.no_grad():
            class_features = feature_at(text_encoder(class_phrases).last_hidden_state, class_phrases, eos)

    def save(folder: Path) -> None:
        learned, words = dict(zip(tokens, rows, strict=True)), [concept.cls_token for concept in concepts]
        save_concept(folder, kv, learned, not config.no_safe_serialization, base, words)
        config.save(folder / "training_config.json")

    streams = [("instance", instances.instance_item)] + ([("class", classes.class_item)] if classes else [])
    for path in instances.skipped:
        accelerator.print(f"skipped {path}: not a picture")
    state = (trained, optimizer, lr_scheduler, accelerator.scaler, processes)
    done = load_state(checkpoint, *state) if checkpoint else 0
    logger = Logger(output_dir, config, resumed_at=done) if accelerator.is_main_process else None
    bar = tqdm(range(done + 1, last_step + 1), "training", last_step, initial=done, disable=logger is None)
    for step in bar:
        record: dict[str, Tensor] = {}
        for micro_step in range(micro_steps):
            # The batch. All that is random is a function of the seed and the items' numbers.
            position = (step - 1) * micro_steps + micro_step
            numbers = items_of_step(position, config.train_batch_size, rank, processes)
            batch = collate([item(number) for _, item in streams for number in numbers])
            keys = [(stream, number) for stream, _ in streams for number in numbers]
            draws = draw_noise(config.seed, keys, shape, noise_scheduler.config.num_train_timesteps)
            posterior_noise, noise, timesteps = (draw.to(device) for draw in draws)
            captions, mask = tokenize(tokenizer, batch.captions).to(device), batch.mask.to(device)
            b = len(numbers)  # instance pictures; class pictures follow them

            with accelerator.accumulate(model):
                # Noise the latents, encode the caption, predict the noise.
                latents = encode_images(vae, batch.pixels, posterior_noise)  # (B, C, h, w)
                noise = noise.to(latents.dtype)
                noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
                noise_pred, phrase_hidden = model(noisy_latents, timesteps, captions, phrases)
                target = target_of(noise_scheduler, latents, noise, timesteps)

                # L = L_denoise + λ_sp · L_spl (+ λ_prior · L_prior)
                terms = {"loss_denoise": loss_denoise(noise_pred[:b], target[:b], mask[:b])}
                loss = terms["loss_denoise"]
                if named:
                    features = feature_at(phrase_hidden, phrases, pool)  # (K, D)
                    terms["loss_spl"] = loss_spl(features, class_features)
                    loss = loss + config.lambda_spl * terms["loss_spl"]
                if classes:
                    terms["loss_prior"] = loss_prior(noise_pred[b:], target[b:])
                    loss = loss + config.prior_loss_weight * terms["loss_prior"]
                terms["loss"] = loss
                check_finite(terms, step)

                # Update the rows and the K/V, nothing else.
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained.values(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            for name, term in terms.items():
                record[name] = record.get(name, 0) + term.detach() / micro_steps
        rate = lr_scheduler.get_last_lr()[-1]
        lr_scheduler.step()

        # Log, sample, save.
        record = {name: term.item() for name, term in accelerator.reduce(record, "mean").items()}
        if logger:
            logger.log(step, record | {"lr": rate})
            bar.set_postfix({name: f"{value:.4f}" for name, value in record.items()}, refresh=False)
        if logger and config.validation_prompt and (step % config.validation_steps == 0 or step == last_step):
            folder = output_dir / "validation" / f"step-{step:05d}"
            settings = (config.validation_prompt, config.num_validation_images, config.seed)
            logger.images(step, "validation", validate(pipeline, *settings, folder))
        if logger and (step % config.checkpointing_steps == 0 or step == last_step):
            folder = output_dir / f"checkpoint-{step}"
            save(folder)
            save_state(folder, step, *state)
            remove_old_checkpoints(output_dir, step, config.checkpoints_total_limit)
        accelerator.wait_for_everyone()

    if logger:
        save(output_dir)
        logger.close()
        print(f"the concept is in {output_dir}, its log in {output_dir / 'log.jsonl'}")
    del model  # before its process group: the other way round, gloo can hang
    accelerator.end_training()


def main(argv: list[str] | None = None) -> None:
    config = parse_config(argv)
    checkpoint = check_run(config)
    if config.dry_run:
        print(describe_run(config, checkpoint))
    else:
        train(config, checkpoint)


if __name__ == "__main__":
    exit_on_user_error(main)
