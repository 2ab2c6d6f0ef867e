"""ClassDiffusion: teach Stable Diffusion a concept from a few images while its class keeps its meaning.

    L = L_denoise + λ_sp · L_spl  (+ λ_prior · L_prior + λ_mlm · L_mlm)            (arXiv 2405.17532)

`set_up` loads and attaches what learns, `objective` is the equation, `train` is the loop.
B images, C latent channels, h = w latent pixels, K concepts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.common.errors import exit_on_user_error, in_memory
from utils.config.train_config import TrainConfig, parse_with_preset

if TYPE_CHECKING:  # imported inside the functions, so that flags are answered before torch loads
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

    from utils.bases.base import BaseModel
    from utils.config.presets import Preset
    from utils.data.dataset import Batch
    from utils.data.noise import Draws
    from utils.training.run import Run, StageRun


def set_up(config: TrainConfig) -> Run:
    """Load the base and attach what learns, draw missing class images, open the data."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    from utils.bases.devices import PATIENCE
    from utils.data.latents import LatentEncoder
    from utils.data.open import open_classes, open_instances
    from utils.losses.preserve import copy_start
    from utils.losses.registry import losses_of, prepare_losses
    from utils.losses.spl import phrases_of
    from utils.measures.measures import prepare_measures
    from utils.training.averages import Averages
    from utils.training.preflight import sources_of
    from utils.training.run import Run

    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    sources, digests = sources_of(config)  # once, for the images may change, or go, while the run is at work
    base, digest, learned = load_and_attach(config, accelerator.device)
    if config.uses_prior:
        draw_class_images(config, base, accelerator)
    instances, classes = open_instances(config, base, digests), open_classes(config, base)
    losses = [loss for stage in config.stages for loss in losses_of(config, stage)]
    measured = accelerator.is_main_process
    return Run(
        config=config,
        accelerator=accelerator,
        base=base,
        digest=digest,
        sources=sources,
        learned=learned,
        start=copy_start(learned) if any(loss.start for loss in losses) else {},
        instances=instances,
        classes=classes,
        encode_images=LatentEncoder(
            base,
            config.encodes_once,
            pooled=len(instances) * (config.latent_pool or 0) + (len(classes) if classes else 0),
            fresh=0 if config.repeats or config.latent_pool else config.train_batch_size,
        ),
        phrases=phrases_of(base, config),
        prepared=prepare_losses(base, config),
        measures=prepare_measures(base, config, instances, accelerator.autocast) if measured else None,
        averages=Averages(learned, config.ema_decay) if config.ema_decay is not None else None,
    )


def load_and_attach(
    config: TrainConfig, device: torch.device
) -> tuple[BaseModel, str | None, dict[str, dict[str, nn.Parameter]]]:
    """The base with tokens and learners in it, the digest of its weights, and learner -> what it trains."""
    import torch

    from utils.bases.devices import cast_frozen
    from utils.bases.families import load_base
    from utils.bases.registry import base_row
    from utils.training.plan import attach_all

    path = base_row(config.pretrained_model_name_or_path).path
    base = load_base(path, device, config.revision, config.variant)
    digest = base.fingerprint()
    learned = attach_all(base, config)
    half = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]
    cast_frozen(base.frozen_in_half(half), half)
    if config.gradient_checkpointing or config.low_memory:
        base.save_memory(config.low_memory)
    return base, digest, learned


def draw_class_images(config: TrainConfig, base: BaseModel, accelerator: Accelerator) -> None:
    """The class images that are missing, shared among the processes; returns when all of them are there."""
    from utils.bases.registry import base_row
    from utils.data.class_images import generate_class_images

    generate_class_images(
        base.pipeline,
        config.concepts(),
        base_row(config.pretrained_model_name_or_path),
        count=config.num_class_images,
        batch_size=config.sample_batch_size,
        seed=config.seed,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    accelerator.wait_for_everyone()


def objective(run: Run, at: StageRun, batch: Batch, draws: Draws, texts: dict[str, Any]) -> dict[str, Tensor]:
    """L = L_denoise + λ_sp · L_spl (+ λ_prior · L_prior + …): noise the latents, predict the noise, compare.

    batch: instance images, then as many class images if the stage has a prior. texts: what losses compare in
    the text encoder's space besides the phrases, of `draw_texts`. Returns the terms and "loss".
    """
    from utils.losses.denoise import loss_denoise, target_of
    from utils.losses.predict import predict

    b, noise_scheduler = run.config.train_batch_size, run.base.noise_scheduler
    latents = run.encode_images(batch.pixels, draws.posterior_noise)  # (B, C, h, w), float32
    noisy_latents = noise_scheduler.add_noise(latents, draws.noise, draws.timesteps)
    target = target_of(noise_scheduler, latents, draws.noise, draws.timesteps)
    prediction = predict(run, at, noisy_latents, draws.timesteps, target, batch, texts)

    loss = loss_denoise(prediction.noise_pred[:b], target[:b], prediction.mask, run.config.recipe.channels)
    terms = {"loss_denoise": loss}
    if any(each.replaces for each in at.losses):
        terms["loss_denoise"], loss = loss.detach(), 0.0
    for each in at.losses:  # rows of LOSSES (utils/losses/registry.py): loss_spl, loss_prior, …
        weight, term = each.weight(run.config), each.of(prediction)
        terms[each.name] = term if weight else term.detach()
        loss = loss + weight * terms[each.name]
        if each.parts:
            terms |= {f"{each.name}_{name}": part for name, part in each.parts(prediction).items()}
    return terms | {"loss": loss}


def update(run: Run, at: StageRun, step: int, stop: bool) -> tuple[dict[str, float], bool]:
    """One optimizer step: batch, objective, backward, clip, update.

    Returns the terms, means over the processes, with the learning rates; and whether any process was asked to
    stop, for all of them have to.
    """
    import torch

    from utils.common.seeds import items_have_seeds
    from utils.losses.registry import check_finite
    from utils.training.run import draw_texts

    accelerator, micro_steps = run.accelerator, run.config.gradient_accumulation_steps
    record: dict[str, Tensor] = {}
    texts = draw_texts(run, at, step)
    for micro_step in range(micro_steps):
        batch, draws = at.batches((step - 1) * micro_steps + micro_step)
        with accelerator.accumulate(at.model), items_have_seeds(draws.seeds):
            terms = objective(run, at, batch, draws.to(accelerator.device), texts)
            accelerator.backward(terms["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(at.parameters, run.config.max_grad_norm)
            at.optimizer.step()
            at.optimizer.zero_grad()
            if run.averages and accelerator.sync_gradients:
                run.averages.update()
        for name, term in terms.items():
            record[name] = record.get(name, 0) + term.detach() / micro_steps
    rates = at.rates()
    at.lr_scheduler.step()
    record["stop"] = torch.tensor(float(stop), device=accelerator.device)
    means = accelerator.reduce(torch.stack(list(record.values())), "mean").tolist()  # the step's only wait
    values = dict(zip(record, means, strict=True))
    stopping = values.pop("stop") > 0
    check_finite(values, step)  # of the means, so that all processes stop; nothing of this step is saved
    return values | rates, stopping


def train(config: TrainConfig, preset: Preset, checkpoint: Path | None) -> None:
    """The stages, one after the other: update, log, sample, save. Raises SystemExit when a signal ends it."""
    from tqdm import tqdm

    from utils.measures.measures import measure_run
    from utils.training.checkpoints import remove_checkpoints
    from utils.training.interrupt import Interruption
    from utils.training.logger import Logger
    from utils.training.outputs import (
        announce,
        load_optimizer,
        load_weights,
        save_checkpoint,
        save_result,
        stop,
        validate_run,
    )
    from utils.training.run import begin

    run, output_dir = set_up(config), Path(config.output_dir)
    announce(run, preset)
    done = load_weights(run, checkpoint) if checkpoint else 0
    first_rank = run.accelerator.is_main_process
    if config.overwrite and first_rank:
        remove_checkpoints(output_dir)
    logger = Logger(output_dir, config, resumed_at=done) if first_rank else None
    bar = tqdm(total=config.max_train_steps, initial=done, desc="training", disable=not first_rank)
    with Interruption(quiet=not first_rank) as interrupted:
        for stage, first, last in config.plan():
            if done >= last:
                continue
            at = begin(run, stage, first, last)
            if done >= first:
                load_optimizer(run, at, checkpoint, first)
            for step in range(max(first, done + 1), last + 1):
                with in_memory(f"training step {step}"):
                    record, stopping = update(run, at, step, interrupted.requested)
                if logger:
                    with run.averaged():
                        drawn = validate_run(run, step, step == last, logger)
                        record |= measure_run(run, step, step == last, drawn)
                    logger.log(step, record)
                    terms = {name: f"{value:.4f}" for name, value in record.items() if name[:4] == "loss"}
                    bar.set_postfix(terms, refresh=False)
                    bar.update()
                    if step % config.checkpointing_steps == 0 or step == last or stopping:
                        save_checkpoint(run, at, step)
                run.accelerator.wait_for_everyone()
                if stopping and step < config.max_train_steps:
                    bar.close()
                    stop(run, interrupted, step)
            del at  # the model before its process group: the other way round, gloo can hang

    bar.close()
    if logger:
        save_result(run, output_dir)
        logger.close()
        print(f"the concept is in {output_dir}, its log in {output_dir / 'log.jsonl'}")
    run.accelerator.end_training()


def main(argv: list[str] | None = None) -> None:
    config, preset = parse_with_preset(argv)
    from utils.bases.pretrained import check_named_base

    check_named_base(config.pretrained_model_name_or_path, config.revision, config.variant)
    from utils.training.lock import lock_of_run
    from utils.training.plan import describe_run
    from utils.training.preflight import check_run

    checkpoint = check_run(config)
    if config.dry_run:
        print(describe_run(config, preset, checkpoint))
        return
    with lock_of_run(config.output_dir), in_memory("setting up or saving the run", config.needs_less):
        train(config, preset, checkpoint)


if __name__ == "__main__":
    exit_on_user_error(main)
